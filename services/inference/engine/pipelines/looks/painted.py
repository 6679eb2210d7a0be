"""Looks of the brush: watercolour and oil."""

from __future__ import annotations

import math
from typing import Final

import cv2
import numpy as np

from services.inference.engine.pipelines.looks.sheet import (
    LEVELS,
    NO_KERNEL,
    Floats,
    Picture,
    Sheet,
    curves,
    enlarged,
    shrunk,
)


def _wash_tone() -> Floats:
    """Lift the tones, for paper shines through, and pull them towards seven layers with soft edges."""
    lifted = LEVELS**0.62
    layer, within = np.divmod(lifted * 7, 1)
    step = 0.5 + 0.5 * np.tanh(4.5 * (within - 0.5)) / math.tanh(2.25)
    return np.asarray(0.14 + 0.86 * (0.6 * (layer + step) / 7 + 0.4 * lifted), np.float32)


_WASH_TONE: Final = _wash_tone()
# Colourfulness grows with the lift, but not in the darks, where it is mostly compression noise.
_WASH_CHROMA: Final = np.minimum(_WASH_TONE / np.maximum(LEVELS, 1e-3), 1.6).astype(np.float32)


def watercolor(rgb: Picture, sheet: Sheet) -> Picture:
    """Paint `rgb` in layered washes: kept edges, pigment gathered along them, grain, a ragged bare rim."""
    height, width = sheet.work
    small, brushed = shrunk(rgb, sheet), sheet.picture("brushed", height, width, 3)
    cv2.remap(small, *sheet.wobble, cv2.INTER_LINEAR, brushed, cv2.BORDER_REFLECT_101)
    planes = _washed(brushed, sheet)

    luma, level = sheet.floats("luma", height, width), sheet.picture("level", height, width)
    cv2.addWeighted(planes[0], 0.299, planes[1], 0.587, 0, luma)
    cv2.scaleAdd(planes[2], 0.114, luma, luma)
    cv2.convertScaleAbs(luma, level, 255)
    tone, chroma = sheet.floats("tone", height, width), sheet.floats("chroma", height, width)
    cv2.LUT(level, _WASH_TONE, tone)
    cv2.LUT(level, _WASH_CHROMA, chroma)

    # Pigment gathers on the darker side of an edge: where a tone is below that of its surroundings.
    density = sheet.floats("density", height, width)
    side = 2 * max(1, round(4 * sheet.work_scale)) + 1
    cv2.blur(tone, (side, side), density)
    density -= tone
    density *= 7
    np.clip(density, 0, 1.2, out=density)
    density += sheet.turbulence

    planes -= luma
    planes *= chroma
    planes += tone
    np.clip(planes, 0, 1, out=planes)
    # Density d turns a colour c into c - (c - c²)d: whites and full colours keep, mid tones deepen
    # (Bousseau et al. 2006, "Interactive watercolor rendering with temporal coherence and abstraction").
    spread = sheet.floats("spread", 3, height, width)
    np.multiply(planes, planes, out=spread)
    spread -= planes
    spread *= density
    planes += spread
    planes -= 1
    planes *= sheet.painted
    planes += 1
    planes *= 255

    washes, dry = sheet.floats("washes", height, width, 3), sheet.picture("dry", height, width, 3)
    cv2.merge(list(planes), washes)
    cv2.convertScaleAbs(washes, dry)
    cv2.GaussianBlur(dry, (3, 3), 0, dry)
    out = enlarged(dry, rgb)
    _outline(rgb, out, sheet)
    _granulate(out, sheet)
    return out


