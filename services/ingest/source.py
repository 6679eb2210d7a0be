"""A publisher's media as access units, whatever it came by, with the checks that a stranger's media need."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Final

from prometheus_client import Counter

from services.common.errors import InvalidError, SluiceError, TooLargeError
from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import AccessUnit, Codec, Demuxer

DAMAGE: Final = Counter("sluice_input_damage_total", "What publishers sent damaged, by kind.", ["kind"])
PREFACE_BYTES: Final = 8 * 2**20  # the most that is read before there must have been a picture
RATE_WINDOW_S: Final = 5.0
HOLD_S: Final = 2.0  # all that comes in a start without a wait
PUSHED_UNITS: Final = 512  # what a transport may push ahead of a session that starts: seconds of it
PUSHED_BYTES: Final = 16 * 2**20


class PublisherVanishedError(Exception):
    """The connection broke, as opposed to the orderly end of a source."""


class _DoneError(Exception):
    """The publisher is done: what a pushed source ends with in order."""


class Source(ABC):
    """What `Publishing` feeds a session from. Iterating gives lists of units until the publisher is done.

    Raises PublisherVanishedError when the connection broke, TooLargeError above the allowed bitrate.
    """

    arrived_s: float  # when the newest bytes were read, on `time.monotonic`

    @property
    @abstractmethod
    def streams(self) -> tuple[Codec, ...]:
        """What the publisher announced so far."""

    @abstractmethod
    async def first_picture(self) -> list[AccessUnit]:
        """Read up to the first whole key frame. Raises InvalidError that says what was missing."""

    @abstractmethod
    async def hold(self, first: list[AccessUnit]) -> None:
        """Take `first` back, and keep what comes after it while its session waits for a runner.

        After `HOLD_S` only the newest key frame and what follows is kept, for nobody wants the past. Returns
        when the publisher is done, raises as iterating does; may be cancelled, and iterated then.
        """

    @abstractmethod
    def __aiter__(self) -> AsyncIterator[list[AccessUnit]]: ...

    def close(self) -> None:  # noqa: B027 - most sources have nothing to close or to count
        """Add what had to be thrown away to the process's counters: once, when the source is over."""

    def ask_keyframe(self) -> None:  # noqa: B027 - most protocols cannot
        """Ask the publisher for a key frame soon, where its protocol can."""


class Speed:
    """The bitrate of a source over a few seconds. Raises TooLargeError above the limit; None is no limit."""

    def __init__(self, fastest_mbps: float | None) -> None:
        self._fastest_mbps = fastest_mbps
        self._bytes = 0
        self._from_s = asyncio.get_running_loop().time()

    def count(self, size: int) -> None:
        if self._fastest_mbps is None:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - self._from_s > RATE_WINDOW_S:
            self._from_s, self._bytes = now_s, 0
        self._bytes += size
        if self._bytes * 8 / 1e6 > self._fastest_mbps * RATE_WINDOW_S:
            raise TooLargeError(
                f"more than {self._fastest_mbps:g} Mbit/s", reason="BITRATE_TOO_HIGH", field="body"
            )


