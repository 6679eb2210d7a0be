from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.bridge.events import PICTURES_MAX, Applied, Status, parse

PICTURE = [90_000, 5_000_000, 1, 2, 3, 4]


def test_a_revision_that_is_in_a_picture_is_read() -> None:
    assert parse(b'{"type":"applied","revision":3,"pts":93000,"applies":"live"}') == Applied(3, 93_000)


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
