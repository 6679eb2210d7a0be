"""Pictures that say whose they are: real access units, with the runner's epoch or the camera sewn on.

One without a label is none of the stream's: a still that the bridge shows while there is nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from services.common.media.mpegts import CLOCK_HZ, AccessUnit
from tests.support.media import moved, pictures

FPS: Final = 5
TICKS: Final = CLOCK_HZ // FPS
GROUP: Final = 10  # pictures from a key frame to the next
_KEY, _DELTA = pictures(2)
_SEWN: Final = re.compile(rb"\x00\x00\x00\x01\x06sim:(\S+)$")


@dataclass(frozen=True, slots=True)
class Origin:
    """Who made a picture."""

    runner: str
    slot_epoch: int
    epoch: int


CAMERA: Final = Origin("camera", 0, 0)


def picture(pts: int, *, keyframe: bool, origin: Origin = CAMERA) -> AccessUnit:
    unit = moved(_KEY if keyframe else _DELTA, pts)
    label = f"{origin.runner}/{origin.slot_epoch}/{origin.epoch}".encode()
    return replace(unit, data=unit.data + b"\x00\x00\x00\x01\x06sim:" + label)


def origin_of(unit: AccessUnit) -> Origin | None:
    found = _SEWN.search(unit.data)
    if found is None:
        return None
    runner, slot_epoch, epoch = found[1].decode().split("/")
    return Origin(runner, int(slot_epoch), int(epoch))