def _washed(rgb: Picture, sheet: Sheet) -> Floats:
    """Return `rgb` flattened into washes: (3, H, W), 0..1.

    A Kuwahara filter with all offsets of the window in place of its four quadrants: each pixel is the mean of
    the small windows around it, weighted by how even they are, so a window across an edge has no say.
    """
    height, width = rgb.shape[:2]
    reach = max(1, round(3.5 * sheet.work_scale))
    window, around = (2 * (reach // 2) + 1,) * 2, (2 * reach - 1,) * 2
    grey = sheet.picture("grey", height, width)
    cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, grey)
    mean, even = sheet.floats("mean", height, width), sheet.floats("even", height, width)
    cv2.boxFilter(grey, cv2.CV_32F, window, mean)
    cv2.sqrBoxFilter(grey, cv2.CV_32F, window, even)
    np.multiply(mean, mean, out=mean)
    even -= mean
    np.maximum(even, 0, out=even)
    even += 26  # levels squared: up to this variance a window counts as even
    np.multiply(even, even, out=mean)
    even *= mean
    np.divide(np.float32(1e6), even, out=even)

    weight, weighted = sheet.floats("weight", height, width), sheet.floats("weighted", height, width)
    cv2.blur(even, around, weight)
    windows, planes = sheet.picture("windows", height, width, 3), sheet.floats("planes", 3, height, width)
    cv2.blur(rgb, window, windows)
    for channel in range(3):
        np.multiply(windows[..., channel], even, out=weighted)
        cv2.blur(weighted, around, planes[channel])
    planes /= weight
    planes *= np.float32(1 / 255)
    return planes


def _outline(rgb: Picture, out: Picture, sheet: Sheet) -> None:
    """Draw into `out`, on what is painted, the fine dark details of `rgb` that the wash lost."""
    grey, line = sheet.picture("full grey", *out.shape[:2]), sheet.picture("line", *out.shape[:2])
    cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, grey)
    size = 2 * max(1, round(2 * sheet.scale)) + 1
    cv2.GaussianBlur(grey, (size, size), 0, line)
    cv2.addWeighted(line, 1, grey, -1, -3, line)
    cv2.multiply(line, sheet.painted_full, line, 2.4 / 255)
    lines = sheet.picture("lines", *out.shape)
    cv2.cvtColor(line, cv2.COLOR_GRAY2RGB, lines)
    cv2.subtract(out, lines, out)


def _granulate(out: Picture, sheet: Sheet) -> None:
    """Let pigment settle in the paper's hollows, least of pale and of full colours, and show the paper."""
    settled = sheet.picture("settled", *out.shape)
    cv2.bitwise_not(out, settled)
    np.minimum(settled, out, out=settled)  # as c - c² would, at a fifth of its time
    cv2.multiply(settled, sheet.granules, settled, 0.4 / 255)
    cv2.subtract(out, settled, out)
    cv2.multiply(out, sheet.paper, out, 1 / 255)


# An oil painting: how far a stroke of the brush runs, in steps of pixels at work size to each side.
_STROKE_STEPS: Final = 5
_STROKE_STEP: Final = 1.3
_OIL: Final = curves(
    255 * (0.82 * (3 * LEVELS**2 - 2 * LEVELS**3) + 0.18 * LEVELS), *[128 + 1.45 * (255 * LEVELS - 128)] * 2
)


def oil(rgb: Picture, sheet: Sheet) -> Picture:
    """Paint `rgb` in oil: full colours in thick strokes along the forms, lit from the upper left."""
    height, width = sheet.work
    small, brushed = shrunk(rgb, sheet), sheet.picture("brushed", height, width, 3)
    cv2.remap(small, *sheet.wobble, cv2.INTER_LINEAR, brushed, cv2.BORDER_REFLECT_101)
    planes = _washed(brushed, sheet)
    flat, body = sheet.floats("washes", height, width, 3), sheet.picture("dry", height, width, 3)
    planes *= 255
    cv2.merge(list(planes), flat)
    cv2.convertScaleAbs(flat, body)

    strokes = _strokes(body, sheet)
    # Bristles leave lighter and darker tracks, and a relief that light falls on.
    relief = sheet.floats("relief", height, width)
    cv2.Sobel(strokes, cv2.CV_32F, 1, 1, relief, 3, 0.9)
    strokes *= 12
    strokes -= relief * np.float32(26)
    tracks = sheet.picture("tracks", height, width)
    strokes += 128
    np.clip(strokes, 0, 255, out=strokes)
    cv2.convertScaleAbs(strokes, tracks)

    out = enlarged(body, rgb)
    _enriched(out, sheet)
    full = sheet.picture("line", *out.shape[:2])
    cv2.resize(tracks, (out.shape[1], out.shape[0]), full, 0, 0, cv2.INTER_CUBIC)
    light = sheet.picture("lines", *out.shape)
    cv2.cvtColor(full, cv2.COLOR_GRAY2RGB, light)
    cv2.addWeighted(out, 1, light, 0.55, -0.55 * 128, out)
    return out


