"""What is typed behind `--param`, `--at` and `--max-size`, and what it means. Pure.

Everything raises InvalidError with a sentence that shows what would have been right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import InvalidError

NAME: Final = r"[A-Za-z_][A-Za-z0-9_.-]*"
ASSIGNMENT: Final = re.compile(rf"\s*({NAME})=(.*)", re.DOTALL)
NEXT_ASSIGNMENT: Final = re.compile(rf",(?=\s*{NAME}=)")  # so that a comma within a prompt stays there
UNITS: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s)")
CLOCK: Final = re.compile(r"(?:(\d+):)?(\d+):(\d\d?(?:\.\d+)?)")
SIZE: Final = re.compile(r"(\d{2,5})x(\d{2,5})")


@dataclass(frozen=True, slots=True)
class Change:
    """Parameters that change at a media time; 0 is the clip's first picture."""

    at_ms: int
    params: dict[str, Any]


def parameters(texts: Iterable[str]) -> dict[str, Any]:
    """The parameters of several `k=v`; a value that is JSON is that, any other is text."""
    return dict(_assignment(text) for text in texts)


def changes(texts: Iterable[str]) -> list[Change]:
    """The changes of several `TIME k=v[,k=v...]`, in order of time; those of one time are one change."""
    by_time: dict[int, dict[str, Any]] = {}
    for text in texts:
        when, _, assignments = text.strip().partition(" ")
        if not assignments.strip():
            raise InvalidError(f"--at {text!r} changes nothing; write for example --at 2s prompt=neon")
        params = by_time.setdefault(milliseconds(when), {})
        params.update(_assignment(one) for one in NEXT_ASSIGNMENT.split(assignments))
    return [Change(at_ms, params) for at_ms, params in sorted(by_time.items())]


def require_within(changes: Iterable[Change], duration_s: float | None) -> None:
    """Raise InvalidError for a change that the clip ends before."""
    for change in changes:
        if duration_s is not None and change.at_ms > duration_s * 1000:
            raise InvalidError(f"--at {change.at_ms / 1000:g}s is behind the clip's end, {duration_s:.1f} s")


def milliseconds(text: str) -> int:
    """The time that `2s`, `1500ms`, `0:02` or `1:02:03.5` says."""
    if found := UNITS.fullmatch(text):
        return round(float(found[1]) * (1 if found[2] == "ms" else 1000))
    if found := CLOCK.fullmatch(text):
        return round(((int(found[1] or 0) * 60 + int(found[2])) * 60 + float(found[3])) * 1000)
    raise InvalidError(f"{text!r} is no time; write 2s, 1500ms or 0:02")


def size(text: str) -> tuple[int, int]:
    """Width and height of `1920x1080`."""
    found = SIZE.fullmatch(text)
    if not found or min(int(found[1]), int(found[2])) < 16:
        raise InvalidError(f"{text!r} is no size; write for example 1280x720")
    return int(found[1]), int(found[2])


def joined(arguments: Sequence[str]) -> list[str]:
    """`--at 2s prompt=neon`, which is two arguments, as one: `--at "2s prompt=neon"` works as it is."""
    result: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*result, argument, *rest]
        result.append(argument)
        if argument == "--at" and rest:
            value = rest.pop(0)
            if " " not in value and rest and ASSIGNMENT.fullmatch(rest[0]):
                value = f"{value} {rest.pop(0)}"
            result.append(value)
    return result


def with_default(arguments: Sequence[str], option: str, value: str) -> list[str]:
    """`option` may stand alone, and then means `value`: at the end, or before another option."""
    result: list[str] = []
    for index, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[index + 1] if index + 1 < len(arguments) else "-"
        if argument == option and following.startswith("-"):
            result.append(value)
    return result


def _assignment(text: str) -> tuple[str, Any]:
    found = ASSIGNMENT.fullmatch(text)
    if not found:
        raise InvalidError(f"{text!r} is no parameter; write name=value")
    try:
        return found[1], json.loads(found[2], parse_constant=_not_json)
    except ValueError:
        return found[1], found[2]


def _not_json(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity: Python reads them, no JSON has them
