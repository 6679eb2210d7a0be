"""The scenarios that field-tested guardians get wrong, on a clock of our own: who is blamed, and when."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.inference.health import IDLE_AFTER_S, PROBLEM_S, Condition, Health

LOADING, IDLE, ONLINE = Condition.LOADING, Condition.IDLE, Condition.ONLINE
INPUT, INFERENCE, ERROR = Condition.DEGRADED_INPUT, Condition.DEGRADED_INFERENCE, Condition.ERROR
STEP_S = 0.01


def rate(fps: float, *, start: float = 0.0, end: float = 1e9) -> Callable[[float], bool]:
    """Whether a flow of so many a second has a picture in the step that ends at a time."""

    def passes(now_s: float) -> bool:
        return start <= now_s < end and int(now_s * fps) > int((now_s - STEP_S) * fps)

    return passes


def both(*flows: Callable[[float], bool]) -> Callable[[float], bool]:
    return lambda now_s: any(flow(now_s) for flow in flows)


def seen(
    until_s: float,
    into: Callable[[float], bool],
    out: Callable[[float], bool],
    events: dict[float, Callable[[Health, float], None]] | None = None,
) -> list[tuple[float, Condition]]:
    """The conditions that a session goes through, asked for twice a second, each with when it began."""
    health, found = Health(), list[tuple[float, Condition]]()
    waiting = sorted((events or {}).items())
    for step in range(round(until_s / STEP_S)):
        now_s = step * STEP_S
        while waiting and waiting[0][0] <= now_s:
            waiting.pop(0)[1](health, now_s)
        if into(now_s):
            health.took(now_s)
        if out(now_s):
            health.gave(now_s)
        if step % round(0.5 / STEP_S) == 0:
            condition = health.standing(now_s).condition
            if not found or found[-1][1] is not condition:
                found.append((now_s, condition))
    return found


def names(found: list[tuple[float, Condition]]) -> list[Condition]:
    return [condition for _, condition in found]


def loads(why: str) -> Callable[[Health, float], None]:
    return lambda health, _: health.loading(why)


def loaded(health: Health, now_s: float) -> None:
    health.loaded(now_s)


def test_a_healthy_start_is_never_degraded() -> None:
    found = seen(60, rate(30, start=1), rate(24, start=1.2))
    assert names(found) == [IDLE, LOADING, ONLINE] or names(found) == [IDLE, ONLINE]
    assert found[-1][0] <= 1.5


@pytest.mark.parametrize("fps", [12, 5, 1, 0.25])
def test_a_source_that_is_slow_by_nature_is_healthy(fps: float) -> None:
    found = seen(120, rate(fps), rate(fps, start=0.2))
    settled = [condition for at_s, condition in found if at_s > 40]
    assert settled == []
    assert found[-1][1] is ONLINE
    if fps >= 1:
        assert INPUT not in names(found)
        assert INFERENCE not in names(found)


@pytest.mark.parametrize("first_s", [9, 13, 60])
def test_a_first_output_that_comes_late_is_loading_while_progress_is_told(first_s: float) -> None:
    found = seen(first_s + 30, rate(30), rate(24, start=first_s), {0.0: loads("start"), first_s - 1: loaded})
    assert names(found) == [LOADING, ONLINE]


def test_a_first_output_that_comes_late_without_a_word_is_degraded_and_no_error() -> None:
    found = seen(40, rate(30), rate(24, start=13))
    assert names(found) == [LOADING, INFERENCE, ONLINE] or names(found) == [IDLE, LOADING, INFERENCE, ONLINE]
    assert next(at_s for at_s, condition in found if condition is INFERENCE) >= 10


def test_an_output_that_dies_is_the_inferences_fault_within_three_seconds() -> None:
    found = seen(60, rate(30), rate(24, end=20))
    assert names(found)[-1] is INFERENCE
    assert 20 < found[-1][0] <= 23


def test_an_input_that_dies_is_nobody_elses_fault_and_becomes_idle() -> None:
    found = seen(80, rate(30, end=20), rate(24, end=20.1))
    after = [(at_s, condition) for at_s, condition in found if at_s >= 20]
    assert names(after) == [INPUT, IDLE]
    assert after[0][0] <= 23
    assert after[1][0] == pytest.approx(20 + IDLE_AFTER_S, abs=1)


def test_an_input_that_comes_back_is_online_again_at_once() -> None:
    into = both(rate(30, end=20), rate(30, start=140))
    found = seen(200, into, both(rate(24, end=20.1), rate(24, start=140.3)))
    assert names(found)[-1] is ONLINE
    assert 140 <= found[-1][0] <= 141.5
    assert INFERENCE not in names(found)


@pytest.mark.parametrize("gap_s", [9, 13, 120])
def test_a_reload_is_loading_however_long_it_takes_and_leaves_nothing_behind(gap_s: float) -> None:
    out = both(rate(24, end=20), rate(24, start=20 + gap_s))
    found = seen(80 + gap_s, rate(30), out, {20.0: loads("reload"), 20 + gap_s: loaded})
    after = [(at_s, condition) for at_s, condition in found if at_s >= 20]
    assert names(after) == [LOADING, ONLINE]
    assert after[1][0] <= 21 + gap_s


def test_parameters_that_make_it_slower_are_no_fault() -> None:
    out = both(rate(30, end=20), rate(8, start=20))
    found = seen(80, rate(30), out, {20.0: lambda health, now_s: health.changed(now_s)})
    assert INFERENCE not in names(found)


def test_an_output_that_halves_by_itself_is_the_inferences_fault_within_five_seconds() -> None:
    found = seen(30, rate(30), both(rate(30, end=20), rate(10, start=20)))
    assert names(found)[-1] is INFERENCE
    assert 20 < found[-1][0] <= 25


def test_an_input_that_becomes_slow_is_to_blame_and_then_its_new_rate_is_usual() -> None:
    found = seen(120, both(rate(30, end=20), rate(8, start=20)), both(rate(30, end=20), rate(8, start=20)))
    after = [(at_s, condition) for at_s, condition in found if at_s >= 20]
    assert names(after)[0] is INPUT
    assert names(found)[-1] is ONLINE
    assert found[-1][0] < 70


def test_a_problem_is_forgotten_when_pictures_come_again() -> None:
    fails = {20.0: lambda health, now_s: health.problem("pipeline_error", now_s)}
    found = seen(40, rate(30), rate(30), fails)
    after = [(at_s, condition) for at_s, condition in found if at_s >= 20]
    assert after == [(20.0, INFERENCE), (20 + PROBLEM_S, ONLINE)]


def test_a_restarted_engine_is_loading_and_then_online() -> None:
    out = both(rate(30, end=20), rate(30, start=22))
    found = seen(90, rate(30), out, {20.0: loads("restart"), 21.8: loaded})
    assert names([one for one in found if one[0] >= 20]) == [LOADING, ONLINE]


def test_an_input_that_nobody_read_while_an_engine_started_is_not_silent() -> None:
    unread = both(rate(30, end=10), rate(30, start=14.3))
    found = seen(20, unread, unread, {10: loads("restart"), 14: loaded})
    assert names(found)[-2:] == [LOADING, ONLINE]
    assert INPUT not in names(found)


def test_a_failure_is_for_good() -> None:
    found = seen(40, rate(30), rate(30), {20.0: lambda health, _: health.failed("pipeline_failed")})
    assert found[-1] == (20.0, ERROR)


def test_pictures_that_wait_for_the_engine_are_no_silent_input() -> None:
    health = Health()
    for step in range(300):
        health.took(step / 30)
        health.gave(step / 30)
    assert health.standing(13.0).condition is INPUT
    assert health.standing(13.0, backlog=True).condition is INFERENCE


def test_a_session_without_any_picture_is_idle() -> None:
    assert Health().standing(100.0).cause == "no_input"


def test_each_standing_says_why() -> None:
    health = Health()
    health.loading("reload")
    assert health.standing(0.0).cause == "reload"
    health.failed("engine_hung")
    assert health.standing(0.0).cause == "engine_hung"
