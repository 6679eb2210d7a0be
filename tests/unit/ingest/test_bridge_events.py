from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.bridge.events import (
    MESSAGE_MAX,
    PICTURES_MAX,
    Applied,
    Health,
    Loading,
    Problem,
    Refused,
    Status,
    parse,
)

PICTURE = [90_000, 5_000_000, 1, 2, 3, 4]


def test_a_revision_that_is_in_a_picture_is_read() -> None:
    assert parse(b'{"type":"applied","revision":3,"pts":93000}') == Applied(3, 93_000, "live")
    warm = b'{"type":"applied","revision":3,"pts":93000,"applies":"warm"}'
    assert parse(warm) == Applied(3, 93_000, "warm")


REFUSED: dict[str, object] = {
    "type": "refused",
    "revision": 8,
    "field": "params.lora_dict",
    "reason": "param_refused",
    "message": "no such LoRA",
}
LOADING: dict[str, object] = {"type": "loading", "why": "start", "stage": "weights", "percent": 40}
PROBLEM: dict[str, object] = {
    "type": "problem",
    "stage": "process",
    "kind": "pipeline_error",
    "error": "ZeroDivisionError",
    "message": "division by zero",
    "pts": 93_000,
    "frame": 412,
    "action": "held",
}
HEALTH: dict[str, object] = {"type": "health", "state": "online", "cause": "", "since_ms": 5}


def said(event: dict[str, object]) -> bytes:
    return json.dumps(event).encode()


def test_what_a_runner_says_of_itself_is_read_and_what_is_more_is_ignored() -> None:
    assert parse(said({**REFUSED, "new": 1})) == Refused(
        8, "params.lora_dict", "param_refused", "no such LoRA"
    )
    assert parse(said({**LOADING, "new": 1})) == Loading("start", "weights", 40)
    problem = Problem(
        "process", "pipeline_error", "ZeroDivisionError", "division by zero", "held", 93_000, 412
    )
    assert parse(said({**PROBLEM, "new": 1})) == problem
    assert parse(said({**HEALTH, "new": 1})) == Health("online", "")


def test_a_problem_of_the_engine_has_no_picture() -> None:
    for pts, frame in ((None, None), (0, 0)):
        parsed = parse(said({**PROBLEM, "pts": pts, "frame": frame, "stage": "engine"}))
        assert isinstance(parsed, Problem)
        assert (parsed.pts, parsed.frame) == (None, None)


def test_a_long_message_is_cut_and_half_a_character_is_replaced() -> None:
    parsed = parse(said({**PROBLEM, "message": "x" * 10_000, "error": "\ud800"}))
    assert isinstance(parsed, Problem)
    assert (parsed.message, parsed.error) == ("x" * MESSAGE_MAX, "?")


def test_a_health_that_another_version_knows_means_nothing() -> None:
    assert parse(said({**HEALTH, "state": "splendid"})) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {**REFUSED, "revision": "8"},
        {**REFUSED, "revision": -1},
        {**REFUSED, "field": None},
        {**REFUSED, "reason": "<b>no</b>"},
        {**REFUSED, "message": ["no"]},
        {**LOADING, "percent": 101},
        {**LOADING, "percent": float("nan")},
        {**LOADING, "why": "x" * 41},
        {**LOADING, "stage": {}},
        {**PROBLEM, "pts": "soon"},
        {**PROBLEM, "frame": 1.5},
        {**PROBLEM, "kind": ""},
        {**PROBLEM, "action": None},
        {**HEALTH, "state": 1},
        {**HEALTH, "cause": 1},
        {"type": "applied", "revision": 1, "pts": 1, "applies": "later"},
        {"type": ["applied"]},
        {"type": "loading"},
        ["applied"],
        "applied",
    ],
)
def test_an_event_that_is_wrong_in_one_field_is_refused_whole(wrong: object) -> None:
    with pytest.raises(InvalidError):
        parse(json.dumps(wrong).encode())


def test_a_status_says_where_the_time_of_its_pictures_went() -> None:
    line = {"type": "status", "dropped": 2, "infer_ms": 7.5, "clock": "m", "pictures": [PICTURE]}
    assert parse(json.dumps(line).encode()) == Status(2, 7.5, "m", [PICTURE])


def test_a_status_of_a_runner_that_stamps_nothing_is_read_as_well() -> None:
    assert parse(b'{"type":"status","dropped":2,"infer_ms":7}') == Status(2, 7.0, "", [])


def test_what_another_version_says_means_nothing() -> None:
    assert parse(b'{"type":"weather","pts":1}') is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"pictures": [[1, 2, 3]]},
        {"pictures": [[*PICTURE, 5]]},
        {"pictures": [[-1, 2, 3, 4, 5, 6]]},
        {"pictures": [["1", 2, 3, 4, 5, 6]]},
        {"pictures": [PICTURE] * (PICTURES_MAX + 1)},
        {"pictures": {"0": PICTURE}},
        {"pictures": None},
        {"dropped": 2**60},
        {"dropped": True, "infer_ms": "fast"},
        {"infer_ms": float("nan")},
    ],
)
def test_a_status_that_is_wrong_in_one_field_is_refused_whole(wrong: dict[str, object]) -> None:
    line = {"type": "status", "dropped": 0, "infer_ms": 1.0, "pictures": [PICTURE], **wrong}
    with pytest.raises(InvalidError):
        parse(json.dumps(line).encode())


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_arbitrary_bytes_are_an_event_nothing_or_invalid(line: bytes) -> None:
    with contextlib.suppress(InvalidError):
        parse(line)
