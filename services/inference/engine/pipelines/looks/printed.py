"""Looks of ink on paper and of cells: comic, poster, pop art."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np

from services.inference.engine.pipelines.looks.sheet import (
    LEVELS,
    NO_KERNEL,
    Picture,
    Sheet,
    as_picture,
    coloured,
    curves,
    enlarged,
    exposed,
    ink_lines,
    ramp,
    shrunk,
    steps,
)

_COMIC: Final = curves(
    255 * (0.5 * steps(6, softness=0.3) + 0.5 * (3 * LEVELS**2 - 2 * LEVELS**3)) ** 0.78 * 1.02,
    *[128 + 1.75 * (255 * LEVELS - 128)] * 2,
)
_DOT_DISTANCE: Final = 9.0  # of a comic's dots, in pixels of a 720-line picture
# Dots in the half shadows and nowhere else: how large they are by the tone, of the screen's 255.
_DOT_SIZE: Final = as_picture(
    255 * np.interp(LEVELS, (0.0, 0.12, 0.30, 0.62, 0.72, 1), (0.0, 0.40, 0.48, 0.20, 0.0, 0.0))
)


def comic(rgb: Picture, sheet: Sheet) -> Picture:
    """Print `rgb` as a page of a comic: flat colours, black outlines and shadows, dots in half tones."""
    height, width = sheet.work
    small, calm = shrunk(rgb, sheet), sheet.picture("calm", height, width, 3)
    for _ in range(2):
        cv2.bilateralFilter(small, 5, 42, 3, calm)
        cv2.bilateralFilter(calm, 5, 42, 3, small)
    grey = sheet.picture("grey", height, width)
    cv2.cvtColor(small, cv2.COLOR_RGB2GRAY, grey)

    out = enlarged(small, rgb)
    tone = sheet.picture("full tone", *rgb.shape[:2])
    cv2.cvtColor(out, cv2.COLOR_RGB2GRAY, tone)
    opponent = sheet.picture("opponent", *rgb.shape)
    cv2.cvtColor(out, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _COMIC, opponent)
    cv2.cvtColor(opponent, cv2.COLOR_YCrCb2RGB, out)

    dots = sheet.picture("dots", *rgb.shape[:2])
    cv2.LUT(tone, _DOT_SIZE, dots)
    cv2.subtract(dots, sheet.kept(_dots), dots)
    cv2.convertScaleAbs(dots, dots, 5)
    ink = ink_lines(grey, sheet, sigma=1.1, gain=15, least=36)
    black = sheet.picture("black", *rgb.shape[:2])
    cv2.LUT(tone, _SPOT_BLACK, black)
    cv2.max(ink, black, ink)
    cv2.addWeighted(dots, 0.42, ink, 1.0, 0, ink)
    cover = sheet.picture("lines", *rgb.shape)
    cv2.cvtColor(ink, cv2.COLOR_GRAY2RGB, cover)
    cv2.bitwise_not(cover, cover)
    cv2.multiply(out, cover, out, 1 / 255)
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    return out


_SPOT_BLACK: Final = as_picture((0.115 - LEVELS) * 255 * 14)


def _dots(sheet: Sheet) -> Picture:
    """A printer's screen at 45°: 0 in the middle of a dot, 255 between dots."""
    row, column = np.mgrid[0 : sheet.height, 0 : sheet.width].astype(np.float32)
    turn = 2 * math.pi / max(_DOT_DISTANCE * sheet.scale, 4) / math.sqrt(2)
    wave = np.cos((row + column) * turn) + np.cos((row - column) * turn)
    return as_picture(255 * (0.5 - 0.25 * wave))


_HOPE: Final = ramp(
    (0.00, (0, 42, 70)), (0.285, (0, 48, 78)), (0.315, (214, 26, 33)), (0.485, (222, 34, 38)),
    (0.515, (108, 152, 160)), (0.705, (116, 160, 166)), (0.735, (252, 228, 168)), (1.0, (253, 234, 182)),
)  # fmt: skip


