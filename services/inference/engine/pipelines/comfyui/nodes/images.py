"""Whole images: made, inverted, mixed, batched, cut, padded, turned. By ComfyUI's definitions."""

from __future__ import annotations

from typing import Final

import numpy as np

from services.inference.engine.pipelines.comfyui.arrays import (
    Image,
    Mask,
    chosen,
    piecewise,
    require_room,
    same_channels,
)
from services.inference.engine.pipelines.comfyui.declarations import IMAGE, Kind, choice, integer, number
from services.inference.engine.pipelines.comfyui.nodes.scaling import scaled

BATCH_MAX: Final = 4096
BLENDS: Final = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")
GREY: Final = 0.5  # of what is padded
Outputs = tuple[Image]


def image_invert(image: Image) -> Outputs:
    return (1 - image,)


def image_blend(image1: Image, image2: Image, blend_factor: float, blend_mode: str) -> Outputs:
    image1, image2 = same_channels(image1, image2)
    if image1.shape != image2.shape:
        image2 = scaled(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
    factor = np.float32(blend_factor)

    def mixed(one: Image, other: Image) -> Image:
        whole = one * (1 - factor) + _blended(one, other, blend_mode) * factor
        return np.minimum(np.maximum(whole, 0), 1)

    return (piecewise(mixed, image1, image2),)


def _blended(one: Image, other: Image, mode: str) -> Image:
    match mode:
        case "normal":
            return other
        case "multiply":
            return one * other
        case "screen":
            return 1 - (1 - one) * (1 - other)
        case "overlay":
            return chosen(one <= 0.5, 2 * one * other, 1 - 2 * (1 - one) * (1 - other))
        case "soft_light":
            # Below a quarter a root would be too steep; ComfyUI bends it as PDF does.
            bent = chosen(one <= 0.25, ((16 * one - 12) * one + 4) * one, np.sqrt(np.maximum(one, 0)))
            darker = one - (1 - 2 * other) * one * (1 - one)
            return chosen(other <= 0.5, darker, one + (2 * other - 1) * (bent - one))
        case "difference":
            return one - other
    raise ValueError(f"no blend mode is called {mode!r}")


def image_batch(image1: Image, image2: Image) -> Outputs:
    if image1.shape[1:] != image2.shape[1:]:
        image1, image2 = same_channels(image1, image2)
        image2 = scaled(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
    require_room(image1.shape[2], image1.shape[1], len(image1) + len(image2))
    return (np.concatenate([image1, image2]),)


def empty_image(width: int, height: int, batch_size: int = 1, color: int = 0) -> Outputs:
    require_room(width, height, batch_size)
    rgb = np.array([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)], np.float32)
    return (np.broadcast_to(rgb, (batch_size, height, width, 3)).copy(),)


def image_crop(image: Image, width: int, height: int, x: int, y: int) -> Outputs:
    x, y = min(x, image.shape[2] - 1), min(y, image.shape[1] - 1)
    return (image[:, y : y + height, x : x + width],)


def repeat_image_batch(image: Image, amount: int) -> Outputs:
    require_room(image.shape[2], image.shape[1], len(image) * amount)
    return (np.tile(image, (amount, 1, 1, 1)),)


def image_from_batch(image: Image, batch_index: int, length: int) -> Outputs:
    first = min(len(image) - 1, batch_index)
    return (image[first : first + length],)


def image_rotate(image: Image, rotation: str) -> Outputs:
    turns = {"90 degrees": 1, "180 degrees": 2, "270 degrees": 3}.get(rotation, 0)
    return (np.ascontiguousarray(np.rot90(image, turns, axes=(2, 1))),)


def image_flip(image: Image, flip_method: str) -> Outputs:
    axis = 1 if flip_method.startswith("x") else 2
    return (np.ascontiguousarray(np.flip(image, axis)),)


def get_image_size(image: Image) -> tuple[int, int, int]:
    return image.shape[2], image.shape[1], len(image)


def image_pad_for_outpaint(
    image: Image, left: int, top: int, right: int, bottom: int, feathering: int
) -> tuple[Image, Mask]:
    """The mask is 1 where there is something to paint, and falls off into the picture as squares do."""
    batch, height, width, channels = image.shape
    outer = (height + top + bottom, width + left + right)
    require_room(outer[1], outer[0], batch)
    padded = np.full((batch, *outer, channels), GREY, np.float32)
    padded[:, top : top + height, left : left + width] = image
    mask = np.ones(outer, np.float32)
    soft = np.zeros((height, width), np.float32)
    if feathering > 0 and feathering * 2 < height and feathering * 2 < width:
        row, column = np.arange(height)[:, None], np.arange(width)[None]
        near = np.minimum(row if top else height, height - row if bottom else height)
        near = np.minimum(near, np.minimum(column if left else width, width - column if right else width))
        soft = (np.maximum(feathering - near, 0) / feathering).astype(np.float32) ** 2
    mask[top : top + height, left : left + width] = np.broadcast_to(soft, (height, width))
    return padded, mask[None]


KINDS: Final = (
    Kind("ImageInvert", {"image": IMAGE}, ("IMAGE",), image_invert),
    Kind(
        "ImageBlend",
        {
            "image1": IMAGE,
            "image2": IMAGE,
            "blend_factor": number(0.5, 0.0, 1.0),
            "blend_mode": choice(*BLENDS),
        },
        ("IMAGE",),
        image_blend,
    ),
    Kind("ImageBatch", {"image1": IMAGE, "image2": IMAGE}, ("IMAGE",), image_batch),
    Kind(
        "EmptyImage",
        {
            "width": integer(512, 1),
            "height": integer(512, 1),
            "batch_size": integer(1, 1, BATCH_MAX),
            "color": integer(0, 0, 0xFFFFFF),
        },
        ("IMAGE",),
        empty_image,
    ),
    Kind(
        "ImageCrop",
        {
            "image": IMAGE,
            "width": integer(512, 1),
            "height": integer(512, 1),
            "x": integer(0, 0),
            "y": integer(0, 0),
        },
        ("IMAGE",),
        image_crop,
    ),
    Kind(
        "RepeatImageBatch",
        {"image": IMAGE, "amount": integer(1, 1, BATCH_MAX)},
        ("IMAGE",),
        repeat_image_batch,
    ),
    Kind(
        "ImageFromBatch",
        {"image": IMAGE, "batch_index": integer(0, 0, BATCH_MAX - 1), "length": integer(1, 1, BATCH_MAX)},
        ("IMAGE",),
        image_from_batch,
    ),
    Kind(
        "ImageRotate",
        {"image": IMAGE, "rotation": choice("none", "90 degrees", "180 degrees", "270 degrees")},
        ("IMAGE",),
        image_rotate,
    ),
    Kind(
        "ImageFlip",
        {"image": IMAGE, "flip_method": choice("x-axis: vertically", "y-axis: horizontally")},
        ("IMAGE",),
        image_flip,
    ),
    Kind("GetImageSize", {"image": IMAGE}, ("INT", "INT", "INT"), get_image_size),
    Kind(
        "ImagePadForOutpaint",
        {
            "image": IMAGE,
            **{side: integer(0, 0) for side in ("left", "top", "right", "bottom")},
            "feathering": integer(40, 0),
        },
        ("IMAGE", "MASK"),
        image_pad_for_outpaint,
    ),
)
