"""The engine: the process that decodes, infers and encodes. Its supervisor holds the other end of its pipe.

The reader of that pipe is the main thread, and it never waits for a stream nor for a pipeline that loads: the
supervisor sends no more packets than a stream has room for, and what loads has threads of its own.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from services.common.errors import InvalidError
from services.common.media.hardware import Codecs, Equipment, Wanted, choose
from services.common.telemetry import configure_logs
from services.inference.blackbox import BlackBox
from services.inference.engine.offering import Offering, device_for, offering
from services.inference.engine.pictures import BitRates
from services.inference.engine.progress import Loading
from services.inference.engine.stream import Opening, Stream
from services.inference.engine.worker import Worker, Workshop
from services.inference.packets import BlockingPipe, Media, Message, Packet, Sound
from services.inference.params import Fold, Patch
from sluice.pipeline import ModelCache, Setup
from sluice.pipeline.setup import models_root

log = structlog.get_logger()

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
M_TRIM_THRESHOLD: Final = -1  # malloc.h
M_MMAP_THRESHOLD: Final = -3
KEPT_BUFFER_BYTES: Final = 32 << 20  # the most that glibc takes
KEPT_BYTES: Final = 64 << 20  # free at the top of the heap
REPORT_EVERY_S: Final = 1.0
SWITCH_INTERVAL_S: Final = 0.001  # Python's 5 ms between threads would be seen in every frame's latency
NOBODY: Final = -1  # the slot of what is about the engine itself


class Engine:
    """The streams of this process, by slot, and the workers that wait for one, by pipeline."""

    def __init__(
        self, pipe: BlockingPipe, workshop: Workshop, *, slots: int, bit_rates: BitRates, codecs: Codecs
    ) -> None:
        self._pipe = pipe
        self._workshop = workshop
        self._slots = slots
        self._bit_rates = bit_rates
        self._equipment = Equipment(codecs, self._tell_codec_failed)
        self._offered: dict[str, Offering] = {}
        self._streams: dict[int, Stream] = {}
        self._free: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()  # of both: what closes a stream has a thread of its own

    def send(self, packet: Packet) -> None:
        try:
            self._pipe.send(packet)
        except OSError:
            os._exit(0)  # the supervisor has gone: there is nobody to work for

    def serve(self, names: Sequence[str], here: Mapping[str, Mapping[str, Any]]) -> None:
        """Load `names` and say so, and do what comes, until the pipe ends."""
        threading.Thread(target=self._load, args=(names, here), name="load", daemon=True).start()
        for packet in self._pipe.packets():
            self._take(packet)

    def _load(self, names: Sequence[str], here: Mapping[str, Mapping[str, Any]]) -> None:
        """One after the other; the engine is ready when at least one has loaded, and of no use without."""
        offers, why_not = list[dict[str, Any]](), ""
        for name in names:
            try:
                offers.append(self._offer(name, here))
            except BaseException as error:  # an author's module may even exit
                why_not = f"cannot offer {name}: {error}"
                log.exception("a pipeline is not offered", pipeline=name)
                self.send(Message("not_offered", NOBODY, {"pipeline": name, "error": str(error)[:1000]}))
        if not offers:
            sys.stderr.write(f"{why_not}\n")
            sys.stderr.flush()
            os._exit(1)
        fields = {"pipelines": offers, "codecs": asdict(self._equipment.codecs)}
        self.send(Message("ready", NOBODY, fields))
        threading.Thread(target=self._report, name="report", daemon=True).start()

    def _offer(self, name: str, here: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Load it as often as there may be streams of it. Raises what it raises."""
        offered = offering(name, here)
        pipeline, started_s = offered.pipeline, time.monotonic()
        workers = [self._worker(offered) for _ in range(min(self._slots, pipeline.slots_per_engine))]
        for worker in workers:
            worker.settled.wait()
        problems = [worker.problem for worker in workers if worker.problem is not None]
        if problems:
            for worker in workers:
                worker.dismiss()
            raise problems[0]
        described = offered.described(self._workshop.setup)
        with self._lock:
            self._offered[pipeline.name], self._free[pipeline.name] = offered, workers
        log.info("pipeline loaded", pipeline=pipeline.name, seconds=round(time.monotonic() - started_s, 3))
        return described

    def _worker(self, offered: Offering) -> Worker:
        tell = partial(self._tell_loading, offered.pipeline.name)
        return Worker(offered.pipeline, offered.complete, self._workshop, why="start", tell=tell)

    def _tell_loading(self, pipeline: str, loading: Loading) -> None:
        """Of an instance that no stream waits for."""
        fields = {"pipeline": pipeline, "stage": loading.stage, "percent": loading.percent}
        self.send(Message("loading", NOBODY, fields))

    def _tell_codec_failed(self, codec: str, problem: str) -> None:
        self.send(Message("codec_failed", NOBODY, {"codec": codec, "problem": problem}))

    def _take(self, packet: Packet) -> None:
        if isinstance(packet, Message) and packet.type == "open":
            self._open(packet)
            return
        if isinstance(packet, Message) and packet.type == "ping":
            self.send(Message("pong", NOBODY, {}))
            return
        stream = self._streams.get(packet.slot)
        if stream is None:
            return  # it was closed when this was sent
        if isinstance(packet, Media):
            stream.take(packet)
        elif isinstance(packet, Sound):
            stream.take_sound(packet)
        elif isinstance(packet, Message):
            _tell(stream, packet)

    def _open(self, packet: Message) -> None:
        offered = self._offered[packet.fields["pipeline"]]
        stream = Stream(
            packet.slot,
            offered.pipeline,
            _opening(packet.fields),
            complete=offered.complete,
            workshop=self._workshop,
            bit_rates=self._bit_rates,
            equipment=self._equipment,
            send=self.send,
            over=self._released,
        )
        with self._lock:
            self._streams[packet.slot] = stream
            free = self._free[offered.pipeline.name]
            worker = free.pop() if free else self._worker(offered)
        worker.serve(stream)

    def _released(self, stream: Stream) -> None:
        """The last act of a worker's thread: the next stream of its pipeline will find another one warm."""
        stream.join()
        with self._lock:
            del self._streams[stream.slot]
            self._free[stream.pipeline.name].append(self._worker(self._offered[stream.pipeline.name]))
        self.send(Message("closed", stream.slot, {}))

    def _report(self) -> None:
        while True:
            time.sleep(REPORT_EVERY_S)
            with self._lock:  # held while sending, for nothing may follow a stream's `closed`
                for stream in self._streams.values():
                    stream.report()


