"""The engine: the process that decodes, infers and encodes. Its supervisor holds the other end of its pipe.

The reader of that pipe is the main thread, and it never waits for a stream: the supervisor sends no more
packets than a stream has room for.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Final

import structlog

from services.common.errors import InvalidError
from services.common.telemetry import configure_logs
from services.inference.engine.pictures import BitRates
from services.inference.engine.pipelines import builtin
from services.inference.engine.stream import Stream
from services.inference.engine.worker import Worker
from services.inference.packets import BlockingPipe, Media, Message, Packet, Sound
from services.inference.params import Fold, Patch
from sluice.pipeline import ModelCache, Pipeline, Setup
from sluice.pipeline.setup import models_root

log = structlog.get_logger()

PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
REPORT_EVERY_S: Final = 1.0
SWITCH_INTERVAL_S: Final = 0.001  # Python's 5 ms between threads would be seen in every frame's latency


class Engine:
    """The streams of this process, by slot, and the workers that wait for one, by pipeline."""

    def __init__(
        self,
        pipe: BlockingPipe,
        offered: list[type[Pipeline]],
        slots: int,
        bit_rates: BitRates,
        setup: Setup,
    ) -> None:
        self._pipe = pipe
        self._offered = {pipeline.name: pipeline for pipeline in offered}
        self._slots = slots
        self._bit_rates = bit_rates
        self._setup = setup
        self._streams: dict[int, Stream] = {}
        self._free: dict[str, list[Worker]] = {}
        self._lock = threading.Lock()  # of both: what closes a stream has a thread of its own

    def send(self, packet: Packet) -> None:
        try:
            self._pipe.send(packet)
        except OSError:
            os._exit(0)  # the supervisor has gone: there is nobody to work for

    def serve(self) -> None:
        """Load everything, say so, then do what comes until the pipe ends."""
        for name, pipeline in self._offered.items():
            self.send(Message("loading", -1, {"pipeline": name}))
            started_s = time.monotonic()
            copies = min(self._slots, pipeline.slots_per_engine)
            workers = [Worker(pipeline, self._setup) for _ in range(copies)]
            for worker in workers:
                worker.settled.wait()
                if worker.problem is not None:
                    sys.exit(f"{name} does not load: {worker.problem}")
            self._free[name] = workers
            seconds = round(time.monotonic() - started_s, 3)
            self.send(Message("loading", -1, {"pipeline": name, "loaded_in_s": seconds}))
        offers = [_offer(pipeline, self._setup) for pipeline in self._offered.values()]
        self.send(Message("ready", -1, {"pipelines": offers}))
        threading.Thread(target=self._report, name="report", daemon=True).start()
        for packet in self._pipe.packets():
            self._take(packet)

    def _take(self, packet: Packet) -> None:
        if isinstance(packet, Message) and packet.type == "open":
            self._open(packet)
            return
        stream = self._streams.get(packet.slot)
        if stream is None:
            return  # it was closed when this was sent
        if isinstance(packet, Media):
            stream.take(packet)
            return
        if isinstance(packet, Sound):
            stream.take_sound(packet)
            return
        match packet.type:
            case "update":
                stream.update(Patch(**packet.fields))
            case "keyframe":
                stream.request_keyframe()
            case "bitrate":
                stream.request_bit_rate(packet.fields["bits_per_second"])
            case "end_of_input":
                stream.finish()
            case "close":
                stream.abort()

    def _open(self, packet: Message) -> None:
        pipeline = self._offered[packet.fields["pipeline"]]
        scheduled = [Patch(**patch) for patch in packet.fields["scheduled"]]
        fold = Fold.starting(packet.fields["revision"], packet.fields["params"], scheduled)
        live = packet.fields["live"]
        stream = Stream(packet.slot, pipeline, fold, live=live, bit_rates=self._bit_rates, send=self.send)
        with self._lock:
            self._streams[packet.slot] = stream
            free = self._free[pipeline.name]
            worker = free.pop() if free else Worker(pipeline, self._setup)
        worker.serve(stream, lambda: self._released(stream))

    def _released(self, stream: Stream) -> None:
        """The last act of a worker's thread: the next stream of its pipeline will find another one warm."""
        stream.join()
        with self._lock:
            del self._streams[stream.slot]
            self._free[stream.pipeline.name].append(Worker(stream.pipeline, self._setup))
        self.send(Message("closed", stream.slot, {}))

    def _report(self) -> None:
        while True:
            time.sleep(REPORT_EVERY_S)
            with self._lock:  # held while sending, for nothing may follow a stream's `closed`
                for stream in self._streams.values():
                    stream.report()


def _offer(pipeline: type[Pipeline], setup: Setup) -> dict[str, object]:
    return {
        "name": pipeline.name,
        "version": pipeline.version,
        "description": pipeline.description,
        "params_schema": pipeline.offered(setup),
        "processes_audio": pipeline.processes_audio,
        "slots_per_engine": pipeline.slots_per_engine,
    }


def find(name: str) -> type[Pipeline]:
    """A built-in pipeline by its name, or an author's by `module:Class`. Raises InvalidError."""
    module, _, attribute = name.partition(":")
    if not attribute:
        if name not in builtin():
            known = ", ".join(sorted(builtin()))
            raise InvalidError(f"no built-in pipeline {name!r}: there are {known}, and module:Class")
        return builtin()[name]
    found = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(found, type) or not issubclass(found, Pipeline):
        raise InvalidError(f"{name!r} is no class of a Pipeline")
    return found


def die_with_parent() -> None:
    """Have the kernel kill us when the supervisor dies, even if we are stuck where the pipe is not read."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.inference.engine")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the supervisor")
    parser.add_argument("--pipelines", required=True, help="names or module:Class, comma-separated")
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument(
        "--models", default="", help="where they lie; empty: where `sluice models` keeps them"
    )
    parser.add_argument("--min-video-kbps", type=int, required=True)
    parser.add_argument("--max-video-kbps", type=int, required=True)
    parser.add_argument("--log-format", required=True)
    parser.add_argument("--log-level", required=True)
    arguments = parser.parse_args()
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which closes the pipe
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    configure_logs("engine", arguments.log_format, arguments.log_level)
    names = [name.strip() for name in arguments.pipelines.split(",") if name.strip()]
    try:
        offered = [find(name) for name in names]
    except (ImportError, InvalidError) as error:
        sys.exit(f"cannot offer {arguments.pipelines}: {error}")
    pipe = BlockingPipe(socket.socket(fileno=arguments.fd))
    bit_rates = BitRates(arguments.min_video_kbps * 1000, arguments.max_video_kbps * 1000)
    root = Path(arguments.models) if arguments.models else models_root()
    Engine(pipe, offered, arguments.slots, bit_rates, Setup("cpu", ModelCache(root))).serve()
    os._exit(0)  # the pipe ended; threads that are in the middle of a picture are not worth waiting for


if __name__ == "__main__":
    main()
