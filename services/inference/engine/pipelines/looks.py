"""Three looks as functions of one picture: no memory of earlier frames, no randomness but the sheet's own.

Pictures are uint8 (H, W, 3), RGB, 0..255. Paper, grain, brush wobble and hatching belong to the `Sheet` and
stay where they are while the picture moves, so a still source gives a still picture. Washes, outlines and
bloom are worked out at a half of the size or less (`Sheet.work`), where float32 is cheap; grain and fine
lines go on at full size. docs/images/effects.jpg shows the looks.
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

_NO_KERNEL: Final = (0, 0)  # a size that OpenCV derives from the sigma
_WARM_WHITE: Final = (1.0, 0.99, 0.965)
_LAMPLIT: Final = (1.0, 0.985, 0.945)

# Angle in degrees, distance of strokes in pixels of a 720-line picture, and the tone below which a layer of
# hatching begins: one direction in the half shadows, a second close to it, and a crossing one in the darks.
_HATCHING: Final = ((-52.0, 5.0, 0.76), (-34.0, 4.6, 0.56), (38.0, 4.8, 0.44))

# What the neon look leaves of the unlit world, as RGB: of the source's brightness, and at least.
_NIGHT: Final = ((0.20, 0.018), (0.13, 0.012), (0.34, 0.045))
# The light given to greys, which have no hue of their own, as RGB: per level of brightness, and at least.
_GAS: Final = ((0.10, 17.0), (-0.25, -6.5), (0.15, 25.5))

_LEVELS: Final[Floats] = np.arange(256, dtype=np.float32) / np.float32(255)


def _wash_tone() -> Floats:
    """Lift the tones, for paper shines through, and pull them towards seven layers with soft edges."""
    lifted = _LEVELS**0.62
    layer, within = np.divmod(lifted * 7, 1)
    step = 0.5 + 0.5 * np.tanh(4.5 * (within - 0.5)) / math.tanh(2.25)
    return np.asarray(0.14 + 0.86 * (0.6 * (layer + step) / 7 + 0.4 * lifted), np.float32)


_WASH_TONE: Final = _wash_tone()
# Colourfulness grows with the lift, but not in the darks, where it is mostly compression noise.
_WASH_CHROMA: Final = np.minimum(_WASH_TONE / np.maximum(_LEVELS, 1e-3), 1.6).astype(np.float32)
_PENCIL_TONE: Final = np.round(255 * _LEVELS**0.65).astype(np.uint8)
_NIGHT_TONE: Final = np.stack([share * _LEVELS**1.6 + least for share, least in _NIGHT], -1, dtype=np.float32)


class Sheet:
    """What a picture of one size is made on: textures from `seed`, made on first use, and reusable buffers.

    One sheet serves one caller at a time. A look never returns one of its buffers.
    """

    def __init__(self, height: int, width: int, seed: int = 0) -> None:
        self.height, self.width, self.seed = height, width, seed
        short = min(height, width)
        shrink = 1 if short < 240 else max(2, -(-short // 400))
        self.work: tuple[int, int] = (-(-height // shrink), -(-width // shrink))
        self.scale = (
            short / 720
        )  # of a full-size pixel, against the 720-line picture that the looks were drawn for
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
        cell, reach = 28 * self.work_scale + 2, np.float32(2.8 * self.work_scale)
        row += reach * self.noise(2, height, width, cell=cell, octaves=2)
        column += reach * self.noise(3, height, width, cell=cell, octaves=2)
        coarse, fine = cv2.convertMaps(column, row, cv2.CV_16SC2)
        return coarse.astype(np.int16), fine.astype(np.uint16)

    @cached_property
    def painted(self) -> Floats:
        """0 on the ragged rim that the brush leaves bare, 1 on what is painted, at work size."""
        height, width = self.work
        row, column = np.mgrid[0:height, 0:width].astype(np.float32)
        inset = np.minimum(np.minimum(column, width - 1 - column), np.minimum(row, height - 1 - row))
        ragged = self.noise(6, height, width, cell=max(30 * self.work_scale, 2), octaves=4)
        edge = inset / np.float32(min(height, width)) + 0.018 * ragged
        return np.asarray(np.clip((edge - 0.012) / 0.02, 0, 1), np.float32)

    @cached_property
    def painted_full(self) -> Picture:
        """`painted` at full size, 0..255."""
        return _as_picture(cv2.resize(self.painted, (self.width, self.height)) * np.float32(255))

    @cached_property
    def grain(self) -> Floats:
        """The paper's tooth at full size, mostly within -1..1."""
        unit = max(1.0, 2 * self.scale)
        fine = self.noise(4, self.height, self.width, cell=2.2 * unit, octaves=2)
        coarse = self.noise(5, self.height, self.width, cell=7 * unit, octaves=2)
        return np.asarray(0.65 * fine + 0.35 * coarse, np.float32)

    @cached_property
    def paper(self) -> Picture:
        """Cold-pressed paper in warm light, (H, W, 3): the factor, in 255ths, that it leaves of a colour."""
        shade = 1 - 0.06 * np.clip(0.5 - self.grain, 0, 2)
        return _as_picture(shade[..., None] * (np.float32(255) * np.array(_WARM_WHITE, np.float32)))

    @cached_property
    def granules(self) -> Picture:
        """How much pigment settles in the paper's hollows, (H, W, 3), in 255ths."""
        hollow = _as_picture(np.clip(0.5 - self.grain, 0, 1.2) * np.float32(0.22 * 255))
        return np.repeat(hollow[..., None], 3, axis=2)

    @cached_property
    def tooth(self) -> Picture:
        """How much of a pencil's stroke the paper takes, (H, W), in 255ths."""
        return _as_picture(np.clip(0.86 - 0.42 * self.grain, 0.3, 1) * np.float32(0.9 * 255))

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
        return _as_picture(screen * np.float32(255))