def _tell(stream: Stream, message: Message) -> None:
    match message.type:
        case "update":
            stream.update(Patch(**message.fields))
        case "keyframe":
            stream.request_keyframe(message.fields.get("at_pts"))
        case "bitrate":
            stream.request_bit_rate(message.fields["bits_per_second"])
        case "end_of_input":
            stream.finish()
        case "close":
            stream.abort()


def _opening(fields: Mapping[str, Any]) -> Opening:
    patches = sorted((Patch(**patch) for patch in fields["scheduled"]), key=lambda one: one.revision)
    shown = {int(revision): pts for revision, pts in fields.get("shown", {}).items()}
    snapshot = fields.get("snapshot")
    return Opening(
        Fold(fields["revision"], fields["params"], tuple(patches), shown),
        live=fields["live"],
        resumed=fields.get("resumed", False),
        cautious=fields.get("cautious", False),
        after_pts=fields.get("after_pts"),
        snapshot=None if snapshot is None else base64.b64decode(snapshot),
    )


def die_with_parent() -> None:
    """Have the kernel kill us when the supervisor dies, even if we are stuck where the pipe is not read."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def keep_freed_memory() -> None:
    """Have glibc keep what one frame frees for the next one.

    Left to itself it gives buffers of pictures back to the kernel and asks for them again each time, which
    takes longer than what many a filter does with them: 4.0 ms to invert 512x512 floats, in place of 0.6 ms.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other C libraries have none, and their own ways
        libc.mallopt(M_MMAP_THRESHOLD, KEPT_BUFFER_BYTES)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.inference.engine")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the supervisor")
    parser.add_argument("--black-box", type=int, required=True, help="the memory of what each slot is at")
    parser.add_argument("--pipelines", required=True, help="names or module:Class, comma-separated")
    parser.add_argument("--defaults", required=True, help="JSON: this runner's defaults, by pipeline")
    parser.add_argument("--models", required=True, help="where they lie; empty: where `sluice models` does")
    parser.add_argument("--device", required=True, help="auto, cpu or cuda")
    parser.add_argument("--memory-mb", type=int, required=True, help="the most it may use; 0: all there is")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--codecs", default="auto", choices=list(Wanted), help="who decodes and encodes")
    parser.add_argument("--min-video-kbps", type=int, required=True)
    parser.add_argument("--max-video-kbps", type=int, required=True)
    parser.add_argument("--log-format", required=True)
    parser.add_argument("--log-level", required=True)
    arguments = parser.parse_args()
    die_with_parent()
    keep_freed_memory()
    for number in (signal.SIGINT, signal.SIGTERM):  # for the supervisor, which closes the pipe in its time
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logs("engine", arguments.log_format, arguments.log_level)
    try:
        device = device_for(arguments.device)
        codecs = choose(Wanted(arguments.codecs))
    except InvalidError as error:
        sys.exit(str(error))
    workshop = Workshop(
        Setup(device, ModelCache(Path(arguments.models) if arguments.models else models_root())),
        BlackBox(arguments.black_box, arguments.slots),
        (arguments.memory_mb << 20) or None,
    )
    pipe = BlockingPipe(socket.socket(fileno=arguments.fd))
    bit_rates = BitRates(arguments.min_video_kbps * 1000, arguments.max_video_kbps * 1000)
    names = [name.strip() for name in arguments.pipelines.split(",") if name.strip()]
    engine = Engine(pipe, workshop, slots=arguments.slots, bit_rates=bit_rates, codecs=codecs)
    engine.serve(names, json.loads(arguments.defaults))
    os._exit(0)  # the pipe ended; threads that are in the middle of a picture are not worth waiting for


if __name__ == "__main__":
    main()
