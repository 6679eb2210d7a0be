"""H.264 as FLV has it, lengths before its units and parameter sets apart, to Annex B and back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.common.media.h264 import IDR, PPS, SPS, START_CODE, nal_units

DELIMITER: Final = 9
MOST_UNITS: Final = 4096  # of one picture
WITHOUT_PICTURE: Final = frozenset({SPS, PPS, DELIMITER})


@dataclass(frozen=True, slots=True)
class AvcConfig:
    """An AVCDecoderConfigurationRecord (ISO 14496-15 §5.3.3.1): the lengths' size, and the parameter sets."""

    length_size: int
    sets: bytes  # SPS and PPS as Annex B


def read_config(data: bytes) -> AvcConfig:
    """Raises InvalidError."""
    if len(data) < 6 or data[0] != 1:
        raise InvalidError("the H.264 configuration is none", reason="RTMP_MALFORMED")
    sets: list[bytes] = []
    at = 5
    for mask in (0x1F, 0xFF):  # how many SPS and PPS follow
        count = data[at] & mask if at < len(data) else 0
        at += 1
        for _ in range(count):
            begin = at + 2
            at = begin + int.from_bytes(data[at:begin], "big")
            if at > len(data):
                raise InvalidError("the H.264 configuration is cut off", reason="RTMP_MALFORMED")
            if at > begin:
                sets += (START_CODE, data[begin:at])
    return AvcConfig((data[4] & 3) + 1, b"".join(sets))


def to_annex_b(data: bytes, length_size: int) -> tuple[bytes, bool]:
    """A picture as Annex B, no delimiter, and whether it is an IDR. Raises InvalidError for half of one."""
    parts: list[bytes] = []
    keyframe = False
    at, end, units = 0, len(data), 0
    while at < end:
        begin = at + length_size
        at = begin + int.from_bytes(data[at:begin], "big")
        units += 1
        if at > end or units > MOST_UNITS:
            raise InvalidError("a picture that is cut off", reason="RTMP_MALFORMED")
        if at == begin:
            continue
        kind = data[begin] & 0x1F
        if kind != DELIMITER:
            keyframe = keyframe or kind == IDR
            parts += (START_CODE, data[begin:at])
    return b"".join(parts), keyframe


def config_record(sets: bytes) -> bytes:
    """The configuration for pictures with these parameter sets; their lengths have four bytes.

    Raises InvalidError when there is no SPS.
    """
    units = list(nal_units(sets))
    sps = [unit for unit in units if unit[0] & 0x1F == SPS and len(unit) >= 4]
    pps = [unit for unit in units if unit[0] & 0x1F == PPS]
    if not sps:
        raise InvalidError("no sequence parameter set", reason="NO_PARAMETER_SETS")
    record = b"\x01" + sps[0][1:4] + bytes((0xFF, 0xE0 | len(sps)))
    record += b"".join(len(unit).to_bytes(2, "big") + unit for unit in sps)
    return record + bytes((len(pps),)) + b"".join(len(unit).to_bytes(2, "big") + unit for unit in pps)


def from_annex_b(data: bytes) -> bytes:
    """A picture with four bytes of length before each unit, without what the configuration says already."""
    units = [unit for unit in nal_units(data) if unit[0] & 0x1F not in WITHOUT_PICTURE]
    return b"".join([len(unit).to_bytes(4, "big") + unit for unit in units])
