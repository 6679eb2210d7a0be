"""Pictures for the looks of `effects` to paint, and what can be measured of a painting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jsonschema import Draft202012Validator

from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.looks import Picture
from sluice.pipeline import TICKS_PER_SECOND, VideoFrame, defaults, schema


def scene(height: int = 240, width: int = 320, *, shift: float = 0.0) -> Picture:
    """A sky, a hill, a sun and a striped wall, `shift` pixels to the right."""
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    column -= np.float32(shift)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = (120, 170, 230) - row[..., None] * np.float32(60 / height)
    picture[row > height * (0.6 + 0.1 * np.sin(column * 6 / width))] = (60, 130, 50)
    sun = np.hypot(row - height * 0.3, column - width * 0.3) < height * 0.15
    picture[sun] = (250, 200, 60)
    wall = (abs(column - width * 0.7) < width * 0.12) & (abs(row - height * 0.6) < height * 0.2)
    stripes = 90 + 80 * (np.sin(column * 40 / width) > 0)
    picture[wall] = np.repeat(stripes[..., None], 3, axis=2)[wall]
    return cv2.GaussianBlur(picture, (0, 0), 0.7).clip(0, 255).astype(np.uint8)


OLD_LOOKS = ("watercolor", "sketch", "neon")  # of which the tests of mixing know what they look like


def params(**changes: Any) -> Mapping[str, Any]:
    complete = {**defaults(Effects), **changes}
    Draft202012Validator(schema(Effects)).validate(complete)
    return complete


def rendered(rgb: Picture, *, pts: int = 0, **changes: Any) -> Picture:
    return Effects().process(VideoFrame(rgb, pts), params(**changes)).rgb


def difference(one: Picture, other: Picture) -> float:
    return float(np.mean(cv2.absdiff(one, other)))


def edges(rgb: Picture) -> float:
    return float(np.mean(np.abs(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F))))


def saturation(rgb: Picture) -> float:
    return float(np.mean(rgb.max(axis=2).astype(float) - rgb.min(axis=2)))


class Playback:
    """A stream of one still source at 25 frames a second."""

    def __init__(self) -> None:
        self.pipeline, self.source, self.pts = Effects(), scene(120, 160), 10_000_000

    def frame(self, *, after_s: float = 0.04, **changes: Any) -> Picture:
        self.pts += round(after_s * TICKS_PER_SECOND)
        return self.pipeline.process(VideoFrame(self.source, self.pts), params(**changes)).rgb
