"""Where pictures enter a workflow and leave it: the stream's frames, the operator's pictures, the result."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import numpy as np

from services.inference.engine.pipelines.comfyui.arrays import Image, Mask
from services.inference.engine.pipelines.comfyui.conversion import FRAME, PICTURE
from services.inference.engine.pipelines.comfyui.declarations import IMAGE, Kind, choice, text
from services.inference.engine.pipelines.comfyui.gallery import NO_ALPHA, Gallery
from services.inference.engine.pipelines.comfyui.nodes.values import nothing

ALPHA: Final = "alpha"


def stream_frame(frame: Image) -> tuple[Image, Mask]:
    """The frame, and the mask that `LoadImage` has for a picture without alpha: this stands in its place."""
    return frame, np.zeros(NO_ALPHA, np.float32)


def load_image(gallery: Gallery, image: str) -> tuple[Image, Mask]:
    return gallery.image(image)


def load_image_mask(gallery: Gallery, image: str, channel: str) -> tuple[Mask]:
    colours, mask = gallery.image(image)
    if channel == ALPHA:
        # Unlike LoadImage, this gives a picture without alpha as opaque in its own size.
        return (mask if mask.shape[1:] == colours.shape[1:3] else np.zeros(colours.shape[:3], np.float32),)
    return (colours[..., ("red", "green", "blue").index(channel)].copy(),)


def kinds(gallery: Gallery) -> tuple[Kind, ...]:
    """The nodes at the ends, with those that read pictures reading `gallery`'s."""

    def fingerprint(constants: Mapping[str, Any]) -> str:
        return gallery.fingerprint(constants["image"])

    def objection(constants: Mapping[str, Any]) -> tuple[str, str] | None:
        problem = gallery.problem(constants["image"]) if "image" in constants else "a name is wanted, no link"
        return ("image", problem) if problem is not None else None

    channels = choice(ALPHA, "red", "green", "blue")
    return (
        Kind(FRAME, {}, ("IMAGE", "MASK"), stream_frame),
        Kind(
            "LoadImage",
            {"image": text()},
            ("IMAGE", "MASK"),
            partial(load_image, gallery),
            fingerprint,
            objection,
        ),
        Kind(
            "LoadImageMask",
            {"image": text(), "channel": channels},
            ("MASK",),
            partial(load_image_mask, gallery),
            fingerprint,
            objection,
        ),
        Kind(PICTURE, {"images": IMAGE}, (), nothing, is_output=True),
    )
