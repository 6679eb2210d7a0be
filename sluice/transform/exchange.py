"""Both ways at once: a clip's pictures out at their pace, the platform's pictures in and into the result.

The first picture goes alone. The rest waits until the session has begun and every change of parameters is
accepted, so that no picture passes the time at which something was to change. Every wait has a bound: each by
itself, and all together by `STALL_S` without a byte in either direction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import av

from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer, unwrap
from sluice.client import ApiError, Delivery, Session, SluiceClient, Stream, UnreachableError
from sluice.transform.arguments import Change
from sluice.transform.display import Display
from sluice.transform.result import Result
from sluice.transform.source import Picture, Source
from sluice.transform.tally import Tally

STALL_S: Final = 60.0
POLL_S: Final = 0.1  # until the session has begun
REPORT_S: Final = 1.0  # then
WARM_UP_S: Final = 5.0  # live: a pipeline that shows nothing for so long may need more pictures than one
LAST_WORD_S: Final = 5.0  # when the play stream has ended, for the publisher's answer that says why
AHEAD: Final = 16  # encoded pictures that wait to be sent
SENT_BITS_PER_S: Final = 40e6  # the platform cuts a publisher off above 50 Mbit/s, also one that is only fast
ORDERLY: Final = frozenset({None, "", "input_ended"})  # what a session's end reason is when all went well

T = TypeVar("T")


class RunFailedError(Exception):
    """It began and did not come to its end. `reason` is the session's, where that is why."""

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was asked for; `output` is where the result is made, under whatever name it ends up."""

    clip: Path
    output: Path
    container: str
    pipeline: str | None
    params: dict[str, Any]
    changes: tuple[Change, ...]
    realtime: bool

    @property
    def delivery(self) -> Delivery:
        return "live" if self.realtime else "complete"


def early_end(session: Session) -> RunFailedError | None:
    """What to say of how `session` ended; None if it ended as it should, or did not end."""
    if session.end_reason in ORDERLY:
        return None
    message = f": {session.end_message}" if session.end_message else ""
    return RunFailedError(
        f"the session ended early: {session.end_reason}{message}", reason=session.end_reason or ""
    )


class Worker:
    """One thread for what blocks, so that each libav object has one user at a time."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(wait=True)  # which takes as long as one picture does

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)


