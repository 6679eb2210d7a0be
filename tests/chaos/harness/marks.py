"""Numbers that are drawn into a picture as light and dark squares, and read from it behind any encoder. Pure.

The rule it keeps: a row is read whole or not at all; its last squares are a check sum.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE: Final = 10  # pixels of a square
LEFT: Final = 20
TOP: Final = 180
BITS: Final = 24
CHECK: Final = 4
LARGEST: Final = (1 << BITS) - 1
LIGHT: Final = 235
DARK: Final = 20
ROWS: Final = 3
SIZE: Final = (320, 240)  # width and height of the pictures that have them

PUBLISHED, STAMPED, CARRIED = range(ROWS)  # whose row it is: the publisher's, the pipeline's, its memory's


def write(rgb: NDArray[np.uint8], row: int, value: int) -> None:
    """Draw `value` into `rgb`, uint8 (H, W, 3), in place."""
    assert 0 <= value <= LARGEST, value
    bits = [value >> at & 1 for at in range(BITS)] + [_check(value) >> at & 1 for at in range(CHECK)]
    squares = np.repeat(np.where(np.array(bits, bool), LIGHT, DARK).astype(np.uint8), SIDE)
    top = TOP + row * 2 * SIDE
    rgb[top : top + SIDE, LEFT : LEFT + squares.size] = squares[None, :, None]


def read(grey: NDArray[np.uint8], row: int) -> int | None:
    """The number in `grey`, uint8 (H, W); None where there is none, or it was damaged."""
    top = TOP + row * 2 * SIDE
    wide = (BITS + CHECK) * SIDE
    if grey.shape[0] < top + SIDE or grey.shape[1] < LEFT + wide:
        return None
    inner = grey[top + 3 : top + SIDE - 3, LEFT : LEFT + wide].reshape(-1, BITS + CHECK, SIDE)
    light = inner[:, :, 3 : SIDE - 3].mean(axis=(0, 2)) > (LIGHT + DARK) / 2
    bits = [int(lit) << at for at, lit in enumerate(light)]
    value, check = sum(bits[:BITS]), sum(bits[BITS:]) >> BITS
    return value if check == _check(value) else None


def _check(value: int) -> int:
    """Four bits that differ for most damage; those of an all dark row are not all dark."""
    folded = 0b1010
    while value:
        folded = (folded * 7 + (value & 0xF)) & 0xF
        value >>= 4
    return folded
