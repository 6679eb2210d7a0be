"""What memory each process of the platform holds, at rest and with live streams, and how fast it grows.

`passthrough` at 512x512 and 30 fps, a publisher and a viewer for each stream, on real processes. Growth is
the slope of a least-squares line over samples of a second, after what fills at first has filled.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from services.common.media.mpegts import AccessUnit, Muxer
from sluice.client import SluiceClient, Stream
from tests.bench.figures import Figure, show
from tests.bench.latency import FPS, FRAME, clip
from tests.support.stack import Stack, running

STREAMS: Final = 4
SAMPLE_S: Final = 1.0
LIVE_S: Final = 60.0  # for all streams to give their first pictures, on a machine that is busy
MB: Final = 1e6
MODULES: Final = {
    "services.billing": "billing",
    "services.router": "router",
    "services.session_manager": "session_manager",
    "services.ingest": "ingest",
    "services.inference": "runner",
    "services.inference.engine": "engine",
    "deploy.local.traces": "traces",
}


@dataclass(frozen=True, slots=True)
class Times:
    """How long each part takes. The short ones only show that it works: at first everything grows."""

    settle_s: float
    rest_s: float
    warm_up_s: float
    measured_s: float


WHOLE: Final = Times(settle_s=15, rest_s=10, warm_up_s=180, measured_s=180)
SHORT: Final = Times(settle_s=5, rest_s=5, warm_up_s=15, measured_s=20)


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident bytes of every process at one moment, by process id."""

    at_s: float
    resident: Mapping[int, int]

    @property
    def total(self) -> int:
        return sum(self.resident.values())


def slope_mb_per_min(points: Sequence[tuple[float, float]]) -> float:
    """How fast what was sampled as (seconds, bytes) grows."""
    times_s, sizes = zip(*points, strict=True)
    return statistics.linear_regression(times_s, sizes).slope / MB * 60


def named(command: Sequence[str]) -> str | None:
    """What a process of the platform is called in the figures; None for any other."""
    if command and Path(command[0]).name == "nats-server":
        return "nats"
    if len(command) > 2 and command[1] == "-m":
        return MODULES.get(command[2])
    return None


def processes(stack: Stack) -> dict[int, str]:
    """The name of each process by its id; names repeat where there are several runners."""
    found = {each.pid: named(each.cmdline()) for each in stack.supervisor().children(recursive=True)}
    return {pid: name for pid, name in found.items() if name is not None}


async def sampled(names: Mapping[int, str], seconds: float) -> list[Sample]:
    """Sample for so long. Raises psutil.NoSuchProcess when one has ended: then the figures mean nothing."""
    watched = [psutil.Process(pid) for pid in names]
    samples = []
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        samples.append(Sample(time.monotonic(), {each.pid: each.memory_info().rss for each in watched}))
        await asyncio.sleep(SAMPLE_S)
    return samples


# --- the streams


async def endless(units: Sequence[AccessUnit]) -> AsyncIterator[bytes]:
    """The clip over and over on one clock, each picture when it is due."""
    muxer = Muxer()
    begun_s = time.monotonic()
    number = 0
    while True:
        unit = units[number % len(units)]
        shift = (number - number % len(units)) * FRAME
        await asyncio.sleep(max(0.0, begun_s + number / FPS - time.monotonic()))
        tables = muxer.begin_segment() if unit.keyframe else b""
        yield tables + muxer.write(replace(unit, pts=unit.pts + shift, dts=unit.dts + shift))
        number += 1


async def watch(client: SluiceClient, stream: Stream, received: dict[str, int]) -> None:
    async for data in client.watch(stream.play_url):
        received[stream.id] += len(data)


