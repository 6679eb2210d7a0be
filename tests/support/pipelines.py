"""Pipelines as authors write them, each for one property of the engine: `tests.support.pipelines:Slow`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sluice.pipeline import Apply, AudioFrame, Param, ParamError, Pipeline, Setup, VideoFrame


class Slow(Pipeline):
    """Takes a known time."""

    name, version, description = "slow", "1.0", "Sleeps, then returns the frame."
    params: ClassVar = {"ms": Param(default=100, help="How long.", minimum=0, maximum=60_000)}

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        time.sleep(params["ms"] / 1000)
        return frame


class Grey(Pipeline):
    """Shows its parameters in its pictures."""

    name, version, description = "grey", "1.0", "A flat picture whose level is a parameter."
    slots_per_engine = 2
    params: ClassVar = {
        "level": Param(default=40, help="Of the picture.", minimum=0, maximum=255),
        "boost": Param(default=0, help="Added, after a reload.", minimum=0, maximum=100, apply=Apply.RELOAD),
        "scale": Param(default=1, help="Of the picture's sides.", minimum=1, maximum=4),
    }

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        height, width, _ = frame.rgb.shape
        shape = (height * params["scale"], width * params["scale"], 3)
        return frame.with_rgb(np.full(shape, params["level"] + params["boost"], np.uint8))


class Broken(Pipeline):
    """Works for a while, whenever it was loaded."""

    name, version, description = "broken", "1.0", "Raises from its tenth frame on."

    def __init__(self) -> None:
        self._frames = 0

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._frames += 1
        if self._frames >= 10:
            raise RuntimeError("the tenth frame")
        return frame


class Odd(Pipeline):
    """Returns sides that H.264 cannot have."""

    name, version, description = "odd", "1.0", "Cuts a column and a row off."

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.with_rgb(frame.rgb[1:, 1:])


class Negative(Pipeline):
    """Processes both, and shows it."""

    name, version, description = "negative", "1.0", "The negative of the picture, and quiet sound."
    processes_audio = True
    params: ClassVar = {
        "gain": Param(default=0.25, help="Of the sound.", minimum=0, maximum=1),
        "ms": Param(default=0, help="How long a picture takes.", minimum=0, maximum=60_000),
    }

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        time.sleep(params["ms"] / 1000)
        return frame.with_rgb(~frame.rgb)

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        return frame.with_samples(frame.samples * np.float32(params["gain"]))


class Ordered(Pipeline):
    """Fails when it is not given everything in order, or not on one thread."""

    name, version, description = "ordered", "1.0", "Returns what it gets, which is in order."
    processes_audio = True

    def __init__(self) -> None:
        self._pts = 0
        self._thread = 0

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._thread = threading.get_ident()

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._check(frame.pts)
        return frame

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        self._check(frame.pts)
        return frame

    def _check(self, pts: int) -> None:
        if pts < self._pts or threading.get_ident() != self._thread:
            raise RuntimeError(f"{pts} after {self._pts}")
        self._pts = pts


class Curt(Pipeline):
    """Returns what it may not."""

    name, version, description = "curt", "1.0", "Cuts a sample off."
    processes_audio = True
    params: ClassVar = {"nothing": Param(default=False, help="Return none at all.")}

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        if params["nothing"]:
            return None  # type: ignore[return-value]
        return frame.with_samples(frame.samples[:, 1:])


class Talker(Pipeline):
    """Says what its parameters tell, at each picture."""

    name, version, description = "talker", "1.0", "Says something of each picture."
    params: ClassVar = {
        "times": Param(default=1, help="How often, a picture.", minimum=0, maximum=1000),
        "padding": Param(default=0, help="Characters more.", minimum=0, maximum=100_000),
        "mistake": Param(default="", help="Which an author makes.", choices=("", "list", "numpy", "nan")),
        "model": Param(default=0, help="Which to load.", minimum=0, maximum=9, apply=Apply.RELOAD),
    }
    mistakes: ClassVar[Mapping[str, Any]] = {
        "list": [1],
        "numpy": {"score": np.float32(1)},
        "nan": {"score": float("nan")},
    }

    def __init__(self) -> None:
        self._pictures = 0

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._pictures += 1
        if params["mistake"]:
            self.say(self.mistakes[params["mistake"]])
        for number in range(params["times"]):
            self.say({"picture": self._pictures, "number": number, "padding": "x" * params["padding"]})
        return frame


class Moody(Pipeline):
    """Does what its parameters tell it to, wrong or right, and shows them in its pictures."""

    name, version, description = (
        "moody",
        "1.0",
        "A flat picture: `level`, 50 more when bright, 100 when large.",
    )
    slots_per_engine = 2
    params: ClassVar = {
        "level": Param(default=40, help="Of the picture; 13 is bad luck.", minimum=0, maximum=100),
        "style": Param(
            default="plain",
            help="How bright.",
            choices=("plain", "bright", "slow", "silent", "refused", "raises", "unadoptable", "dies"),
            apply=Apply.WARM,
        ),
        "model": Param(
            default="small",
            help="How large.",
            choices=("small", "large", "slow", "slower", "silent", "refused", "raises", "exhausts", "dies"),
            apply=Apply.RELOAD,
        ),
        "mishap": Param(
            default="",
            help="What happens at each picture.",
            choices=("", "raises", "exhausts", "exhausts once", "exits", "refuses", "dies", "hangs"),
        ),
    }
    slow_s: ClassVar = 0.6

    def __init__(self) -> None:
        self._model = self._style = ""
        self._exhausted = False

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        for step in range({"slow": 10, "slower": 60}.get(params["model"], 0)):
            setup.progress("weights", step / 60)
            time.sleep(self.slow_s / 10)
        if params["model"] == "silent":
            time.sleep(60)
        self._fail(params["model"], "model")
        self._model, self._style = params["model"], params["style"]

    def prepare(self, params: Mapping[str, Any]) -> object:
        if params["style"] == "slow":
            time.sleep(self.slow_s)
        if params["style"] == "silent":
            time.sleep(60)
        self._fail(params["style"], "style")
        return params["style"]

    def adopt(self, prepared: object) -> None:
        if prepared == "unadoptable":
            raise RuntimeError("half of it")
        self._style = str(prepared)

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if params["level"] == 13:
            raise ValueError("13 is bad luck")
        if params["mishap"] == "exhausts once" and not self._exhausted:
            self._exhausted = True
            raise MemoryError
        self._exhausted = False
        self._fail(params["mishap"], "mishap")
        level = params["level"] + 50 * (self._style == "bright") + 100 * (self._model == "large")
        return frame.with_rgb(np.full(frame.rgb.shape, level, np.uint8))

    def _fail(self, how: str, parameter: str) -> None:
        if how in {"refused", "refuses"}:
            raise ParamError(parameter, "is not to be had here")
        if how == "raises":
            raise RuntimeError("as it was told")
        if how == "exhausts":
            raise MemoryError
        if how == "exits":
            sys.exit("as it was told")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hangs":
            time.sleep(60)


class Counting(Pipeline):
    """Remembers how many pictures it has seen, and shows it."""

    name, version, description = "counting", "1.0", "Each picture is lighter than the one before."
    slots_per_engine = 2
    params: ClassVar = {
        "snapshots": Param(
            default="good", help="What it hands out.", choices=("good", "none", "large", "slow", "raises")
        ),
        "dies_at": Param(default=0, help="The number of the picture at which it kills its process."),
    }

    def __init__(self) -> None:
        self._seen = 0
        self._snapshots = "good"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._seen += 1
        self._snapshots = params["snapshots"]
        if self._seen == params["dies_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        self.say({"seen": self._seen})
        return frame

    def snapshot(self) -> bytes | None:
        if self._snapshots == "raises":
            raise RuntimeError("not now")
        if self._snapshots == "slow":
            time.sleep(0.1)
        if self._snapshots == "none":
            return None
        return bytes(2 << 20) if self._snapshots == "large" else str(self._seen).encode()

    def restore(self, snapshot: bytes) -> None:
        if snapshot == b"poison":
            os.kill(os.getpid(), signal.SIGKILL)
        self._seen = int(snapshot)


class Unloadable(Pipeline):
    """Fails at once."""

    name, version, description = "unloadable", "1.0", "Does not load."

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        raise FileNotFoundError("weights.safetensors")

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame


class Ravenous(Pipeline):
    """Needs more memory with each picture."""

    name, version, description = "ravenous", "1.0", "Eats memory while it is hungry."
    params: ClassVar = {"mb": Param(default=0, help="A picture.", minimum=0, maximum=64)}

    def __init__(self) -> None:
        self._eaten: list[bytes] = []

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if params["mb"]:
            self._eaten.append(b"x" * (params["mb"] << 20))
        return frame


class Once(Pipeline):
    """Loads in the first engine only."""

    name, version, description = "once", "1.0", "Loads where nobody has loaded it before."
    params: ClassVar = {"mark": Param(default="", help="A file that says so.", apply=Apply.RELOAD)}

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        mark = Path(params["mark"])
        if mark.exists():
            assert mark.read_text() == str(os.getpid()), "somebody has loaded it before"
        mark.write_text(str(os.getpid()))

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame
