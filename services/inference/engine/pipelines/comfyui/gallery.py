"""The pictures that `LoadImage` may name: files of a directory of the operator's, and what a client sends.

A name is never a way out of that directory, and a picture is looked at before it is unpacked: a few kilobytes
may say that they are gigapixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.arrays import PIXELS_MAX, Image, Mask

BYTES_MAX: Final = 32 << 20
SENT: Final = "data:image/"
PLACE: Final = (
    " [input]"  # how ComfyUI says that a file is of its input directory, where it also looks without
)
NO_ALPHA: Final = (1, 64, 64)  # the mask of a picture without alpha, as in ComfyUI
PNG: Final = b"\x89PNG\r\n\x1a\n"
JPEG: Final = b"\xff\xd8"
JPEG_SIZES: Final = frozenset(
    {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
)  # markers of frames: they say the size


class PictureError(ValueError):
    """A picture that is not to be had; the message says why."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """`root` None: only what is sent along."""

    root: Path | None

    def read(self, name: str) -> bytes:
        """The file's content. Raises PictureError."""
        if name.startswith(SENT):
            return _sent(name)
        path = self._path(name)
        try:
            if path.stat().st_size > BYTES_MAX:
                raise PictureError(f"{name!r} has more than {BYTES_MAX} bytes")
            return path.read_bytes()
        except OSError:
            raise PictureError(self._absent(name)) from None

    def problem(self, name: str) -> str | None:
        """What is wrong with a name, in words."""
        try:
            _require_few_pixels(self.read(name))
        except PictureError as error:
            return str(error)
        return None

    def fingerprint(self, name: str) -> str:
        """Other for another content of the same name."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def image(self, name: str) -> tuple[Image, Mask]:
        """Image and mask: 1 where the picture is transparent; a small one of zeros where it cannot be."""
        data = self.read(name)
        _require_few_pixels(data)
        levels = np.frombuffer(data, np.uint8)
        raw = cv2.imdecode(levels, cv2.IMREAD_UNCHANGED)
        if raw is None:
            raise PictureError(f"{_called(name)} is no picture that can be read")
        if raw.ndim == 3 and raw.shape[2] == 4:
            colours = cv2.cvtColor(raw, cv2.COLOR_BGRA2RGBA)
            whole = _fractions(colours)
            return whole[None, ..., :3].copy(), 1 - whole[None, ..., 3]
        rgb = cv2.imdecode(levels, cv2.IMREAD_COLOR_RGB)  # turned as its EXIF says
        return _fractions(np.asarray(rgb))[None], np.zeros(NO_ALPHA, np.float32)

    def _path(self, name: str) -> Path:
        if self.root is None:
            raise PictureError(self._absent(name))
        root = self.root.resolve()
        try:
            path = (root / name.removesuffix(PLACE)).resolve()
        except (OSError, ValueError):  # a name too long, or with a zero in it
            raise PictureError(self._absent(name)) from None
        if root not in path.parents:
            raise PictureError(self._absent(name))
        return path

    def _absent(self, name: str) -> str:
        where = "no directory of pictures is set here" if self.root is None else "there is no such file here"
        return f"Invalid image file: {_called(name)}: {where}; data:image/png;base64,... is taken as well"


def _called(name: str) -> str:
    return repr(name if len(name) <= 60 else f"{name[:60]}...")


def _sent(name: str) -> bytes:
    head, comma, body = name.partition(",")
    if not comma or not head.endswith(";base64"):
        raise PictureError("a picture that is sent along is data:image/png;base64,... or image/jpeg")
    if len(body) > BYTES_MAX:
        raise PictureError(f"the picture has more than {BYTES_MAX} bytes")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise PictureError("the picture is not base64") from None
    if not data.startswith((PNG, JPEG)):
        raise PictureError("a picture that is sent along is a PNG or a JPEG")
    return data


def _require_few_pixels(data: bytes) -> None:
    """Of the formats whose head is simple; others come from the operator's directory only."""
    width, height = _size(data)
    if width * height > PIXELS_MAX:
        raise PictureError(f"a picture of {width}x{height} pixels is larger than {PIXELS_MAX} pixels")


def _size(data: bytes) -> tuple[int, int]:
    if data.startswith(PNG) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    at = 2
    while data.startswith(JPEG) and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + length
    return 0, 0


def _fractions(levels: NDArray[Any]) -> Image:
    if levels.dtype == np.uint16:
        return np.asarray(levels / np.float32(65535), np.float32)
    return np.asarray(levels / np.float32(255), np.float32)