def watercolor(rgb: Picture, sheet: Sheet) -> Picture:
    """Paint `rgb` in layered washes: kept edges, pigment gathered along them, grain, a ragged bare rim."""
    height, width = sheet.work
    small, brushed = _shrunk(rgb, sheet), sheet.picture("brushed", height, width, 3)
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
    out = _enlarged(dry, rgb)
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


def sketch(rgb: Picture, sheet: Sheet, *, tint: float = 0.12) -> Picture:
    """Draw `rgb` in graphite: outlines, smudged and hatched shading, and `tint` (0..1) of its colours."""
    small = _shrunk(rgb, sheet)
    out = _enlarged(_pencil_plan(small, sheet), rgb)
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
    cv2.multiply(out, _enlarged(_tinted(small, sheet, tint), rgb), out, 1 / 255)
    return out


def _pencil_plan(small: Picture, sheet: Sheet) -> Picture:
    """Return what to draw, at work size: red is ink of outlines, green the tone to shade, blue the grey."""
    height, width = sheet.work
    scale, level = sheet.work_scale, sheet.picture("level", height, width)
    near, mid, far = (sheet.floats(name, height, width) for name in ("near", "mid", "far"))
    cv2.cvtColor(small, cv2.COLOR_RGB2GRAY, level)
    np.copyto(mid, level)
    cv2.GaussianBlur(mid, _NO_KERNEL, max(0.8 * scale, 0.3), near)
    cv2.GaussianBlur(near, _NO_KERNEL, max(1.4 * scale, 0.3), mid)
    cv2.GaussianBlur(mid, _NO_KERNEL, max(3.0 * scale, 0.3), far)

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
    width, height = _part(sheet, 4)
    stamp, colour = sheet.picture("stamp", height, width, 3), sheet.floats("colour", height, width, 3)
    cv2.resize(small, (width, height), stamp, 0, 0, cv2.INTER_AREA)
    np.copyto(colour, stamp)
    cv2.GaussianBlur(colour, _NO_KERNEL, max(1.25 * sheet.work_scale, 0.3), colour)
    colour += 8
    colour /= np.maximum.reduce(cv2.split(colour))[..., None]
    colour *= tint
    colour += 1 - tint
    colour *= np.float32(255) * np.array(_LAMPLIT, np.float32)
    return _as_picture(colour)


def neon(rgb: Picture, sheet: Sheet) -> Picture:
    """Light the outlines of `rgb` as neon tubes of their own hue, with bloom, on what night leaves."""
    height, width = sheet.work
    scale, calm = sheet.work_scale, sheet.picture("calm", height, width, 3)
    cv2.medianBlur(_shrunk(rgb, sheet), 5 if scale > 0.5 else 3, calm)
    cv2.GaussianBlur(calm, _NO_KERNEL, max(1.1 * scale, 0.3), calm)
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
    return _enlarged(shot, rgb)


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
    width, height = _part(sheet, 4)
    stamp, colour = sheet.picture("stamp", height, width, 3), sheet.floats("colour", height, width, 3)
    cv2.resize(rgb, (width, height), stamp, 0, 0, cv2.INTER_AREA)
    np.copyto(colour, stamp)
    cv2.GaussianBlur(colour, _NO_KERNEL, max(2.5 * sheet.work_scale, 0.3), colour)
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
    (near_width, near_height), (far_width, far_height) = _part(sheet, 2), _part(sheet, 8)
    near, far = (
        sheet.floats("glow", near_height, near_width, 3),
        sheet.floats("haze", far_height, far_width, 3),
    )
    cv2.resize(lit, (near_width, near_height), near, 0, 0, cv2.INTER_AREA)
    cv2.GaussianBlur(near, _NO_KERNEL, max(2.5 * sheet.work_scale, 0.3), near)
    cv2.resize(near, (far_width, far_height), far, 0, 0, cv2.INTER_AREA)
    cv2.GaussianBlur(far, _NO_KERNEL, max(3 * sheet.work_scale, 0.3), far)
    cv2.addWeighted(near, 1.0, cv2.resize(far, (near_width, near_height)), 1.3, 0, near)
    return near


def _part(sheet: Sheet, divisor: int) -> tuple[int, int]:
    """Width and height, in OpenCV's order, of the work size over `divisor`."""
    height, width = sheet.work
    return max(1, width // divisor), max(1, height // divisor)


def _shrunk(rgb: Picture, sheet: Sheet) -> Picture:
    """Return `rgb` at work size, in the sheet's buffer."""
    height, width = sheet.work
    small = sheet.picture("small", height, width, 3)
    cv2.resize(rgb, (width, height), small, 0, 0, cv2.INTER_AREA)
    return small


def _enlarged(small: Picture, rgb: Picture) -> Picture:
    """Return `small` at the size of `rgb`, as a new picture."""
    out = np.empty(rgb.shape, np.uint8)
    cv2.resize(small, (rgb.shape[1], rgb.shape[0]), out)
    return out


def _as_picture(levels: NDArray[np.floating]) -> Picture:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)


LOOKS: Final[Mapping[str, Callable[[Picture, Sheet], Picture]]] = {
    "watercolor": watercolor,
    "sketch": sketch,
    "neon": neon,
}
