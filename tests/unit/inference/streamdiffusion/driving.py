"""A stream of the pipeline on a tiny model, driven as the engine drives one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.streamdiffusion.pipeline import StreamDiffusion
from sluice.pipeline import Setup, VideoFrame, defaults

TICKS = 9000  # between two frames
SIDE = 64

Picture = NDArray[np.uint8]


class Stream:
    """A stream of the pipeline, as the engine would drive it."""

    def __init__(self, setup: Setup, changes: dict[str, Any]) -> None:
        self.pipeline = StreamDiffusion()
        self.params = {
            **defaults(StreamDiffusion),
            "model_id": "sd-turbo",
            "width": SIDE,
            "height": SIDE,
            **changes,
        }
        self.frames = 0
        self.pipeline.load(setup, self.params)

    def change(self, **changes: Any) -> None:
        """As an update that applies warm or live."""
        self.params = {**self.params, **changes}
        self.pipeline.adopt(self.pipeline.prepare(self.params))

    def show(self, rgb: Picture) -> Picture:
        """Put the next picture through."""
        frame = VideoFrame(rgb, self.frames * TICKS)
        self.frames += 1
        made = self.pipeline.process(frame, self.params)
        assert made.pts == frame.pts
        return made.rgb

    def show_all(self, pictures: list[Picture]) -> list[Picture]:
        return [self.show(rgb) for rgb in pictures]


Open = Callable[..., Stream]


def same(one: list[Picture], other: list[Picture]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def apart(one: Picture, other: Picture) -> float:
    """The mean difference in grey levels."""
    return float(np.abs(one.astype(float) - other).mean())
