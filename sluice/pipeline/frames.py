"""What goes through a pipeline: pictures and sound with their times, and how a picture is made to fit."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TICKS_PER_SECOND: Final = 90_000  # the unit of a frame's pts, as in MPEG-TS and in RTP video
SAMPLE_RATE: Final = 48_000  # of all sound, whatever its source's was


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """A picture and its time.

    rgb: uint8 (H, W, 3), RGB, 0..255. pts: presentation time in ticks of 1/90000 s.
    Whoever receives a frame may keep it, so nobody writes into its picture.
    """

    rgb: NDArray[np.uint8]
    pts: int

    def __post_init__(self) -> None:
        shape, dtype = self.rgb.shape, self.rgb.dtype.name
        if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
            raise TypeError(f"a frame's rgb is uint8 (H, W, 3), not {dtype} {shape}")

    def with_rgb(self, rgb: NDArray[np.uint8]) -> VideoFrame:
        """Return another picture for the same time."""
        return replace(self, rgb=rgb)


@dataclass(frozen=True, slots=True, eq=False)
class AudioFrame:
    """Some sound, about a fiftieth of a second, and its time.

    samples: float32 (2, N), left and right, -1..1, `SAMPLE_RATE` a second; (1, N) is the same on both sides.
    pts: presentation time of the first sample in ticks of 1/90000 s.
    Whoever receives a frame may keep it, so nobody writes into its samples.
    """

    samples: NDArray[np.float32]
    pts: int

    def __post_init__(self) -> None:
        shape, dtype = self.samples.shape, self.samples.dtype.name
        if dtype != "float32" or len(shape) != 2 or shape[0] not in {1, 2}:
            raise TypeError(f"a frame's samples are float32 (2, N) or (1, N), not {dtype} {shape}")

    @property
    def rate(self) -> int:
        return SAMPLE_RATE

    def with_samples(self, samples: NDArray[np.float32]) -> AudioFrame:
        """Return other sound for the same time."""
        return replace(self, samples=samples)


class Fit(enum.StrEnum):
    """How a picture of other proportions gets a wanted size."""

    COVER = "cover"  # scaled to fill it; what sticks out on two sides is cut off, the centre stays
    CONTAIN = "contain"  # scaled to fit into it, black bars on two sides
    STRETCH = "stretch"  # both sides scaled, each as it needs


def fit(rgb: NDArray[np.uint8], width: int, height: int, how: Fit = Fit.COVER) -> NDArray[np.uint8]:
    """Return the picture, uint8 (H, W, 3), in another size; itself if it has that size already."""
    import numpy as np  # noqa: PLC0415 - whoever only declares a pipeline needs no numpy

    was_height, was_width = rgb.shape[:2]
    if (was_width, was_height) == (width, height):
        return rgb
    if how is Fit.STRETCH:
        return _resized(rgb, width, height)
    ratios = width / was_width, height / was_height
    scale = max(ratios) if how is Fit.COVER else min(ratios)
    if how is Fit.COVER:
        # Cut first: what is not shown needs no scaling.
        keep_width = min(was_width, max(1, round(width / scale)))
        keep_height = min(was_height, max(1, round(height / scale)))
        left, top = (was_width - keep_width) // 2, (was_height - keep_height) // 2
        return _resized(rgb[top : top + keep_height, left : left + keep_width], width, height)
    inner_width, inner_height = max(1, round(was_width * scale)), max(1, round(was_height * scale))
    out = np.zeros((height, width, 3), np.uint8)
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    out[top : top + inner_height, left : left + inner_width] = _resized(rgb, inner_width, inner_height)
    return out


def _resized(rgb: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    import cv2  # noqa: PLC0415 - whoever scales nothing needs no OpenCV
    import numpy as np  # noqa: PLC0415 - as above

    smaller = width * height < rgb.shape[0] * rgb.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=how), np.uint8)
