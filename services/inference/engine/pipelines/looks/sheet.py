"""What looks are made on: sheets of one size and seed, their textures, and the steps that looks share.

Pictures are uint8 (H, W, 3), RGB, 0..255. Paper, grain, brush wobble and screens of lines belong to the
`Sheet` and stay where they are while the picture moves, so a still source gives a still picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from sluice.pipeline import TICKS_PER_SECOND

Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]
T = TypeVar("T")

NO_KERNEL: Final = (0, 0)  # a size that OpenCV derives from the sigma
LEVELS: Final[Floats] = np.arange(256, dtype=np.float32) / np.float32(255)
NOISE_MARGIN: Final = 64  # pixels by which the moving noise is larger than the picture

_WARM_WHITE: Final = (1.0, 0.99, 0.965)
# Angle in degrees, distance of strokes in pixels of a 720-line picture, and the tone below which a layer of
# hatching begins: one direction in the half shadows, a second close to it, and a crossing one in the darks.
_HATCHING: Final = ((-52.0, 5.0, 0.76), (-34.0, 4.6, 0.56), (38.0, 4.8, 0.44))
# Greys that differ less than this are a dull picture, not noise to be stretched over all tones.
_LEAST_SPREAD: Final = 28.0
# From a slope to an edge of some pixels, which is what a line of ink is.
_CUT: Final = np.clip((np.arange(256) - 40) * 2.2, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Echo:
    """What a look that remembers keeps of the pictures before: one picture at work size, and its time."""

    picture: Picture
    pts: int


class Sheet:
    """What a picture of one size is made on: textures from `seed`, made on first use, and reusable buffers.

    One sheet serves one stream. A look never returns one of its buffers, and leaves nothing for the next
    picture but the `echo`.
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
        self.echo: Echo | None = None
        self._kept: dict[Callable[[Sheet], Any], Any] = {}
        self._floats: dict[tuple[str, tuple[int, ...]], Floats] = {}
        self._pictures: dict[tuple[str, tuple[int, ...]], Picture] = {}

    def fits(self, height: int, width: int, seed: int) -> bool:
        return (height, width, seed) == (self.height, self.width, self.seed)

    def kept(self, make: Callable[[Sheet], T]) -> T:
        """Return what `make` makes of this sheet, made on first use: the textures of a look."""
        if make not in self._kept:
            self._kept[make] = make(self)
        made: T = self._kept[make]
        return made

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

    def chance(self, stream: int, pts: int, hertz: float) -> np.random.Generator:
        """Chances that stay for 1/`hertz` s of the video: the same for the same seed and time."""
        return np.random.default_rng((self.seed, stream, tick(pts, hertz)))

    def snow(self, pts: int, hertz: float) -> Picture:
        """Film grain, (H, W) around 128, another one `hertz` times a second; not to be written into."""
        down, right = self.chance(0, pts, hertz).integers(0, NOISE_MARGIN, 2)
        return self._snow[down : down + self.height, right : right + self.width]

    @cached_property
    def _snow(self) -> Picture:
        size = self.height + NOISE_MARGIN, self.width + NOISE_MARGIN
        noise = np.random.default_rng((self.seed, 9)).standard_normal(size, np.float32)
        cv2.GaussianBlur(noise, NO_KERNEL, max(0.9 * self.scale, 0.35), noise)
        return as_picture(128 + noise * np.float32(32 / max(float(noise.std()), 1e-3)))

    @cached_property
    def vignette(self) -> Picture:
        """The factor, (H, W, 3) in 255ths, that a simple lens leaves of the light."""
        row, column = np.mgrid[0 : self.height, 0 : self.width].astype(np.float32)
        away = np.hypot(row / self.height - 0.5, column / self.width - 0.5) / np.float32(math.sqrt(0.5))
        shade = as_picture(np.float32(255) * (1 - 0.72 * np.clip(away - 0.3, 0, 1) ** 1.6))
        return np.repeat(shade[..., None], 3, axis=2)

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
        return as_picture(cv2.resize(self.painted, (self.width, self.height)) * np.float32(255))

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
        return as_picture(shade[..., None] * (np.float32(255) * np.array(_WARM_WHITE, np.float32)))

    @cached_property
    def granules(self) -> Picture:
        """How much pigment settles in the paper's hollows, (H, W, 3), in 255ths."""
        hollow = as_picture(np.clip(0.5 - self.grain, 0, 1.2) * np.float32(0.22 * 255))
        return np.repeat(hollow[..., None], 3, axis=2)

    @cached_property
    def tooth(self) -> Picture:
        """How much of a pencil's stroke the paper takes, (H, W), in 255ths."""
        return as_picture(np.clip(0.86 - 0.42 * self.grain, 0.3, 1) * np.float32(0.9 * 255))

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
        return as_picture(screen * np.float32(255))


