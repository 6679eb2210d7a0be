"""Images in other sizes, by ComfyUI's five ways: those of torch's `interpolate`, and Pillow's Lanczos.

Pixels are squares whose centres are at halves; nothing but `area` and `lanczos` looks at more of the source
when it makes it smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.arrays import Image, each, require_room
from services.inference.engine.pipelines.comfyui.declarations import IMAGE, Kind, choice, integer, number

METHODS: Final = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")
CROPS: Final = ("disabled", "center")
LOBES: Final = 3  # of Pillow's Lanczos
Outputs = tuple[Image]


def scaled(images: Image, width: int, height: int, method: str, crop: str = "disabled") -> Image:
    """In that size; with `center`, what the new proportions have no room for is cut off on both sides."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels cannot be made")
    require_room(width, height, len(images))
    if crop == "center":
        images = _centre(images, width, height)
    if images.shape[1:3] == (height, width) and method != "lanczos":
        return images
    match method:
        case "nearest-exact":
            rows, columns = _nearest(height, images.shape[1]), _nearest(width, images.shape[2])
            return each(images, lambda one: _picked(one, rows, columns))
        case "bilinear" | "bicubic":
            how = cv2.INTER_LINEAR if method == "bilinear" else cv2.INTER_CUBIC
            return each(images, lambda one: _resized(one, width, height, how))
        case "area":
            return each(images, lambda one: _in_boxes(one, width, height))
        case "lanczos":
            return each(images, lambda one: _lanczos(one, width, height))
    raise ValueError(f"no way to scale is called {method!r}")


def resized_mask(masks: Image, width: int, height: int) -> Image:
    """masks: (B, H, W); bilinear, as ComfyUI does it everywhere."""
    return scaled(masks[..., None], width, height, "bilinear")[..., 0]


def _resized(one: Image, width: int, height: int, how: int) -> Image:
    """OpenCV leaves out the axis of a single channel."""
    out = np.asarray(cv2.resize(one, (width, height), interpolation=how), np.float32)
    return out.reshape(height, width, one.shape[2])


def _centre(images: Image, width: int, height: int) -> Image:
    was_height, was_width = images.shape[1:3]
    was_aspect, aspect = was_width / was_height, width / height
    left = round((was_width - was_width * (aspect / was_aspect)) / 2) if was_aspect > aspect else 0
    top = round((was_height - was_height * (was_aspect / aspect)) / 2) if was_aspect < aspect else 0
    return images[:, top : was_height - top, left : was_width - left]


def _nearest(size: int, was: int) -> NDArray[np.intp]:
    """Which pixel of `was` the centre of each of `size` falls into; at an edge as torch rounds."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(was / size)
    return np.minimum(centres.astype(np.intp), was - 1)


def _picked(one: Image, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> Image:
    """Whole pixels are copied, not their channels one by one."""
    pixel = np.dtype((np.void, one.itemsize * one.shape[2]))
    pixels = np.ascontiguousarray(one[rows]).view(pixel)[..., 0]
    return np.ascontiguousarray(pixels[:, columns]).view(np.float32).reshape(len(rows), len(columns), -1)


@dataclass(frozen=True, slots=True)
class _Windows:
    """For each pixel that is made the ones that it is made of, which lie together, and the share of each."""

    first: NDArray[np.intp]
    past: NDArray[np.intp]
    weights: NDArray[np.float32]  # (pixels, most taps)


def _boxes(size: int, was: int) -> _Windows:
    """All pixels that are touched, in equal shares, as torch has it; no matter how much of each."""
    index = np.arange(size)
    first, past = index * was // size, -(-(index + 1) * was // size)
    count = past - first
    shares = np.where(np.arange(int(count.max())) < count[:, None], 1.0 / count[:, None], 0.0)
    return _Windows(first, past, shares.astype(np.float32))


def _waves(size: int, was: int) -> _Windows:
    """Lanczos' own, wider where it is made smaller."""
    scale = was / size
    wide = max(scale, 1.0)
    support = LOBES * wide
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.intp), 0)
    past = np.minimum((centre + support + 0.5).astype(np.intp), was)
    taps = first[:, None] + np.arange(int((past - first).max()))
    distance = (taps + 0.5 - centre[:, None]) / wide
    kernel = np.sinc(distance) * np.sinc(distance / LOBES) * (np.abs(distance) < LOBES)
    kernel = np.where(taps < past[:, None], kernel, 0.0)
    weights = kernel / kernel.sum(axis=1, keepdims=True)
    return _Windows(first, past, weights.astype(np.float32))


