"""Looks of many small pieces: pixels of an old console, a mosaic, stained glass."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.looks.sheet import (
    LEVELS,
    NO_KERNEL,
    Floats,
    Picture,
    Sheet,
    as_picture,
    curves,
    ink_lines,
    shrunk,
)

Places = NDArray[np.int16]  # (H, W, 2): the column and the row of a pixel
_NO_FRACTIONS: Final = np.empty(0, np.uint16)

_PIXELS: Final = 104  # of an old console, along the short side
_SHADES: Final = 16  # steps of a channel at which colours are looked up
_BAYER: Final = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]], np.float32) / 16
_DITHER: Final = 24.0  # levels from the darkest to the lightest place of the pattern


def pixel(rgb: Picture, sheet: Sheet) -> Picture:
    """Show `rgb` as a console of 1990 would: large pixels, few colours, shades by a pattern of dots."""
    size = max(2, round(min(rgb.shape[:2]) / _PIXELS))
    rows, columns = -(-sheet.height // size), -(-sheet.width // size)
    cells = sheet.picture("cells", rows, columns, 3)
    cv2.resize(rgb, (columns, rows), cells, 0, 0, cv2.INTER_AREA)
    # Crisper than a mean: what is small keeps its contrast.
    soft = cv2.GaussianBlur(cells, NO_KERNEL, 1.2)
    cv2.addWeighted(cells, 1.8, soft, -0.8, 0, cells)
    vivid = sheet.picture("vivid cells", rows, columns, 3)
    cv2.cvtColor(cells, cv2.COLOR_RGB2YCrCb, vivid)
    cv2.LUT(vivid, _VIVID, vivid)
    cv2.cvtColor(vivid, cv2.COLOR_YCrCb2RGB, cells)
    pattern = np.tile(_BAYER, (-(-rows // 4), -(-columns // 4)))[:rows, :columns, None]
    shades = np.clip(cells + (pattern - 0.5) * np.float32(_DITHER), 0, 255).astype(np.uint8) >> 4
    shown = sheet.kept(_console)[shades[..., 0], shades[..., 1], shades[..., 2]]
    wide = cv2.resize(shown, (columns * size, rows * size), interpolation=cv2.INTER_NEAREST)
    out = np.ascontiguousarray(wide[: sheet.height, : sheet.width])
    if size >= 3:
        cv2.multiply(out, sheet.kept(_gaps), out, 1 / 255)
    return out


_VIVID: Final = curves(
    255 * (0.55 * (3 * LEVELS**2 - 2 * LEVELS**3) + 0.45 * LEVELS) ** 0.86,
    *[128 + 1.5 * (255 * LEVELS - 128)] * 2,
)


def _gaps(sheet: Sheet) -> Picture:
    """The factor, in 255ths, that the dark between pixels leaves."""
    size = max(2, round(min(sheet.height, sheet.width) / _PIXELS))
    row, column = np.arange(sheet.height) % size == 0, np.arange(sheet.width) % size == 0
    gap = row[:, None] | column[None, :]
    return np.repeat(np.where(gap, 226, 255).astype(np.uint8)[..., None], 3, axis=2)


# How different colours look: more by brightness than by red and blue. OpenCV's Lab would take 0.1 s once.
_SEEN: Final = np.array([[0.42, 0.82, 0.16], [0.70, -0.59, -0.11], [-0.30, -0.59, 0.89]], np.float32)


def _console(_: Sheet) -> Picture:
    """The colour of the palette, by a colour's red, green and blue in 16 steps each.

    The palette is ramps of twelve hues, whose shadows turn to blue and whose lights turn to yellow.
    """
    colours = [(level, level, min(255, level + 10)) for level in (8, 44, 88, 134, 186, 238)]
    for hue in range(0, 360, 30):
        for value, full, turn in ((0.28, 0.75, 20), (0.52, 0.82, 9), (0.80, 0.72, 0), (0.98, 0.42, -8)):
            towards = turn if 60 <= hue < 240 else -turn
            colours.append(_of_hue((hue + towards) % 360, full, value))
    for value, full in ((0.30, 0.42), (0.52, 0.42), (0.74, 0.38), (0.93, 0.28)):  # wood, earth and skin
        colours.append(_of_hue(24, full, value))
    palette = np.array(colours, np.uint8)
    shade = np.arange(_SHADES, dtype=np.float32) * 16 + 8
    asked = np.stack(np.meshgrid(shade, shade, shade, indexing="ij"), -1).reshape(-1, 1, 3)
    away = (asked - palette[None].astype(np.float32)) @ _SEEN.T
    return np.asarray(palette[np.argmin((away**2).sum(axis=2), axis=1)].reshape(_SHADES, _SHADES, _SHADES, 3))


def _of_hue(hue: float, full: float, value: float) -> tuple[int, int, int]:
    red, green, blue = cv2.cvtColor(np.array([[[hue, full, value]]], np.float32), cv2.COLOR_HSV2RGB)[0, 0]
    return round(255 * float(red)), round(255 * float(green)), round(255 * float(blue))


_MORTAR: Final = (1.0, 0.97, 0.9)
_TESSERA: Final = 13.5  # its side, in pixels of a 720-line picture


def mosaic(rgb: Picture, sheet: Sheet) -> Picture:
    """Lay `rgb` in small stones, in rows that wander a little, with grout between them."""
    places, shine, grout = sheet.kept(_stones)
    soft, stones = sheet.picture("soft", *rgb.shape), np.empty(rgb.shape, np.uint8)
    side = 2 * max(1, round(_TESSERA * sheet.scale / 3)) + 1
    cv2.blur(rgb, (side, side), soft)
    cv2.remap(soft, places, _NO_FRACTIONS, cv2.INTER_NEAREST, stones, cv2.BORDER_REPLICATE)
    opponent = sheet.picture("opponent", *rgb.shape)
    cv2.cvtColor(stones, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _VIVID, opponent)
    cv2.cvtColor(opponent, cv2.COLOR_YCrCb2RGB, stones)
    cv2.multiply(stones, shine, stones, 1 / 184)
    cv2.max(stones, grout, stones)
    return stones


def _stones(sheet: Sheet) -> tuple[Places, Picture, Picture]:
    """Where each pixel's stone takes its colour, how it catches the light (of 184), and the grout."""
    height, width, size = sheet.height, sheet.width, max(_TESSERA * sheet.scale, 4)
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    wander = 1.5 * size * sheet.noise(13, height, width, cell=14 * size, octaves=1)
    across, down = (column + wander) / np.float32(size), (row - 0.8 * wander) / np.float32(size)
    lane = np.floor(down)
    across += 0.5 * (lane % 2)  # as bricks are laid
    place = np.floor(across)
    of_down, of_across = down - lane, across - place
    places = _fixed(column - (of_across - 0.5) * np.float32(size), row - (of_down - 0.5) * np.float32(size))
    random = np.random.default_rng((sheet.seed, 14))
    tones = random.normal(0, 1, (64, 64)).astype(np.float32)
    tone = tones[lane.astype(int) % 64, place.astype(int) % 64]
    rim = np.minimum(np.minimum(of_down, 1 - of_down), np.minimum(of_across, 1 - of_across))
    ragged = rim + np.float32(0.03) * sheet.noise(15, height, width, cell=size / 2, octaves=2)
    body = np.clip((ragged - 0.045) / 0.07, 0, 1)
    slant = 1.6 * (of_down + of_across)
    lit = 0.10 * np.clip(1 - slant, 0, 1) - 0.16 * np.clip(slant - 2.2, 0, 1)
    shine = body * (200 * (1 + 0.075 * tone + lit))
    grout = as_picture(((1 - body) * 92)[..., None] * np.array(_MORTAR, np.float32))
    return places, _three(shine), grout


