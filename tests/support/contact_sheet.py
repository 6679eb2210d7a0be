"""Paints docs/images/looks.jpg, every look on a film and on a drawn face: run it as a module to renew it.

"Big Buck Bunny", (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.looks import LOOKS, Sheet

ROOT: Final = Path(__file__).resolve().parents[2]
CLIP: Final = ROOT / "tests/data/bigbuckbunny.mp4"
SHEET: Final = ROOT / "docs/images/looks.jpg"
SIDE: Final = 512  # of the pictures that are painted
SHOWN: Final = 224  # of those on the sheet
FRAME: Final = 108  # of the film
BEFORE: Final = 45  # frames, for the looks that remember
COLUMNS: Final = 3  # of pairs
STEP: Final = 3600  # ticks between frames of the film
CREDIT: Final = (
    'Source: "Big Buck Bunny", (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0; and a drawing'
)
LABEL: Final = 26
QUALITY: Final = 76

Picture = NDArray[np.uint8]


def film(count: int | None = None, *, start: int = 0, side: int = SIDE) -> Iterator[Picture]:
    """Frames of the film, its middle, at `side` pixels square."""
    with av.open(str(CLIP)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if count is not None and index >= start + count:
                return
            if index >= start:
                rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                left = (rgb.shape[1] - rgb.shape[0]) // 2 - 120
                square = rgb[:, left : left + rgb.shape[0]]
                yield np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def face(index: int = 0, *, side: int = SIDE, noise: float = 2.0) -> Picture:
    """A drawn head in a room, `index` frames into a slow nod, as a webcam would see it."""
    large = 2 * side
    row, column = np.mgrid[0:large, 0:large].astype(np.float32) / np.float32(large)
    sway, nod = 0.025 * math.sin(index / 14), 0.012 * math.sin(index / 9)
    room = np.empty((large, large, 3), np.float32)
    room[:] = np.array((96, 112, 124)) + 60 * (1 - row[..., None]) * np.array((0.9, 0.95, 1.1))
    window = (abs(column - 0.82) < 0.11) & (abs(row - 0.28) < 0.18)
    room[window] = (214, 228, 240)
    room[window & ((abs(column - 0.82) < 0.006) | (abs(row - 0.28) < 0.006))] = (120, 104, 90)
    shelf = (column < 0.24) & (abs(np.mod(row, 0.16) - 0.15) < 0.008)
    books = (column < 0.22) & (np.mod(row, 0.16) > 0.05) & (np.mod(row, 0.16) < 0.142)
    hue = np.sin(np.floor(column / 0.022) * 12.9 + np.floor(row / 0.16) * 4.1)
    room[books] = np.stack([120 + 90 * hue, 90 + 50 * np.cos(3 * hue), 80 - 60 * hue], -1)[books]
    room[shelf] = (92, 66, 44)

    def oval(x: float, y: float, wide: float, high: float) -> NDArray[np.float32]:
        away = np.hypot((column - x - sway) / wide, (row - y - nod) / high)
        return np.asarray(away, np.float32)

    def put(
        inside: NDArray[np.bool_], colour: tuple[float, float, float], shade: NDArray[np.float32]
    ) -> None:
        room[inside] = (np.array(colour, np.float32) * shade[..., None])[inside]

    light = (1.08 - 0.5 * np.clip(column - sway - 0.42, -0.3, 0.4)).astype(np.float32)
    body = np.hypot((column - 0.5 - sway * 0.5) / 0.36, (row - 1.06) / 0.34)
    put(body < 1, (38, 92, 128), (light * (1.05 - 0.25 * body)).astype(np.float32))
    put(
        (abs(column - 0.5 - sway) < 0.075) & (row > 0.6) & (row < 0.8),
        (196, 140, 112),
        light * np.float32(0.86),
    )
    hair, head = oval(0.5, 0.38, 0.195, 0.245), oval(0.5, 0.43, 0.165, 0.225)
    streaks = (0.8 + 0.3 * np.sin(70 * np.arctan2(column - 0.5 - sway, row - 0.2))).astype(np.float32)
    put((hair < 1) | ((oval(0.5, 0.5, 0.2, 0.26) < 1) & (row < 0.62)), (74, 46, 32), streaks * light)
    put(
        (head < 1) & (row - nod > 0.285 + 0.05 * np.sin(9 * (column - sway))),
        (226, 172, 142),
        light * (1.06 - 0.22 * head**3),
    )
    for side_of, x in ((-1, 0.43), (1, 0.57)):
        put(oval(x, 0.415, 0.034, 0.017) < 1, (244, 240, 236), light)
        put(oval(x + 0.004, 0.415, 0.015, 0.016) < 1, (70, 108, 92), light)
        put(oval(x + 0.004, 0.415, 0.007, 0.008) < 1, (14, 12, 12), light)
        brow = abs(row - nod - 0.374 + 6 * (column - sway - x) ** 2) < 0.007
        put(brow & (abs(column - x - sway) < 0.042), (66, 42, 30), light)
        put(oval(x + side_of * 0.02, 0.52, 0.04, 0.03) < 1, (232, 158, 134), light)
    put((oval(0.507, 0.475, 0.02, 0.055) < 1) & (column > 0.5 + sway), (204, 146, 118), light)
    put(oval(0.5, 0.572, 0.062, 0.022) < 1, (168, 72, 70), light)
    put(
        (abs(row - nod - 0.575 + 4 * (column - sway - 0.5) ** 2) < 0.0035)
        & (oval(0.5, 0.57, 0.07, 0.03) < 1),
        (92, 32, 36),
        light,
    )
    small = cv2.resize(room, (side, side), interpolation=cv2.INTER_AREA)
    seen = cv2.GaussianBlur(small, (0, 0), 0.7 * side / 512)
    grain = np.random.default_rng(index).normal(0, noise, seen.shape)
    return np.clip(np.round(seen + grain), 0, 255).astype(np.uint8)


def painted(look: str, frames: list[Picture]) -> Picture:
    """The last of `frames` in that look, which has seen those before."""
    sheet = Sheet(*frames[-1].shape[:2])
    seen = frames if LOOKS[look].remembers else frames[-1:]
    first = len(frames) - len(seen)
    pictures = [LOOKS[look].paint(rgb, sheet, STEP * index) for index, rgb in enumerate(seen, first)]
    return pictures[-1]


def contact_sheet() -> Picture:
    """All looks, each with its name."""
    filmed = list(film(BEFORE, start=FRAME - BEFORE + 1))
    drawn = [face(index) for index in range(BEFORE)]
    pairs = [("source", filmed[-1], drawn[-1])]
    pairs += [(look, painted(look, filmed), painted(look, drawn)) for look in LOOKS]
    rows = -(-len(pairs) // COLUMNS)
    gap, wide, high = 6, 2 * SHOWN + 12, SHOWN + LABEL + 6
    out = np.full((rows * high + gap + LABEL, COLUMNS * wide + gap, 3), 250, np.uint8)
    cv2.putText(
        out, CREDIT, (gap, out.shape[0] - 9), cv2.FONT_HERSHEY_DUPLEX, 0.42, (90, 90, 90), 1, cv2.LINE_AA
    )
    for place, (name, *two) in enumerate(pairs):
        down, right = divmod(place, COLUMNS)
        top, left = down * high + gap, right * wide + gap
        cv2.putText(out, name, (left, top + 17), cv2.FONT_HERSHEY_DUPLEX, 0.56, (30, 30, 30), 1, cv2.LINE_AA)
        for index, rgb in enumerate(two):
            at = left + index * (SHOWN + 2)
            small = cv2.resize(rgb, (SHOWN, SHOWN), interpolation=cv2.INTER_AREA)
            out[top + LABEL : top + LABEL + SHOWN, at : at + SHOWN] = small
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.contact_sheet")
    parser.add_argument("--out", type=Path, default=SHEET)
    out = parser.parse_args().out
    bgr = cv2.cvtColor(contact_sheet(), cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(out), bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


if __name__ == "__main__":
    main()
