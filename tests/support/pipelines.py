"""Pipelines as authors write them, each for one property of the engine: `tests.support.pipelines:Slow`."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sluice.pipeline import Apply, AudioFrame, Param, Pipeline, Setup, VideoFrame


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
    """Fails in the middle."""

    name, version, description = "broken", "1.0", "Raises at its tenth frame."

    def __init__(self) -> None:
        self._frames = 0

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._frames += 1
        if self._frames == 10:
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
