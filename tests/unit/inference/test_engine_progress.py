"""How far a load is, told neither too often nor too late."""

from __future__ import annotations

import math
from typing import Any

import pytest

from services.inference.engine.progress import LONGEST_STAGE, Loading, Progress


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def told_by(steps: list[tuple[float, str, Any]]) -> list[tuple[str, int]]:
    """What is told of steps, each with its time."""
    clock, told = Clock(), list[Loading]()
    progress = Progress("start", told.append, now_s=clock)
    for at_s, stage, fraction in steps:
        clock.now_s = at_s
        progress(stage, fraction)
    progress.done()
    return [(one.stage, one.percent) for one in told]


def test_its_beginning_and_its_end_are_told() -> None:
    assert told_by([]) == [("load", 0), ("load", 100)]


def test_at_most_five_a_second_are_told() -> None:
    told = told_by([(step / 100, "weights", step / 1000) for step in range(1000)])
    assert 45 <= len(told) <= 52
    assert told[-1] == ("weights", 100)


@pytest.mark.parametrize(
    ("fraction", "percent"),
    [(0.0, 0), (0.404, 40), (1.0, 99), (7.0, 99), (-1.0, 0), (math.nan, 0), (math.inf, 99), (1, 99)],
)
def test_only_the_end_is_a_hundred_and_nonsense_is_cut_to_size(fraction: float, percent: int) -> None:
    assert told_by([(1.0, "x" * 1000, fraction)])[1] == ("x" * LONGEST_STAGE, percent)


def test_who_listens_later_is_told_what_was_said_last_unless_it_is_over() -> None:
    first, second, third = list[Loading](), list[Loading](), list[Loading]()
    clock = Clock()
    progress = Progress("start", first.append, now_s=clock)
    clock.now_s = 1.0
    progress("weights", 0.4)
    progress.listen("reload", second.append)
    progress.done()
    progress.listen("reload", third.append)
    assert [one.percent for one in first] == [0, 40]
    assert [(one.why, one.percent) for one in second] == [("reload", 40), ("reload", 100)]
    assert third == []


def test_nothing_is_told_after_the_end() -> None:
    told: list[Loading] = []
    progress = Progress("start", told.append, now_s=Clock())
    progress.done()
    progress("weights", 0.5)
    assert told[-1].percent == 100
    assert len(told) == 2