class Exchange:
    """One stream's publisher and viewer. What it found out so far can be read at any time."""

    def __init__(
        self, job: Job, *, source: Source, client: SluiceClient, stream: Stream, display: Display
    ) -> None:
        self._job = job
        self._source = source
        self._client = client
        self._stream = stream
        self._display = display
        self.session = ""
        self.tally = Tally()
        self.cost_micro: int | None = None
        self.currency: str | None = None
        self._now_s = asyncio.get_running_loop().time
        self._moved_s = self._now_s()
        self._running = False  # the session has a runner
        self._open = asyncio.Event()  # and everything that was to be said before is accepted
        self._first_returned = asyncio.Event()
        self._ready: asyncio.Queue[Picture | None] = asyncio.Queue(AHEAD)
        self._room_at_s = 0.0  # when the bit rate allows the next picture
        self._zero_s: float | None = None  # live: when the clip's time 0 is
        self._last_pts = ORIGIN_TICKS - 1

    async def run(self, result: Result, writing: Worker) -> None:
        """Until both sides have ended. Raises ApiError, UnreachableError, RunFailedError."""
        try:
            async with asyncio.TaskGroup() as group:
                publishing = group.create_task(self._publish())
                watching = group.create_task(self._watch(publishing, result, writing))
                beside = [group.create_task(work) for work in (self._read(), self._guide(), self._guard())]
                await asyncio.wait({publishing, watching})
                for task in beside:
                    task.cancel()
        except ExceptionGroup as errors:
            known, bugs = errors.split((ApiError, UnreachableError, RunFailedError))
            if known is None or bugs is not None:
                raise
            raise known.exceptions[0] from None  # the first; what the others met came of it

    # --- out

    async def _read(self) -> None:
        pictures = self._source.pictures()
        with Worker() as reading:
            picture: Picture | None = None
            while True:
                try:
                    picture = await reading(next, pictures, None)
                except av.FFmpegError as error:
                    raise RunFailedError(f"a picture of the clip cannot be encoded: {error}") from error
                await self._ready.put(picture)
                if picture is None:
                    return

    async def _publish(self) -> None:
        try:
            async with aclosing(self._chunks()) as chunks:
                self.session = await self._client.publish(self._stream.publish_url, chunks)
        except ApiError as error:
            if self._running and error.status != 402:
                raise RunFailedError(
                    f"the session ended early: {error.message} ({error.code})", reason=error.reason.lower()
                ) from error
            raise
        except UnreachableError as error:
            # The answer is lost when the server resets a connection into which we still write.
            raise (await self._early_end() or error) from error

    async def _early_end(self) -> RunFailedError | None:
        """What the session's record says of its end, if it ended by now."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                while self.session:
                    with suppress(ApiError, UnreachableError):
                        session = await self._client.session(self.session)
                        if session.phase == "ended":
                            return early_end(session)
                    await asyncio.sleep(POLL_S)
        return None

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        muxer = Muxer()
        first = True
        while (picture := await self._ready.get()) is not None:
            unit = picture.unit
            if not first:
                await self._open.wait()
                await self._room(len(unit.data))
                if self._job.realtime:
                    await self._due(unit.pts)
            first = False
            pts = ORIGIN_TICKS + unit.pts
            tables = muxer.begin_segment() if unit.keyframe else b""
            data = tables + muxer.write(replace(unit, pts=pts, dts=pts))
            self._moved_s = self._now_s()
            self.tally.send(pts, self._moved_s, repeated=picture.repeated)
            yield data

    async def _room(self, size: int) -> None:
        now_s = self._now_s()
        self._room_at_s = max(self._room_at_s, now_s) + size * 8 / SENT_BITS_PER_S
        await asyncio.sleep(max(0.0, self._room_at_s - now_s - 1.0))  # a second's worth may go at once

    async def _due(self, ticks: int) -> None:
        """Wait until the clip's clock, which starts when the pipeline is warm, shows `ticks`."""
        if self._zero_s is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(WARM_UP_S):
                    await self._first_returned.wait()
            self._zero_s = self._now_s() - ticks / CLOCK_HZ
        await asyncio.sleep(max(0.0, self._zero_s + ticks / CLOCK_HZ - self._now_s()))

    # --- in

    async def _watch(self, publishing: asyncio.Task[None], result: Result, writing: Worker) -> None:
        demuxer = Demuxer()
        broken: Exception | None = None
        try:
            async with aclosing(self._client.watch(self._stream.play_url)) as chunks:
                async for chunk in chunks:
                    self._moved_s = self._now_s()
                    for unit in demuxer.feed(chunk):
                        await self._take(unit, result, writing)
            for unit in demuxer.end_segment():
                await self._take(unit, result, writing)
        except (ApiError, UnreachableError) as error:
            broken = error
        if not publishing.done():
            await asyncio.wait({publishing}, timeout=LAST_WORD_S)
        if publishing.done() and (publishing.cancelled() or publishing.exception() is not None):
            return  # it knows better why
        if broken is not None:
            raise RunFailedError(f"the result cannot be watched: {broken}") from broken
        if not publishing.done():
            raise RunFailedError("the platform ended the result before the clip had ended")

    async def _take(self, unit: AccessUnit, result: Result, writing: Worker) -> None:
        pts = unwrap(self._last_pts, unit.pts)
        if unit.codec is not Codec.H264 or pts <= self._last_pts:
            return
        if not self._first_returned.is_set() and not unit.keyframe:
            return  # nothing can be decoded before it
        self._last_pts = pts
        self._first_returned.set()
        if not self.tally.receive(pts, self._now_s()):
            return
        ticks = pts - ORIGIN_TICKS
        try:
            await writing(result.add, replace(unit, pts=ticks, dts=ticks))
        except (av.FFmpegError, OSError) as error:
            raise RunFailedError(f"the output cannot be written: {error}") from error
        self._display.show(
            media_s=ticks / CLOCK_HZ,
            fps=self.tally.fps_now,
            latency_ms=self.tally.latency_ms,
            cost_micro=self.cost_micro,
            currency=self.currency,
        )

    # --- beside

    async def _guide(self) -> None:
        """Say what is to change as soon as the session can hear it, then look after what it costs."""
        await self._begun()
        for change in self._job.changes:
            await self._client.update_stream(self._stream.id, change.params, apply_at_ms=change.at_ms)
        self._open.set()
        while True:
            with suppress(ApiError, UnreachableError):
                if self.currency is None:
                    self.currency = str((await self._client.prices())["currency"])
                session = await self._client.session(self.session)
                self.cost_micro = session.cost_micro if session.cost_micro is not None else self.cost_micro
            await asyncio.sleep(REPORT_S)

    async def _begun(self) -> None:
        while True:
            session = None
            try:
                session = await self._client.status(self._stream.id)
            except (ApiError, UnreachableError) as error:
                if isinstance(error, ApiError) and error.status < 500:
                    raise
            if session is not None and not self.session:
                self.session = session.id
                self._display.say(f"session {session.id}")
            if session is not None and session.phase == "ended":
                await asyncio.Event().wait()  # the publisher's answer, which says why, is on its way
            if session is not None and session.phase != "allocating":
                self._running = True
                return
            await asyncio.sleep(POLL_S)

    async def _guard(self) -> None:
        while True:
            left_s = self._moved_s + STALL_S - self._now_s()
            if left_s <= 0:
                raise RunFailedError(f"nothing came or went for {STALL_S:g} s")
            await asyncio.sleep(left_s)
