"""What one core does: each look, whole streams through a real engine, and the same clip through PyTrickle.

512x512 at 30 fps. The engine and either runner have one core to themselves, this process the others. Without
PyTrickle (`--peer PATH` names its environment; it is made on first use) its figures are null and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import psutil

from services.common.media.codec import VideoEncoder
from services.inference.engine.pipelines.looks import LOOKS, Picture, Sheet
from services.inference.packets import Media, Message, Packet
from tests.bench import pytrickle_peer as peer
from tests.bench.figures import Figure, percentile, show
from tests.bench.latency import clip
from tests.support.contact_sheet import film
from tests.support.engine import FRAME, START, EngineChild, engine

BENCH: Final = "engine_cpu"
SIDE: Final = 512
FPS: Final = 30
BIT_RATE: Final = 1_000_000
LOOK_PICTURES: Final = 60
COMPLETE_PICTURES: Final = 300
LIVE_S: Final = 10
WARM_UP: Final = 60  # pictures
PIPELINES: Final = ("passthrough", "effects")


def look_ms(look: str, pictures: list[Picture]) -> float:
    """The median picture of a look, alone on this thread."""
    sheet, paint = Sheet(SIDE, SIDE), LOOKS[look].paint
    paint(pictures[0], sheet, 0)
    times_s = []
    for index, rgb in enumerate(pictures):
        began_s = time.perf_counter()
        paint(rgb, sheet, FRAME * index)
        times_s.append(time.perf_counter() - began_s)
    return 1000 * statistics.median(times_s)


def encoded(pictures: list[Picture], count: int) -> list[Media]:
    """The pictures there and back, `count` of them, a key frame each second."""
    encoder, media = VideoEncoder(SIDE, SIDE, BIT_RATE), list[Media]()
    for index, rgb in enumerate(itertools.islice(itertools.cycle(pictures + pictures[::-1]), count)):
        units = encoder.encode(rgb, START + FRAME * index, keyframe=index % FPS == 0)
        media += [Media(0, unit.pts, unit.dts, unit.keyframe, unit.data) for unit in units]
    return media


def confine(process: int) -> None:
    """Give all threads of a process the last core, and those that they start."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        for thread in psutil.Process(process).threads():
            os.sched_setaffinity(thread.id, cores[-1:])


def complete_fps(child: EngineChild, pipeline: str, media: list[Media]) -> tuple[float, float]:
    """Pictures a second, and milliseconds of CPU for each, when the next is always there."""
    process = psutil.Process(child.process.pid)
    before_s, began_s = peer.cpu_s(process), time.monotonic()
    child.open(pipeline, live=False)

    def send() -> None:
        child.send(*media)
        child.say("end_of_input")

    sending = threading.Thread(target=send)
    sending.start()
    child.until_said("finished")
    seconds = time.monotonic() - began_s
    sending.join()
    cpu_ms = 1000 * (peer.cpu_s(process) - before_s) / len(media)
    assert len(child.media()) == len(media), len(child.media())
    child.close_all()
    return len(media) / seconds, cpu_ms


def added_ms(child: EngineChild, pipeline: str, media: list[Media]) -> list[float]:
    """How long each picture was in the engine, when one comes every 33 ms."""
    sent_s: dict[int, float] = {}

    def send() -> None:
        began_s = time.monotonic()
        for index, packet in enumerate(media):
            time.sleep(max(0.0, began_s + index / FPS - time.monotonic()))
            sent_s[packet.pts] = time.monotonic()
            child.send(packet)
        child.say("end_of_input")

    received_s: dict[int, float] = {}
    child.open(pipeline, live=True)
    sending = threading.Thread(target=send)
    sending.start()

    def noted(packet: Packet) -> bool:
        if isinstance(packet, Media):
            received_s[packet.pts] = time.monotonic()
        return isinstance(packet, Message) and packet.type == "finished"

    child.until(noted)
    sending.join()
    child.close_all()
    late = START + WARM_UP * FRAME
    return [1000 * (at_s - sent_s[pts]) for pts, at_s in received_s.items() if pts >= late]


def of_the_engine(pictures: list[Picture]) -> list[Figure]:
    complete, live = encoded(pictures, COMPLETE_PICTURES), encoded(pictures, LIVE_S * FPS)
    found = []
    with engine(",".join(PIPELINES), timeout_s=60) as child:
        confine(child.process.pid)
        for pipeline in PIPELINES:
            complete_fps(child, pipeline, complete[:FPS])  # once, for what is made on first use
            fps, cpu_ms = complete_fps(child, pipeline, complete)
            waits_ms = added_ms(child, pipeline, live)
            found += [
                Figure(BENCH, f"{pipeline}_fps", fps, "1/s"),
                Figure(BENCH, f"{pipeline}_cpu_ms", cpu_ms, "ms"),
                Figure(BENCH, f"{pipeline}_added_p50_ms", percentile(waits_ms, 50), "ms"),
                Figure(BENCH, f"{pipeline}_added_p95_ms", percentile(waits_ms, 95), "ms"),
            ]
    return found


def beside_pytrickle(ours: peer.Run, theirs: peer.Run | None) -> list[Figure]:
    """`passthrough` from channel to channel; `ratio_to_pytrickle` is how much longer PyTrickle takes."""
    mine = ours.journey.latencies_ms()
    other = theirs.journey.latencies_ms() if theirs is not None else []

    def of(percent: float) -> float | None:
        return percentile(other, percent) if other else None

    p50_ms, their_cpu_ms = of(50), theirs.cpu_ms if theirs is not None else None
    lost = 1 - len(ours.journey.received_s) / len(ours.journey.sent_s)
    their_loss = None if theirs is None else 1 - len(theirs.journey.received_s) / len(theirs.journey.sent_s)
    return [
        Figure(BENCH, "runner_p50_ms", percentile(mine, 50), "ms", p50_ms),
        Figure(BENCH, "runner_p95_ms", percentile(mine, 95), "ms", of(95)),
        Figure(BENCH, "runner_cpu_ms", ours.cpu_ms, "ms", their_cpu_ms),
        Figure(BENCH, "runner_lost_ratio", lost, "1", their_loss),
        Figure(BENCH, "ratio_to_pytrickle", None if p50_ms is None else p50_ms / percentile(mine, 50), "1"),
        Figure(
            BENCH,
            "cpu_ratio_to_pytrickle",
            None if their_cpu_ms is None else their_cpu_ms / ours.cpu_ms,
            "1",
        ),
    ]


def compared(environment: Path) -> tuple[list[Figure], bool]:
    """The figures, and whether PyTrickle could be had."""
    units = clip()
    ours = asyncio.run(peer.ours(units))
    try:
        python = peer.peer_python(environment)
    except (subprocess.SubprocessError, OSError) as error:
        sys.stderr.write(f"PyTrickle is not to be had: {error}\n")
        return beside_pytrickle(ours, None), False
    return beside_pytrickle(ours, asyncio.run(peer.theirs(units, python))), True


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.engine_cpu", description=__doc__)
    parser.add_argument(
        "--peer", type=Path, default=peer.default_environment(), help="PyTrickle's environment"
    )
    environment = parser.parse_args().peer
    cv2.setNumThreads(1)
    pictures = [np.ascontiguousarray(rgb) for rgb in film(LOOK_PICTURES, start=60)]
    found = [Figure(BENCH, f"look_{look}_ms", look_ms(look, pictures), "ms") for look in LOOKS]
    found += of_the_engine(pictures)
    beside, is_there = compared(environment)
    show([*found, *beside])
    sys.exit(0 if is_there else 1)


if __name__ == "__main__":
    main()
