"""Looks of characters: a terminal's, and falling code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.looks.sheet import NO_KERNEL, Picture, Sheet, as_picture, exposed
from sluice.pipeline import TICKS_PER_SECOND

_SHADES: Final = " .,:;+ivcxoaXO#%@"
_SLOPES: Final = "-\\|/"  # by the direction of an edge, from level on, clockwise
_CHARACTERS: Final = (9.6, 14.4)  # of one: width and height in pixels of a 720-line picture


@dataclass(frozen=True, slots=True)
class _Page:
    """A grid of characters: `glyphs` is uint8 (N, cell height, cell width)."""

    rows: int
    columns: int
    glyphs: Picture

    def printed(self, chosen: NDArray[np.integer], sheet: Sheet) -> Picture:
        """Return the characters of `chosen`, (rows, columns), as brightness (H, W)."""
        _, height, width = self.glyphs.shape
        cells = self.glyphs[chosen]  # (rows, columns, height, width)
        page = cells.transpose(0, 2, 1, 3).reshape(self.rows * height, self.columns * width)
        return np.asarray(page[: sheet.height, : sheet.width])

    def widened(self, cells: Picture, sheet: Sheet) -> Picture:
        """Return a value for each character as one for each pixel."""
        _, height, width = self.glyphs.shape
        size = self.columns * width, self.rows * height
        wide = cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST)
        return np.asarray(wide[: sheet.height, : sheet.width], np.uint8)


def _cell(sheet: Sheet) -> tuple[int, int]:
    width, height = _CHARACTERS
    return max(4, round(width * sheet.scale)), max(6, round(height * sheet.scale))


def _page(sheet: Sheet, glyphs: Picture) -> _Page:
    _, height, width = glyphs.shape
    return _Page(-(-sheet.height // height), -(-sheet.width // width), glyphs)


def _drawn(text: str, width: int, height: int) -> Picture:
    """Draw each character of `text` into a cell of its own."""
    large, glyphs = 8, np.zeros((len(text), height, width), np.uint8)
    for index, character in enumerate(text):
        canvas = np.zeros((height * large, width * large), np.uint8)
        (wide, _), _ = cv2.getTextSize(character, cv2.FONT_HERSHEY_PLAIN, 1, 1)
        scale = min(width * large * 0.94 / 10, height * large * 0.94 / 16)
        at = round((width * large - wide * scale) / 2), round(height * large * 0.76)
        thick = max(1, round(0.13 * width * large))
        cv2.putText(canvas, character, at, cv2.FONT_HERSHEY_PLAIN, scale, 255, thick, cv2.LINE_AA)
        glyphs[index] = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return glyphs


def _terminal(sheet: Sheet) -> _Page:
    """Characters by how much ink they have, then the slopes."""
    shades = _drawn(_SHADES, *_cell(sheet))
    order = np.argsort(shades.reshape(len(_SHADES), -1).mean(axis=1), kind="stable")
    return _page(sheet, np.concatenate([shades[order], _drawn(_SLOPES, *_cell(sheet))]))


def ascii_art(rgb: Picture, sheet: Sheet) -> Picture:
    """Type `rgb` on a colour terminal; along an edge, with the stroke that runs as it does."""
    page = sheet.kept(_terminal)
    cells = sheet.picture("cells", page.rows, page.columns, 3)
    cv2.resize(rgb, (page.columns, page.rows), cells, 0, 0, cv2.INTER_AREA)
    grey = np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2GRAY), np.uint8)
    tone = exposed(grey, middle=120, spread=66)
    chosen = (tone.astype(np.uint16) * len(_SHADES) >> 8).astype(np.uint8)
    across, down = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    steep = cv2.magnitude(across, down) > 280
    direction = np.round(cv2.phase(across, down, angleInDegrees=True) / 45 + 2).astype(np.uint8) % 4
    np.copyto(chosen, len(_SHADES) + direction, where=steep)
    # Characters leave much black, so what they have is bright.
    bright = cells.astype(np.float32)
    bright *= (255 * (0.45 + tone * np.float32(0.8 / 255)) / (bright.max(axis=2) + 24))[..., None]
    ink, ground = page.printed(chosen, sheet), page.widened(as_picture(bright), sheet)
    out = cv2.cvtColor(ink, cv2.COLOR_GRAY2RGB)
    cv2.multiply(out, ground, out, 1.15 / 255)
    cv2.addWeighted(out, 1, ground, 0.24, 0, out)
    return np.asarray(out, np.uint8)


_SIGNS: Final = 48
_FALL: Final = (9.0, 26.0)  # rows a second
_PHOSPHOR: Final = (86, 255, 128)


@dataclass(frozen=True, slots=True)
class _Rain:
    page: _Page
    speed: NDArray[np.float32]  # (drops, columns), rows a second
    start: NDArray[np.float32]
    length: NDArray[np.float32]
    signs: NDArray[np.int64]  # (rows, columns)
    turns: NDArray[np.float32]  # when a sign turns into another


def _rain(sheet: Sheet) -> _Rain:
    width, height = _cell(sheet)
    random = np.random.default_rng((sheet.seed, 20))
    page = _page(sheet, _invented(random, max(width, 5), max(height - 2, 6)))
    drops = (3, page.columns)
    return _Rain(
        page,
        random.uniform(*_FALL, drops).astype(np.float32),
        random.uniform(0, 1, drops).astype(np.float32),
        random.uniform(0.25, 0.6, drops).astype(np.float32) * page.rows,
        random.integers(0, _SIGNS, (page.rows, page.columns)),
        random.uniform(0, 1, (page.rows, page.columns)).astype(np.float32),
    )


def _invented(random: np.random.Generator, width: int, height: int) -> Picture:
    """Signs of no script: a few strokes each."""
    large, glyphs = 6, np.zeros((_SIGNS, height, width), np.uint8)
    for glyph in glyphs:
        canvas = np.zeros((height * large, width * large), np.uint8)
        spots = [(x, y) for y in (0.16, 0.5, 0.84) for x in (0.2, 0.5, 0.8)]
        for _ in range(int(random.integers(3, 5))):
            one, other = random.choice(len(spots), 2, replace=False)
            if random.uniform() < 0.6:  # mostly upright and level strokes, as in writing
                away = random.integers(3)
                other = one // 3 * 3 + away if random.uniform() < 0.5 else one % 3 + 3 * away
            ends = [
                (round(spots[spot][0] * width * large), round(spots[spot][1] * height * large))
                for spot in (int(one), int(other))
            ]
            cv2.line(canvas, ends[0], ends[1], 255, max(1, round(0.17 * width * large)), cv2.LINE_AA)
        glyph[:] = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return glyphs


def matrix(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """Rain code down a dark screen, brightest where `rgb` is bright."""
    rain = sheet.kept(_rain)
    page, seconds = rain.page, (pts % (TICKS_PER_SECOND << 12)) / TICKS_PER_SECOND
    cells = cv2.resize(rgb, (page.columns, page.rows), interpolation=cv2.INTER_AREA)
    grey = np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2GRAY), np.uint8)
    cv2.addWeighted(grey, 1.8, cv2.GaussianBlur(grey, NO_KERNEL, 2), -0.8, 0, grey)
    tone = exposed(grey, middle=100, spread=80) * np.float32(1 / 255)
    row = np.arange(page.rows, dtype=np.float32)[:, None]
    wet = np.zeros((page.rows, page.columns), np.float32)
    head = np.zeros((page.rows, page.columns), np.float32)
    for speed, start, length in zip(rain.speed, rain.start, rain.length, strict=True):
        way = page.rows + length * 1.6
        above = np.mod(speed * np.float32(seconds) + start * way, way)[None] - row
        trail = np.exp(-above / (0.45 * length)[None], where=above >= 0, out=np.zeros_like(wet))
        np.maximum(wet, trail, out=wet)
        np.maximum(head, (above >= 0) & (above < 1), out=head)
    light = tone * (0.62 + 0.75 * wet) + 0.06 * wet
    turned = np.floor(np.float32(seconds * 2.5) + rain.turns * 8).astype(np.int64)
    signs = (rain.signs + turned * 7) % _SIGNS
    glow = np.clip(light, 0, 1)
    white = np.clip(head * (0.25 + 0.75 * tone) + np.clip(tone - 0.72, 0, 1) * wet * 2, 0, 1)
    phosphor = np.array(_PHOSPHOR, np.float32)
    colours = as_picture(glow[..., None] * phosphor + white[..., None] * np.float32(190))
    ink, ground = page.printed(signs, sheet), page.widened(colours, sheet)
    out = cv2.cvtColor(ink, cv2.COLOR_GRAY2RGB)
    cv2.multiply(out, ground, out, 1.5 / 255)
    # The tube glows around what is bright.
    haze = cv2.GaussianBlur(colours, NO_KERNEL, 1.2)
    wide = cv2.resize(haze, (sheet.width, sheet.height), interpolation=cv2.INTER_LINEAR)
    cv2.addWeighted(out, 1, wide, 0.42, -6, out)
    return np.asarray(out, np.uint8)
