"""Where a start is in the line, in words and figures that every face shows."""

from __future__ import annotations

import pytest

from protos.router.v1 import router_pb2
from services.common.errors import ConflictError, ExhaustedError
from services.ingest import in_line


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (23, "23rd"),
        (111, "111th"),
    ],
)
def test_places_are_said_as_people_say_them(number: int, words: str) -> None:
    assert in_line.ordinal(number) == words


def test_a_refusal_says_the_place_and_the_wait_and_when_to_ask_again() -> None:
    error = ExhaustedError(
        "no runner is free", reason="NO_CAPACITY", position=3, expected_wait_ms=20_000, retry_after_s=2
    )
    said = in_line.refused(error)
    assert isinstance(said, ExhaustedError)
    assert said.message == "no runner is free: 3rd in line, about 20 s"
    assert in_line.shown(said.details) == {
        "position": 3,
        "expected_wait_s": 20.0,
        "retry_after_s": "20.0",
    }


def test_a_wait_that_nobody_knows_is_not_guessed() -> None:
    error = ExhaustedError("busy", reason="NO_CAPACITY", position=1, expected_wait_ms=-1, retry_after_s=2)
    said = in_line.refused(error)
    assert said.message == "busy: 1st in line"
    assert said.details == {"position": "1", "retry_after_s": "2"}


def test_a_wish_that_no_runner_meets_is_told_from_a_full_house() -> None:
    error = ExhaustedError("no slot is free", reason="NO_CAPACITY", position=1, why="no_match")
    assert in_line.refused(error).message.startswith("no runner that is up has the region, ")
    full = ExhaustedError("no slot is free", reason="NO_CAPACITY", position=1, why="nothing_free")
    assert in_line.refused(full).message == "no slot is free: 1st in line"


@pytest.mark.parametrize(("wait_ms", "after_s"), [(0, "1.0"), (90_000_000, "60.0")])
def test_nobody_is_told_to_ask_at_once_or_tomorrow(wait_ms: int, after_s: str) -> None:
    error = ExhaustedError("busy", reason="NO_CAPACITY", position=1, expected_wait_ms=wait_ms)
    assert in_line.refused(error).details["retry_after_s"] == after_s


@pytest.mark.parametrize(
    "error",
    [
        ExhaustedError("this process is full", reason="INGEST_FULL", retry_after_s=5),
        ExhaustedError("no runner is free", reason="NO_CAPACITY", retry_after_s=2),
        ExhaustedError("no runner is free", reason="NO_CAPACITY", position="soon"),
        ConflictError("busy", reason="STREAM_BUSY", position=1),
    ],
    ids=["another reason", "no place", "no number", "another error"],
)
def test_what_says_no_place_stays_as_it_is(error: ExhaustedError) -> None:
    assert in_line.refused(error) is error


def test_a_place_is_shown_with_its_times() -> None:
    place = router_pb2.QueuePlace(session="ses_a", position=2, waited_ms=1500, expected_wait_ms=-1)
    assert in_line.place(place) == {"position": 2, "expected_wait_s": None, "waited_s": 1.5}
