"""Three looks as functions of one picture: no memory of earlier frames, no randomness but the sheet's own.

Pictures are uint8 (H, W, 3), RGB, 0..255. Paper, grain, brush wobble and hatching belong to the `Sheet` and stay where
they are while the picture moves, so a still source gives a still picture. Washes, outlines and bloom are worked out at
a half or a quarter of the size (`Sheet.work`), where float32 is cheap; grain and fine lines are put on at full size.
docs/images/effects.jpg shows them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]

_WHITE: Final = 255.0
_NO_BLUR: Final = (0, 0)  # a kernel size that OpenCV derives from the sigma
_WARM_PAPER: Final = (1.0, 0.99, 0.965)
_GRAPHITE_PAPER: Final = (1.0, 0.985, 0.945)

# Angle in degrees, distance of strokes in pixels of a 720-line picture, and the tone below which a layer of hatching
# begins: one direction in the half shadows, a second close to it, and a crossing one in the darks.
_HATCHING: Final = ((-52.0, 5.0, 0.76), (-34.0, 4.6, 0.56), (38.0, 4.8, 0.44))

# Darker colours of the neon look's unlit world: its ambient light and what the source's brightness adds, as RGB.
_NIGHT: Final = ((0.20, 0.018), (0.13, 0.012), (0.34, 0.045))


class Sheet:
    """What a picture of one size is made on: textures from `seed`, made on first use, and reusable buffers.

    One sheet serves one caller at a time. A look never returns one of its buffers.
    """

    def __init__(self, height: int, width: int, seed: int = 0) -> None:
        self.height, self.width, self.seed = height, width, seed
        short = min(height, width)
        shrink = 1 if short < 160 else 2 if short < 900 else 4
        self.work: tuple[int, int] = (-(-height // shrink), -(-width // shrink))
        self.scale = short / 720  # of a full-size pixel, against the 720-line picture that the looks were drawn for
        self.work_scale = min(self.work) / 360
        self._floats: dict[tuple[str, tuple[int, ...]], Floats] = {}
        self._pictures: dict[tuple[str, tuple[int, ...]], Picture] = {}

    def fits(self, height: int, width: int, seed: int) -> bool:
        return (height, width, seed) == (self.height, self.width, self.seed)

    def floats(self, name: str, *shape: int) -> Floats:
        """Return this sheet's float32 buffer of that name and shape, with whatever was left in it."""
        if (name, shape) not in self._floats:
            self._floats[name, shape] = np.empty(shape, np.float32)
        return self._floats[name, shape]

    def picture(self, name: str, *shape: int) -> Picture:
        """Return this sheet's uint8 buffer of that name and shape, with whatever was left in it."""
        if (name, shape) not in self._pictures:
            self._pictures[name, shape] = np.empty(shape, np.uint8)
        return self._pictures[name, shape]

    def noise(self, stream: int, height: int, width: int, *, cell: float, octaves: int) -> Floats:
        """Smooth noise, mostly within -1..1, whose largest features are `cell` pixels wide."""
        random = np.random.default_rng((self.seed, stream))
        total = np.zeros((height, width), np.float32)
        for octave in range(octaves):
            size = max(cell / 2**octave, 1.0)
            rows, columns = math.ceil(height / size) + 3, math.ceil(width / size) + 3
            grid = random.standard_normal((rows, columns), np.float32)
            wide = cv2.resize(grid, None, fx=size, fy=size, interpolation=cv2.INTER_CUBIC)
            total += wide[:height, :width] * np.float32(0.6**octave)
        return total / np.float32(2 * math.sqrt(sum(0.36**octave for octave in range(octaves))))

    @cached_property
    def turbulence(self) -> Floats:
        """How unevenly a wash dries: extra density, at work size."""
        noise = self.noise(1, *self.work, cell=max(60 * self.work_scale, 2), octaves=4)
        return 0.35 * noise - np.float32(0.05)

    @cached_property
    def wobble(self) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
        """Where an unsteady brush finds each pixel, as `cv2.remap` wants it, at work size."""
        height, width = self.work
        row, column = np.mgrid[0:height, 0:width].astype(np.float32)
        cell, reach = 14 * self.work_scale + 2, np.float32(2.6 * self.work_scale)
        row += reach * self.noise(2, height, width, cell=cell, octaves=2)
        column += reach * self.noise(3, height, width, cell=cell, octaves=2)
        coarse, fine = cv2.convertMaps(column, row, cv2.CV_16SC2)
        return coarse.astype(np.int16), fine.astype(np.uint16)

    @cached_property
    def bare(self) -> Floats:
        """0 on the ragged rim that the brush leaves bare, 1 on what is painted, at work size."""
        height, width = self.work
        row, column = np.mgrid[0:height, 0:width].astype(np.float32)
        inset = np.minimum(np.minimum(column, width - 1 - column), np.minimum(row, height - 1 - row))
        ragged = self.noise(6, height, width, cell=max(30 * self.work_scale, 2), octaves=4)
        edge = inset / np.float32(min(height, width)) + 0.018 * ragged
        return np.clip((edge - 0.012) / 0.02, 0, 1).astype(np.float32)

    @cached_property
    def bare_full(self) -> Picture:
        """`bare` at full size, 0..255."""
        return _to_picture(_enlarged(self.bare, self) * np.float32(_WHITE))

    @cached_property
    def grain(self) -> Floats:
        """The paper's tooth at full size, mostly within -1..1."""
        unit = max(1.0, 2 * self.scale)
        fine = self.noise(4, self.height, self.width, cell=2.2 * unit, octaves=2)
        coarse = self.noise(5, self.height, self.width, cell=7 * unit, octaves=2)
        return 0.65 * fine + 0.35 * coarse

    @cached_property
    def paper(self) -> Picture:
        """Cold-pressed paper in warm light, (H, W, 3): the factor, in 255ths, that it leaves of a colour."""
        shade = 1 - 0.06 * np.clip(0.5 - self.grain, 0, 2)
        return _to_picture(shade[..., None] * (np.array(_WARM_PAPER, np.float32) * np.float32(_WHITE)))

    @cached_property
    def granules(self) -> Picture:
        """How much pigment settles in the paper's hollows, (H, W, 3), in 255ths."""
        hollow = _to_picture(np.clip(0.5 - self.grain, 0, 1.2) * np.float32(0.32 * _WHITE))
        return np.repeat(hollow[..., None], 3, axis=2)

    @cached_property
    def tooth(self) -> Picture:
        """How much of a pencil's stroke the paper takes, (H, W), in 255ths."""
        return _to_picture(np.clip(0.86 - 0.42 * self.grain, 0.3, 1) * np.float32(0.9 * _WHITE))

    @cached_property
    def hatching(self) -> Picture:
        """The tone, (H, W), below which a pixel is inked: a screen of strokes drawn by hand."""
        scale = max(self.scale, 0.5)
        row, column = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        bend = 4 * scale * self.noise(7, self.height, self.width, cell=90 * scale, octaves=2)
        press = 0.09 * self.noise(8, self.height, self.width, cell=30 * scale, octaves=2)
        screen = np.zeros((self.height, self.width), np.float32)
        for layer, (angle, distance, begins) in enumerate(_HATCHING):
            turn = math.radians(angle)
            across = math.cos(turn) * row - math.sin(turn) * column + (1 + 0.3 * layer) * bend
            stroke = 0.5 + 0.5 * np.cos(2 * math.pi / (distance * scale) * across)
            np.maximum(screen, begins * (0.3 + 0.7 * stroke) + press, out=screen)
        return _to_picture(screen * np.float32(_WHITE))


