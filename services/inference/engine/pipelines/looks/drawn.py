"""Looks of the line: pencil sketch and copper engraving."""

from __future__ import annotations

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
    enlarged,
    exposed,
    full_grey,
    ink_lines,
    part,
    ramp,
    shrunk,
)

_LAMPLIT: Final = (1.0, 0.985, 0.945)
_PENCIL_TONE: Final = np.round(255 * LEVELS**0.65).astype(np.uint8)


def sketch(rgb: Picture, sheet: Sheet, *, tint: float = 0.12) -> Picture:
    """Draw `rgb` in graphite: outlines, smudged and hatched shading, and `tint` (0..1) of its colours."""
    small = shrunk(rgb, sheet)
    out = enlarged(_pencil_plan(small, sheet), rgb)
    line, tone, around = (sheet.picture(name, *rgb.shape[:2]) for name in ("line", "full tone", "around"))
    cv2.split(out, [line, tone, around])

    # A fine line wherever a pixel is darker than its surroundings, in proportion: a colour dodge, inverted.
    ink = sheet.picture("full grey", *rgb.shape[:2])
    cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, ink)
    cv2.divide(ink, around, ink, 255)
    cv2.bitwise_not(ink, ink)
    cv2.addWeighted(ink, 1.7, line, 1, -6, line)
    np.minimum(line, 200, out=line)

    cv2.subtract(sheet.hatching, tone, ink)
    np.minimum(ink, 80, out=ink)
    cv2.bitwise_not(tone, tone)
    cv2.addWeighted(ink, 1.5, tone, 0.3, 0, ink)
    cv2.add(ink, line, ink)
    cv2.multiply(ink, sheet.tooth, ink, 1 / 255)

    cv2.bitwise_not(ink, ink)
    cv2.cvtColor(ink, cv2.COLOR_GRAY2RGB, out)
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    cv2.multiply(out, enlarged(_tinted(small, sheet, tint), rgb), out, 1 / 255)
    return out


def _pencil_plan(small: Picture, sheet: Sheet) -> Picture:
    """Return what to draw, at work size: red is ink of outlines, green the tone to shade, blue the grey."""
    height, width = sheet.work
    scale, level = sheet.work_scale, sheet.picture("level", height, width)
    near, mid, far = (sheet.floats(name, height, width) for name in ("near", "mid", "far"))
    cv2.cvtColor(small, cv2.COLOR_RGB2GRAY, level)
    np.copyto(mid, level)
    cv2.GaussianBlur(mid, NO_KERNEL, max(0.8 * scale, 0.3), near)
    cv2.GaussianBlur(near, NO_KERNEL, max(1.4 * scale, 0.3), mid)
    cv2.GaussianBlur(mid, NO_KERNEL, max(3.0 * scale, 0.3), far)

    plan = sheet.picture("plan", height, width, 3)
    cv2.convertScaleAbs(mid, level)
    cv2.insertChannel(level, plan, 2)
    # Outlines twice: a sharp one of details, and a soft one that only what is large and dark leaves.
    np.subtract(mid, near, out=near)
    near *= 7
    near -= 8
    np.clip(near, 0, 90, out=near)
    line = sheet.floats("outline", height, width)
    np.subtract(far, mid, out=line)
    line *= 3.2
    line -= 16
    np.clip(line, 0, 80, out=line)
    line += near
    cv2.convertScaleAbs(line, level)
    cv2.insertChannel(level, plan, 0)
    # Shading overstates the forms a little.
    cv2.addWeighted(mid, 1.25, far, -0.25, 0, mid)
    np.clip(mid, 0, 255, out=mid)
    cv2.convertScaleAbs(mid, level)
    cv2.LUT(level, _PENCIL_TONE, level)
    cv2.insertChannel(level, plan, 1)
    return plan