async def grown(
    client: SluiceClient, units: Sequence[AccessUnit], names: Mapping[int, str], times: Times
) -> list[Sample]:
    """Samples with every stream live, after the warm-up."""
    received: dict[str, int] = defaultdict(int)
    async with asyncio.TaskGroup() as group:
        tasks = []
        for _ in range(STREAMS):
            stream = await client.create_stream(pipeline="passthrough")
            tasks.append(group.create_task(watch(client, stream, received)))
            tasks.append(group.create_task(publish(client, stream, units)))
        async with asyncio.timeout(LIVE_S):
            while len(received) < STREAMS:
                await asyncio.sleep(0.1)
        say(f"{STREAMS} streams are live; {times.warm_up_s:.0f} s of warm-up")
        await asyncio.sleep(times.warm_up_s)
        before = dict(received)
        samples = await sampled(names, times.measured_s)
        rates = [(received[stream] - size) * 8 / times.measured_s for stream, size in before.items()]
        say("viewers received " + ", ".join(f"{rate / 1e6:.2f}" for rate in rates) + " Mbit/s")
        if min(rates) == 0:
            raise SystemExit("a stream gave no pictures: these were not live streams")
        for task in tasks:
            task.cancel()
    return samples


async def publish(client: SluiceClient, stream: Stream, units: Sequence[AccessUnit]) -> None:
    session = await client.publish(stream.publish_url, endless(units))
    raise SystemExit(f"session {session} ended under the measurement")


def say(text: str) -> None:
    sys.stderr.write(f"{text} (load {os.getloadavg()[0]:.1f})\n")


# --- figures


def resident_mb(samples: Sequence[Sample], pids: Sequence[int]) -> float:
    """The median of what one of these processes holds, on average over them."""
    return statistics.median(
        statistics.fmean(sample.resident[pid] for pid in pids) / MB for sample in samples
    )


def figures(names: Mapping[int, str], rest: Sequence[Sample], live: Sequence[Sample]) -> list[Figure]:
    """Where there are several runners: what one holds on average, and how fast the fastest grows."""
    found = []
    by_name: dict[str, list[int]] = defaultdict(list)
    for pid, name in names.items():
        by_name[name].append(pid)
    for name, pids in sorted(by_name.items()):
        at_rest, streaming = resident_mb(rest, pids), resident_mb(live, pids)
        found.append(Figure("memory", f"rss_mb_{name}", at_rest, "MB"))
        found.append(Figure("memory", f"rss_mb_{name}_{STREAMS}_streams", streaming, "MB", at_rest))
        slope = max(
            slope_mb_per_min([(sample.at_s, sample.resident[pid]) for sample in live]) for pid in pids
        )
        found.append(Figure("memory", f"slope_mb_per_min_{name}", slope, "MB/min"))
    at_rest, streaming = (statistics.median(each.total / MB for each in part) for part in (rest, live))
    found.append(Figure("memory", "rss_mb", at_rest, "MB"))
    found.append(Figure("memory", f"rss_mb_{STREAMS}_streams", streaming, "MB", at_rest))
    slope = slope_mb_per_min([(sample.at_s, sample.total) for sample in live])
    found.append(Figure("memory", "slope_mb_per_min", slope, "MB/min"))
    return found


async def measure(stack: Stack, units: Sequence[AccessUnit], times: Times) -> list[Figure]:
    async with SluiceClient(stack.url, stack.key) as client:
        await asyncio.sleep(times.settle_s)
        names = processes(stack)
        say(f"{len(names)} processes at rest")
        rest = await sampled(names, times.rest_s)
        return figures(names, rest, await grown(client, units, names, times))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--short", action="store_true", help="a minute, to see that it works")
    times = SHORT if parser.parse_args().short else WHOLE
    units = clip()
    settings = {
        "SLUICE_LOCAL_PIPELINES": "passthrough",
        "SLUICE_LOCAL_RUNNERS": str(STREAMS),
        "SLUICE_LOCAL_CREDIT_MICRO": str(10**9),
    }
    with tempfile.TemporaryDirectory() as directory, running(Path(directory), **settings) as stack:
        found = asyncio.run(measure(stack, units, times))
    show(found)


if __name__ == "__main__":
    main()
