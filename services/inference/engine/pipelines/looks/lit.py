"""Looks that glow in the dark: neon tubes and a thermal camera."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from services.inference.engine.pipelines.looks.sheet import (
    LEVELS,
    NO_KERNEL,
    Floats,
    Picture,
    Sheet,
    coloured,
    enlarged,
    exposed,
    part,
    ramp,
    shrunk,
)

# What the neon look leaves of the unlit world, as RGB: of the source's brightness, and at least.
_NIGHT: Final = ((0.20, 0.018), (0.13, 0.012), (0.34, 0.045))
# The light given to greys, which have no hue of their own, as RGB: per level of brightness, and at least.
_GAS: Final = ((0.10, 17.0), (-0.25, -6.5), (0.15, 25.5))
_NIGHT_TONE: Final = np.stack([share * LEVELS**1.6 + least for share, least in _NIGHT], -1, dtype=np.float32)


def neon(rgb: Picture, sheet: Sheet) -> Picture:
    """Light the outlines of `rgb` as neon tubes of their own hue, with bloom, on what night leaves."""
    height, width = sheet.work
    scale, calm = sheet.work_scale, sheet.picture("calm", height, width, 3)
    cv2.medianBlur(shrunk(rgb, sheet), 5 if scale > 0.5 else 3, calm)
    cv2.GaussianBlur(calm, NO_KERNEL, max(1.1 * scale, 0.3), calm)
    tube = _tubes(calm, sheet)
    lit, colour = sheet.floats("lit", height, width, 3), sheet.floats("full colour", height, width, 3)
    cv2.cvtColor(tube, cv2.COLOR_GRAY2RGB, lit)
    cv2.resize(_hues(calm, sheet), (width, height), colour)
    lit *= colour

    out, extra = sheet.floats("out", height, width, 3), colour
    cv2.resize(_bloom(lit, sheet), (width, height), out)
    cv2.LUT(calm, _NIGHT_TONE[None], extra)
    out += extra
    lit *= 0.95
    out += lit
    # The core of a tube burns out to white.
    core = sheet.floats("core", height, width)
    np.multiply(tube, tube, out=core)
    core *= tube
    core *= 0.35
    cv2.cvtColor(core, cv2.COLOR_GRAY2RGB, extra)
    out += extra
    # As on film, light adds up towards white and never clips.
    out *= -1.35
    cv2.exp(out, out)
    np.subtract(1, out, out=out)
    shot = sheet.picture("shot", height, width, 3)
    cv2.convertScaleAbs(out, shot, 255)
    return enlarged(shot, rgb)


def _tubes(rgb: Picture, sheet: Sheet) -> Floats:
    """Return where tubes run, 0..1: gradients of any colour that stand out from the texture around."""
    height, width = rgb.shape[:2]
    slope, other = sheet.floats("slope", height, width, 3), sheet.floats("other slope", height, width, 3)
    cv2.Sobel(rgb, cv2.CV_32F, 1, 0, slope)
    cv2.Sobel(rgb, cv2.CV_32F, 0, 1, other)
    slope *= slope
    other *= other
    slope += other
    steep, usual = sheet.floats("steep", height, width), sheet.floats("usual", height, width)
    # By hand, for numpy's own maximum is slow along an axis of three.
    np.maximum(slope[..., 0], slope[..., 1], out=steep)
    np.maximum(slope[..., 2], steep, out=steep)
    np.sqrt(steep, out=steep)
    side = 2 * int(24 * sheet.work_scale) + 1
    cv2.blur(steep, (side, side), usual)
    usual *= 0.9
    usual += 45
    usual += steep
    steep /= usual
    # A smooth step from 0.40 to 0.75.
    steep -= 0.40
    steep /= 0.35
    np.clip(steep, 0, 1, out=steep)
    np.multiply(steep, -2, out=usual)
    usual += 3
    steep *= steep
    steep *= usual
    return steep


def _hues(rgb: Picture, sheet: Sheet) -> Floats:
    """Return the colours of `rgb` at their fullest, 0..1, at quarter size; greys get a gas's colour."""
    width, height = part(sheet, 4)
    stamp, colour = sheet.picture("stamp", height, width, 3), sheet.floats("colour", height, width, 3)
    cv2.resize(rgb, (width, height), stamp, 0, 0, cv2.INTER_AREA)
    np.copyto(colour, stamp)
    cv2.GaussianBlur(colour, NO_KERNEL, max(2.5 * sheet.work_scale, 0.3), colour)
    planes: Floats = np.array(cv2.split(colour), np.float32)  # (3, H, W)
    brightness: Floats = planes.mean(axis=0)
    planes -= brightness
    planes *= 3
    for channel, (share, least) in enumerate(_GAS):
        planes[channel] += share * brightness + np.float32(least)
    planes -= planes.min(axis=0)
    planes *= 0.94 / (planes.max(axis=0) + 1e-3)
    planes += 0.06
    cv2.merge(list(planes), colour)
    return colour