def _fixed(column: Floats, row: Floats) -> Places:
    """Return which pixel each place takes, as `cv2.remap` wants it for the nearest one."""
    return np.stack((np.rint(column), np.rint(row)), -1).astype(np.int16)


def _three(levels: Floats) -> Picture:
    return np.repeat(as_picture(levels)[..., None], 3, axis=2)


_PANE: Final = 42.0  # the distance of panes of glass, in pixels of a 720-line picture
_LEAD: Final = 3.0  # the width of the lead between them, likewise


def stained_glass(rgb: Picture, sheet: Sheet) -> Picture:
    """Set `rgb` in leaded glass that the sun shines through."""
    height, width = sheet.work
    places, glass, lead = sheet.kept(_panes)
    small, soft = shrunk(rgb, sheet), sheet.picture("calm", height, width, 3)
    grey = sheet.picture("grey", height, width)
    cv2.bilateralFilter(small, 7, 50, 3, soft)
    cv2.cvtColor(soft, cv2.COLOR_RGB2GRAY, grey)
    outline = ink_lines(grey, sheet, sigma=1.8, gain=8, least=58)
    side = 2 * max(1, round(_PANE * sheet.work_scale / 6)) + 1
    blurred, panes = sheet.picture("soft small", height, width, 3), sheet.picture("panes", height, width, 3)
    cv2.blur(small, (side, side), blurred)
    cv2.remap(blurred, places, _NO_FRACTIONS, cv2.INTER_NEAREST, panes, cv2.BORDER_REPLICATE)
    # Each pane is of one glass, in which some of what is behind it shows.
    cv2.addWeighted(panes, 0.42, soft, 0.58, 0, soft)
    opponent = sheet.picture("opponent small", height, width, 3)
    cv2.cvtColor(soft, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _SUNLIT, opponent)
    cv2.cvtColor(opponent, cv2.COLOR_YCrCb2RGB, soft)
    out = np.empty(rgb.shape, np.uint8)
    cv2.resize(soft, (sheet.width, sheet.height), out)
    cv2.multiply(out, glass, out, 1 / 200)
    cv2.bitwise_not(outline, outline)
    cv2.min(outline, lead, outline)
    dark = sheet.picture("lines", *rgb.shape)
    cv2.cvtColor(outline, cv2.COLOR_GRAY2RGB, dark)
    cv2.multiply(out, dark, out, 1 / 255)
    return out