def part(sheet: Sheet, divisor: int) -> tuple[int, int]:
    """Width and height, in OpenCV's order, of the work size over `divisor`."""
    height, width = sheet.work
    return max(1, width // divisor), max(1, height // divisor)


def shrunk(rgb: Picture, sheet: Sheet) -> Picture:
    """Return `rgb` at work size, in the sheet's buffer."""
    height, width = sheet.work
    small = sheet.picture("small", height, width, 3)
    cv2.resize(rgb, (width, height), small, 0, 0, cv2.INTER_AREA)
    return small


def enlarged(small: Picture, rgb: Picture) -> Picture:
    """Return `small` at the size of `rgb`, as a new picture."""
    out = np.empty(rgb.shape, np.uint8)
    cv2.resize(small, (rgb.shape[1], rgb.shape[0]), out)
    return out


def full_grey(rgb: Picture, sheet: Sheet) -> Picture:
    """Return the brightness of `rgb`, in the sheet's buffer."""
    grey = sheet.picture("full grey", sheet.height, sheet.width)
    cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY, grey)
    return grey


def exposed(grey: Picture, *, middle: float = 128, spread: float = 62) -> Picture:
    """Return `grey` with that mean and that deviation, as an automatic exposure would; new.

    It goes by the whole picture, so a small movement is a small change, and a dull picture stays dull.
    """
    mean, deviation = (float(number[0, 0]) for number in cv2.meanStdDev(grey))
    gain = spread / max(deviation, _LEAST_SPREAD)
    curve = np.clip(np.round((np.arange(256) - mean) * gain + middle), 0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(grey, curve), np.uint8)


def ramp(*stops: tuple[float, tuple[int, int, int]]) -> Picture:
    """Return a table, (256, 3), of colours between those at the `stops`, from 0 to 1."""
    places = [255 * place for place, _ in stops]
    channels = [
        np.interp(np.arange(256), places, channel)
        for channel in zip(*(colour for _, colour in stops), strict=True)
    ]
    return as_picture(np.stack(channels, -1))


def curves(*channels: NDArray[np.floating]) -> Picture:
    """Return a table for `cv2.LUT`, (1, 256, 3), of three curves over the levels, each (256,) 0..255."""
    return as_picture(np.stack(channels, -1))[None]


def coloured(grey: Picture, table: Picture) -> Picture:
    """Return the colours of `table`, (256, 3), by the levels of `grey`: (H, W, 3), new."""
    return np.asarray(cv2.LUT(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), table[None]), np.uint8)


def steps(count: int, *, softness: float, low: float = 0.0, high: float = 1.0) -> Floats:
    """Return a curve, (256,) 0..1, of `count` flat tones; `softness` is the share of a step that is slope.

    A slope keeps noise about a step from flickering.
    """
    stair, within = np.divmod(LEVELS * (count - 1), 1)
    rise = np.clip((within - 0.5) / softness + 0.5, 0, 1)
    return np.asarray(low + (high - low) * np.clip((stair + rise) / (count - 1), 0, 1), np.float32)


def ink_lines(grey: Picture, sheet: Sheet, *, sigma: float, gain: float, least: float) -> Picture:
    """Return where a brush with ink would draw outlines, (H, W) in 255ths, in the sheet's buffer.

    Differences of two blurs at work size, enlarged before they are cut: so lines are smooth and yet sharp.
    grey: at work size.
    """
    height, width = sheet.work
    near, far = sheet.floats("ink near", height, width), sheet.floats("ink far", height, width)
    np.copyto(far, grey)
    cv2.GaussianBlur(far, NO_KERNEL, max(sigma * sheet.work_scale, 0.4), near)
    cv2.GaussianBlur(near, NO_KERNEL, max(1.8 * sigma * sheet.work_scale, 0.6), far)
    far -= near
    far *= gain
    far -= least
    np.clip(far, 0, 255, out=far)
    small = sheet.picture("ink", height, width)
    cv2.convertScaleAbs(far, small)
    lines = sheet.picture("ink lines", sheet.height, sheet.width)
    cv2.resize(small, (sheet.width, sheet.height), lines, 0, 0, cv2.INTER_LINEAR)
    cv2.LUT(lines, _CUT, lines)
    return lines


def tick(pts: int, hertz: float) -> int:
    """Return how many times 1/`hertz` s have passed at `pts`; of a time before 0, as of one long ago."""
    return int(pts * hertz // TICKS_PER_SECOND) & 0xFFFF_FFFF


def as_picture(levels: NDArray[np.floating]) -> Picture:
    return np.clip(np.round(levels), 0, 255).astype(np.uint8)
