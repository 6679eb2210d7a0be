"""An input into a stream until one of them ends, over as many connections as that takes.

The rule it keeps: a connection that broke is made again within the platform's grace, and each begins with a
key frame; what the platform refused is not tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final

from services.common.errors import InvalidError
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from sluice.client import ApiError, Session, SluiceClient, Stream, UnreachableError
from sluice.live.display import Display
from sluice.live.inputs import Input, Kind, units_of
from sluice.live.outgoing import Outgoing
from sluice.transform.exchange import RunFailedError, Worker

GRACE_S: Final = 30.0  # what the platform waits for a publisher, unless it is set otherwise
AGAIN_S: Final = (0.2, 0.5, 1.0, 2.0)  # before each attempt; the last one counts for all that follow
SETTLED_S: Final = 5.0  # a connection that lasted so long was a good one
LATE_S: Final = 2.0  # what comes so long after its time was not encoded, or read, fast enough
REPORT_S: Final = 1.0
LAST_WORD_S: Final = 10.0  # for the session's end after ours
POLL_S: Final = 0.2
# Ends that somebody wanted: the publisher is told of them by an error of that name.
ORDERLY: Final = frozenset({"input_ended", "stopped", "stream_deleted", "max_duration"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How it went."""

    stream: str
    session: str
    end_reason: str | None
    frames_sent: int
    seconds: float
    connections: int
    fps_out: float | None
    latency_ms: float | None
    cost_micro: int | None


class Publication:
    """One run of `sluice publish`."""

    def __init__(
        self, source: Input, *, loop: bool, client: SluiceClient, stream: Stream, display: Display
    ) -> None:
        self._source = source
        self._loop = loop
        self._client = client
        self._stream = stream
        self._display = display
        self._waits = source.place.kind is not Kind.LIVE
        self._outgoing = Outgoing(waits=self._waits)
        self._now_s = asyncio.get_running_loop().time
        self._began_s = self._now_s()
        self._stopped = asyncio.Event()
        self._late = False
        self._sent = 0
        self._connections = 0
        self._connected_s = 0.0  # when the connection of now sent its first unit
        self._session: Session | None = None

    def stop(self) -> None:
        """End in order: what was sent still comes out."""
        self._stopped.set()
        self._outgoing.stop()

    async def run(self) -> Report:
        """Until the input or the stream ends.

        Raises ApiError, UnreachableError, RunFailedError, and InvalidError for an input without pictures.
        """
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(self._read()), group.create_task(self._report())]
                reason = await self._publish()
                self._outgoing.stop()
                for task in beside:
                    task.cancel()
        except ExceptionGroup as errors:
            known, bugs = errors.split((ApiError, UnreachableError, RunFailedError, InvalidError))
            if known is None or bugs is not None:
                raise
            raise known.exceptions[0] from None
        return await self._ended(reason)

    # --- the input

    async def _read(self) -> None:
        units = units_of(self._source, loop=self._loop)
        with Worker() as reading:
            while not self._outgoing.ended:
                unit = await reading(next, units, None)
                if unit is None:
                    self._outgoing.end()
                    return
                if not await self._outgoing.put(unit):
                    self._source.want_keyframe()

    # --- the connections

    async def _publish(self) -> str | None:
        """The reason of the session's end, if the platform said one."""
        broken_s: float | None = None
        attempt = 0
        while True:
            try:
                async with aclosing(self._chunks()) as chunks:
                    await self._client.publish(self._stream.publish_url, chunks)
            except ApiError as error:
                if error.reason.lower() in ORDERLY and self._connections:
                    return error.reason.lower()
                if broken_s is None or error.reason != "STREAM_BUSY":
                    raise
                failure: Exception = error  # the platform has not noticed yet that we had gone
            except UnreachableError as error:
                if not self._connections:
                    raise
                failure = error
            else:
                return None
            now_s = self._now_s()
            if self._connected_s and now_s - self._connected_s > SETTLED_S:
                broken_s, attempt = None, 0
            self._connected_s = 0.0
            broken_s = now_s if broken_s is None else broken_s
            if now_s - broken_s > GRACE_S:
                raise failure
            self._display.say(f"{failure}; trying again")
            await self._due(now_s + AGAIN_S[min(attempt, len(AGAIN_S) - 1)])
            attempt += 1
            if self._stopped.is_set():
                return None

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        """One connection's transport stream, from a key frame on."""
        muxer = Muxer(audio=self._source.sound)
        self._source.want_keyframe()
        zero_s: float | None = None
        while (unit := await self._outgoing.get()) is not None:
            begins = unit.codec is Codec.H264 and unit.keyframe
            if zero_s is None:
                if not begins:
                    continue
                zero_s = self._now_s() - unit.dts / CLOCK_HZ
                self._connected_s = self._now_s()
                self._connections += 1
            if self._waits:
                await self._due(zero_s + unit.dts / CLOCK_HZ)
                self._look_at_the_clock(zero_s + unit.dts / CLOCK_HZ)
            yield (muxer.begin_segment() if begins else b"") + muxer.write(_placed(unit))
            self._sent += unit.codec is Codec.H264

    async def _due(self, at_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, at_s - self._now_s())):
                await self._stopped.wait()

    def _look_at_the_clock(self, due_s: float) -> None:
        if not self._late and self._now_s() - due_s > LATE_S:
            self._late = True
            self._display.say(
                f"{self._source.place.name} is {LATE_S:g} s late: this machine is too slow for it"
            )

    # --- beside

    async def _report(self) -> None:
        currency: str | None = None
        while True:
            with suppress(ApiError, UnreachableError):
                if currency is None:
                    currency = str((await self._client.prices())["currency"])
                self._session = await self._client.status(self._stream.id) or self._session
                if self._session is not None:
                    self._display.show(self._session, self._now_s() - self._began_s, currency)
            await asyncio.sleep(REPORT_S)

    async def _ended(self, reason: str | None) -> Report:
        """Wait for the session's end, whose reason is the platform's word. Raises RunFailedError."""
        last = self._session
        if self._connections:
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_S):
                    while last is None or last.phase != "ended":
                        with suppress(ApiError, UnreachableError):
                            last = await self._client.status(self._stream.id) or last
                        await asyncio.sleep(POLL_S)
        running = self._session
        reason = (last.end_reason if last is not None else None) or reason
        if reason is not None and reason not in ORDERLY:
            message = f": {last.end_message}" if last is not None and last.end_message else ""
            raise RunFailedError(f"the session ended early: {reason}{message}", reason=reason)
        return Report(
            stream=self._stream.id,
            session="" if last is None else last.id,
            end_reason=reason,
            frames_sent=self._sent,
            seconds=round(self._now_s() - self._began_s, 1),
            connections=self._connections,
            fps_out=running.fps_out if running is not None else None,
            latency_ms=running.latency_ms if running is not None else None,
            cost_micro=running.cost_micro if running is not None else None,
        )


def _placed(unit: AccessUnit) -> AccessUnit:
    return replace(unit, pts=unit.pts + ORIGIN_TICKS, dts=unit.dts + ORIGIN_TICKS)
