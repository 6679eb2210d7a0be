"""Looks that bend space and time: a kaleidoscope, and a dream that echoes what was seen."""

from __future__ import annotations

import math
from typing import Any, Final

import cv2
import numpy as np

from services.inference.engine.pipelines.looks.sheet import (
    LEVELS,
    Echo,
    Floats,
    Picture,
    Sheet,
    curves,
    enlarged,
    shrunk,
)
from sluice.pipeline import TICKS_PER_SECOND

_MIRRORS: Final = 6
_TURN_S: Final = 48.0  # for the kaleidoscope to turn once
_ASIDE: Final = 0.13  # of the short side


def kaleidoscope(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """Look at `rgb` through mirrors that turn slowly."""
    height, width = rgb.shape[:2]
    right, down = sheet.kept(_folded)
    turn = 2 * math.pi * (pts / TICKS_PER_SECOND % _TURN_S) / _TURN_S
    x, y = sheet.floats("at column", height, width), sheet.floats("at row", height, width)
    cosine, sine = math.cos(turn), math.sin(turn)
    # The mirrors meet beside the middle, so that what is in the middle is in the picture and not its hub.
    aside = _ASIDE * min(height, width)
    cv2.addWeighted(right, cosine, down, -sine, width / 2 - aside * cosine, x)
    cv2.addWeighted(right, sine, down, cosine, height / 2 - aside * sine, y)
    out = np.empty(rgb.shape, np.uint8)
    cv2.remap(rgb, x, y, cv2.INTER_LINEAR, out, cv2.BORDER_REFLECT_101)
    opponent = sheet.picture("opponent", *rgb.shape)
    cv2.cvtColor(out, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _JEWELS, opponent)
    cv2.cvtColor(opponent, cv2.COLOR_YCrCb2RGB, out)
    cv2.multiply(out, sheet.vignette, out, 1.06 / 255)
    return out


_JEWELS: Final = curves(
    255 * (0.5 * (3 * LEVELS**2 - 2 * LEVELS**3) + 0.5 * LEVELS) ** 0.86,
    *[128 + 1.4 * (255 * LEVELS - 128)] * 2,
)


def _folded(sheet: Sheet) -> tuple[Floats, Floats]:
    """Where in the first wedge each pixel looks, from the middle, in pixels."""
    row, column = np.mgrid[0 : sheet.height, 0 : sheet.width].astype(np.float32)
    row -= np.float32(sheet.height / 2)
    column -= np.float32(sheet.width / 2)
    away, angle = np.hypot(row, column), np.arctan2(row, column)
    wedge = np.float32(2 * math.pi / _MIRRORS)
    angle = np.abs(np.mod(angle, wedge) - wedge / 2)
    away *= np.float32(1.15)
    return np.asarray(away * np.cos(angle), np.float32), np.asarray(away * np.sin(angle), np.float32)


_FADES_S: Final = 0.9  # after which an echo has a third of its light
_GROWS: Final = 0.5  # of its size a second
_TURNS: Final = 0.3  # radians a second, at most
_FORGETS: Final = 1.0  # seconds without pictures, after which nothing is left


def dream(rgb: Picture, sheet: Sheet, pts: int) -> Picture:
    """See in `rgb` what was there before: echoes that grow, turn and change their colours as they fade."""
    height, width = sheet.work
    small = shrunk(rgb, sheet)
    before, seconds = sheet.echo, 0.0
    if before is not None:
        seconds = (pts - before.pts) / TICKS_PER_SECOND
    if before is None or not 0 <= seconds < _FORGETS or before.picture.shape != small.shape:
        echo = small.copy()
    else:
        turn = _TURNS * math.sin(2 * math.pi * (pts / TICKS_PER_SECOND % 11) / 11) * seconds
        grown = (1 + _GROWS) ** seconds
        move = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), math.degrees(turn), grown)
        echo = _drifted(
            cv2.warpAffine(before.picture, move, (width, height), borderMode=cv2.BORDER_REFLECT_101), seconds
        )
        # The brighter of the two, the echo a little less each time.
        kept = math.exp(-seconds / _FADES_S)
        cv2.max(cv2.convertScaleAbs(echo, alpha=kept), small, echo)
    sheet.echo = Echo(echo, pts)
    out = enlarged(echo, rgb)
    cv2.addWeighted(out, 0.62, rgb, 0.46, -4, out)
    return out


def _drifted(echo: Any, seconds: float) -> Picture:
    """Turn the hues of `echo`, and make them fuller."""
    angle = 1.5 * seconds
    turned = np.array(
        [
            [1, 0, 0, 0],
            [0, 1.03 * math.cos(angle), -1.03 * math.sin(angle), 0],
            [0, 1.03 * math.sin(angle), 1.03 * math.cos(angle), 0],
        ]
    )
    turned[1:, 3] = 128 - turned[1:, 1:3].sum(axis=1) * 128
    opponent = cv2.cvtColor(echo, cv2.COLOR_RGB2YCrCb)
    return np.asarray(cv2.cvtColor(cv2.transform(opponent, turned), cv2.COLOR_YCrCb2RGB), np.uint8)
