"""A decoded picture as it is sent: upright, square pixels, even sides, 8 bits 4:2:0, limited range.

An odd side loses one pixel by scaling; nothing is padded, so no border appears in the result. The matrix of
the colours (BT.601, BT.709) stays the clip's and is written into the stream; wide gamuts become BT.709,
without tone mapping.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Self

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from services.common.media.codec import BT601_MATRIX, BT709_MATRIX, HD_LINES, MATRICES

Plane = npt.NDArray[np.uint8]
BT601_LIKE: Final = frozenset({4, 5, 6, 7})  # ITU-T H.273 matrix coefficients of standard definition
SMALLEST_SIDE: Final = 16  # pixels: one macroblock


@dataclass(frozen=True, slots=True)
class Orientation:
    """What makes a stored picture upright: swap rows with columns, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Self:
        """The orientation of the frame's display matrix, to the nearest quarter turn."""
        found = frame.side_data.get("DISPLAYMATRIX")
        if not isinstance(found, SideData):
            return cls()
        # Row by row, as ISO 14496-12 §6.2.2: x' = a x + c y, y' = b x + d y.
        a, b, _, c, d = np.frombuffer(bytes(found), np.int32)[:5].tolist()
        if abs(a) >= abs(b):
            return cls(mirror_x=a < 0, mirror_y=d < 0)
        return cls(transpose=True, mirror_x=c < 0, mirror_y=b < 0)

    @property
    def changes(self) -> bool:
        return self != Orientation()

    def turned(self, plane: Plane) -> Plane:
        """`plane`, (H, W), upright: (W, H) if it is transposed."""
        if self.transpose:
            plane = plane.T
        return plane[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


def fitted(width: int, height: int, limit: tuple[int, int]) -> tuple[int, int]:
    """The even size, of about the same shape, that fits into `limit` lying or standing; never enlarged."""
    factor = min(
        Fraction(1), Fraction(max(limit), max(width, height)), Fraction(min(limit), min(width, height))
    )
    return max(2, int(width * factor) // 2 * 2), max(2, int(height * factor) // 2 * 2)


def matrix_of(frame: av.VideoFrame) -> int:
    """The colour matrix to send `frame` in: its own, if it says one that every decoder knows."""
    if frame.colorspace == BT709_MATRIX or frame.colorspace in BT601_LIKE:
        return BT709_MATRIX if frame.colorspace == BT709_MATRIX else BT601_MATRIX
    return BT709_MATRIX if frame.height >= HD_LINES else BT601_MATRIX


class Framer:
    """Makes every frame of one clip the same size, way up and colour matrix."""

    def __init__(self, size: tuple[int, int], orientation: Orientation, matrix: int) -> None:
        self._orientation = orientation
        self._stored = size[::-1] if orientation.transpose else size
        self._matrix = matrix
        self._reformatter = VideoReformatter()

    def picture(self, frame: av.VideoFrame) -> av.VideoFrame:
        """`frame` as it is sent, without a time."""
        width, height = self._stored
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        by_size = Colorspace.ITU709 if frame.height >= HD_LINES else Colorspace.ITU601
        flat = self._reformatter.reformat(
            frame,
            width,
            height,
            "yuv420p",
            src_colorspace=MATRICES.get(frame.colorspace, by_size),
            dst_colorspace=MATRICES[self._matrix],
            src_color_range=ColorRange.JPEG if full or frame.format.is_rgb else ColorRange.MPEG,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        return self._upright(flat) if self._orientation.changes else flat

    def _upright(self, flat: av.VideoFrame) -> av.VideoFrame:
        width, height = self._stored
        stacked = flat.to_ndarray()  # (H + H/2, W): luma, then both chromas, each half as wide, end to end
        luma, chroma = stacked[:height], stacked[height:].reshape(2, height // 2, width // 2)
        planes = [self._orientation.turned(plane) for plane in (luma, *chroma)]
        turned_width = planes[0].shape[1]
        pixels = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, turned_width)
        return av.VideoFrame.from_ndarray(pixels, format="yuv420p")
