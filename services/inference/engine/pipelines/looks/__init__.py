"""The looks by name: functions of a picture, the sheet that it is made on, and the time of the video.

Only what `moves` changes while its source is still, by the picture's own time and never by a count of
pictures; only what `remembers` sees earlier pictures. docs/images/looks.jpg shows them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.inference.engine.pipelines.looks import (
    bent,
    drawn,
    filmed,
    lit,
    painted,
    printed,
    tiled,
    written,
)
from services.inference.engine.pipelines.looks.sheet import Echo, Picture, Sheet

__all__ = ["LOOKS", "Echo", "Look", "Picture", "Sheet"]


@dataclass(frozen=True, slots=True)
class Look:
    """`paint` takes RGB, uint8 (H, W, 3), a sheet of its size, and its time in ticks of 1/90000 s."""

    paint: Callable[[Picture, Sheet, int], Picture]
    moves: bool = False
    remembers: bool = False


def _still(paint: Callable[[Picture, Sheet], Picture]) -> Look:
    return Look(lambda rgb, sheet, _: paint(rgb, sheet))


LOOKS: Final[Mapping[str, Look]] = {
    "watercolor": _still(painted.watercolor),
    "oil": _still(painted.oil),
    "sketch": _still(drawn.sketch),
    "engraving": _still(drawn.engraving),
    "comic": _still(printed.comic),
    "poster": _still(printed.poster),
    "popart": _still(printed.popart),
    "pixel": _still(tiled.pixel),
    "mosaic": _still(tiled.mosaic),
    "stainedglass": _still(tiled.stained_glass),
    "ascii": _still(written.ascii_art),
    "matrix": Look(written.matrix, moves=True),
    "neon": _still(lit.neon),
    "thermal": _still(lit.thermal),
    "noir": Look(filmed.noir, moves=True),
    "vhs": Look(filmed.vhs, moves=True),
    "glitch": Look(filmed.glitch, moves=True),
    "kaleidoscope": Look(bent.kaleidoscope, moves=True),
    "dream": Look(bent.dream, moves=True, remembers=True),
}
