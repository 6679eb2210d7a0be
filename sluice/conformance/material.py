"""Made-up pictures and sound to check pipelines with: detail, colour and movement, the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sluice.pipeline import SAMPLE_RATE, TICKS_PER_SECOND, AudioFrame, VideoFrame

FPS: Final = 30
STEP_TICKS: Final = TICKS_PER_SECOND // FPS
FIRST_PTS: Final = TICKS_PER_SECOND  # as on the platform, where the first picture is at one second


class Film:
    """Pictures of one size, each in memory of its own: a gradient with noise that moves, and a square."""

    def __init__(self, width: int, height: int, seed: int = 0) -> None:
        across = np.linspace(0, 255, width)
        down = np.linspace(0, 255, height)[:, np.newaxis]
        noise = np.random.default_rng(seed).integers(-40, 40, (height, width))
        planes = (across + noise + 0 * down, down + noise + 0 * across, 255 - (across + down) / 2)
        self._scene: NDArray[np.uint8] = np.clip(np.stack(planes, axis=2), 0, 255).astype(np.uint8)
        self._width, self._height = width, height

    def frame(self, number: int) -> VideoFrame:
        rgb = np.roll(self._scene, number * 3, axis=1)
        side = max(1, min(self._width, self._height) // 4)
        left = number * 5 % max(1, self._width - side)
        top = number * 3 % max(1, self._height - side)
        rgb[top : top + side, left : left + side] = (230, 40, 90)
        return VideoFrame(rgb, FIRST_PTS + number * STEP_TICKS)

    def frames(self, count: int, start: int = 0) -> Iterator[VideoFrame]:
        for number in range(start, start + count):
            yield self.frame(number)


def sound(number: int, count: int, amplitude: float = 0.5) -> AudioFrame:
    """The `number`th piece of `count` samples of a tone that differs between left and right."""
    at = (number * count + np.arange(count)) / SAMPLE_RATE
    waves = np.stack([np.sin(2 * np.pi * 440 * at), np.sin(2 * np.pi * 660 * at)]) * amplitude
    pts = FIRST_PTS + round(number * count * TICKS_PER_SECOND / SAMPLE_RATE)
    return AudioFrame(waves.astype(np.float32), pts)
