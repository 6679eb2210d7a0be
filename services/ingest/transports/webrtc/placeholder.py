"""The picture of a stream that has none yet: drawn and encoded once per size, the same for every viewer."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from services.common.media.codec import Rgb, VideoEncoder

SIZE: Final = (512, 512)  # width and height, where no picture has said another
BACKGROUND: Final = (24, 26, 31)
TEXT: Final = (200, 205, 214)
LINES: Final = ("WAITING FOR", "THE STREAM")
BIT_RATE: Final = 1_000_000
# Five columns of seven dots a letter, the top one the lowest bit.
LETTERS: Final = {
    " ": (0, 0, 0, 0, 0),
    "A": (0x7E, 0x09, 0x09, 0x09, 0x7E),
    "E": (0x7F, 0x49, 0x49, 0x49, 0x41),
    "F": (0x7F, 0x09, 0x09, 0x09, 0x01),
    "G": (0x3E, 0x41, 0x49, 0x49, 0x7A),
    "H": (0x7F, 0x08, 0x08, 0x08, 0x7F),
    "I": (0x00, 0x41, 0x7F, 0x41, 0x00),
    "M": (0x7F, 0x02, 0x0C, 0x02, 0x7F),
    "N": (0x7F, 0x04, 0x08, 0x10, 0x7F),
    "O": (0x3E, 0x41, 0x41, 0x41, 0x3E),
    "R": (0x7F, 0x09, 0x19, 0x29, 0x46),
    "S": (0x46, 0x49, 0x49, 0x49, 0x31),
    "T": (0x01, 0x01, 0x7F, 0x01, 0x01),
    "W": (0x7F, 0x20, 0x18, 0x20, 0x7F),
}


def draw(width: int, height: int) -> Rgb:
    """The picture, rgb uint8 (height, width, 3): two lines in the middle, half of the width."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = BACKGROUND
    dot = max(1, width // (2 * 6 * max(map(len, LINES))))
    top = height // 2 - 9 * dot
    for row, line in enumerate(LINES):
        left = width // 2 - 3 * dot * len(line)
        for place, letter in enumerate(line):
            for column, dots in enumerate(LETTERS[letter]):
                for bit in range(7):
                    if dots >> bit & 1:
                        y = top + (row * 10 + bit) * dot
                        x = left + (place * 6 + column) * dot
                        picture[max(0, y) : y + dot, max(0, x) : x + dot] = TEXT
    return picture


@lru_cache(maxsize=8)
def stills(width: int, height: int) -> tuple[bytes, bytes]:
    """Two key frames to be sent in turn: a decoder takes two equal ones in a row for one. Annex B."""
    width, height = max(64, width & ~1), max(64, height & ~1)
    encoder = VideoEncoder(width, height, BIT_RATE)
    picture = draw(width, height)
    units = [unit for pts in (0, 90_000) for unit in encoder.encode(picture, pts, keyframe=True)]
    first, second = (unit.data for unit in units)
    return first, second