def _bloom(lit: Floats, sheet: Sheet) -> Floats:
    """Return the light around tubes, at half of the size: close to them, and far over their neighbourhood."""
    (near_width, near_height), (far_width, far_height) = part(sheet, 2), part(sheet, 8)
    near, far = (
        sheet.floats("glow", near_height, near_width, 3),
        sheet.floats("haze", far_height, far_width, 3),
    )
    cv2.resize(lit, (near_width, near_height), near, 0, 0, cv2.INTER_AREA)
    cv2.GaussianBlur(near, NO_KERNEL, max(2.5 * sheet.work_scale, 0.3), near)
    cv2.resize(near, (far_width, far_height), far, 0, 0, cv2.INTER_AREA)
    cv2.GaussianBlur(far, NO_KERNEL, max(3 * sheet.work_scale, 0.3), far)
    cv2.addWeighted(near, 1.0, cv2.resize(far, (near_width, near_height)), 1.3, 0, near)
    return near


_IRON: Final = ramp(
    (0.0, (0, 0, 18)),
    (0.14, (28, 6, 96)),
    (0.32, (128, 14, 148)),
    (0.52, (222, 54, 88)),
    (0.70, (252, 132, 24)),
    (0.86, (255, 208, 66)),
    (1.0, (255, 255, 236)),
)
_WARMTH: Final = 1.5  # how much hotter red is than grey: faces before anything green or blue


def thermal(rgb: Picture, sheet: Sheet) -> Picture:
    """See `rgb` as a thermal camera would if it could: what is bright and red is hot."""
    height, width = sheet.work
    opponent = sheet.picture("opponent", height, width, 3)
    cv2.cvtColor(shrunk(rgb, sheet), cv2.COLOR_RGB2YCrCb, opponent)
    level, red = sheet.picture("level", height, width), sheet.picture("red", height, width)
    cv2.extractChannel(opponent, 0, level)
    cv2.extractChannel(opponent, 1, red)
    cv2.GaussianBlur(red, NO_KERNEL, max(3 * sheet.work_scale, 0.4), red)
    cv2.addWeighted(level, 0.62, red, _WARMTH, 128 * (0.38 - _WARMTH), level)
    # Such a camera has few pixels, and its picture swims a little over them.
    soft = sheet.picture("grey", height, width)
    cv2.GaussianBlur(level, NO_KERNEL, max(1.6 * sheet.work_scale, 0.4), soft)
    cv2.addWeighted(
        soft, 1.5, cv2.GaussianBlur(soft, NO_KERNEL, max(6 * sheet.work_scale, 0.6)), -0.5, 0, soft
    )
    warm = exposed(soft, middle=104, spread=58)
    full = sheet.picture("full grey", *rgb.shape[:2])
    cv2.resize(warm, (rgb.shape[1], rgb.shape[0]), full, 0, 0, cv2.INTER_CUBIC)
    return coloured(full, _IRON)
