"""How long a picture is under way, stage by stage, beside a runner whose containers are libav's.

`passthrough` at 512x512 and 30 fps through the whole platform, on real processes: a publisher writes each
picture when it is due, a viewer reads `play`. The platform's way includes the public faces; the alternative
starts and ends at its trickle channels, on the same server.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from services.common.errors import SluiceError
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.codec import VideoEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Demuxer, Muxer
from services.common.trickle.connection import trickle_session
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from sluice.client import ApiError, SluiceClient
from tests.bench.figures import Figure, percentile, show
from tests.support.stack import Stack, running
from tests.support.trickle_process import channels

SIDE: Final = 512
FPS: Final = 30
FRAME: Final = CLOCK_HZ // FPS
BIT_RATE: Final = 1_000_000
SECONDS: Final = 20
WARM_UP: Final = 3 * FPS  # pictures
CODEC_STAGES: Final = frozenset({"decode", "encode"})
LAST_S: Final = 10.0  # for what is under way when the last picture was sent


@dataclass(slots=True)
class Journey:
    """When each picture was sent and received, by its number."""

    sent_s: dict[int, float] = field(default_factory=dict)
    received_s: dict[int, float] = field(default_factory=dict)

    @property
    def start_ms(self) -> float:
        """From the first picture sent to the first received."""
        return 1000 * (min(self.received_s.values()) - self.sent_s[0])

    def latencies_ms(self) -> list[float]:
        return [
            1000 * (at_s - self.sent_s[number])
            for number, at_s in self.received_s.items()
            if number >= WARM_UP
        ]


def clip() -> list[AccessUnit]:
    """Moving shapes on noise that stands, about 1 Mbit/s, a key frame each second."""
    encoder = VideoEncoder(SIDE, SIDE, BIT_RATE)
    ground = np.random.default_rng(7).integers(80, 120, (SIDE, SIDE, 3), np.uint8)
    units = []
    for number in range(SECONDS * FPS):
        rgb = ground.copy()
        left = number * 7 % (SIDE - 96)
        rgb[150:246, left : left + 96] = np.roll(ground[:96, :96], number, axis=0) + 90
        units += encoder.encode(rgb, ORIGIN_TICKS + number * FRAME, keyframe=number % FPS == 0)
    return units


async def paced(units: list[AccessUnit], journey: Journey) -> AsyncIterator[bytes]:
    """Each unit's packets, when it is due."""
    muxer = Muxer()
    begun_s = time.monotonic()
    for number, unit in enumerate(units):
        await asyncio.sleep(begun_s + number / FPS - time.monotonic())
        tables = muxer.begin_segment() if unit.keyframe else b""
        packets = tables + muxer.write(unit)
        journey.sent_s[number] = time.monotonic()
        yield packets


class Viewer:
    """Notes when each picture is whole."""

    def __init__(self, journey: Journey) -> None:
        self._journey = journey
        self._demuxer = Demuxer()

    def feed(self, data: bytes) -> None:
        self._note(self._demuxer.feed(data))

    def end_segment(self) -> None:
        self._note(self._demuxer.end_segment())

    def _note(self, units: list[AccessUnit]) -> None:
        now_s = time.monotonic()
        for unit in units:
            number = round((unit.pts - ORIGIN_TICKS) / FRAME)
            self._journey.received_s.setdefault(number, now_s)


# --- the platform


async def through_the_platform(stack: Stack, units: list[AccessUnit]) -> tuple[Journey, dict[str, Any]]:
    journey = Journey()
    async with SluiceClient(stack.url, stack.key) as client:
        stream = await client.create_stream(pipeline="passthrough")

        async def watch() -> None:
            viewer = Viewer(journey)
            async for data in client.watch(stream.play_url):
                viewer.feed(data)

        watching = asyncio.ensure_future(watch())
        session = await client.publish(stream.publish_url, paced(units, journey))
        async with asyncio.timeout(LAST_S):
            await watching
            while not (record := await client.session(session)).end_reason:
                await asyncio.sleep(0.1)
        assert record.end_reason == "input_ended", record
        while True:  # the figures are in the record when everything is settled
            with contextlib.suppress(ApiError):
                return journey, await client.latency(session)
            await asyncio.sleep(0.1)


# --- the alternative


async def through_libav(url: str, units: list[AccessUnit]) -> Journey:
    journey = Journey()
    runner = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.libav_runner", url)

    async def watch() -> None:
        viewer = Viewer(journey)
        async with trickle_session() as http, Subscriber(http, f"{url}/out", start=0) as subscriber:
            async for segment in subscriber:
                async for data in segment:
                    viewer.feed(data)

    watching = asyncio.ensure_future(watch())
    try:
        await asyncio.sleep(2.0)  # the runner is up: a start is from a warm one, as the platform's is
        async with trickle_session() as http, Publisher(http, f"{url}/in") as publisher:
            sending = paced(units, journey)
            for _ in range(SECONDS):
                async with publisher.segment() as segment:
                    for _ in range(FPS):
                        await segment.write(await anext(sending))
            await publisher.close()
        async with asyncio.timeout(LAST_S):
            await runner.wait()
    finally:
        if runner.returncode is None:
            runner.kill()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, SluiceError):
            await watching
    return journey


# --- figures


def figures(ours: Journey, stages: dict[str, Any], theirs: Journey) -> list[Figure]:
    mine, other = ours.latencies_ms(), theirs.latencies_ms()
    found = [
        Figure("latency", "p50_ms", percentile(mine, 50), "ms", percentile(other, 50)),
        Figure("latency", "p95_ms", percentile(mine, 95), "ms", percentile(other, 95)),
        Figure("latency", "start_ms", ours.start_ms, "ms", theirs.start_ms),
    ]
    by_stage = {item["stage"]: item["p50_ms"] for item in stages["stages"]}
    rest = sum(ms for stage, ms in by_stage.items() if stage not in CODEC_STAGES | {"total"})
    found.append(Figure("latency", "without_codecs_ms", rest, "ms"))
    found += [Figure("latency", f"{stage}_ms", ms, "ms") for stage, ms in by_stage.items()]
    lost = 1 - len(ours.received_s) / len(ours.sent_s)
    found.append(
        Figure("latency", "lost_ratio", lost, "1", 1 - len(theirs.received_s) / len(theirs.sent_s) or None)
    )
    return found


def main() -> None:
    units = clip()
    rate = sum(len(unit.data) for unit in units) * 8 / SECONDS / 1e6
    sys.stderr.write(f"{len(units)} pictures of {SIDE}x{SIDE}, {rate:.2f} Mbit/s\n")
    with channels("in", "out") as url:
        theirs = asyncio.run(through_libav(url, units))
    sys.stderr.write(f"through libav: {len(theirs.received_s)} came back\n")
    with (
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory), SLUICE_LOCAL_PIPELINES="passthrough") as stack,
    ):
        ours, stages = asyncio.run(through_the_platform(stack, units))
    sys.stderr.write(f"through Sluice: {len(ours.received_s)} came back\n")
    show(figures(ours, stages, theirs))


if __name__ == "__main__":
    main()
