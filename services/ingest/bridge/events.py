"""What a runner says on `events`, one JSON object a line, checked field by field. Pure.

A runner may be somebody else's: nothing of it is believed before it is looked at, and what is not known here
is another version's and means nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from services.common.errors import InvalidError

COUNT_MAX: Final = 2**53  # what every reader of JSON can count to
PICTURE_NUMBERS: Final = 6  # its PTS, when it was received, and four steps
PICTURES_MAX: Final = 1000  # more than a runner sees between two of its statuses
APPLIES: Final = ("live", "warm", "reload")  # the slowest last
HEALTH: Final = frozenset({"loading", "idle", "online", "degraded_input", "degraded_inference", "error"})
WORD: Final = re.compile(r"[a-z0-9_]{1,40}")
MESSAGE_MAX: Final = 500  # characters; what is longer is cut
NAME_MAX: Final = 200
DONE: Final = 100  # per cent


@dataclass(frozen=True, slots=True)
class Applied:
    """A parameter revision is in a picture; `pts` is that of the first, `applies` how it got there."""

    revision: int
    pts: int
    applies: str = APPLIES[0]


@dataclass(frozen=True, slots=True)
class Refused:
    """A revision that was accepted will not be shown, or no longer; the values before it stay."""

    revision: int
    field: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Loading:
    """The pipeline makes itself ready; `percent` 100 is done."""

    why: str
    stage: str
    percent: int

    @property
    def done(self) -> bool:
        return self.percent >= DONE


@dataclass(frozen=True, slots=True)
class Problem:
    """Something failed at the runner, and what was done about it. The session goes on, unless it ended."""

    stage: str
    kind: str
    error: str
    message: str
    action: str
    pts: int | None
    frame: int | None


@dataclass(frozen=True, slots=True)
class Health:
    """How the runner is, as it sees itself; said at each change."""

    state: str
    cause: str


@dataclass(frozen=True, slots=True)
class Status:
    """Once a second. `pictures` and `clock` are as `Stages.complete` takes them, empty from other runners."""

    dropped: int
    infer_ms: float
    clock: str
    pictures: Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Moved:
    """Not said by a runner: another one has the session, and viewers get its pictures from `pts` on.

    `why`: what the one before was doing. `freeze_ms`: between its last picture and the first of the other.
    """

    why: str
    pts: int
    freeze_ms: int
    lost: int


Event: TypeAlias = Applied | Refused | Loading | Problem | Health | Status


def parse(line: bytes | bytearray) -> Event | None:
    """The event in `line`; None for a type that means nothing here. Raises InvalidError."""
    try:
        event = json.loads(line)
        read = READERS.get(event["type"])
        return None if read is None else read(event)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InvalidError("an event that cannot be read", reason="BAD_EVENT") from error


def _applied(event: Mapping[str, Any]) -> Applied:
    applies = event.get("applies", APPLIES[0])
    if applies not in APPLIES:
        raise ValueError("no way to apply")
    return Applied(_count(event["revision"]), _count(event["pts"]), applies)


def _refused(event: Mapping[str, Any]) -> Refused:
    return Refused(
        _count(event["revision"]),
        _text(event.get("field", ""), NAME_MAX),
        _word(event["reason"]),
        _text(event.get("message", ""), MESSAGE_MAX),
    )


def _loading(event: Mapping[str, Any]) -> Loading:
    percent = _measure(event["percent"])
    if not 0 <= percent <= DONE:
        raise ValueError("no share")
    return Loading(_word(event["why"]), _text(event["stage"], NAME_MAX), math.floor(percent))


def _problem(event: Mapping[str, Any]) -> Problem:
    pts, frame = (
        None if value is None else _count(value) for value in (event.get("pts"), event.get("frame"))
    )
    return Problem(
        stage=_word(event["stage"]),
        kind=_word(event["kind"]),
        error=_text(event.get("error", ""), NAME_MAX),
        message=_text(event.get("message", ""), MESSAGE_MAX),
        action=_word(event["action"]),
        pts=pts or None,  # no picture of a session is at 0
        frame=frame if pts else None,
    )


def _health(event: Mapping[str, Any]) -> Health | None:
    state = _word(event["state"])
    return Health(state, _text(event.get("cause", ""), MESSAGE_MAX)) if state in HEALTH else None


def _status(event: Mapping[str, Any]) -> Status:
    return Status(
        _count(event["dropped"]),
        _measure(event["infer_ms"]),
        str(event.get("clock", "")),
        _pictures(event.get("pictures", [])),
    )


READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Event | None]]] = {
    "applied": _applied,
    "refused": _refused,
    "loading": _loading,
    "problem": _problem,
    "health": _health,
    "status": _status,
}


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


def _word(value: object) -> str:
    if not isinstance(value, str) or not WORD.fullmatch(value):
        raise ValueError("no word")
    return value


def _text(value: object, most: int) -> str:
    """At most `most` characters of it, that every way to a client can carry."""
    if not isinstance(value, str):
        raise TypeError("no text")
    return value[:most].encode(errors="replace").decode()
