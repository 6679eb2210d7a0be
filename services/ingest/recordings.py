"""Recordings of what sessions put out: bounded files without a name, so that none outlives its process.

While a session runs its units are written one after the other as they are; MP4 is made of them when it is
asked for, without decoding anything.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import structlog
from prometheus_client import Counter

from services.common.errors import ExhaustedError, NotFoundError, UnavailableError
from services.common.lifecycle import Bulkhead
from services.common.media.mpegts import AccessUnit
from services.common.telemetry import report_bug
from services.ingest.bridge.session import BridgeSession
from services.ingest.film import Reel, film_of, packed
from services.ingest.settings import IngestSettings

log = structlog.get_logger()
RECORDINGS: Final = Counter("sluice_recordings_total", "Recordings by how they ended.", ["outcome"])
WRITE_BYTES: Final = 256 * 1024  # at once, in a thread: the disk may be slow
STOP_S: Final = 10.0  # how long the last write may take
FILMS: Final = 2  # at once; each is a pass over a whole file
FILM_WAIT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Film:
    """A finished MP4. `descriptor` is the reader's own, who closes it."""

    descriptor: int
    name: str


class Recordings:
    """One recording a stream, of its newest session; kept for a while after its end."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._tasks = Bulkhead(_failed)
        self._by_stream: dict[str, Recording] = {}
        self._count = 0
        self._making = asyncio.Semaphore(FILMS)

    async def __aenter__(self) -> Recordings:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def __len__(self) -> int:
        return len(self._by_stream)

    def start(self, session: BridgeSession) -> bool:
        """Record from the next key frame on. False: that is done already. Raises ExhaustedError."""
        stream = session.identity.stream
        before = self._by_stream.get(stream)
        if before is not None and not before.ended.is_set():
            return False
        if before is not None:
            self._forget(stream)
        elif len(self._by_stream) >= self._settings.max_recordings:
            self._make_room()
        self._count += 1
        recording = Recording(f"recording-{self._count}", session, self._settings)
        self._by_stream[stream] = recording
        self._tasks.start(recording.key, self._keep(stream, recording))
        return True

    def _make_room(self) -> None:
        over = [stream for stream, recording in self._by_stream.items() if recording.ended.is_set()]
        if not over:
            raise ExhaustedError(
                f"at most {self._settings.max_recordings} recordings at once",
                reason="TOO_MANY_RECORDINGS",
                retry_after_s=30,
            )
        self._forget(over[0])

    def _forget(self, stream: str) -> None:
        recording = self._by_stream.pop(stream)
        self._tasks.cancel(recording.key)
        recording.close()

    async def _keep(self, stream: str, recording: Recording) -> None:
        try:
            await recording.run()
            await asyncio.sleep(self._settings.recording_keep_s)
        finally:
            recording.close()
            if self._by_stream.get(stream) is recording:
                del self._by_stream[stream]

    def of(self, stream: str, tenant: str) -> Recording:
        """The stream's recording. Raises NotFoundError: it has none, or it is another tenant's."""
        recording = self._by_stream.get(stream)
        if recording is None or recording.tenant != tenant:
            raise NotFoundError("there is no recording of this session", reason="RECORDING_NOT_FOUND")
        return recording

    async def film(self, stream: str, tenant: str) -> Film:
        """What was recorded so far, as MP4. Raises NotFoundError, also when nothing came yet."""
        recording = self.of(stream, tenant)
        try:
            async with asyncio.timeout(FILM_WAIT_S), self._making:
                return await recording.film()
        except TimeoutError:
            raise UnavailableError(
                "too many recordings are fetched at once", reason="RECORDER_BUSY", retry_after_s=5
            ) from None


def _failed(key: str, error: Exception) -> None:
    report_bug("recording", error, stream=key)


class Recording:
    """Of one session, from its start to its stop, the session's end or the largest size."""

    def __init__(self, key: str, session: BridgeSession, settings: IngestSettings) -> None:
        self.key = key
        self.tenant = session.identity.tenant
        self.ended = asyncio.Event()
        self.bytes = 0
        self._session = session
        self._directory = settings.recording_dir or None
        self._most_bytes = settings.recording_max_mb * 1_000_000
        self._tap = session.tap(stills=False)  # a film has one kind of pictures
        session.ask_keyframe()
        self._in_turn, self._filming = asyncio.Lock(), asyncio.Lock()
        self._reel = Reel()
        self._waiting = bytearray()
        self._written = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - `close` closes it
        self._film: int | None = None
        self._began = datetime.now(UTC)
        self._stopped = self._forgotten = False

    async def run(self) -> None:
        """Record until somebody or something ends it."""
        outcome = "session_ended"
        try:
            async for unit in self._tap:
                if not self._take(unit):
                    outcome = "full"
                    break
                if len(self._waiting) >= WRITE_BYTES:
                    await self._write()
            await self._write()
            outcome = "stopped" if self._stopped else outcome
        except OSError as error:
            outcome = "disk"
            log.warning("recording ends: the disk", session=self._session.identity.session, error=str(error))
        finally:
            self._tap.close()
            self.ended.set()
            RECORDINGS.labels(outcome).inc()

    async def stop(self) -> bool:
        """False: it had ended already. Returns when everything is written."""
        if self.ended.is_set() or self._stopped:
            return False
        self._stopped = True
        self._tap.close()
        try:
            async with asyncio.timeout(STOP_S):
                await self.ended.wait()
        except TimeoutError:
            raise UnavailableError("the disk takes too long", reason="RECORDER_BUSY") from None
        return True

    def _take(self, unit: AccessUnit) -> bool:
        """False: there is no room for it."""
        if self.bytes + len(self._waiting) + len(unit.data) > self._most_bytes:
            return False
        self._reel.note(unit)
        self._waiting += packed(unit)
        return True

    async def _write(self) -> None:
        async with self._in_turn:
            data, self._waiting = self._waiting, bytearray()
            await asyncio.to_thread(self._append, data)
            self.bytes += len(data)

    def _append(self, data: bytearray) -> None:
        self._written.write(data)
        self._written.flush()

    async def film(self) -> Film:
        """Make an MP4 of it. One that has ended is made once, and then all that is kept."""
        name = f"recording-{self._began:%Y%m%d_%H%M%S}.mp4"
        async with self._filming:
            if self._film is None:
                made, last = await self._make()
                if self._forgotten or not last:
                    return Film(made, name)
                self._film = made
                self._written.close()
            return Film(os.dup(self._film), name)

    async def _make(self) -> tuple[int, bool]:
        """A film of what there is, and whether there will be no more."""
        last = self.ended.is_set()
        if not last and self._waiting:
            await self._write()
        if not self.bytes or self._forgotten:
            raise NotFoundError("no picture has been recorded yet", reason="RECORDING_EMPTY")
        source = os.dup(self._written.fileno())
        return await asyncio.to_thread(film_of, source, self.bytes, self._reel, self._directory), last

    def close(self) -> None:
        """Forget it; who reads it may go on. Again is harmless."""
        self._forgotten = True
        self._tap.close()
        self.ended.set()
        self._written.close()
        if self._film is not None:
            os.close(self._film)
            self._film = None