def _tinted(small: Picture, sheet: Sheet, tint: float) -> Picture:
    """Return the factors, in 255ths, that stain lamplit paper with `tint` of the colours; quarter size."""
    width, height = part(sheet, 4)
    stamp, colour = sheet.picture("stamp", height, width, 3), sheet.floats("colour", height, width, 3)
    cv2.resize(small, (width, height), stamp, 0, 0, cv2.INTER_AREA)
    np.copyto(colour, stamp)
    cv2.GaussianBlur(colour, NO_KERNEL, max(1.25 * sheet.work_scale, 0.3), colour)
    colour += 8
    colour /= np.maximum.reduce(cv2.split(colour))[..., None]
    colour *= tint
    colour += 1 - tint
    colour *= np.float32(255) * np.array(_LAMPLIT, np.float32)
    return as_picture(colour)


_ENGRAVED_DISTANCE: Final = 6.4  # of the lines, in pixels of a 720-line picture
_RELIEF: Final = 1.1  # how many distances of lines a form rises from black to white
_BANKNOTE: Final = ramp((0, (18, 38, 42)), (0.5, (104, 122, 112)), (1, (246, 241, 222)))


def engraving(rgb: Picture, sheet: Sheet) -> Picture:
    """Cut `rgb` into copper: lines that swell with the dark and bend over the forms, as on a banknote."""
    height, width = sheet.work
    small, soft = sheet.picture("level", height, width), sheet.picture("grey", height, width)
    cv2.cvtColor(shrunk(rgb, sheet), cv2.COLOR_RGB2GRAY, small)
    cv2.GaussianBlur(small, NO_KERNEL, max(9 * sheet.work_scale, 0.5), soft)
    relief = sheet.picture("around", *rgb.shape[:2])
    cv2.resize(soft, (rgb.shape[1], rgb.shape[0]), relief)
    grey = full_grey(rgb, sheet)
    cv2.GaussianBlur(grey, NO_KERNEL, max(1.3 * sheet.scale, 0.4), grey)
    # A little more of the detail than there is.
    cv2.addWeighted(grey, 1.7, relief, -0.7, 0, grey)
    tone = exposed(grey, middle=138, spread=66)

    first, second = sheet.kept(_plate)
    phase, line = sheet.picture("phase", *rgb.shape[:2]), sheet.picture("line", *rgb.shape[:2])
    np.add(first, cv2.LUT(relief, _BEND), out=phase)  # a phase wraps as uint8 does
    cv2.LUT(phase, _SWELL, line)
    cut = sheet.picture("full tone", *rgb.shape[:2])
    cv2.subtract(line, tone, cut)
    np.add(second, cv2.LUT(relief, _BEND), out=phase)
    cv2.LUT(phase, _CROSS, line)
    cv2.subtract(line, tone, line)
    cv2.max(cut, line, cut)
    cv2.convertScaleAbs(cut, cut, 255 / max(14.0, 58 / max(sheet.scale, 0.3) ** 0.5))
    outline = ink_lines(small, sheet, sigma=0.9, gain=9, least=26)
    cv2.max(cut, outline, cut)
    cv2.bitwise_not(cut, cut)
    out = coloured(cut, _BANKNOTE)
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    return out


# What a tone has to be below for its pixel to be ink, by the phase within a line; crossing lines begin later.
_WAVE: Final = np.abs(LEVELS * 2 - 1)
_SWELL: Final = as_picture(255 * (0.06 + 0.90 * (1 - _WAVE)))
_CROSS: Final = as_picture(255 * (0.50 * (1 - _WAVE) - 0.06))
_BEND: Final = (np.arange(256) * _RELIEF).astype(np.uint8)


def _plate(sheet: Sheet) -> tuple[Picture, Picture]:
    """Return the phases, 0..255, of two sets of lines: level ones, and ones that cross them."""
    row, column = np.mgrid[0 : sheet.height, 0 : sheet.width].astype(np.float32)
    distance = max(_ENGRAVED_DISTANCE * sheet.scale, 3.6)
    sway = 2.2 * distance * sheet.noise(12, sheet.height, sheet.width, cell=240 * sheet.scale + 2, octaves=1)
    level = (row + 0.22 * column + sway) / distance
    crossing = (0.55 * row - 0.84 * column + sway) / distance
    return (level % 1 * 256).astype(np.uint8), (crossing % 1 * 256).astype(np.uint8)