def watercolor(rgb: Picture, sheet: Sheet) -> Picture:
    """Paint `rgb` in layered washes: kept edges, pigment gathered along them, granulation, a bare ragged rim."""
    height, width = sheet.work
    brushed = sheet.picture("brushed", height, width, 3)
    # The wash averages what this picks, so the nearest pixel does as well as an interpolated one, for less.
    cv2.remap(_shrunk(rgb, sheet), *sheet.wobble, cv2.INTER_NEAREST, brushed, cv2.BORDER_REFLECT_101)
    planes = _washed(brushed, sheet)

    luma = sheet.floats("luma", height, width)
    np.multiply(planes[0], 0.299, out=luma)
    luma += 0.587 * planes[1]
    luma += 0.114 * planes[2]
    level = cv2.convertScaleAbs(luma, sheet.picture("level", height, width), 255)
    tone = cv2.LUT(level, _WASH_TONE, sheet.floats("tone", height, width))
    chroma = cv2.LUT(level, _WASH_CHROMA, sheet.floats("chroma", height, width))

    # Pigment gathers on the darker side of an edge: where a tone is below that of its surroundings.
    density = sheet.floats("density", height, width)
    cv2.GaussianBlur(tone, _NO_KERNEL, 2.5 * sheet.work_scale + 0.3, density)
    density -= tone
    density *= 7
    np.clip(density, 0, 1.2, out=density)
    density += sheet.turbulence

    spread = sheet.floats("spread", height, width)
    for plane in planes:
        plane -= luma
        plane *= chroma
        plane += tone
        np.clip(plane, 0, 1, out=plane)
        # Density d turns a colour c into c - (c - c²)d: whites and full colours keep, mid tones deepen
        # (Bousseau et al. 2006, "Interactive watercolor rendering with temporal coherence and abstraction").
        np.multiply(plane, plane, out=spread)
        spread -= plane
        spread *= density
        plane += spread
        plane -= 1
        plane *= sheet.painted
        plane += 1
    painted = cv2.merge(planes, sheet.floats("painted", height, width, 3))
    out = _enlarged(cv2.convertScaleAbs(painted, sheet.picture("dry", height, width, 3), 255), rgb)
    _outline(rgb, out, sheet)
    _granulate(out, sheet)
    return out


