"""Masks, and images put on images through them. By ComfyUI's definitions, but for one slip of its own.

`FeatherMask` there puts the first line of the right and of the bottom feather at the opposite edge; here each
feather begins at its own.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from services.inference.engine.pipelines.comfyui.arrays import (
    Image,
    Mask,
    as_grey_image,
    each,
    of_batch,
    require_room,
    same_channels,
)
from services.inference.engine.pipelines.comfyui.declarations import (
    IMAGE,
    MASK,
    OPTIONAL_MASK,
    SIDE_MAX,
    Kind,
    choice,
    flag,
    integer,
    number,
)
from services.inference.engine.pipelines.comfyui.nodes.scaling import resized_mask, scaled

CHANNELS: Final = ("red", "green", "blue", "alpha")
OPERATIONS: Final = ("multiply", "add", "subtract", "and", "or", "xor")
Outputs = tuple[Mask]


def mask_to_image(mask: Mask) -> Outputs:
    return (as_grey_image(mask),)


def image_to_mask(image: Image, channel: str) -> Outputs:
    index = CHANNELS.index(channel)
    if index >= image.shape[-1]:
        raise ValueError(f"an image of {image.shape[-1]} channels has no {channel}")
    return (np.ascontiguousarray(image[..., index]),)


def image_color_to_mask(image: Image, color: int) -> Outputs:
    levels = np.rint(np.clip(image[..., :3], 0, 1) * 255).astype(np.int32)
    same = (levels[..., 0] << 16) + (levels[..., 1] << 8) + levels[..., 2] == color
    return (same.astype(np.float32),)


def threshold_mask(mask: Mask, value: float) -> Outputs:
    return ((mask > np.float32(value)).astype(np.float32),)


def invert_mask(mask: Mask) -> Outputs:
    return (1 - mask,)


def solid_mask(value: float, width: int, height: int) -> Outputs:
    require_room(width, height)
    return (np.full((1, height, width), value, np.float32),)


def crop_mask(mask: Mask, x: int, y: int, width: int, height: int) -> Outputs:
    cut = mask[:, y : y + height, x : x + width]
    if not cut.size:
        raise ValueError(f"nothing of a mask of {mask.shape[2]}x{mask.shape[1]} pixels is at {x}, {y}")
    return (cut,)


def grow_mask(mask: Mask, expand: int, tapered_corners: bool) -> Outputs:
    shape = cv2.MORPH_CROSS if tapered_corners else cv2.MORPH_RECT
    kernel = cv2.getStructuringElement(shape, (3, 3))
    change = cv2.dilate if expand > 0 else cv2.erode
    times = min(abs(expand), mask.shape[1] + mask.shape[2])  # after so many nothing changes any more
    if times == 0:
        return (mask,)
    return (each(mask, lambda one: change(one, kernel, iterations=times)),)


def feather_mask(mask: Mask, left: int, top: int, right: int, bottom: int) -> Outputs:
    height, width = mask.shape[1:]
    across, down = np.ones(width, np.float32), np.ones(height, np.float32)
    for line, first, last in ((across, left, right), (down, top, bottom)):
        line[: min(first, len(line))] *= _ramp(min(first, len(line)))
        line[len(line) - min(last, len(line)) :] *= _ramp(min(last, len(line)))[::-1]
    return (mask * down[:, None] * across,)


def _ramp(length: int) -> Mask:
    return (np.arange(1, length + 1) / max(length, 1)).astype(np.float32)


def mask_composite(destination: Mask, source: Mask, x: int, y: int, operation: str) -> Outputs:
    out = destination.copy()
    height, width = (
        max(0, min(there, here - at))
        for there, here, at in zip(source.shape[1:], out.shape[1:], (y, x), strict=True)
    )
    part, under = source[:, :height, :width], out[:, y : y + height, x : x + width]
    match operation:
        case "multiply":
            under[:] = under * part
        case "add":
            under[:] = under + part
        case "subtract":
            under[:] = under - part
        case "and":
            under[:] = (np.rint(under) != 0) & (np.rint(part) != 0)
        case "or":
            under[:] = (np.rint(under) != 0) | (np.rint(part) != 0)
        case "xor":
            under[:] = (np.rint(under) != 0) ^ (np.rint(part) != 0)
    return (np.clip(out, 0, 1),)


def image_composite_masked(
    destination: Image,
    source: Image,
    x: int,
    y: int,
    resize_source: bool,
    mask: Mask | None = None,
) -> Outputs:
    destination, source = same_channels(destination, source)
    if resize_source:
        source = scaled(source, destination.shape[2], destination.shape[1], "bilinear")
    source = of_batch(source, len(destination))
    height = max(0, min(source.shape[1], destination.shape[1] - y))
    width = max(0, min(source.shape[2], destination.shape[2] - x))
    out = destination.copy()
    under = out[:, y : y + height, x : x + width]
    part = source[:, :height, :width]
    if mask is None:
        under[:] = part
    else:
        through = of_batch(resized_mask(mask, source.shape[2], source.shape[1]), len(source))
        through = through[:, :height, :width, None]
        under[:] = through * part + (1 - through) * under
    return (out,)


def split_image_with_alpha(image: Image) -> tuple[Image, Mask]:
    if image.shape[-1] > 3:
        return image[..., :3], 1 - image[..., 3]
    return image, np.zeros(image.shape[:3], np.float32)


def join_image_with_alpha(image: Image, alpha: Mask) -> Outputs:
    batch = min(len(image), len(alpha))
    opaque = 1 - resized_mask(alpha, image.shape[2], image.shape[1])
    return (np.concatenate([image[:batch, ..., :3], opaque[:batch, ..., None]], axis=-1),)


_PLACE: Final = {"x": integer(0, 0), "y": integer(0, 0)}
_SIZE: Final = {"width": integer(512, 1), "height": integer(512, 1)}

KINDS: Final = (
    Kind("MaskToImage", {"mask": MASK}, ("IMAGE",), mask_to_image),
    Kind("ImageToMask", {"image": IMAGE, "channel": choice(*CHANNELS)}, ("MASK",), image_to_mask),
    Kind(
        "ImageColorToMask",
        {"image": IMAGE, "color": integer(0, 0, 0xFFFFFF)},
        ("MASK",),
        image_color_to_mask,
    ),
    Kind("ThresholdMask", {"mask": MASK, "value": number(0.5, 0.0, 1.0)}, ("MASK",), threshold_mask),
    Kind("InvertMask", {"mask": MASK}, ("MASK",), invert_mask),
    Kind("SolidMask", {"value": number(1.0, 0.0, 1.0), **_SIZE}, ("MASK",), solid_mask),
    Kind("CropMask", {"mask": MASK, **_PLACE, **_SIZE}, ("MASK",), crop_mask),
    Kind(
        "GrowMask",
        {"mask": MASK, "expand": integer(0, -SIDE_MAX), "tapered_corners": flag(default=True)},
        ("MASK",),
        grow_mask,
    ),
    Kind(
        "FeatherMask",
        {"mask": MASK, **{side: integer(0, 0) for side in ("left", "top", "right", "bottom")}},
        ("MASK",),
        feather_mask,
    ),
    Kind(
        "MaskComposite",
        {"destination": MASK, "source": MASK, **_PLACE, "operation": choice(*OPERATIONS)},
        ("MASK",),
        mask_composite,
    ),
    Kind(
        "ImageCompositeMasked",
        {
            "destination": IMAGE,
            "source": IMAGE,
            **_PLACE,
            "resize_source": flag(default=False),
            "mask": OPTIONAL_MASK,
        },
        ("IMAGE",),
        image_composite_masked,
    ),
    Kind("SplitImageWithAlpha", {"image": IMAGE}, ("IMAGE", "MASK"), split_image_with_alpha),
    Kind("JoinImageWithAlpha", {"image": IMAGE, "alpha": MASK}, ("IMAGE",), join_image_with_alpha),
)
