"""Images and masks as ComfyUI has them: float32, 0..1, an image (B, H, W, C), a mask (B, H, W).

Nobody writes into what a node was given or has returned: several nodes, frames and streams may hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.float32]
A = TypeVar("A", bound=NDArray[Any])

PIXELS_MAX: Final = 4096 * 4096  # of all images of a batch; ComfyUI would try more, and fill the memory

PIECE: Final = 65_536  # values, of which a second-level cache holds several times as many


def read_only(array: A) -> A:
    """The same array, into which nobody can write."""
    array.flags.writeable = False
    return array


def each(images: Image, change: Callable[[Image], Any]) -> Image:
    """`change` for each (H, W, C) or (H, W) of a batch."""
    if len(images) == 1:
        return np.asarray(change(images[0]), np.float32)[None]
    return np.stack([np.asarray(change(one), np.float32) for one in images])


def as_grey_image(masks: Mask) -> Image:
    """(B, H, W, 3), all three the mask."""
    return each(masks, lambda one: cv2.cvtColor(one, cv2.COLOR_GRAY2RGB))


def require_room(width: int, height: int, batch: int = 1) -> None:
    """Raise ValueError for a picture that is too large to be meant."""
    if width * height * batch > PIXELS_MAX:
        many = f"{batch} of " if batch > 1 else ""
        raise ValueError(
            f"{many}{width}x{height} pixels are more than {PIXELS_MAX}, the most that is made here"
        )


def of_batch(images: Image, batch: int) -> Image:
    """As many images: cut off, or repeated from the first on."""
    if len(images) == batch:
        return images
    return images[np.arange(batch) % len(images)]


def piecewise(change: Callable[..., Image], *images: Image) -> Image:
    """`change` of each value by itself, in pieces that stay in the cache.

    What a whole image leaves behind in between is megabytes. The engine's allocator keeps them for the next
    frame; where it does not, as in a test or a tool, this takes a third of the time.
    """
    shape = np.broadcast_shapes(*(image.shape for image in images))
    flat = [np.ascontiguousarray(np.broadcast_to(image, shape)).ravel() for image in images]
    out = np.empty(shape, np.float32)
    whole = out.ravel()
    for first in range(0, len(whole), PIECE):
        piece = slice(first, first + PIECE)
        whole[piece] = change(*(image[piece] for image in flat))
    return out


def chosen(mask: NDArray[np.bool_], then: Image, otherwise: Image) -> Image:
    """`then` where `mask`; by arithmetic, for numpy's own `where` takes twenty times as long on noise."""
    return otherwise + mask.astype(np.float32) * (then - otherwise)


def same_channels(destination: Image, source: Image) -> tuple[Image, Image]:
    """Both with or without alpha, as the destination says; what the source lacks of it is added here.

    ComfyUI cuts the source's, or gives the destination's as fully opaque.
    """
    has, wants = source.shape[-1], destination.shape[-1]
    if wants < has:
        return destination, source[..., :wants]
    if wants > has:
        opaque = np.ones((*source.shape[:-1], wants - has), np.float32)
        return destination, np.concatenate([source, opaque], axis=-1)
    return destination, source
