"""Mistrust of runners: how it grows, how it fades, and who is no second witness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.faults import ANEW, FAULT, HALF_LIFE_S, Faults
from services.router.placement import QUARANTINED_FROM, RunnerId

A = RunnerId("a")


def test_one_failed_session_is_no_quarantine_and_two_are() -> None:
    faults = Faults()
    faults.add(A, "s", 0.0)
    assert faults.penalties(0.0) == {A: FAULT}
    assert FAULT < QUARANTINED_FROM
    faults.add(A, "t", 1.0)
    assert faults.penalties(1.0)[A] > QUARANTINED_FROM


def test_a_session_that_fails_again_and_again_is_one_witness() -> None:
    faults = Faults()
    for second in range(30):
        faults.add(A, "s", float(second))
    assert faults.penalties(30.0)[A] < FAULT


def test_mistrust_halves_in_its_half_life_and_is_forgotten_in_the_end() -> None:
    faults = Faults()
    faults.add(A, "s", 0.0)
    assert faults.penalties(HALF_LIFE_S)[A] == pytest.approx(FAULT / 2)
    assert faults.penalties(10 * HALF_LIFE_S) == {}
    assert faults.penalties(0.0) == {}


def test_another_process_of_the_runner_begins_with_less() -> None:
    faults = Faults()
    faults.add(A, "s", 0.0)
    faults.booted(A, 0.0)
    faults.booted(RunnerId("b"), 0.0)
    assert faults.penalties(0.0) == {A: FAULT * ANEW}


@given(
    st.lists(st.tuples(st.sampled_from("stuvw"), st.floats(0, 30), st.booleans()), max_size=40),
)
def test_a_penalty_stays_between_none_and_all(events: list[tuple[str, float, bool]]) -> None:
    faults = Faults()
    now_s = 0.0
    for session, after_s, boots in events:
        now_s += after_s
        if boots:
            faults.booted(A, now_s)
        faults.add(A, session, now_s)
        assert 0 <= faults.penalties(now_s).get(A, 0.0) < 1
