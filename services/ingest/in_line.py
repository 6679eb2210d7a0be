"""Where a start is in the line for a runner, in the words and figures of every face. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from protos.router.v1 import router_pb2
from services.common.errors import ExhaustedError, SluiceError

REASON: Final = "NO_CAPACITY"
SOONEST_S: Final = 1.0  # to ask again, for who would be next at once
LATEST_S: Final = 60.0  # an estimate beyond it is worth less than a look
# Why the router found none, where a wish is in the way and not the load.
WHY: Final[Mapping[str, str]] = {
    "no_match": "no runner that is up has the region, the GPU class and the labels that are wished",
    "price": "every runner that is up costs more than is wished",
}
ENDINGS: Final[Mapping[int, str]] = {1: "st", 2: "nd", 3: "rd"}
NUMBERS: Final[Mapping[str, type[int] | type[float]]] = {"position": int, "expected_wait_s": float}


def refused(error: SluiceError) -> SluiceError:
    """A refusal with what the router knows of the line in it; any other error as it is."""
    position = _number(error.details.get("position"))
    if error.reason != REASON or position is None or position < 1:
        return error
    wait_ms = _number(error.details.get("expected_wait_ms"))
    details: dict[str, object] = {
        name: text for name, text in error.details.items() if name != "expected_wait_ms"
    }
    if wait_ms is not None and wait_ms >= 0:
        details["expected_wait_s"] = wait_ms / 1000
        details["retry_after_s"] = min(max(wait_ms / 1000, SOONEST_S), LATEST_S)
    message = WHY.get(error.details.get("why", ""), error.message)
    words = place_words(round(position), details.get("expected_wait_s"))
    return ExhaustedError(f"{message}: {words}", reason=error.reason, **details)


def place_words(position: int, wait_s: object) -> str:
    """Such as `3rd in line, about 20 s`; without the time while nobody can say."""
    words = f"{ordinal(position)} in line"
    return words if not isinstance(wait_s, int | float) else f"{words}, about {max(1, round(wait_s))} s"


def ordinal(number: int) -> str:
    if number % 100 in {11, 12, 13}:
        return f"{number}th"
    return f"{number}{ENDINGS.get(number % 10, 'th')}"


def shown(details: Mapping[str, str]) -> dict[str, Any]:
    """The details of an error for a body of JSON: the figures of the line as numbers."""
    return {name: NUMBERS[name](text) if name in NUMBERS else text for name, text in details.items()}


def place(found: router_pb2.QueuePlace) -> dict[str, Any]:
    """Where a start is in the line, for a status."""
    return {
        "position": found.position,
        "expected_wait_s": found.expected_wait_ms / 1000 if found.expected_wait_ms >= 0 else None,
        "waited_s": found.waited_ms / 1000,
    }


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
