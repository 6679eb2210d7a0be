"""What the data plane must know about H.264: where decoding can start, and how large pictures are. Pure.

Everything takes and returns Annex B: NAL units behind start codes, as MPEG-TS and libav carry them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Final

from services.common.errors import InvalidError

# ITU-T H.264, table 7-1
IDR: Final = 5
SPS: Final = 7
PPS: Final = 8

SLICES: Final = range(1, 6)
SLICE: Final = re.compile(
    b"\\x00\\x00\\x01[%s]" % re.escape(bytes(byte for byte in range(256) if byte & 0x1F in SLICES))
)
START_CODE: Final = b"\x00\x00\x00\x01"
ACCESS_UNIT_DELIMITER: Final = START_CODE + b"\x09\xf0"  # "any slice type follows"

# H.264 §7.3.2.1.1: the profiles whose SPS says its chroma format; the others are 4:2:0.
PROFILES_WITH_CHROMA: Final = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
LARGEST_SPS: Final = 512  # bytes; real ones are 10 to 60, so that garbage is not parsed at length
LARGEST_SIDE: Final = 16_384  # pixels, twice what level 6.2 allows


def nal_units(data: bytes) -> Iterator[bytes]:
    """The NAL units of `data` in order, without start codes and trailing zeros; empty ones are left out."""
    start = data.find(b"\x00\x00\x01")
    while start >= 0:
        start += 3
        following = data.find(b"\x00\x00\x01", start)
        # A NAL unit never ends in a zero byte: zeros belong to the next, longer, start code.
        nal = data[start : following if following >= 0 else None].rstrip(b"\x00")
        if nal:
            yield nal
        start = following


def is_keyframe(data: bytes) -> bool:
    """Whether the picture is an IDR; its first slice tells, for they all are or none is."""
    first = SLICE.search(data)
    return first is not None and data[first.end() - 1] & 0x1F == IDR


def has_slice(data: bytes) -> bool:
    """Whether any of a picture is there yet, and not only what stands before it."""
    return SLICE.search(data) is not None


def parameter_sets(data: bytes) -> bytes:
    """The SPS and PPS before the first slice, each behind a 4-byte start code; empty without any."""
    return b"".join(START_CODE + nal for nal in _header_units(data) if nal[0] & 0x1F in {SPS, PPS})


def has_parameter_sets(data: bytes) -> bool:
    """Whether both an SPS and a PPS stand before the first slice."""
    return {SPS, PPS} <= {nal[0] & 0x1F for nal in _header_units(data)}


def ensure_parameter_sets(data: bytes, sets: bytes) -> bytes:
    """`data` if it carries its parameter sets, else with `sets` in front, but behind a delimiter."""
    if has_parameter_sets(data):
        return data
    picture = strip_delimiter(data)
    return data[: len(data) - len(picture)] + sets + picture


def strip_delimiter(data: bytes) -> bytes:
    """`data` without a leading access unit delimiter."""
    for start_code in (START_CODE, START_CODE[1:]):
        end = len(start_code) + 2
        if data.startswith(start_code + b"\x09") and data.startswith(b"\x00\x00", end):
            return data[end:]
    return data


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, cropped, of the first SPS in `data`.

    Raises InvalidError when there is no SPS or it makes no sense.
    """
    for nal in nal_units(data):
        if nal[0] & 0x1F == SPS:
            return _size(nal)
    raise InvalidError("no sequence parameter set", reason="NO_PARAMETER_SETS")


def _header_units(data: bytes) -> Iterator[bytes]:
    """The NAL units before the first slice."""
    return takewhile(lambda nal: nal[0] & 0x1F not in SLICES, nal_units(data))


def _size(sps: bytes) -> tuple[int, int]:
    if not 4 <= len(sps) <= LARGEST_SPS:
        raise InvalidError("a sequence parameter set of an impossible length", bytes=len(sps))
    bits = _Bits(sps[1:].replace(b"\x00\x00\x03", b"\x00\x00"))  # §7.4.1: emulation prevention
    profile = bits.take(8)
    bits.take(16)  # constraint flags, level
    bits.golomb()  # seq_parameter_set_id
    chroma = 1
    if profile in PROFILES_WITH_CHROMA:
        chroma = bits.golomb()
        if chroma == 3:
            bits.take(1)  # separate_colour_plane_flag
        bits.golomb()  # bit depths
        bits.golomb()
        bits.take(1)  # qpprime_y_zero_transform_bypass_flag
        if bits.take(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.take(1):
                    bits.skip_scaling_list(16 if index < 6 else 64)
    bits.golomb()  # log2_max_frame_num_minus4
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        for _ in range(bits.golomb()):
            bits.golomb()
    bits.golomb()  # max_num_ref_frames
    bits.take(1)  # gaps_in_frame_num_value_allowed_flag
    width = (bits.golomb() + 1) * 16
    height_units = bits.golomb() + 1
    frames_only = bits.take(1)
    height = height_units * 16 * (2 - frames_only)
    if not frames_only:
        bits.take(1)  # mb_adaptive_frame_field_flag
    bits.take(1)  # direct_8x8_inference_flag
    if bits.take(1):
        crop_x = 2 if chroma in {1, 2} else 1  # §7.4.2.1.1, CropUnitX and CropUnitY
        crop_y = (2 if chroma == 1 else 1) * (2 - frames_only)
        width -= crop_x * (bits.golomb() + bits.golomb())
        height -= crop_y * (bits.golomb() + bits.golomb())
    if chroma > 3 or not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        raise InvalidError("a sequence parameter set that makes no sense", width=width, height=height)
    return width, height


class _Bits:
    """Reads an RBSP from its most significant bit on; its end is an InvalidError, for the sender cut it."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise InvalidError("a sequence parameter set that ends too soon")
        return (self._value >> self._left) & ((1 << count) - 1)

    def golomb(self) -> int:
        """ue(v), H.264 §9.1."""
        zeros = self._left - (self._value & ((1 << self._left) - 1)).bit_length()
        if zeros > 31:
            raise InvalidError("a number of more than 32 bits in a sequence parameter set")
        return self.take(2 * zeros + 1) - 1

    def skip_scaling_list(self, size: int) -> None:
        last = following = 8
        for _ in range(size):
            if following:
                code = self.golomb()
                delta = (code + 1) // 2 if code & 1 else -(code // 2)  # se(v)
                following = (last + delta) % 256
            last = following or last
