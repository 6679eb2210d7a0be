"""A pipeline that signs its pictures: which process made each, with which parameters, with whose memory."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from services.inference.engine.pipelines.effects import Effects
from sluice.pipeline import Param, Pipeline, VideoFrame
from tests.chaos.harness import marks

MAKER_BITS: Final = 16
HARMLESS: Final = 0


class Stamped(Pipeline):
    """Each picture as it came, with the engine's process id, the parameter `mark`, and how many it has seen.

    The count is its memory: it goes on where another engine left it. `fatal` kills the engine at once.
    """

    name, version, description = "stamped", "1.0", "Signs each picture with its process and its parameters."
    params: ClassVar = {
        "mark": Param(default=0, help="Shown in each picture.", minimum=0, maximum=255),
        "fatal": Param(default=HARMLESS, help="Anything else kills the engine.", minimum=0, maximum=1),
    }

    def __init__(self) -> None:
        self._seen = 0

    def snapshot(self) -> bytes | None:
        return str(self._seen).encode()

    def restore(self, snapshot: bytes) -> None:
        self._seen = int(snapshot)

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if params["fatal"] != HARMLESS:
            os.kill(os.getpid(), signal.SIGKILL)
        self._seen = (self._seen + 1) & marks.LARGEST
        rgb = frame.rgb.copy()
        marks.write(rgb, marks.STAMPED, stamp(os.getpid(), params["mark"]))
        marks.write(rgb, marks.CARRIED, self._seen)
        return frame.with_rgb(rgb)


class Painted(Effects):
    """Signed pictures in the looks of `effects`, for people."""

    name, version, description = "painted", "1.0", "The looks of effects, signed."
    params: ClassVar = {**Effects.params}

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        number = marks.read(
            np.asarray(cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2GRAY), np.uint8), marks.PUBLISHED
        )
        rgb = super().process(frame, params).rgb.copy()
        rgb[marks.TOP - marks.SIDE :] = marks.DARK
        marks.write(rgb, marks.PUBLISHED, number or 0)
        marks.write(rgb, marks.STAMPED, stamp(os.getpid(), 0))
        return frame.with_rgb(rgb)


def stamp(process: int, mark: int) -> int:
    return (process & (1 << MAKER_BITS) - 1) | mark << MAKER_BITS


def unstamped(value: int) -> tuple[int, int]:
    """The maker, which is the low bits of its process id, and the parameter `mark`."""
    return value & (1 << MAKER_BITS) - 1, value >> MAKER_BITS
