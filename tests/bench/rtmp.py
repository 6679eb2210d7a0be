"""What a publisher costs the edge by RTMP, and the same on asyncio's own event loop instead of uvloop.

The transport alone: from the socket to the session's source. The publishers are in another process and send
what libav sends, 512x512 at 30 fps, 1 Mbit/s of H.264 and AAC in chunks of 128 bytes, each when it is due.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final, cast

import uvloop

from protos.sessions.v1 import sessions_pb2
from services.common.media.clock import ORIGIN_TICKS
from services.ingest.publishing import Published, Publishing
from services.ingest.settings import IngestSettings
from services.ingest.source import Source
from services.ingest.transports.rtmp.server import serve_rtmp
from services.ingest.transports.rtmp.units import TagWriter
from tests.bench.figures import Figure, show
from tests.bench.latency import SECONDS, clip
from tests.support.media import AAC_FRAME, sound
from tests.support.rtmp import ROOT, Talker

PUBLISHERS: Final = 16
START_S: Final = 30.0
SETTLE_S: Final = 2.0
MEASURED_S: Final = 12.0
LEAST: Final = 0.95  # of the units must have come, or the load was not offered


class Counting:
    """Takes whatever is published, and counts it."""

    def __init__(self) -> None:
        self.publishers = 0
        self.units = 0

    async def admit(self, key: str) -> sessions_pb2.Stream:
        return sessions_pb2.Stream(id=key)

    async def publish(self, stream: sessions_pb2.Stream, source: Source) -> Published:
        await source.first_picture()
        self.publishers += 1
        async for units in source:
            self.units += len(units)
        return Published(stream.id, None)


async def offer(port: int) -> None:
    """All publishers, in this process, until it is killed or the clip is over."""
    tone = sound(SECONDS * 90_000 // AAC_FRAME, start=ORIGIN_TICKS)
    units = sorted([*clip(), *tone], key=lambda unit: unit.pts)
    writer = TagWriter(1)
    messages = [message for unit in units for message in writer.write(unit)]

    async def one(number: int) -> None:
        talker = await Talker.open(f"rtmp://127.0.0.1:{port}/live")
        await talker.publish(f"key-{number}")
        begun_s = time.monotonic() + number / PUBLISHERS / 30  # not all of them at the same moment
        for message in messages:
            await asyncio.sleep(begun_s + message.timestamp / 1000 - time.monotonic())
            talker.say(message)

    await asyncio.gather(*(one(number) for number in range(PUBLISHERS)))


async def measure() -> tuple[float, float]:
    """Processor time for each publisher, in % of a core, and the units a second that each sent."""
    counting = Counting()
    settings = IngestSettings(stream_secret="x" * 16, rtmp_listen="127.0.0.1:0", shutdown_grace_s=0.1)
    async with serve_rtmp(cast("Publishing", counting), settings) as port:
        command = [sys.executable, "-m", "tests.bench.rtmp", str(port)]
        load = subprocess.Popen(command, cwd=ROOT)
        try:
            async with asyncio.timeout(START_S):
                while counting.publishers < PUBLISHERS:
                    await asyncio.sleep(0.1)
            await asyncio.sleep(SETTLE_S)
            began_s, cpu_s, units = time.monotonic(), time.process_time(), counting.units
            await asyncio.sleep(MEASURED_S)
            took_s = time.monotonic() - began_s
            used_s, came = time.process_time() - cpu_s, counting.units - units
        finally:
            load.kill()
            load.wait()
    wanted = (30 + 90_000 / AAC_FRAME) * PUBLISHERS * took_s
    assert came > LEAST * wanted, f"{came} units of {wanted:.0f}: the load was not offered"
    return 100 * used_s / took_s / PUBLISHERS, came / took_s / PUBLISHERS


def run(loop: Callable[[], asyncio.AbstractEventLoop]) -> tuple[float, float]:
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(measure())


def main() -> None:
    baseline, _ = run(asyncio.new_event_loop)
    value, units = run(uvloop.new_event_loop)
    show(
        [
            Figure("rtmp", f"cpu per publisher, {PUBLISHERS} of them", value, "% of a core", baseline),
            Figure("rtmp", "units a second of each", units, "1/s"),
        ]
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(offer(int(sys.argv[1])))
    else:
        main()