def _down(one: Image, windows: _Windows) -> Image:
    """(H, W, C): each row the sum of the weighted rows of its window."""
    height, width, channels = one.shape
    rows = np.ascontiguousarray(one).reshape(height, width * channels)
    out = np.empty((len(windows.first), width * channels), np.float32)
    for row, (first, past) in enumerate(zip(windows.first, windows.past, strict=True)):
        np.dot(windows.weights[row, : past - first], rows[first:past], out=out[row])
    return out.reshape(-1, width, channels)


def _across(one: Image, windows: _Windows) -> Image:
    turned = np.ascontiguousarray(one.transpose(1, 0, 2))
    return np.ascontiguousarray(_down(turned, windows).transpose(1, 0, 2))


def _in_boxes(one: Image, width: int, height: int) -> Image:
    return _across(_down(one, _boxes(height, one.shape[0])), _boxes(width, one.shape[1]))


def _lanczos(one: Image, width: int, height: int) -> Image:
    """In levels of 0..255 as Pillow does it, which rounds after each of the two directions."""
    levels = np.trunc(np.clip(255 * one, 0, 255)).astype(np.float32)
    steps = [(_across, width, one.shape[1]), (_down, height, one.shape[0])]
    if width > one.shape[1] and height < one.shape[0]:
        steps.reverse()  # smaller before larger, as newer Pillows do it
    for scale, size, was in steps:
        if size != was:
            levels = np.floor(np.clip(scale(levels, _waves(size, was)), 0, 255) + np.float32(0.5))
    return levels / np.float32(255)


def image_scale(image: Image, upscale_method: str, width: int, height: int, crop: str) -> Outputs:
    was_height, was_width = image.shape[1:3]
    if width == 0 and height == 0:
        return (image,)
    if width == 0:
        width = max(1, round(was_width * height / was_height))
    elif height == 0:
        height = max(1, round(was_height * width / was_width))
    return (scaled(image, width, height, upscale_method, crop),)


def image_scale_by(image: Image, upscale_method: str, scale_by: float) -> Outputs:
    height, width = image.shape[1:3]
    return (scaled(image, round(width * scale_by), round(height * scale_by), upscale_method),)


def image_scale_to_total_pixels(
    image: Image, upscale_method: str, megapixels: float, resolution_steps: int = 1
) -> Outputs:
    height, width = image.shape[1:3]
    scale = math.sqrt(int(megapixels * 1024 * 1024) / (width * height))
    width, height = (
        max(1, round(side * scale / resolution_steps)) * resolution_steps for side in (width, height)
    )
    return (scaled(image, width, height, upscale_method),)


def image_scale_to_max_dimension(image: Image, upscale_method: str, largest_size: int) -> Outputs:
    height, width = image.shape[1:3]
    longer = max(width, height)
    wide, high = (
        largest_size if side == longer else round(side / longer * largest_size) for side in (width, height)
    )
    return (scaled(image, wide, high, upscale_method),)


KINDS: Final = (
    Kind(
        "ImageScale",
        {
            "image": IMAGE,
            "upscale_method": choice(*METHODS),
            "width": integer(512, 0),
            "height": integer(512, 0),
            "crop": choice(*CROPS),
        },
        ("IMAGE",),
        image_scale,
    ),
    Kind(
        "ImageScaleBy",
        {"image": IMAGE, "upscale_method": choice(*METHODS), "scale_by": number(1.0, 0.01, 8.0)},
        ("IMAGE",),
        image_scale_by,
    ),
    Kind(
        "ImageScaleToTotalPixels",
        {
            "image": IMAGE,
            "upscale_method": choice(*METHODS),
            "megapixels": number(1.0, 0.01, 16.0),
            "resolution_steps": integer(1, 1, 256, required=False),  # newer ComfyUIs have it
        },
        ("IMAGE",),
        image_scale_to_total_pixels,
    ),
    Kind(
        "ImageScaleToMaxDimension",
        {"image": IMAGE, "upscale_method": choice(*METHODS), "largest_size": integer(512, 0)},
        ("IMAGE",),
        image_scale_to_max_dimension,
    ),
)
