"""What a runner says on `events`, one JSON object a line, checked field by field. Pure.

A runner may be somebody else's: nothing of it is believed before it is looked at, and what is not known here
is another version's and means nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.common.errors import InvalidError

COUNT_MAX: Final = 2**53  # what every reader of JSON can count to
PICTURE_NUMBERS: Final = 6  # its PTS, when it was received, and four steps
PICTURES_MAX: Final = 1000  # more than a runner sees between two of its statuses


@dataclass(frozen=True, slots=True)
class Applied:
    """A parameter revision is in a picture; `pts` is that of the first."""

    revision: int
    pts: int


@dataclass(frozen=True, slots=True)
class Status:
    """Once a second. `pictures` and `clock` are as `Stages.complete` takes them, empty from other runners."""

    dropped: int
    infer_ms: float
    clock: str
    pictures: Sequence[Sequence[int]]


Event: TypeAlias = Applied | Status


def parse(line: bytes | bytearray) -> Event | None:
    """The event in `line`; None for a type that means nothing here. Raises InvalidError."""
    try:
        event = json.loads(line)
        if event["type"] == "applied":
            return Applied(_count(event["revision"]), _count(event["pts"]))
        if event["type"] == "status":
            return Status(
                _count(event["dropped"]),
                _measure(event["infer_ms"]),
                str(event.get("clock", "")),
                _pictures(event.get("pictures", [])),
            )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidError("an event that cannot be read", reason="BAD_EVENT") from error
    return None


def _pictures(value: object) -> Sequence[Sequence[int]]:
    if not isinstance(value, list) or len(value) > PICTURES_MAX:
        raise ValueError("no pictures")
    if any(not isinstance(picture, list) or len(picture) != PICTURE_NUMBERS for picture in value):
        raise ValueError("no picture")
    return [[_count(number) for number in picture] for picture in value]


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= COUNT_MAX:
        raise ValueError(f"no count: {value!r}")
    return value


def _measure(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no measure: {value!r}")
    return float(value)