class TsSource(Source):
    """A publisher's bytes of MPEG-TS."""

    def __init__(
        self, body: AsyncIterator[bytes], *, first_within_s: float, fastest_mbps: float | None
    ) -> None:
        self._body = body
        self._first_within_s = first_within_s
        self._speed = Speed(fastest_mbps)
        self._paced = fastest_mbps is None  # it is held back, and nothing of it may be lost
        self._demuxer = Demuxer()
        self._held: list[AccessUnit] = []
        self._reading: asyncio.Future[bytes | None] | None = None  # begun while it was held
        self.arrived_s = time.monotonic()

    @property
    def streams(self) -> tuple[Codec, ...]:
        """What the publisher's tables list so far."""
        return self._demuxer.streams

    def close(self) -> None:
        for kind, count in asdict(self._demuxer.lost).items():
            DAMAGE.labels(kind).inc(count)
        if self._reading is not None and not self._reading.cancel() and not self._reading.cancelled():
            self._reading.exception()  # nobody will ask for it: the session did not start

    async def hold(self, first: list[AccessUnit]) -> None:
        self._held = first
        read = 0
        until_s = asyncio.get_running_loop().time() + HOLD_S
        while not self._paced or read < PREFACE_BYTES:
            # A generator that is cancelled in its wait is over: ours is left, and what it waits for is kept.
            self._reading = self._reading or asyncio.ensure_future(anext(self._body, None))
            chunk = await asyncio.shield(self._reading)
            if chunk is None:
                return
            self._reading = None
            read += len(chunk)
            self._held += self._units(chunk)
            if not self._paced and asyncio.get_running_loop().time() > until_s:
                self._held = newest(self._held)

    async def first_picture(self) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        read = 0
        try:
            async with asyncio.timeout(self._first_within_s):
                async for chunk in self._body:
                    read += len(chunk)
                    units += self._demuxer.feed(chunk)
                    demand_h264(self._demuxer.streams)
                    if _has_picture(units):
                        return units
                    if read > PREFACE_BYTES:
                        break
        except TimeoutError:
            raise _no_picture(f"within {self._first_within_s:g} s ({read} bytes did)") from None
        units += self._demuxer.end_segment()
        if _has_picture(units):
            return units
        raise InvalidError(
            f"no H.264 key frame in the {read} bytes that came: send MPEG-TS"
            " (ffmpeg: -c:v libx264 -bf 0 -f mpegts)",
            reason="NO_PICTURE",
            field="body",
        )

    def _units(self, chunk: bytes) -> list[AccessUnit]:
        self.arrived_s = time.monotonic()
        self._speed.count(len(chunk))
        return self._demuxer.feed(chunk)

    async def __aiter__(self) -> AsyncIterator[list[AccessUnit]]:
        held, self._held = self._held, []
        if held:
            yield held
        if self._reading is not None:
            chunk = await self._reading
            self._reading = None
            if chunk is not None:
                yield self._units(chunk)
        async for chunk in self._body:
            units = self._units(chunk)
            if units:
                yield units
        yield self._demuxer.end_segment()


