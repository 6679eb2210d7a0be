"""The picture of a stream that has none: drawn and encoded once per size, the same for every viewer."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

import numpy as np

from services.common.media.codec import Rgb, VideoEncoder

SIZE: Final = (512, 512)  # width and height, where no picture has said another
LEAST_SIDE: Final = 16  # a macroblock
BACKGROUND: Final = (24, 26, 31)
TEXT: Final = (200, 205, 214)
WAITING: Final = ("WAITING FOR", "THE STREAM")
AWAY: Final = ("THE PUBLISHER", "IS AWAY")
BIT_RATE: Final = 1_000_000
# Five columns of seven dots a letter, the top one the lowest bit.
LETTERS: Final = {
    " ": (0, 0, 0, 0, 0),
    "A": (0x7E, 0x09, 0x09, 0x09, 0x7E),
    "B": (0x7F, 0x49, 0x49, 0x49, 0x36),
    "E": (0x7F, 0x49, 0x49, 0x49, 0x41),
    "F": (0x7F, 0x09, 0x09, 0x09, 0x01),
    "G": (0x3E, 0x41, 0x49, 0x49, 0x7A),
    "H": (0x7F, 0x08, 0x08, 0x08, 0x7F),
    "I": (0x00, 0x41, 0x7F, 0x41, 0x00),
    "L": (0x7F, 0x40, 0x40, 0x40, 0x40),
    "M": (0x7F, 0x02, 0x0C, 0x02, 0x7F),
    "N": (0x7F, 0x04, 0x08, 0x10, 0x7F),
    "O": (0x3E, 0x41, 0x41, 0x41, 0x3E),
    "P": (0x7F, 0x09, 0x09, 0x09, 0x06),
    "R": (0x7F, 0x09, 0x19, 0x29, 0x46),
    "S": (0x46, 0x49, 0x49, 0x49, 0x31),
    "T": (0x01, 0x01, 0x7F, 0x01, 0x01),
    "U": (0x3F, 0x40, 0x40, 0x40, 0x3F),
    "W": (0x7F, 0x20, 0x18, 0x20, 0x7F),
    "Y": (0x07, 0x08, 0x70, 0x08, 0x07),
}


def draw(width: int, height: int, lines: tuple[str, ...] = WAITING) -> Rgb:
    """The picture, rgb uint8 (height, width, 3): the lines in the middle, half of the width."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = BACKGROUND
    dot = max(1, width // (2 * 6 * max(map(len, lines))))
    top = height // 2 - 9 * dot
    for row, line in enumerate(lines):
        left = width // 2 - 3 * dot * len(line)
        for place, letter in enumerate(line):
            for column, dots in enumerate(LETTERS[letter]):
                for bit in range(7):
                    if dots >> bit & 1:
                        y = top + (row * 10 + bit) * dot
                        x = left + (place * 6 + column) * dot
                        picture[max(0, y) : max(0, y + dot), max(0, x) : max(0, x + dot)] = TEXT
    return picture


@lru_cache(maxsize=8)
def stills(width: int, height: int, lines: tuple[str, ...] = WAITING) -> tuple[bytes, bytes]:
    """Two key frames to be sent in turn: a decoder takes two equal ones in a row for one. Annex B.

    It takes from 9 ms (512x512) to 100 ms (1920x1080): call it in a thread.
    """
    width, height = max(LEAST_SIDE, width & ~1), max(LEAST_SIDE, height & ~1)
    encoder = VideoEncoder(width, height, BIT_RATE)
    picture = draw(width, height, lines)
    units = [unit for pts in (0, 90_000) for unit in encoder.encode(picture, pts, keyframe=True)]
    first, second = (unit.data for unit in units)
    return first, second


async def away(width: int, height: int) -> tuple[bytes, bytes]:
    """The stills that say that the publisher is away."""
    return await asyncio.to_thread(stills, width, height, AWAY)
