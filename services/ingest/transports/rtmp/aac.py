"""AAC as FLV has it, bare frames and a configuration apart, to ADTS and back. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.common.media.mpegts.splitters import ADTS_HEADER, ADTS_RATES

ESCAPED_TYPE: Final = 31
ESCAPED_RATE: Final = 15
WITH_SBR: Final = frozenset({5, 29})  # HE-AAC, which says its own rate and then what it is made of
LARGEST_FRAME: Final = (1 << 13) - 1  # with its header


@dataclass(frozen=True, slots=True)
class AacConfig:
    """What an ADTS header says of each frame."""

    profile: int  # the object type less one: 1 is LC
    rate_index: int
    channels: int  # a channel configuration: 1 to 6 as counted, 7 is eight


def read_config(data: bytes) -> AacConfig:
    """Read an AudioSpecificConfig (ISO 14496-3 §1.6.2.1). Raises InvalidError for what ADTS cannot say."""
    bits = _Bits(data)
    kind = bits.object_type()
    rate_index = bits.rate_index()
    channels = bits.take(4)
    if kind in WITH_SBR:
        bits.rate_index()
        kind = bits.object_type()
    if not 1 <= kind <= 4:
        raise InvalidError(f"AAC of object type {kind} is not carried", reason="UNSUPPORTED_SOUND")
    if not 1 <= channels <= 7:
        raise InvalidError("AAC with a channel layout of its own is not carried", reason="UNSUPPORTED_SOUND")
    return AacConfig(kind - 1, rate_index, channels)


def specific_config(config: AacConfig) -> bytes:
    """The AudioSpecificConfig of frames with such headers."""
    return ((config.profile + 1) << 11 | config.rate_index << 7 | config.channels << 3).to_bytes(2, "big")


def to_adts(config: AacConfig, frame: bytes) -> bytes:
    """ISO 13818-7 §6.2: one frame behind a header without checksum. Raises InvalidError."""
    size = ADTS_HEADER + len(frame)
    if not frame or size > LARGEST_FRAME:
        raise InvalidError("a sound of an impossible length", bytes=len(frame))
    header = (
        0xFFF1 << 40
        | config.profile << 38
        | config.rate_index << 34
        | config.channels << 30
        | size << 13
        | 0x7FF << 2
    )
    return header.to_bytes(ADTS_HEADER, "big") + frame


def from_adts(data: bytes) -> tuple[AacConfig, bytes]:
    """What a frame's header says, and the bare frame. Raises InvalidError."""
    if len(data) < ADTS_HEADER or data[0] != 0xFF or data[1] & 0xF6 != 0xF0:
        raise InvalidError("a sound without ADTS header")
    config = AacConfig(data[2] >> 6, data[2] >> 2 & 15, (data[2] & 1) << 2 | data[3] >> 6)
    return config, data[ADTS_HEADER if data[1] & 1 else ADTS_HEADER + 2 :]


class _Bits:
    """Reads from the most significant bit on; its end is an InvalidError."""

    def __init__(self, data: bytes) -> None:
        data = data[:16]  # what is of interest is in the first few bytes
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise InvalidError("an AAC configuration that ends too soon", reason="UNSUPPORTED_SOUND")
        return self._value >> self._left & (1 << count) - 1

    def object_type(self) -> int:
        kind = self.take(5)
        return 32 + self.take(6) if kind == ESCAPED_TYPE else kind

    def rate_index(self) -> int:
        index = self.take(4)
        if index == ESCAPED_RATE:
            rate = self.take(24)
            if rate not in ADTS_RATES:
                raise InvalidError(f"AAC at {rate} Hz is not carried", reason="UNSUPPORTED_SOUND")
            return ADTS_RATES.index(rate)
        if index >= len(ADTS_RATES):
            raise InvalidError("an AAC configuration without rate", reason="UNSUPPORTED_SOUND")
        return index