_SUNLIT: Final = curves(
    255 * (0.10 + 0.9 * (0.6 * (3 * LEVELS**2 - 2 * LEVELS**3) + 0.4 * LEVELS) ** 0.72),
    *[128 + 2.3 * (255 * LEVELS - 128)] * 2,
)


def _panes(sheet: Sheet) -> tuple[Places, Picture, Picture]:
    """Where a pixel's pane takes its colour (at work size), its glass (of 200), what lead leaves (of 255)."""
    near, second, centre_row, centre_column = _cells(sheet)
    places = _fixed(centre_column, centre_row)
    size = (sheet.width, sheet.height)
    # In pixels of the full size: the distance to the border between two cells, but for a factor.
    enlarge = np.float32(sheet.width / sheet.work[1])
    border = 0.5 * enlarge * cv2.resize(second - near, size, interpolation=cv2.INTER_LINEAR)
    middle = enlarge * cv2.resize(near, size, interpolation=cv2.INTER_LINEAR)
    half = max(_LEAD * sheet.scale, 1.6) / 2
    lead = np.clip((border - half) / max(1.2 * sheet.scale, 0.8), 0, 1)
    ripples = sheet.noise(17, sheet.height, sheet.width, cell=26 * sheet.scale + 2, octaves=3)
    glow = 1.14 - 0.34 * (middle / (np.float32(_PANE) * sheet.scale)) ** 2 + 0.11 * ripples
    return places, _three(200 * glow), as_picture(255 * lead)


def _cells(sheet: Sheet) -> tuple[Floats, Floats, Floats, Floats]:
    """Return, at work size, distances to the nearest two of scattered points, and the nearest point."""
    height, width = sheet.work
    size = max(_PANE * sheet.work_scale / 2, 4)
    rows, columns = math.ceil(height / size) + 3, math.ceil(width / size) + 3
    random = np.random.default_rng((sheet.seed, 16))
    scatter = random.uniform(-0.38, 0.38, (2, rows, columns)).astype(np.float32)
    point_row = (np.arange(rows, dtype=np.float32)[:, None] - 1 + scatter[0]) * np.float32(size)
    stagger = 0.5 * (np.arange(rows) % 2)[:, None].astype(np.float32)
    point_column = (np.arange(columns, dtype=np.float32)[None] - 1 + stagger + scatter[1]) * np.float32(size)
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    at_row, at_column = (row / size).astype(int) + 1, (column / size).astype(int) + 1
    near = np.full((height, width), np.inf, np.float32)
    second, centre_row, centre_column = near.copy(), row.copy(), column.copy()
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            index = at_row + down, at_column + right
            away = np.hypot(point_row[index] - row, point_column[index] - column)
            nearer = away < near
            second = np.where(nearer, near, np.minimum(second, away))
            near = np.where(nearer, away, near)
            centre_row = np.where(nearer, point_row[index], centre_row)
            centre_column = np.where(nearer, point_column[index], centre_column)
    return near, second, centre_row, centre_column
