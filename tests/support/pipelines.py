"""Pipelines as authors write them, each for one property of the engine: `tests.support.pipelines:Slow`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from sluice.pipeline import Apply, Param, Pipeline, VideoFrame


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
