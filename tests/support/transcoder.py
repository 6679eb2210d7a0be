"""A runner of one epoch over real HTTP that decodes and encodes: its output has parameter sets of its own."""

from __future__ import annotations

import asyncio
import json

import numpy as np

from protos.ingest.v1 import bridge_pb2
from services.common.media.codec import VideoDecoder, VideoEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer, unwrap
from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import RANDOM_ACCESS
from services.common.trickle.publisher import PublishedSegment, Publisher
from services.common.trickle.subscriber import Subscriber
from tests.support.media import FPS, SIZE


class Transcoder:
    """Begins at the newest random-access point, returns what is above `after_pts`, does as it is asked."""

    def __init__(
        self, channels: bridge_pb2.Channels, *, after_pts: int = 0, bit_rate: int = 900_000, grey: int = 128
    ) -> None:
        self._channels = channels
        self._after_pts = after_pts
        self._grey = grey
        self._decoder = VideoDecoder()
        self._encoder = VideoEncoder(*SIZE, bit_rate, fps=FPS)
        self._asked: int | None = None  # from which time on the next picture is to be a key frame
        self._pts: int | None = None
        self.returned = 0

    async def run(self) -> None:
        async with trickle_session() as http, asyncio.TaskGroup() as group:
            listening = group.create_task(self._listen(http))
            reader = Subscriber(http, getattr(self._channels, "in"), start=RANDOM_ACCESS)
            async with reader, Publisher(http, self._channels.out) as writer:
                demuxer, muxer = Demuxer(), Muxer()
                async for segment in reader:
                    async with writer.segment() as out:
                        await out.write(muxer.begin_segment())
                        async for data in segment:
                            await self._answer(demuxer.feed(data), muxer, out)
                        await self._answer(demuxer.end_segment(), muxer, out)
                await writer.close()
            listening.cancel()

    async def _listen(self, http: object) -> None:
        async with Subscriber(http, self._channels.control, start=0) as reader:  # type: ignore[arg-type]
            async for segment in reader:
                told = json.loads(b"".join([data async for data in segment]))
                if told["type"] == "keyframe":
                    self._asked = told.get("at_pts", 0)

    async def _answer(self, units: list[AccessUnit], muxer: Muxer, out: PublishedSegment) -> None:
        for unit in units:
            if unit.codec is not Codec.H264:
                continue
            self._pts = unit.pts if self._pts is None else unwrap(self._pts, unit.pts)
            for frame in self._decoder.decode(unit.data, self._pts):
                if frame.pts > self._after_pts:
                    for picture in self._encoded(frame.pts):
                        await out.write(muxer.write(picture))
                        self.returned += 1

    def _encoded(self, pts: int) -> list[AccessUnit]:
        due = self._asked is not None and pts >= self._asked
        if due:
            self._asked = None
        shade = (pts * 8 // (CLOCK_HZ // FPS)) % 256
        rgb = np.full((SIZE[1], SIZE[0], 3), (self._grey + shade) % 256, np.uint8)
        return self._encoder.encode(rgb, pts, keyframe=due or not self.returned)