def poster(rgb: Picture, sheet: Sheet) -> Picture:
    """Cut `rgb` into four flat inks, navy, red, blue and cream, with stripes where blue meets cream."""
    height, width = sheet.work
    small, grey = shrunk(rgb, sheet), sheet.picture("grey", height, width)
    calm = sheet.picture("calm", height, width, 3)
    cv2.bilateralFilter(small, 7, 40, 4, calm)
    cv2.cvtColor(calm, cv2.COLOR_RGB2GRAY, grey)
    cv2.GaussianBlur(grey, NO_KERNEL, max(2.0 * sheet.work_scale, 0.5), grey)
    tone = exposed(grey, middle=132, spread=64)
    full = sheet.picture("full tone", *rgb.shape[:2])
    cv2.resize(tone, (rgb.shape[1], rgb.shape[0]), full, 0, 0, cv2.INTER_CUBIC)
    striped = sheet.picture("line", *rgb.shape[:2])
    cv2.LUT(full, _STRIPED, striped)
    cv2.multiply(striped, sheet.kept(_stripes), striped, 1 / 255)
    cv2.add(full, striped, full)
    out = coloured(full, _HOPE)
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    return out


# How far stripes lift a tone: only in the upper half of the blue.
_STRIPED: Final = as_picture(255 * np.interp(LEVELS, (0.58, 0.61, 0.72, 0.75), (0, 0.17, 0.17, 0)))


def _stripes(sheet: Sheet) -> Picture:
    distance = max(7 * sheet.scale, 4)
    row = np.arange(sheet.height, dtype=np.float32)[:, None]
    stripe = np.clip(0.5 + 1.6 * np.cos(2 * math.pi * row / distance), 0, 1)
    return as_picture(np.repeat(255 * stripe, sheet.width, axis=1))


# Four panels: of ink, shadow, body, light and ground.
_SERIGRAPHS: Final = tuple(
    ramp(
        (0, ink),
        (0.17, ink),
        (0.20, shadow),
        (0.40, shadow),
        (0.43, body),
        (0.63, body),
        (0.66, light),
        (1, light),
    )
    for ink, shadow, body, light in (
        ((38, 10, 60), (232, 28, 120), (255, 128, 178), (255, 226, 40)),
        ((10, 26, 74), (0, 140, 160), (255, 196, 30), (255, 92, 64)),
        ((60, 8, 26), (250, 92, 20), (120, 222, 210), (236, 244, 240)),
        ((16, 14, 40), (104, 40, 190), (90, 214, 90), (255, 120, 200)),
    )
)


def popart(rgb: Picture, sheet: Sheet) -> Picture:
    """Print `rgb` four times, in four sets of inks, each a little out of register."""
    out = np.empty(rgb.shape, np.uint8)
    rows, columns = -(-sheet.height // 2), -(-sheet.width // 2)
    small, calm = sheet.picture("panel", rows, columns, 3), sheet.picture("calm panel", rows, columns, 3)
    cv2.resize(rgb, (columns, rows), small, 0, 0, cv2.INTER_AREA)
    cv2.bilateralFilter(small, 7, 40, 3, calm)
    grey = sheet.picture("grey panel", rows, columns)
    cv2.cvtColor(calm, cv2.COLOR_RGB2GRAY, grey)
    cv2.GaussianBlur(grey, NO_KERNEL, max(1.4 * sheet.scale, 0.4), grey)
    tone = exposed(grey, middle=128, spread=62)
    for panel, inks in enumerate(_SERIGRAPHS):
        down, right = divmod(panel, 2)
        corner = out[down * rows :, right * columns :][:rows, :columns]
        printed = coloured(tone, inks)
        corner[:] = printed[: corner.shape[0], : corner.shape[1]]
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    return out