def _strokes(body: Picture, sheet: Sheet) -> Floats:
    """Return the tracks of bristles, mostly within -1..1: noise drawn out along the forms of `body`."""
    height, width = sheet.work
    along = _directions(body, sheet)
    noise, drawn = sheet.kept(_bristles), sheet.floats("strokes", height, width)
    np.copyto(drawn, noise)
    row, column = sheet.kept(_places)
    at_row, at_column = sheet.floats("at row", height, width), sheet.floats("at column", height, width)
    here = sheet.floats("here", height, width)
    for step in range(1, _STROKE_STEPS + 1):
        for side in (-step, step):
            reach = side * _STROKE_STEP
            cv2.scaleAdd(along[0], reach, column, at_column)
            cv2.scaleAdd(along[1], reach, row, at_row)
            cv2.remap(noise, at_column, at_row, cv2.INTER_LINEAR, here, cv2.BORDER_REFLECT_101)
            drawn += here
    drawn /= 2 * _STROKE_STEPS + 1
    drawn *= 2.6
    return drawn


def _directions(body: Picture, sheet: Sheet) -> tuple[Floats, Floats]:
    """Return unit vectors along the edges of `body`; where there are none, along a field of the sheet's."""
    height, width = sheet.work
    grey = sheet.picture("grey", height, width)
    cv2.cvtColor(body, cv2.COLOR_RGB2GRAY, grey)
    across, down = sheet.floats("across", height, width), sheet.floats("down", height, width)
    cv2.Sobel(grey, cv2.CV_32F, 1, 0, across)
    cv2.Sobel(grey, cv2.CV_32F, 0, 1, down)
    # The structure tensor as one doubled angle: opposite gradients are the same edge, and can be averaged.
    double, square = sheet.floats("double", height, width), sheet.floats("square", height, width)
    np.multiply(across, down, out=double)
    double *= 2
    np.multiply(across, across, out=square)
    down *= down
    square -= down
    sigma = max(6 * sheet.work_scale, 1)
    cv2.GaussianBlur(double, NO_KERNEL, sigma, double)
    cv2.GaussianBlur(square, NO_KERNEL, sigma, square)
    resting = sheet.kept(_resting)
    double += resting[0]
    square += resting[1]
    # Half of that angle, and a right angle on.
    length = np.asarray(cv2.magnitude(square, double), np.float32)
    length += 1e-3
    square /= length
    np.subtract(1, square, out=across)
    np.maximum(across, 0, out=across)
    across *= 0.5
    np.sqrt(across, out=across)
    np.copysign(across, double, out=across)
    square += 1
    np.maximum(square, 0, out=square)
    square *= 0.5
    np.sqrt(square, out=down)
    return -across, down


def _enriched(out: Picture, sheet: Sheet) -> None:
    """Give `out` the depth of oil: fuller colours and a stronger contrast."""
    opponent = sheet.picture("opponent", *out.shape)
    cv2.cvtColor(out, cv2.COLOR_RGB2YCrCb, opponent)
    cv2.LUT(opponent, _OIL, opponent)
    cv2.cvtColor(opponent, cv2.COLOR_YCrCb2RGB, out)


def _bristles(sheet: Sheet) -> Floats:
    return sheet.noise(10, *sheet.work, cell=max(3.2 * sheet.work_scale, 1.6), octaves=2)


def _places(sheet: Sheet) -> tuple[Floats, Floats]:
    row, column = np.mgrid[0 : sheet.work[0], 0 : sheet.work[1]].astype(np.float32)
    return np.ascontiguousarray(row), np.ascontiguousarray(column)


def _resting(sheet: Sheet) -> tuple[Floats, Floats]:
    """How the brush lies where nothing leads it: about as the hand of a painter swings."""
    angle = np.float32(2.2) * sheet.noise(11, *sheet.work, cell=max(90 * sheet.work_scale, 2), octaves=1)
    return np.sin(angle) * np.float32(400), np.cos(angle) * np.float32(400)
