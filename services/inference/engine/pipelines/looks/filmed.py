"""Looks of a recording: film noir, a video tape, a broken signal. These move with the time of the video."""

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
    exposed,
    part,
)
from sluice.pipeline import TICKS_PER_SECOND

FILM_HZ: Final = 24.0
_NOIR: Final = as_picture(255 * (np.clip((LEVELS - 0.08) / 0.86, 0, 1) ** 1.1 * (1.55 - 0.55 * LEVELS)))


def noir(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """Shoot `rgb` as a crime film of the forties: hard light through blinds, glow, grain."""
    red, green, blue = cv2.split(rgb)
    grey = sheet.picture("full grey", *rgb.shape[:2])
    cv2.addWeighted(red, 0.50, green, 0.42, 0, grey)
    cv2.addWeighted(grey, 1, blue, 0.08, 0, grey)
    tone = exposed(grey, middle=106, spread=72)
    cv2.LUT(tone, _NOIR, tone)
    cv2.multiply(tone, sheet.kept(_blinds), tone, 1 / 255)
    # Light creeps in the emulsion: what is bright glows.
    width, height = part(sheet, 2)
    small = cv2.resize(tone, (width, height), interpolation=cv2.INTER_AREA)
    cv2.addWeighted(small, 1, small, 0, -140, small)
    cv2.GaussianBlur(small, NO_KERNEL, max(4 * sheet.work_scale, 0.5), small)
    glow = sheet.picture("around", *rgb.shape[:2])
    cv2.resize(small, (sheet.width, sheet.height), glow)
    cv2.addWeighted(tone, 1, glow, 0.9, 0, tone)
    cv2.addWeighted(tone, 1, sheet.snow(pts, FILM_HZ), 0.26, -0.26 * 128, tone)
    out = cv2.cvtColor(tone, cv2.COLOR_GRAY2RGB)
    cv2.multiply(out, sheet.vignette, out, 1 / 255)
    return np.asarray(out, np.uint8)


def _blinds(sheet: Sheet) -> Picture:
    """The factor, in 255ths, that slanting shadows of a blind leave."""
    row, column = np.mgrid[0 : sheet.height, 0 : sheet.width].astype(np.float32)
    across = (row + 0.34 * column) / max(96 * sheet.scale, 8)
    slat = np.clip(0.5 + 1.5 * np.cos(2 * math.pi * across), 0, 1)
    where = np.clip(1.25 - np.abs(column / sheet.width - 0.62) * 2.2, 0, 1)
    return as_picture(255 * (1 - 0.42 * where * (1 - slat)))


_TAPE: Final = curves(
    255 * (0.055 + 0.90 * (0.5 * (3 * LEVELS**2 - 2 * LEVELS**3) + 0.5 * LEVELS)),
    128 + 1.22 * (255 * LEVELS - 128) + 2,
    128 + 1.28 * (255 * LEVELS - 128) + 3,
)
_TRACKING_S: Final = 5.2  # for the band of noise to cross the picture
_FIELDS: Final = 30.0


def vhs(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """Play `rgb` from a worn tape: colours that smear, lines that sway, snow, and a recorder's display."""
    height, width = rgb.shape[:2]
    chance, seconds = sheet.chance(21, pts, _FIELDS), (pts % (TICKS_PER_SECOND << 16)) / TICKS_PER_SECOND
    opponent = sheet.picture("opponent", *rgb.shape)
    cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _TAPE, opponent)
    luma, red, blue = (np.asarray(plane, np.uint8) for plane in cv2.split(opponent))
    scale = max(sheet.scale, 0.25)
    # A tape has 240 lines of brightness and 40 of colour, which also comes late.
    side = 2 * max(1, round(1.6 * scale)) + 1
    soft = cv2.blur(luma, (side, 1))
    ringing = cv2.blur(luma, (2 * max(1, round(5 * scale)) + 1, 1))
    cv2.addWeighted(soft, 1.7, ringing, -0.7, 0, luma)
    smear = 2 * max(1, round(11 * scale)) + 1
    late = max(1, round(6 * scale))
    for chroma in (red, blue):
        moved = cv2.blur(chroma, (smear, 3))
        chroma[:, late:] = moved[:, :-late] if late < width else moved[:, :0]
    cv2.addWeighted(luma, 1, sheet.snow(pts, _FIELDS), 0.20, -0.20 * 128, luma)

    lines = np.arange(height, dtype=np.float32)
    band = (1.15 - (seconds / _TRACKING_S) % 1.3) * height
    torn = np.exp(-np.minimum(((lines - band) / np.float32(0.035 * height)) ** 2, 50))
    below = np.clip((lines - height * 0.965) / (0.035 * height), 0, 1)  # where the heads change
    jitter = cv2.blur(chance.standard_normal((height, 1), np.float32), (1, 5))[:, 0]
    sway = 0.8 * scale * np.sin(lines / (37 * scale) + 4.1 * seconds) + 1.6 * scale * jitter
    sway += 26 * scale * torn * (0.55 + 0.45 * jitter) + 60 * scale * below * (0.7 + 0.6 * jitter)
    _streaked(luma, torn * 0.9 + below, chance, scale)
    cv2.merge((luma, red, blue), opponent)
    out = np.empty(rgb.shape, np.uint8)
    _shifted(opponent, sway, out)
    cv2.cvtColor(out, cv2.COLOR_YCrCb2RGB, out)
    cv2.multiply(out, sheet.kept(_scan_lines), out, 1 / 255)
    if min(height, width) >= _READABLE:
        _display(out, sheet, seconds)
    return out


_READABLE: Final = 200  # pixels; on less than that, text is dirt


def _streaked(luma: Picture, share: Floats, chance: np.random.Generator, scale: float) -> None:
    """Draw white dashes into the lines of `luma`, as many as their `share`."""
    width = luma.shape[1]
    for line in np.flatnonzero(chance.random(luma.shape[0]) < 0.5 * share):
        start, length = int(chance.integers(0, width)), int(chance.integers(4, 60) * scale) + 2
        luma[line, start : start + length] = 235


def _shifted(picture: Picture, by: NDArray[np.floating], out: Picture) -> None:
    """Write `picture` to `out` with each line `by` so many pixels to the right; its edge is drawn out."""
    width = picture.shape[1]
    for line, pixels in enumerate(np.round(by).astype(int).clip(-width + 1, width - 1)):
        if pixels > 0:
            out[line, pixels:] = picture[line, :-pixels]
            out[line, :pixels] = picture[line, 0]
        elif pixels < 0:
            out[line, :pixels] = picture[line, -pixels:]
            out[line, pixels:] = picture[line, -1]
        else:
            out[line] = picture[line]


def _scan_lines(sheet: Sheet) -> Picture:
    row = np.arange(sheet.height, dtype=np.float32)
    wave = 0.5 + 0.5 * np.cos(2 * math.pi * row / max(3 * sheet.scale, 2))
    shade = as_picture(255 * (0.86 + 0.14 * wave))
    return np.ascontiguousarray(np.broadcast_to(shade[:, None, None], (sheet.height, sheet.width, 3)))


def _display(out: Picture, sheet: Sheet, seconds: float) -> None:
    minutes, rest = divmod(int(seconds), 60)
    size, margin = 1.95 * sheet.scale, round(44 * sheet.scale)
    thick = max(1, round(3 * sheet.scale))
    counter = f"SP {minutes // 60:d}:{minutes % 60:02d}:{rest:02d}"
    for text, bottom in (("PLAY", margin + round(20 * sheet.scale)), (counter, out.shape[0] - margin)):
        for colour, away in (((20, 20, 40), max(1, round(2 * sheet.scale))), ((235, 240, 255), 0)):
            at = margin + away, bottom + away
            cv2.putText(out, text, at, cv2.FONT_HERSHEY_PLAIN, size, colour, thick)


_GLITCH_HZ: Final = 14.0


def glitch(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """Break the signal of `rgb`: colours come apart, blocks slip, and every so often it tears."""
    height, width = rgb.shape[:2]
    chance = sheet.chance(22, pts, _GLITCH_HZ)
    mood = sheet.chance(23, pts, 1.6).random()  # some spells are worse than others
    worse = 0.25 + 1.1 * max(0.0, mood - 0.35)
    out = rgb.copy()
    apart = max(1, round(width * 0.006 * (0.7 + 2.2 * worse * chance.random())))
    if apart < width:
        out[:, apart:, 0] = rgb[:, :-apart, 0]
        out[:, :-apart, 2] = rgb[:, apart:, 2]
    for _ in range(int(chance.poisson(7 * worse))):
        top, high = int(chance.integers(0, height)), max(1, round(height * 0.09 * chance.random() ** 2))
        by = round(width * 0.13 * worse * chance.normal())
        out[top : top + high] = np.roll(out[top : top + high], by, axis=1)
        if chance.random() < 0.3:
            channel = int(chance.integers(3))
            bar = out[top : top + high, :, channel]
            bar[:] = np.roll(bar, width // 24, axis=1)
    for _ in range(int(chance.poisson(2.2 * worse))):
        _block(out, chance)
    cv2.multiply(out, sheet.kept(_scan_lines), out, 1.06 / 255)
    return out


def _block(out: Picture, chance: np.random.Generator) -> None:
    """Leave of a part of `out` only its coarsest pixels, or its negative, or one glaring colour more."""
    height, width = out.shape[:2]
    top, left = int(chance.integers(0, height)), int(chance.integers(0, width))
    piece = out[top : top + max(2, height // 14), left : left + max(4, int(width * 0.35 * chance.random()))]
    kind = chance.random()
    if kind < 0.6:
        rows, columns = max(1, piece.shape[0] // 9), max(1, piece.shape[1] // 14)
        coarse = cv2.resize(np.ascontiguousarray(piece), (columns, rows), interpolation=cv2.INTER_AREA)
        piece[:] = cv2.resize(coarse, piece.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    elif kind < 0.75:
        piece[:] = 255 - piece
    else:
        glare = np.array(((255, 0, 120), (0, 255, 220), (255, 230, 0))[int(chance.integers(3))], np.uint8)
        np.maximum(piece, glare // 2, out=piece)
