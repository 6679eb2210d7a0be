from __future__ import annotations

import pytest

from services.inference.outage import IN_A_ROW_S, Outage


class Clock:
    def __init__(self) -> None:
        self.now_s = 1.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock) -> Outage:
    return Outage(10.0, clock)


def fail(outage: Outage, clock: Clock, *, times: int, every_s: float) -> list[bool]:
    lost = []
    for _ in range(times):
        outage.failed()
        lost.append(outage.lost)
        clock.now_s += every_s
    return lost


def test_a_bridge_is_lost_when_it_fails_for_so_long(outage: Outage, clock: Clock) -> None:
    assert fail(outage, clock, times=4, every_s=4.0) == [False, False, False, True]


def test_what_works_in_between_begins_anew(outage: Outage, clock: Clock) -> None:
    fail(outage, clock, times=2, every_s=4.0)
    outage.worked()
    assert not outage.lost
    assert fail(outage, clock, times=3, every_s=4.0) == [False] * 3


def test_failures_before_and_after_a_pause_are_two(outage: Outage, clock: Clock) -> None:
    fail(outage, clock, times=1, every_s=300.0)
    assert fail(outage, clock, times=4, every_s=4.0) == [False, False, False, True]


def test_a_client_that_is_slow_to_tell_is_believed(outage: Outage, clock: Clock) -> None:
    assert fail(outage, clock, times=2, every_s=IN_A_ROW_S) == [False, True]
