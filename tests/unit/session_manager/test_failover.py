"""The table of verdicts on a fake clock, and every false alarm that others raise."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.session_manager.failover import (
    FAILURES,
    FORCED,
    PLANNED,
    RUNNERS_OWN,
    SESSIONS_OWN,
    STAY,
    Evidence,
    Step,
    judge,
    quicker_us,
    wished,
)

NOW_S = 1000.0


def seen(**facts: Any) -> Evidence:
    """A session that its bridge and its runner just reported, and whatever else a test says."""
    return Evidence(**{"bridge_heard_s": NOW_S, "runner_heard_s": NOW_S, "shown": True, **facts})


GONE = {"gone_since_s": NOW_S - 0.2}


@pytest.mark.parametrize(
    ("facts", "step", "why"),
    [
        # a runner that gave up
        ({"failed": "params_refused"}, Step.END, "params_refused"),
        ({"failed": "pipeline_failed", "bridge_heard_s": None}, Step.END, "pipeline_failed"),
        ({"failed": "engine_crashed"}, Step.MOVE, "engine_crashed"),
        ({"failed": "engine_hung"}, Step.MOVE, "engine_hung"),
        ({"failed": "out_of_memory"}, Step.MOVE, "out_of_memory"),
        ({"failed": "start_failed"}, Step.MOVE, "start_failed"),
        ({"failed": "bridge_lost"}, Step.MOVE, "bridge_lost"),
        ({"failed": "a word of tomorrow"}, Step.MOVE, "runner_lost"),
        # gone, and the output stalls
        ({**GONE, "stalled_ms": 1000}, Step.MOVE, "runner_lost"),
        ({**GONE, "stalled_ms": 999}, Step.STAY, ""),
        ({**GONE, "stalled_ms": 500, "output_broken": True}, Step.MOVE, "runner_lost"),
        ({**GONE, "stalled_ms": 499, "output_broken": True}, Step.PREPARE, "runner_lost"),
        ({**GONE, "output_broken": True}, Step.PREPARE, "runner_lost"),
        # gone while its publisher is silent: there is no stall, but nothing can come either
        ({"gone_since_s": NOW_S - 3.0, "output_broken": True}, Step.MOVE, "runner_lost"),
        ({"gone_since_s": NOW_S - 2.9, "output_broken": True}, Step.PREPARE, "runner_lost"),
        # gone before its first picture
        ({"gone_since_s": NOW_S - 1.0, "shown": False}, Step.MOVE, "runner_lost"),
        ({"gone_since_s": NOW_S - 0.9, "shown": False}, Step.STAY, ""),
        # frozen, though all its connections stand
        ({"stalled_ms": 3000}, Step.MOVE, "stalled"),
        ({"stalled_ms": 2999}, Step.STAY, ""),
        ({"stalled_ms": 1000, "runner_heard_s": NOW_S - 2.6}, Step.MOVE, "stalled"),
        ({"stalled_ms": 1000, "runner_heard_s": NOW_S - 1.6}, Step.PREPARE, "stalled"),
        ({"stalled_ms": 1000, "runner_heard_s": NOW_S - 1.4}, Step.STAY, ""),
        # its engine died
        ({"interrupted": True}, Step.MOVE, "engine_crashed"),
        # slow
        ({"slow_since_s": NOW_S - 5}, Step.MOVE, "slow"),
        ({"slow_since_s": NOW_S - 4.9}, Step.STAY, ""),
        ({"slow_since_s": NOW_S - 5, "slow_moved_s": NOW_S - 61}, Step.MOVE, "slow"),
        ({"slow_since_s": NOW_S - 5, "slow_moved_s": NOW_S - 59}, Step.STAY, ""),
        ({"slow_since_s": NOW_S - 5, "slow_moved_s": NOW_S - 999, "slow_helped": False}, Step.STAY, ""),
    ],
)
def test_evidence_means(facts: dict[str, Any], step: Step, why: str) -> None:
    verdict = judge(seen(**facts), NOW_S)
    assert (verdict.step, verdict.why) == (step, why)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        # the runner does not answer, and its pictures come: of its control connection alone nobody dies
        {"gone_since_s": NOW_S - 600},
        {"runner_heard_s": NOW_S - 600},
        # one missed report, or two
        {"runner_heard_s": NOW_S - 2.4},
        # the connection of the output broke and was made again; the runner answers
        {"output_broken": True},
        # a slow pipeline, a source of 12 pictures a second, a reload of 13 s, a first picture after a minute:
        # the bridge calls none of these a stall
        {"shown": False},
        # a short hiccup
        {"stalled_ms": 900},
    ],
)
def test_a_false_alarm_moves_nothing(facts: dict[str, Any]) -> None:
    assert judge(seen(**facts), NOW_S) == STAY


def test_a_stall_goes_on_between_the_reports() -> None:
    evidence = seen(stalled_ms=600, bridge_heard_s=NOW_S, gone_since_s=NOW_S)
    assert judge(evidence, NOW_S).step is Step.STAY
    assert judge(evidence, NOW_S + 0.5).step is Step.MOVE


@given(
    st.builds(
        Evidence,
        stalled_ms=st.integers(0, 10_000),
        output_broken=st.booleans(),
        shown=st.booleans(),
        gone_since_s=st.none() | st.floats(900, 1000),
        failed=st.sampled_from(["", *sorted(RUNNERS_OWN)]),
        interrupted=st.booleans(),
        slow_since_s=st.none() | st.floats(900, 1000),
        bridge_heard_s=st.none() | st.floats(900, NOW_S - 2.6),
    )
)
def test_without_the_bridges_word_nobody_is_moved(evidence: Evidence) -> None:
    assert judge(evidence, NOW_S) == STAY


@given(
    st.builds(
        Evidence,
        stalled_ms=st.just(0),
        output_broken=st.just(False),
        shown=st.just(True),
        runner_heard_s=st.floats(0, NOW_S),
        gone_since_s=st.none() | st.floats(0, NOW_S),
        bridge_heard_s=st.floats(NOW_S - 2.4, NOW_S),
    )
)
def test_a_session_whose_output_arrives_is_never_moved_for_silence(evidence: Evidence) -> None:
    assert judge(evidence, NOW_S) == STAY


def test_an_engine_is_counted_against_the_session_that_it_worked_for() -> None:
    assert judge(seen(interrupted=True, suspected=True), NOW_S).counts
    assert not judge(seen(interrupted=True, suspected=False), NOW_S).counts


def test_only_where_the_runner_works_is_a_move_planned() -> None:
    assert judge(seen(slow_since_s=0.0), NOW_S).planned
    assert not judge(seen(stalled_ms=5000), NOW_S).planned
    assert all(wished(why).planned for why in [*PLANNED, "maintenance"])
    assert not any(wished(why).planned for why in FAILURES | FORCED)
    assert not FAILURES & SESSIONS_OWN


def test_evidence_is_uneasy_while_time_alone_may_change_the_verdict() -> None:
    assert not seen().uneasy
    assert seen(stalled_ms=1).uneasy
    assert seen(gone_since_s=NOW_S).uneasy


@pytest.mark.parametrize(
    ("infer_ms", "most_us"),
    [
        (100.0, 70_000),
        (50.0, 35_000),
        (33.3, 23_000),  # two digits, the lower ones: never more than 0.7 of it
        (1.25, 870),
        (0.001, 1),
        (0.0, 1),  # not measured: nobody is known to be quicker
        (-1.0, 1),
        (math.nan, 1),
        (math.inf, 100_000_000),
    ],
)
def test_clearly_quicker_is_at_most_seven_tenths_of_the_time(infer_ms: float, most_us: int) -> None:
    assert quicker_us(infer_ms) == most_us


def test_for_slowness_only_a_warm_runner_is_better_whoever_wishes_it() -> None:
    assert wished("slow").warm
    assert judge(seen(slow_since_s=0.0), NOW_S).warm
    assert not wished("drain").warm