def _washed(rgb: Picture, sheet: Sheet) -> list[Floats]:
    """Return the red, green and blue planes of `rgb`, 0..1, flattened into washes.

    A Kuwahara filter with all offsets of the window in place of its four quadrants: each pixel is the mean of the small
    windows around it, weighted by how even they are, so a window across an edge has no say.
    """
    height, width = rgb.shape[:2]
    reach = max(1, round(4 * sheet.work_scale))
    window, around = (2 * (reach // 2) + 1,) * 2, (2 * reach - 1,) * 2
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, sheet.picture("grey", height, width))
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

    weight = cv2.blur(even, around, sheet.floats("weight", height, width))
    windows = cv2.blur(rgb, window, sheet.picture("windows", height, width, 3))
    weighted, planes = sheet.floats("weighted", height, width), []
    for channel, name in enumerate(("red", "green", "blue")):
        plane = sheet.floats(name, height, width)
        np.multiply(windows[..., channel], even, out=weighted)
        cv2.blur(weighted, around, plane)
        plane /= weight
        plane *= 1 / 255
        planes.append(plane)
    return planes


def _outline(rgb: Picture, out: Picture, sheet: Sheet) -> None:
    """Draw the dark details of `rgb` that the wash lost into `out`, finely, on what is painted."""
    grey, line = sheet.picture("full grey", *out.shape[:2]), sheet.picture("line", *out.shape[:2])
    cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, grey)
    size = 2 * max(1, round(2 * sheet.scale)) + 1
    cv2.GaussianBlur(grey, (size, size), 0, line)
    cv2.subtract(line, grey, line)
    cv2.subtract(line, 4.0, line)
    cv2.multiply(line, sheet.painted_full, line, 1.8 / 255)
    cv2.subtract(out, cv2.cvtColor(line, cv2.COLOR_GRAY2RGB, sheet.picture("lines", *out.shape)), out)


