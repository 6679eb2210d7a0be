"""Writes what the engine gives to the bridge: MPEG-TS, cut into trickle segments where readers can start.

The rule it keeps: what goes to a bridge begins with a key frame, and a bridge that is away is waited for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from services.common.errors import SluiceError
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.common.trickle.protocol import ChannelClosedError
from services.common.trickle.publisher import Publisher
from services.inference.intake import SOUNDS, Intake
from services.inference.line import SessionFailedError
from services.inference.outage import Outage
from services.inference.packets import Media, Sound

log = structlog.get_logger()

SHORTEST_SEGMENT: Final = CLOCK_HZ  # media time
LONGEST_SEGMENT: Final = 4 * CLOCK_HZ
BRIDGE_LOST: Final = "bridge_lost"


def cuts(begun_pts: int, packet: Media) -> bool:
    """Whether `packet` begins a new segment after one that began at `begun_pts`."""
    age = packet.pts - begun_pts
    return age >= (SHORTEST_SEGMENT if packet.keyframe else LONGEST_SEGMENT)


class Outlet:
    """Publishes `packets` until they end. A segment that breaks is given up; a key frame begins the next.

    `sound` says which sound there is to be announced; it is asked for each segment. `anew`: the engine works
    already. A channel that was closed is waited with for `closed_for_s`.
    """

    def __init__(
        self,
        publisher: Publisher,
        packets: Intake,
        *,
        sound: Callable[[], Codec | None],
        ask_keyframe: Callable[[], Awaitable[None]],
        lost_after_s: float,
        closed_for_s: float,
        anew: bool,
    ) -> None:
        self._publisher = publisher
        self._packets = packets
        self._sound = sound
        self._ask_keyframe = ask_keyframe
        self._muxer = Muxer()
        self._waiting: deque[Sound] = deque(maxlen=SOUNDS)  # for a segment; its picture may come after it
        self._closed_for_s = closed_for_s
        self._anew = anew
        self._outage = Outage(lost_after_s, asyncio.get_running_loop().time)

    async def run(self) -> None:
        """Raises SessionFailedError when the bridge is lost."""
        picture = await (self._next_keyframe() if self._anew else self._next_picture())
        while picture is not None:
            try:
                picture = await self._segment(picture)
            except ChannelClosedError as error:
                await asyncio.sleep(self._closed_for_s)
                raise SessionFailedError(BRIDGE_LOST, "the output channel is closed") from error
            except SluiceError as error:
                self._outage.failed()
                log.warning("an output segment broke", error=error.message)
                if self._outage.lost:
                    raise SessionFailedError(BRIDGE_LOST, f"output: {error.message}") from error
                picture = await self._next_keyframe()
        try:
            await self._publisher.close()
        except SluiceError as error:
            raise SessionFailedError(BRIDGE_LOST, f"output: {error.message}") from error

    async def _segment(self, first: Media) -> Media | None:
        """Write the segment that `first` begins; returns what begins the next one."""
        async with self._publisher.segment() as segment:
            self._muxer.change_audio(self._sound())
            await segment.write(self._muxer.begin_segment() + self._muxed(first))
            while self._waiting:
                await segment.write(self._muxed(self._waiting.popleft()))
            while (packet := await self._packets.get()) is not None:
                if isinstance(packet, Media) and cuts(first.pts, packet):
                    return packet
                await segment.write(self._muxed(packet))
                self._outage.worked()
        return None

    def _muxed(self, packet: Media | Sound) -> bytes:
        if isinstance(packet, Media):
            unit = AccessUnit(Codec.H264, packet.pts, packet.dts, packet.data, packet.keyframe)
        elif packet.codec is self._muxer.audio:
            unit = AccessUnit(packet.codec, packet.pts, packet.pts, packet.data, keyframe=True)
        else:
            self._packets.dropped_sounds += 1  # it was not announced: new tables come with the next segment
            return b""
        return self._muxer.write(unit)

    async def _next_picture(self) -> Media | None:
        while isinstance(packet := await self._packets.get(), Sound):
            self._waiting.append(packet)
        return packet

    async def _next_keyframe(self) -> Media | None:
        await self._ask_keyframe()
        while (picture := await self._next_picture()) is not None and not picture.keyframe:
            self._packets.dropped += 1
        return picture
