"""What is said of a bridge is what went into it from runners, and out of it to viewers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.harness.history import difference_ms
from tests.chaos.harness.passed import IN, OUT, Passed, Seams, let_out_ms, line_of, of_session, seams

FRAME = 3000
OLD = [Passed(IN, "ses_a", "-", 1, n / 30, n * FRAME) for n in range(60)]
NEW = [Passed(IN, "ses_a", "-", 2, n / 30, n * FRAME) for n in range(40, 90)]
SHOWN = [Passed(OUT, "ses_a", "7.0", 1 if n < 50 else 2, n / 30, n * FRAME) for n in range(90)]


def test_a_seam_between_two_that_overlap_loses_and_repeats_nothing() -> None:
    assert seams([*OLD, *NEW, *SHOWN]) == Seams()


def test_a_picture_that_came_back_in_its_turn_and_did_not_go_out_is_lost() -> None:
    gap = [passed for passed in SHOWN if not 47 <= passed.pts // FRAME < 52]
    assert seams([*OLD, *NEW, *gap]).lost == 5, "the next one's turn begins with what was shown of it"


def test_a_picture_that_no_runner_returned_is_not_the_bridges_loss() -> None:
    gap = [passed for passed in SHOWN if not 47 <= passed.pts // FRAME < 50]
    returned = [passed for passed in OLD if passed.pts // FRAME < 47]
    assert seams([*returned, *NEW, *gap]).lost == 0


def test_what_goes_out_twice_or_back_is_repeated() -> None:
    assert seams([*SHOWN[:50], *SHOWN[48:]]).repeated == 1


def test_what_the_runners_dropped_is_told() -> None:
    assert seams([replace(SHOWN[0], dropped=2), *SHOWN[1:-1], replace(SHOWN[-1], dropped=5)]).dropped == 3


def test_a_bill_is_judged_by_what_went_out_of_each_bridge() -> None:
    later = [replace(passed, bridge="8.0", at_s=passed.at_s + 3.2) for passed in SHOWN]
    delivered = let_out_ms([*SHOWN, *later, *OLD])
    assert difference_ms(2 * 89 * 1000 / 30, delivered) == pytest.approx(0, abs=0.01)
    assert difference_ms(2 * 89 * 1000 / 30 + 200, delivered) == pytest.approx(200), "between them is nothing"


def test_what_was_written_down_is_read_again() -> None:
    other = replace(SHOWN[3], session="ses_b")
    lines = [line_of(passed) for passed in (OLD[0], other, SHOWN[1])]
    assert of_session("ses_a", lines) == [OLD[0], SHOWN[1]]
