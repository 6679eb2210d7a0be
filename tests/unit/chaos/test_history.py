"""What is said of a viewer's pictures is what happened to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.harness.history import (
    UNSURE_S,
    Heard,
    Shown,
    between,
    delivered_ms,
    difference_ms,
    longest_silence_s,
    view,
)

FLOW = [Shown(at_s=n / 30, pts=n * 3000, number=n, maker=1) for n in range(90)]


def test_a_stream_that_flows_lost_nothing() -> None:
    seen = view(FLOW)
    assert (seen.lost, seen.repeated, seen.backwards, seen.zombies) == (0, 0, 0, 0)
    assert seen.freeze_s == pytest.approx(1 / 30)
    assert seen.gap_ms == pytest.approx(1000 / 30)
    assert seen.makers == (1,)


def test_a_freeze_counts_from_the_last_picture_before_the_fault() -> None:
    late = [replace(shown, at_s=shown.at_s + 1.5) for shown in FLOW[30:]]
    seen = view(between([*FLOW[:30], *late], from_s=1.0, to_s=10.0))
    assert seen.freeze_s == pytest.approx(1.5 + 1 / 30)
    assert seen.lost == 0


def test_pictures_that_are_missing_or_come_twice_are_counted() -> None:
    seen = view([*FLOW[:10], *FLOW[8:10], *FLOW[15:]])
    assert (seen.lost, seen.repeated) == (5, 2)
    assert seen.backwards == 1
    assert seen.gap_ms == pytest.approx(6 * 1000 / 30)


def test_a_picture_of_one_that_was_taken_over_from_is_a_zombies() -> None:
    taken_over = [replace(shown, maker=2) for shown in FLOW[30:]]
    assert view([*FLOW[:30], *taken_over]).zombies == 0
    woken = replace(taken_over[20], maker=1)
    seen = view([*FLOW[:30], *taken_over[:20], woken, *taken_over[21:]])
    assert seen.zombies == 1
    assert seen.makers == (1, 2)


def test_what_is_lost_at_a_takeover_is_told_apart() -> None:
    taken_over = [replace(shown, maker=2) for shown in FLOW[33:]]
    seen = view([*FLOW[:10], *FLOW[12:30], *taken_over])
    assert (seen.lost, seen.seam_lost) == (5, 3)


def test_silence_reaches_to_the_ends_of_the_while() -> None:
    sounds = [Heard(at_s=n / 10, pts=0) for n in range(10, 20)]
    assert longest_silence_s(sounds, 1.0, 1.9) == pytest.approx(0.1)
    assert longest_silence_s(sounds, 0.0, 1.9) == pytest.approx(1.0)
    assert longest_silence_s([], 0.0, 2.0) == 2.0


def test_a_freeze_is_not_billed_and_a_bill_near_the_bound_is_no_difference() -> None:
    frozen = [*FLOW[:30], *(replace(shown, at_s=shown.at_s + 3) for shown in FLOW[30:])]
    least, most = delivered_ms([shown.at_s for shown in frozen], UNSURE_S)
    assert (least, most) == pytest.approx((88 * 1000 / 30, 88 * 1000 / 30))
    assert difference_ms(88 * 1000 / 30 + 40, [(least, most)]) == pytest.approx(40)
    assert difference_ms(88 * 1000 / 30 - 40, [(least, most)]) == pytest.approx(-40)
    assert difference_ms(2 * 88 * 1000 / 30 - 40, [(least, most)] * 2) == pytest.approx(-40)
    unsure = [*FLOW[:30], *(replace(shown, at_s=shown.at_s + 0.95) for shown in FLOW[30:])]
    least, most = delivered_ms([shown.at_s for shown in unsure], UNSURE_S)
    assert most - least == pytest.approx(950 + 1000 / 30)
    assert difference_ms((least + most) / 2, [(least, most)]) == 0
