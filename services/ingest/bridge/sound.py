"""Which units are sound that the bridge carries. Pure."""

from __future__ import annotations

from typing import Final

from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import AccessUnit, Codec

AUDIO: Final = frozenset({Codec.AAC, Codec.OPUS})
SOUND_BYTES: Final = 32 * 1024  # of one unit: four times the largest ADTS frame, 120 ms of Opus at 2 Mbit/s


def fits(sound: AccessUnit) -> bool:
    """Whether it can be written to a PES packet, which every sound can that is one."""
    found = len(sound.data) <= SOUND_BYTES
    if not found:
        FRAME_DROPS.labels("sound").inc()
    return found


def sound_among(streams: tuple[Codec, ...]) -> Codec | None:
    return next((codec for codec in streams if codec in AUDIO), None)
