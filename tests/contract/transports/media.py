"""What the suite's publishers send: moving pictures with their sound, in the order of a real program."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from prometheus_client import REGISTRY

from services.common.media.mpegts import AccessUnit, Codec
from tests.support.media import FRAME, pictures, sound

OPUS_FRAME: Final = 1800  # ticks of 20 ms
OPUS_SILENCE: Final = b"\xf8\xff\xfe"  # RFC 6716 §3.1: CELT, 20 ms, one frame


def program(count: int, codec: Codec, *, start: int = 0) -> list[AccessUnit]:
    """`count` pictures at 25 fps, and as much sound beside them."""
    shown = pictures(count, start=start)
    if codec is Codec.AAC:
        heard = sound(count * FRAME // 1920, start=start)
    else:
        times = range(start, start + count * FRAME, OPUS_FRAME)
        heard = [AccessUnit(Codec.OPUS, pts, pts, OPUS_SILENCE, keyframe=True) for pts in times]
    return sorted([*shown, *heard], key=lambda unit: (unit.pts, unit.codec is not Codec.H264))


def steps_between(times: Sequence[int]) -> set[int]:
    return {after - before for before, after in pairwise(times)}


def stills_shown() -> float:
    """How many there were in place of pictures of publishers that were away."""
    return REGISTRY.get_sample_value("sluice_placeholder_frames_total") or 0.0
