"""One watched stream as HLS: reads its sessions, one after the other, and answers those who wait for more.

The rule it keeps: no request waits without a bound, and there are only so many of them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from services.common.errors import NotFoundError, RateLimitedError, UnavailableError
from services.common.latest import Latest
from services.common.media.mpegts import AccessUnit, Codec
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.session import BridgeSession
from services.ingest.seats import Seat
from services.ingest.settings import IngestSettings
from services.ingest.transports.hls import playlist
from services.ingest.transports.hls.aac import AsAac
from services.ingest.transports.hls.audience import Audience
from services.ingest.transports.hls.playlist import MediaName, Rendition, Wanted
from services.ingest.transports.hls.shelf import Part, Shelf
from services.ingest.transports.hls.slicer import Slicer

LOOK_S: Final = 0.5  # how often it is looked whether anybody still watches, or the pictures stopped
STALL_S: Final = 1.0  # a part that got nothing for so long is shown as it is
QUIET_TARGETS: Final = 5  # a viewer asks at least once in a target duration, as long as there is one
BLOCK_TARGETS: Final = 3  # RFC 8216bis §6.2.5.2 recommends to give up then
WAITING_PER_VIEWER: Final = 2  # a playlist, and a part that was hinted at


class Packager:
    """`run` is its task; everything else is called from the same event loop."""

    def __init__(
        self,
        stream: str,
        tenant: str,
        *,
        hub: Hub,
        settings: IngestSettings,
        now_s: Callable[[], float] = time.monotonic,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self.stream = stream
        self.tenant = tenant
        self._hub = hub
        self._settings = settings
        self._now_s = now_s
        self._unix_s = unix_s
        self.token = secrets.token_hex(3)  # or a cache could answer with what an earlier one made
        self.shelf = Shelf(
            first_number=int(unix_s()),  # above an earlier one's, wherever that ran
            target_s=settings.hls_target_s,
            most_bytes=settings.hls_buffer_mb * 2**20,
        )
        self.audience = Audience(QUIET_TARGETS * settings.hls_target_s)
        self.closed = False
        self._session: BridgeSession | None = None
        self._slicer: Slicer | None = None
        self._written_s = now_s()
        self._asked_s = now_s()
        self._ended_s: float | None = None
        self._waiting = 0
        self._more: Latest[None] = Latest(None)  # a part or a segment is whole, or all of it is over
        self._grown: Latest[None] = Latest(None)  # by a unit

    # --- what is asked

    async def media_playlist(self, wanted: Wanted) -> str:
        """The playlist as soon as it has what is `wanted`.

        Raises InvalidError, NotFoundError when no picture comes, UnavailableError when there is nothing new
        in time, RateLimitedError when too many wait.
        """
        self._touch()
        await self._begun()
        wanted = wanted.checked(self.shelf)
        if not wanted.met(self.shelf):
            try:
                async with asyncio.timeout(BLOCK_TARGETS * self.shelf.target_s):
                    await self._until(lambda: wanted.met(self.shelf))
            except TimeoutError:
                raise UnavailableError(
                    "the stream stands still", reason="NOTHING_NEW", retry_after_s=self.shelf.target_s
                ) from None
        return playlist.media(self.shelf, self.token)

    async def rendition(self) -> Rendition:
        """What there is to play. Raises NotFoundError when no picture comes."""
        self._touch()
        await self._begun(again=True)
        assert self._slicer is not None
        return self._slicer.rendition()

    async def parts(self, name: MediaName) -> list[Part]:
        """The parts of a file, the last of which may still grow; a part that is next is waited for.

        Raises NotFoundError for what there is not, not any more, or will not be.
        """
        self._touch()
        if name.token == self.token:
            if name.part is None:
                segment = self.shelf.segment(name.number)
                if segment is not None and segment.done:
                    return segment.parts
            else:
                part = await self._part(name.number, name.part)
                if part is not None:
                    return [part]
        raise NotFoundError("there is no such segment (any more)", reason="SEGMENT_NOT_FOUND")

    async def _part(self, number: int, index: int) -> Part | None:
        part = self.shelf.part(number, index)
        if part is None and self.shelf.may_come(number, index):
            try:
                async with asyncio.timeout(BLOCK_TARGETS * self.shelf.target_s):
                    await self._until(
                        lambda: bool(self.shelf.part(number, index)) or not self.shelf.may_come(number, index)
                    )
            except TimeoutError:
                return None
            part = self.shelf.part(number, index)
        return part

    async def chunks(self, parts: list[Part]) -> AsyncGenerator[bytes]:
        """The bytes of `parts` as they grow, and word to the bridge of how far they were taken."""
        for part in parts:
            sent = 0
            while not part.done or sent < len(part.chunks):
                version = self._grown.version
                if sent < len(part.chunks):
                    data = b"".join(part.chunks[sent:])
                    sent = len(part.chunks)
                    yield data
                elif self.closed:
                    return
                else:  # `_look` ends a part that does not grow
                    await self._grown.newer_than(version)
            if self._session is not None and not self.shelf.ended:
                self._session.seen(part.through_pts)

    async def _begun(self, *, again: bool = False) -> None:
        """Wait for something to play: at first, or `again` after a session has ended."""
        if self._playable(again=again):
            return
        try:
            async with asyncio.timeout(self._settings.hls_wait_s):
                await self._until(lambda: self._playable(again=again) or self.closed)
        except TimeoutError:
            pass
        if not self._playable(again=again):
            raise NotFoundError("no picture of this stream comes now", reason="NOT_LIVE", retry_after_s=2)

    def _playable(self, *, again: bool) -> bool:
        return bool(self.shelf.listed) and not (again and self.shelf.ended)

    async def _until(self, there: Callable[[], bool]) -> None:
        with self._place():
            while not there():
                await self._more.newer_than(self._more.version)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._waiting >= WAITING_PER_VIEWER * self._settings.max_viewers:
            raise RateLimitedError(
                "too many requests wait for this stream", reason="TOO_MANY_WAITING", retry_after_s=1
            )
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def watched_by(self, viewer: str, take: Callable[[], Seat]) -> None:
        """Count a viewer, by whatever name it asks. Raises what `take` does."""
        self.audience.asked(viewer, take, self._now_s())

    def _touch(self) -> None:
        self._asked_s = self._now_s()

    # --- what is made

    async def run(self) -> None:
        """Until nobody has asked for anything for a while, or nothing came after the last session's end."""
        packaging = asyncio.ensure_future(self._package_all())
        try:
            while not (packaging.done() or self._forgotten()):
                await asyncio.wait({packaging}, timeout=LOOK_S)
                self._look()
            if packaging.done():
                packaging.result()  # it never returns: this raises what broke it
        finally:
            packaging.cancel()
            await asyncio.wait({packaging})
            self._end()
            self.closed = True
            self._tell()
            self.audience.close()

    def _forgotten(self) -> bool:
        idle_s = self._settings.hls_idle_s
        now_s = self._now_s()
        return now_s - self._asked_s > idle_s or (
            self._ended_s is not None and now_s - self._ended_s > idle_s
        )

    def _look(self) -> None:
        self.audience.forget_quiet(self._now_s())
        if self._slicer is not None and self._now_s() - self._written_s > STALL_S:
            self._slicer.pause()
            self._tell()

    async def _package_all(self) -> None:
        while True:
            session = await self._hub.wait_for(self.stream, LOOK_S)
            if session is None:
                continue
            if session is self._session:
                await asyncio.sleep(LOOK_S)  # it is on its way out
                continue
            self._ended_s = None
            await self._package(session)
            self._end()
            self._tell()

    async def _package(self, session: BridgeSession) -> None:
        self._session = session
        slicer = Slicer(self.shelf, ask_keyframe=session.ask_keyframe, resumes=bool(self.shelf.listed))
        self._slicer = slicer
        aac = AsAac()
        tap = session.tap()
        session.ask_keyframe()
        try:
            async for unit in tap:
                self._written_s = self._now_s()
                for each in [unit] if unit.codec is Codec.H264 else aac.convert(unit):
                    self._write(slicer, each, sound=session.sound is not None)
        finally:
            tap.close()

    def _write(self, slicer: Slicer, unit: AccessUnit, *, sound: bool) -> None:
        before = self.shelf.next_number, self.shelf.next_part
        slicer.write(unit, sound=sound, unix_s=self._unix_s())
        if (self.shelf.next_number, self.shelf.next_part) != before:
            self._more.set(None)
        self._grown.set(None)

    def _end(self) -> None:
        if self._slicer is not None:
            self._slicer.stop()
        self.shelf.end()
        self._ended_s = self._now_s()

    def _tell(self) -> None:
        self._more.set(None)
        self._grown.set(None)