def _granulate(out: Picture, sheet: Sheet) -> None:
    """Let pigment settle in the paper's hollows, most where a colour is neither pale nor full, and show the paper."""
    settled = cv2.bitwise_not(out, sheet.picture("settled", *out.shape))
    cv2.multiply(settled, out, settled, 1 / 255)
    cv2.multiply(settled, sheet.granules, settled, 1 / 255)
    cv2.subtract(out, settled, out)
    cv2.multiply(out, sheet.paper, out, 1 / 255)


def sketch(rgb: Picture, sheet: Sheet, *, tint: float = 0.12) -> Picture:
    """Draw `rgb` in graphite: outlines, smudged and hatched shading, and `tint` (0..1) of its colours."""
    height, width = sheet.work
    full, scale = rgb.shape[:2], sheet.work_scale
    small = _shrunk(rgb, sheet)
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, sheet.picture("full grey", *full))
    near, mid, far = (sheet.floats(name, height, width) for name in ("near", "mid", "far"))
    cv2.cvtColor(small, cv2.COLOR_RGB2GRAY, level := sheet.picture("level", height, width))
    np.copyto(mid, level)
    cv2.GaussianBlur(mid, _NO_KERNEL, max(0.8 * scale, 0.3), near)
    cv2.GaussianBlur(near, _NO_KERNEL, max(1.4 * scale, 0.3), mid)
    cv2.GaussianBlur(mid, _NO_KERNEL, max(3.0 * scale, 0.3), far)

    # One colour each of a picture that is enlarged at once: outlines, the tone to shade, and the local brightness.
    plan = sheet.picture("plan", height, width, 3)
    line, broad = sheet.floats("line", height, width), sheet.floats("broad", height, width)
    np.subtract(mid, near, out=line)
    line *= 7
    line -= 8
    np.clip(line, 0, 90, out=line)
    np.subtract(far, mid, out=broad)
    broad *= 3.2
    broad -= 16
    np.clip(broad, 0, 80, out=broad)
    line += broad
    cv2.insertChannel(cv2.convertScaleAbs(line, level), plan, 0)
    cv2.addWeighted(mid, 1.25, far, -0.25, 0, broad)
    np.clip(broad, 0, 255, out=broad)
    cv2.insertChannel(cv2.LUT(cv2.convertScaleAbs(broad, level), _PENCIL_TONE, level), plan, 1)
    cv2.insertChannel(cv2.convertScaleAbs(mid, level), plan, 2)
    drawn = _enlarged(plan, rgb)
    line, tone, around = cv2.split(drawn)

    # A fine line wherever a pixel is darker than its surroundings, in proportion: the photographer's colour dodge.
    fine = cv2.divide(grey, around, sheet.picture("fine", *full), 255)
    cv2.bitwise_not(fine, fine)
    cv2.subtract(fine, 4.0, fine)
    cv2.addWeighted(fine, 1.7, line, 1, 0, line)
    cv2.min(line, 200.0, line)

    ink = cv2.subtract(sheet.hatching, tone, sheet.picture("ink", *full))
    cv2.min(ink, 80.0, ink)
    cv2.bitwise_not(tone, tone)
    cv2.addWeighted(ink, 1.5, tone, 0.3, 0, ink)
    cv2.add(ink, line, ink)
    cv2.multiply(ink, sheet.tooth, ink, 1 / 255)
    cv2.bitwise_not(ink, ink)
    out = cv2.cvtColor(ink, cv2.COLOR_GRAY2RGB, drawn)
    cv2.multiply(out, sheet.paper, out, 1 / 255)
    cv2.multiply(out, _enlarged(_tint(small, sheet, tint), rgb), out, 1 / 255)
    return out
