"""Filters over images: blur, sharpen, edges, fewer colours, morphology. By ComfyUI's definitions.

`ImageQuantize` finds its palette by a median cut of its own, so its colours are not Pillow's to the last
level, and does not diffuse errors (floyd-steinberg): that goes pixel by pixel, and takes a second a frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.arrays import Image, as_grey_image, each, piecewise
from services.inference.engine.pipelines.comfyui.declarations import IMAGE, Kind, choice, integer, number

RADIUS_MAX: Final = 31
DITHERS: Final = ("none", "bayer-2", "bayer-4", "bayer-8", "bayer-16")
MORPHOLOGIES: Final = ("erode", "dilate", "open", "close", "gradient", "bottom_hat", "top_hat")
LUMINANCE: Final = np.array([[0.299, 0.587, 0.114]], np.float32)
EPSILON: Final = 1e-6  # kornia's, under the root of a gradient's length
FLAT: Final = np.float32(np.tan(np.pi / 8))  # up to 22.5 degrees a direction counts as along its axis
BITS: Final = 5  # of a channel: colours of 32x32x32 bins are told apart for a palette
BINS: Final = 1 << 3 * BITS
SAMPLED: Final = 65_536  # pixels that a palette is made of; no picture has so many colours that matter
Outputs = tuple[Image]


def _gaussian(radius: int, sigma: float) -> NDArray[np.float32]:
    """Over the window from -1 to 1, in whose half widths `sigma` is, as ComfyUI has it."""
    weights = np.exp(-(np.linspace(-1, 1, 2 * radius + 1) ** 2) / (2 * sigma * sigma))
    return np.asarray(weights / weights.sum(), np.float32)


def _blurred(image: Image, radius: int, sigma: float) -> Image:
    kernel = _gaussian(radius, sigma)
    side = min(image.shape[1:3])
    if side <= radius:
        raise ValueError(
            f"a radius of {radius} wants a picture of more than {radius} pixels a side, not {side}"
        )
    return each(
        image,
        lambda one: cv2.sepFilter2D(
            one, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_REFLECT_101
        ).reshape(one.shape),
    )


def image_blur(image: Image, blur_radius: int, sigma: float) -> Outputs:
    return (_blurred(image, blur_radius, sigma),)


def image_sharpen(image: Image, sharpen_radius: int, sigma: float, alpha: float) -> Outputs:
    strength = np.float32(10 * alpha)

    def mixed(one: Image, soft: Image) -> Image:
        return np.minimum(np.maximum(one + strength * (one - soft), 0), 1)

    return (piecewise(mixed, image, _blurred(image, sharpen_radius, sigma)),)


def canny(image: Image, low_threshold: float, high_threshold: float) -> Outputs:
    edges = each(image, lambda one: _edges(one, low_threshold, high_threshold))
    return (as_grey_image(edges),)


def _edges(one: Image, low: float, high: float) -> Image:
    """one: (H, W, C). As kornia finds them: thresholds are of the length of Sobel's gradient, not divided."""
    grey = cv2.transform(np.ascontiguousarray(one[..., :3]), LUMINANCE)
    smooth = cv2.GaussianBlur(grey, (5, 5), 1, borderType=cv2.BORDER_REFLECT_101)
    across, down = (
        np.asarray(cv2.Sobel(smooth, cv2.CV_32F, *order, borderType=cv2.BORDER_REPLICATE), np.float32)
        for order in ((1, 0), (0, 1))
    )
    steep = np.sqrt(across * across + down * down + np.float32(EPSILON))
    ridge = steep * _is_ridge(steep, across, down)
    weak = (ridge > low).astype(np.uint8)
    _, labels = cv2.connectedComponents(weak, connectivity=8)
    strong = np.zeros(int(labels.max()) + 1, np.float32)
    strong[labels[ridge > high]] = 1
    strong[0] = 0
    return np.asarray(strong[labels], np.float32)


