from __future__ import annotations

import pytest

from services.common.errors import InvalidError
from sluice.transform.arguments import Change, changes, joined, milliseconds, parameters, size


def test_a_value_that_is_json_is_that_and_any_other_is_text() -> None:
    texts = ["prompt=a cat", "strength=0.5", "on=true", "size=[1,2]", "eq=a=b", "empty=", "nan=NaN", 'q="5"']
    assert parameters(texts) == {
        "prompt": "a cat",
        "strength": 0.5,
        "on": True,
        "size": [1, 2],
        "eq": "a=b",
        "empty": "",
        "nan": "NaN",
        "q": "5",
    }


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2s", 2000),
        ("1500ms", 1500),
        ("0:02", 2000),
        ("1:02:03.5", 3_723_500),
        ("0.04s", 40),
        ("90:00", 5_400_000),
    ],
)
def test_times(text: str, ms: int) -> None:
    assert milliseconds(text) == ms


@pytest.mark.parametrize("text", ["2", "-2s", "2 s", "s", "1:2:3:4", "", "2m", "0:2:"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidError, match="is no time"):
        milliseconds(text)


def test_changes_are_in_order_and_those_of_one_time_are_one() -> None:
    assert changes(["2s prompt=neon", "500ms a=1,prompt=one, two,b=x", "0:02 seed=3"]) == [
        Change(500, {"a": 1, "prompt": "one, two", "b": "x"}),
        Change(2000, {"prompt": "neon", "seed": 3}),
    ]


@pytest.mark.parametrize("text", ["2s", "2s ", "prompt=x", "2s prompt"])
def test_what_is_no_change(text: str) -> None:
    with pytest.raises(InvalidError):
        changes([text])


def test_two_words_behind_at_become_one() -> None:
    assert joined(["--at", "2s", "prompt=a b", "in.mp4"]) == ["--at", "2s prompt=a b", "in.mp4"]
    assert joined(["--at", "2s prompt=a", "b=c"]) == ["--at", "2s prompt=a", "b=c"]
    assert joined(["--at", "2s", "in.mp4"]) == ["--at", "2s", "in.mp4"]
    assert joined(["--", "--at", "2s", "a=b"]) == ["--", "--at", "2s", "a=b"]
    assert joined(["--at"]) == ["--at"]


def test_sizes() -> None:
    assert size("1280x720") == (1280, 720)
    for text in ("1280", "0x0", "12x720", "1280X720", "-1x-1"):
        with pytest.raises(InvalidError, match="is no size"):
            size(text)
