"""Reads the bridge's `in` for the engine: MPEG-TS into packets, their times unwrapped.

The rule it keeps: a live reader drops what nobody can use any more, a complete one waits. When there is a new
engine it reads again from where that one can begin, and when there is a new bridge, it goes on there.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from dataclasses import replace
from typing import Final

import structlog
from aiohttp import ClientSession, ClientTimeout

from services.common.errors import InvalidError, SluiceError, UnavailableError
from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, unwrap
from services.common.trickle.connection import (
    DEFAULT_PATIENCE,
    TRANSPORT_ERRORS,
    find_head,
    index_header,
    segment_url,
)
from services.common.trickle.protocol import LATEST, ChannelClosedError
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from services.inference.address import Berth
from services.inference.assignment import Assignment
from services.inference.bypass import Bypass
from services.inference.catching_up import CatchingUp
from services.inference.intake import Intake
from services.inference.line import SessionFailedError
from services.inference.outage import Outage
from services.inference.outlet import BRIDGE_LOST
from services.inference.packets import SOUND_CODECS, Media, Sound
from services.inference.vitals import Vitals

log = structlog.get_logger()

GARBAGE_AFTER_S: Final = 5.0  # bytes without a single access unit in them
PAUSE_S: Final = 1.0  # bytes that come later than this after those before count as so late
UNDER_WAY: Final = 1024  # pictures whose times are kept until they are encoded; of more, the oldest are not
STARTS: Final = 128  # segments that a complete reader may go back to: more than a bridge keeps
BACK: Final = 32  # segments of a second at least, and nobody publishes a file so far ahead of its output


class Inlet:
    """One session's. `packets` is what its engine is fed with; another one with each `begin_again`."""

    def __init__(
        self,
        of: Assignment,
        berth: Berth,
        bypass: Bypass | None,
        vitals: Vitals,
        *,
        bridge_lost_after_s: float,
    ) -> None:
        """`bypass`: for sound that the pipeline does not process; who gives one has no other bridge."""
        self.packets = Intake()
        self.newest_pts = 0  # of the pictures that were read; 0: none
        self.catching_up: CatchingUp | None = None
        self.processes_sound = False  # what the bridge keeps from us otherwise
        self.received_s: OrderedDict[int, float] = OrderedDict()  # by PTS, of pictures not yet encoded
        self._of = of
        self._berth = berth
        self._read_from = ""  # the URL, once something was
        self._known_pts = 0  # what another bridge says again up to here is only decoded
        self._bypass = bypass
        self._vitals = vitals
        self._bridge_lost_after_s = bridge_lost_after_s
        self._demuxer = Demuxer()
        self._start = of.channels.start if of.live else 0
        self._starts: deque[tuple[int, int]] = deque(maxlen=STARTS)  # indices and times of random access
        self._segment = 0
        self._dts: int | None = None  # of the last picture, unwrapped
        self._sound_after = of.after_pts or None  # its viewers have what is up to there
        self._garbage_s = 0.0
        self._now = asyncio.get_running_loop().time
        self._read_at_s = self._now()
        self._reading: asyncio.Task[None] | None = None
        self._finished = False

    @property
    def sound(self) -> Codec | None:
        """What goes into the tables of the output: the sound of the input, if it is in the output."""
        if not self.processes_sound and self._bypass is None:
            return None
        return next((codec for codec in self._demuxer.streams if codec in SOUND_CODECS), None)

    def begin_again(self, after_pts: int | None, sound_after: int | None) -> None:
        """Read again, for an engine that goes on after the picture and the sound at these times."""
        self.packets = Intake()
        self._demuxer = Demuxer()
        self._known_pts = 0
        self._sound_after = sound_after if self.processes_sound else self._sound_after
        if not self._of.live:
            back = [
                pts for pts in (after_pts, sound_after if self.processes_sound else None) if pts is not None
            ]
            before = [index for index, pts in self._starts if back and pts <= min(back)]
            self._start = max(before, default=0)

    @property
    def _goes_on(self) -> bool:
        """Whether viewers have seen something already, of this runner or of one before."""
        return self.newest_pts > 0 or self._of.after_pts > 0

    async def to_feed(self, packet: Media | Sound) -> Media | Sound:
        """The packet for the engine; of a stream that goes on, what is old is only to be decoded."""
        if self.catching_up is None or not isinstance(packet, Media):
            return packet
        if await self.catching_up.only_to_decode(packet.pts):
            return replace(packet, only_decode=True)
        self.catching_up = None
        return packet

    def finish(self) -> None:
        """Take no more of the input, as if it had ended here."""
        self._finished = True
        if self._reading is not None:
            self._reading.cancel()
        self.packets.finish()

    async def run(self, http: ClientSession) -> None:
        """Take the input in until its channel is closed. Raises SessionFailedError."""
        packets = self.packets
        if self._of.live and self._goes_on:
            self.catching_up = CatchingUp(lambda: packets.full)
        if not self._finished:
            async with asyncio.TaskGroup() as group:
                self._reading = group.create_task(self._read(http))
        self.packets.finish()

    async def _read(self, http: ClientSession) -> None:
        await self._berth.in_.at_each(lambda url: self._read_at(http, url))

    async def _read_at(self, http: ClientSession, url: str) -> None:
        if self._read_from not in {"", url}:
            self._arrive()
        self._read_from = url
        await self._read_channel(http, url)
        if self._bypass is None and not await ended_in_order(http, self._berth.control.url):
            await asyncio.sleep(self._bridge_lost_after_s)
            raise SessionFailedError(BRIDGE_LOST, "the bridge has closed the session")

    def _arrive(self) -> None:
        """Go on at another bridge, above what the one before had."""
        self._demuxer = Demuxer()
        self._start = self._of.channels.start if self._of.live else 0
        self._starts.clear()
        self._known_pts = self.newest_pts
        if self._of.live:
            self.packets.skip_to_keyframe()

    async def _read_channel(self, http: ClientSession, url: str) -> None:
        outage = Outage(self._bridge_lost_after_s, self._now)
        async with Subscriber(http, url, start=await self._first(http, url)) as subscriber:
            while True:
                try:
                    async for segment in subscriber:
                        outage.worked()
                        await self._take_in(segment)
                    break
                except SluiceError as error:
                    outage.failed()
                    if not error.retryable or outage.lost:
                        raise SessionFailedError(BRIDGE_LOST, f"input: {error.message}") from error

    async def _first(self, http: ClientSession, url: str) -> int:
        """Where to begin; for a file that another runner had, surely before what that one showed last.

        Who asks for a beginning that the bridge keeps no more is sent to the newest picture.
        """
        if self._of.live or not self._of.after_pts or self._start:
            return self._start
        timeout = ClientTimeout(total=DEFAULT_PATIENCE.answer_s, sock_connect=DEFAULT_PATIENCE.connect_s)
        try:
            async with http.get(segment_url(url, "next"), timeout=timeout) as response:  # it may have ended
                head = index_header(response, LATEST) or 0
        except TRANSPORT_ERRORS:
            return self._start  # who reads it finds out why
        return max(head - BACK, 0)

    async def _take_in(self, segment: ReceivedSegment) -> None:
        self._segment = segment.index
        if segment.lost:
            FRAME_DROPS.labels("input_segments").inc(segment.lost)
            log.warning("input segments were lost", count=segment.lost)
            if self._of.live:
                self.packets.skip_to_keyframe()
        async for data in segment:
            units = self._demuxer.feed(data)
            was_s, self._read_at_s = self._read_at_s, self._now()
            self._garbage_s = 0.0 if units else self._garbage_s + min(self._read_at_s - was_s, PAUSE_S)
            if self._garbage_s >= GARBAGE_AFTER_S:
                raise SessionFailedError("input_undecodable", "the input is no MPEG-TS with H.264")
            await self._put_in(units)
        await self._put_in(self._demuxer.end_segment())

    async def _put_in(self, units: list[AccessUnit]) -> None:
        for unit in units:
            packet = self._packet(unit)
            if packet is None:
                continue
            if not self._of.live or self.catching_up is not None:
                await self.packets.room()
            if isinstance(packet, Media) and self.catching_up is not None:
                self.catching_up.arrived(packet.pts)
            if self._of.live:
                self.packets.put_newest(packet)
            else:
                self.packets.put(packet)

    def _packet(self, unit: AccessUnit) -> Media | Sound | None:
        """`unit` for the engine; None if it has no use for it. Sound never comes before a picture."""
        if unit.codec is not Codec.H264:
            return self._heard(unit)
        self._dts = dts = unit.dts if self._dts is None else unwrap(self._dts, unit.dts)
        pts = unwrap(dts, unit.pts)
        self._vitals.took()
        self.received_s[pts] = time.monotonic()
        if len(self.received_s) > UNDER_WAY:
            self.received_s.popitem(last=False)
        if unit.keyframe and (not self._starts or self._starts[-1][0] < self._segment):
            self._starts.append((self._segment, pts))
        self.newest_pts = max(pts, self.newest_pts)
        return Media(self._of.slot, pts, dts, unit.keyframe, unit.data, only_decode=pts <= self._known_pts)

    def _heard(self, unit: AccessUnit) -> Sound | None:
        if self._dts is None or unit.codec not in SOUND_CODECS:
            return None
        sound = Sound(self._of.slot, unit.codec, unwrap(self._dts, unit.pts), unit.data)
        if self._sound_after is not None and sound.pts <= self._sound_after:
            return None
        if self.processes_sound:
            return sound
        if self._bypass is not None:
            self._sound_after = sound.pts
            self._bypass.put(sound)
        return None


async def ended_in_order(http: ClientSession, control_url: str) -> bool:
    """Whether an input's end is no more than that: a bridge that a session has left closes all channels."""
    try:
        await find_head(http, control_url, DEFAULT_PATIENCE)
    except (ChannelClosedError, UnavailableError):
        return False
    except InvalidError:
        return True  # it is there
    return True
