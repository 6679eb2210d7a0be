"""A summary says what went wrong as plainly as what went well."""

from __future__ import annotations

import json

from tests.chaos.harness.history import View
from tests.chaos.harness.summary import Books, Trial, summary

BOOKS = Books()


def test_freezes_are_of_what_recovered_and_what_did_not_is_counted() -> None:
    trials = [Trial(recovered=True, seen=View(freeze_s=0.5)), Trial(recovered=False)]
    found = summary("kill", trials, BOOKS)
    assert (found.trials, found.recovered) == (2, 1)
    assert found.freeze_p99_s == found.freeze_max_s == 0.5
    assert found.failures_upper_bound_95 is None, "one failed"


def test_no_failure_in_so_many_trials_bounds_their_rate() -> None:
    found = summary("kill", [Trial(recovered=True)] * 60, BOOKS)
    assert found.failures_upper_bound_95 == 0.05


def test_no_trials_are_no_success() -> None:
    found = summary("kill", [], BOOKS)
    assert found.freeze_p99_s is None
    assert found.failures_upper_bound_95 is None


def test_everything_that_was_lost_is_in_the_line() -> None:
    bad = Trial(
        recovered=True,
        seen=View(lost=2, repeated=1, zombies=3, gap_ms=66.67),
        connected=False,
        params_kept=False,
        memory_kept=False,
    )
    books = Books(
        violations=["cpu-0.0"], billing_difference_ms=12.5, viewer_difference_ms=-900, imbalance_micro=7
    )
    line = json.loads(summary("kill", [bad], books, moves=4).line())
    assert line["chaos"] == "kill"
    assert (line["frames_lost"], line["frames_repeated"], line["zombie_frames"]) == (2, 1, 3)
    assert (line["disconnected"], line["params_lost"], line["memory_lost"]) == (1, 1, 1)
    assert (line["double_grants"], line["imbalance_micro"], line["moves"]) == (1, 7, 4)
    assert (line["billing_difference_ms"], line["viewer_difference_ms"]) == (12.5, -900)