def _is_ridge(steep: Image, across: Image, down: Image) -> NDArray[np.bool_]:
    """Whether nothing along its gradient is steeper; of two equals the left, or the upper one, is."""
    around = np.pad(steep, 1)
    height, width = steep.shape

    def beside(row: int, column: int) -> Image:
        return around[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    wide, high = np.abs(across), np.abs(down)
    level, upright = high <= FLAT * wide, wide <= FLAT * high
    falling = (across >= 0) == (down >= 0)  # to the right and down, or to the left and up
    ridge = level & (steep > beside(0, -1)) & (steep >= beside(0, 1))
    ridge |= upright & ~level & (steep > beside(-1, 0)) & (steep >= beside(1, 0))
    oblique = ~(level | upright)
    ridge |= oblique & falling & (steep > beside(-1, -1)) & (steep > beside(1, 1))
    ridge |= oblique & ~falling & (steep > beside(-1, 1)) & (steep > beside(1, -1))
    return ridge


def _thresholds(constants: Mapping[str, Any]) -> tuple[str, str] | None:
    low, high = constants.get("low_threshold"), constants.get("high_threshold")
    if low is not None and high is not None and low > high:
        return "low_threshold", f"{low} is above high_threshold, {high}"
    return None


def image_morphology(image: Image, operation: str, kernel_size: int) -> Outputs:
    return (each(image, lambda one: _morphed(one, operation, kernel_size).reshape(one.shape)),)


def _morphed(one: Image, operation: str, size: int) -> Image:
    match operation:
        case "erode":
            return _eroded(one, size)
        case "dilate":
            return _dilated(one, size)
        case "open":
            return _dilated(_eroded(one, size), size)
        case "close":
            return _eroded(_dilated(one, size), size)
        case "gradient":
            return _dilated(one, size) - _eroded(one, size)
        case "top_hat":
            return one - _dilated(_eroded(one, size), size)
        case "bottom_hat":
            return _eroded(_dilated(one, size), size) - one
    raise ValueError(f"no operation is called {operation!r}")


def _eroded(one: Image, size: int) -> Image:
    return np.asarray(cv2.erode(one, np.ones((size, size), np.uint8)), np.float32)


def _dilated(one: Image, size: int) -> Image:
    """An even window has no middle: it reaches as far to the other side as an eroded one, so both undo."""
    middle = (size - 1) // 2
    out = cv2.dilate(one, np.ones((size, size), np.uint8), anchor=(middle, middle))
    return np.asarray(out, np.float32)


def image_quantize(image: Image, colors: int, dither: str) -> Outputs:
    return (each(image, lambda one: _quantized(one, colors, dither)),)


def _quantized(one: Image, colors: int, dither: str) -> Image:
    levels = np.trunc(np.clip(one[..., :3] * 255, 0, 255)).astype(np.uint8)
    palette = _palette(levels, colors)
    if dither != "none":
        order = int(dither.removeprefix("bayer-"))
        spread = 2 * 256 / len(palette)
        threshold = np.tile(
            spread * _bayer(order) + 0.5, (-(-levels.shape[0] // order), -(-levels.shape[1] // order))
        )[: levels.shape[0], : levels.shape[1], None]
        levels = np.clip(levels + threshold, 0, 255).astype(np.uint8)
    bins = _bins(levels)
    used = np.flatnonzero(np.bincount(bins.ravel(), minlength=BINS))
    # |c - p|² without |c|², which is the same for all p
    nearest = ((palette**2).sum(axis=1) - 2 * _colours(used) @ palette.T).argmin(axis=1)
    fractions = np.zeros((BINS, 3), np.float32)
    fractions[used] = palette[nearest] / np.float32(255)
    return np.take(fractions, bins, axis=0)


def _bins(levels: NDArray[np.uint8]) -> NDArray[np.int32]:
    part = (levels >> (8 - BITS)).astype(np.int32)
    return (part[..., 0] << 2 * BITS) | (part[..., 1] << BITS) | part[..., 2]


def _colours(bins: NDArray[np.intp]) -> NDArray[np.float32]:
    mask, half = (1 << BITS) - 1, 1 << (7 - BITS)
    parts = np.stack([bins >> 2 * BITS, bins >> BITS & mask, bins & mask], axis=1)
    return ((parts << (8 - BITS)) + half).astype(np.float32)


def _palette(levels: NDArray[np.uint8], colors: int) -> NDArray[np.float32]:
    """At most `colors` colours: the means of boxes, of which the most spread out is cut at its median."""
    stride = max(1, math.isqrt(levels.shape[0] * levels.shape[1] // SAMPLED))
    sample = levels[::stride, ::stride]
    bins, flat = _bins(sample).ravel(), sample.reshape(-1, 3)
    counts = np.bincount(bins, minlength=BINS)
    sums = np.stack([np.bincount(bins, weights=flat[:, axis], minlength=BINS) for axis in range(3)], axis=1)
    used = np.flatnonzero(counts)
    counts, means = counts[used], sums[used] / counts[used, None]
    boxes = [np.arange(len(used))]
    spreads = [_spread(boxes[0], counts, means)]
    while len(boxes) < colors:
        widest = int(np.argmax([spread for spread, _ in spreads]))
        spread, axis = spreads[widest]
        if spread <= 0:
            break
        box = boxes[widest][np.argsort(means[boxes[widest], axis], kind="stable")]
        running = np.cumsum(counts[box])
        cut = min(max(1, int(np.searchsorted(running, running[-1] / 2)) + 1), len(box) - 1)
        boxes[widest], rest = box[:cut], box[cut:]
        boxes.append(rest)
        spreads[widest] = _spread(boxes[widest], counts, means)
        spreads.append(_spread(rest, counts, means))
    return np.array([np.average(means[box], axis=0, weights=counts[box]) for box in boxes], np.float32)


def _spread(box: NDArray[np.intp], counts: NDArray[Any], means: NDArray[Any]) -> tuple[float, int]:
    """How much there is to win by cutting a box, and along which axis; nothing, if it is one colour."""
    if len(box) == 1:
        return 0.0, 0
    weight = counts[box]
    mean = np.average(means[box], axis=0, weights=weight)
    variance = (weight[:, None] * (means[box] - mean) ** 2).sum(axis=0)
    axis = int(variance.argmax())
    return float(variance[axis]), axis


def _bayer(order: int) -> NDArray[np.float64]:
    """Thresholds around zero, less than a half each way."""
    matrix = np.zeros((1, 1))
    size = 1
    while size < order:
        size *= 2
        scale = float(size * size)
        whole = scale * matrix
        matrix = np.block([[whole - 1.5, whole + 0.5], [whole + 1.5, whole - 0.5]]) / scale
    return matrix


KINDS: Final = (
    Kind(
        "ImageBlur",
        {"image": IMAGE, "blur_radius": integer(1, 1, RADIUS_MAX), "sigma": number(1.0, 0.1, 10.0)},
        ("IMAGE",),
        image_blur,
    ),
    Kind(
        "ImageSharpen",
        {
            "image": IMAGE,
            "sharpen_radius": integer(1, 1, RADIUS_MAX),
            "sigma": number(1.0, 0.1, 10.0),
            "alpha": number(1.0, 0.0, 5.0),
        },
        ("IMAGE",),
        image_sharpen,
    ),
    Kind(
        "Canny",
        {"image": IMAGE, "low_threshold": number(0.4, 0.01, 0.99), "high_threshold": number(0.8, 0.01, 0.99)},
        ("IMAGE",),
        canny,
        objection=_thresholds,
    ),
    Kind(
        "ImageQuantize",
        {"image": IMAGE, "colors": integer(256, 1, 256), "dither": choice(*DITHERS)},
        ("IMAGE",),
        image_quantize,
    ),
    Kind(
        "Morphology",
        {"image": IMAGE, "operation": choice(*MORPHOLOGIES), "kernel_size": integer(3, 3, 999)},
        ("IMAGE",),
        image_morphology,
    ),
)