class PushedSource(Source):
    """Units that a transport pushes as they come; it never waits.

    Bounded: a session that takes too long to start, or a loop that is late, costs the pictures up to the next
    key frame, counted. `announce` comes before the first unit.
    """

    def __init__(
        self,
        *,
        first_within_s: float,
        fastest_mbps: float | None,
        ask_keyframe: Callable[[], None] | None = None,
    ) -> None:
        self.arrived_s = time.monotonic()
        self._first_within_s = first_within_s
        self._speed = Speed(fastest_mbps)
        self._ask_keyframe = ask_keyframe
        self._streams: tuple[Codec, ...] = ()
        self._units: deque[AccessUnit] = deque()
        self._bytes = 0
        self._skipping = True  # up to a key frame: nothing before it can be decoded
        self._over: Exception | None = None  # what iterating ends with
        self._held_until_s: float | None = None  # from then on only the newest is kept
        self._ready = asyncio.Event()

    @property
    def streams(self) -> tuple[Codec, ...]:
        return self._streams

    def announce(self, streams: tuple[Codec, ...]) -> None:
        """Say what there will be. Raises InvalidError when it cannot be taken."""
        self._streams = streams
        demand_h264(streams)

    def push(self, unit: AccessUnit, arrived_s: float) -> None:
        """Take one unit, in the order of arrival. Never raises: what is wrong ends the source."""
        if self._over is not None:
            return
        self.arrived_s = arrived_s
        try:
            self._speed.count(len(unit.data))
        except TooLargeError as error:
            self.fail(error)
            return
        if unit.codec is Codec.H264:
            if unit.keyframe and self._late:
                FRAME_DROPS.labels("source").inc(sum(map(_is_picture, self._units)))
                self._units.clear()
                self._bytes = 0
            full = len(self._units) >= PUSHED_UNITS or self._bytes + len(unit.data) > PUSHED_BYTES
            if full or (self._skipping and not unit.keyframe):
                self._skip(full=full)
                return
            self._skipping = False
        elif len(self._units) >= PUSHED_UNITS:
            FRAME_DROPS.labels("source").inc()
            return
        self._bytes += len(unit.data)
        self._units.append(unit)
        self._ready.set()

    @property
    def _late(self) -> bool:
        until_s = self._held_until_s
        return until_s is not None and asyncio.get_running_loop().time() > until_s

    async def hold(self, first: list[AccessUnit]) -> None:
        self._units.extendleft(reversed(first))
        self._bytes += sum(len(unit.data) for unit in first)
        self._held_until_s = asyncio.get_running_loop().time() + HOLD_S
        try:
            while self._over is None:
                self._ready.clear()
                await self._ready.wait()
        finally:
            self._held_until_s = None
        if not isinstance(self._over, _DoneError):
            raise self._over

    def _skip(self, *, full: bool) -> None:
        FRAME_DROPS.labels("source").inc()
        if full and not self._skipping:
            self._skipping = True
        self.ask_keyframe()

    def end(self) -> None:
        """The publisher is done."""
        self._finish(_DoneError())

    def vanish(self) -> None:
        """The connection broke."""
        self._finish(PublisherVanishedError())

    def fail(self, error: SluiceError) -> None:
        """What came can never work."""
        self._finish(error)

    def _finish(self, why: Exception) -> None:
        if self._over is None:
            self._over = why
            self._ready.set()

    def ask_keyframe(self) -> None:
        if self._ask_keyframe is not None:
            self._ask_keyframe()

    async def first_picture(self) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        try:
            async with asyncio.timeout(self._first_within_s):
                while not _has_picture(units):
                    units += await self._next()
        except TimeoutError:
            raise _no_picture(f"within {self._first_within_s:g} s") from None
        except _DoneError:
            raise _no_picture("before the publisher ended") from None
        return units

    async def __aiter__(self) -> AsyncIterator[list[AccessUnit]]:
        while True:
            try:
                units = await self._next()
            except _DoneError:
                return
            yield units

    async def _next(self) -> list[AccessUnit]:
        """All that is there, as soon as there is something."""
        while not self._units:
            if self._over is not None:
                raise self._over
            self._ready.clear()
            await self._ready.wait()
        units = list(self._units)
        self._units.clear()
        self._bytes = 0
        return units


def demand_h264(streams: tuple[Codec, ...]) -> None:
    """Raise InvalidError that says what is wrong with what a publisher announced."""
    video = [codec for codec in streams if codec in {Codec.H264, Codec.HEVC, Codec.MPEG2}]
    if streams and Codec.H264 not in video:
        found = ", ".join(sorted({codec.value for codec in streams}))
        raise InvalidError(
            f"the stream carries {found}; send H.264 video (ffmpeg: -c:v libx264 -bf 0 -g 60)",
            reason="UNSUPPORTED_CODEC",
            field="body",
        )


def newest(units: list[AccessUnit]) -> list[AccessUnit]:
    """What of `units` is to be decoded to see the newest picture; nothing when that is too much to keep."""
    begin = next(
        (n for n in reversed(range(len(units))) if _is_picture(units[n]) and units[n].keyframe), None
    )
    kept = [] if begin is None else units[begin:]
    if sum(len(unit.data) for unit in kept) > PUSHED_BYTES:
        kept = []
    FRAME_DROPS.labels("source").inc(sum(map(_is_picture, units)) - sum(map(_is_picture, kept)))
    return kept


def _is_picture(unit: AccessUnit) -> bool:
    return unit.codec is Codec.H264


def _has_picture(units: list[AccessUnit]) -> bool:
    return any(_is_picture(unit) and unit.keyframe for unit in units)


def _no_picture(when: str) -> InvalidError:
    return InvalidError(f"no picture arrived {when}", reason="NO_PICTURE", field="body")
