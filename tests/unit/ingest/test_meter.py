"""Billed time: nothing is counted twice, nothing is lost, and a stall costs nothing."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.bridge.meter import LONGEST_GAP_MS, Meter, Window

NO_FRAMES = (0, 0, 0)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2500), st.sampled_from(["picture", "picture", "picture", "pause", "resume", "cut"])
    ),
    max_size=60,
)


def run(steps: list[tuple[int, str]]) -> tuple[Meter, list[list[Window]], int, tuple[int, int, int]]:
    """A session; returns its meter, its cuts, when it ended, and its frames."""
    meter, cuts, now_ms, frames = Meter(), [], 0, [0, 0, 0]
    for after_ms, step in steps:
        now_ms += after_ms
        if step == "picture":
            frames = [frames[0] + 2, frames[1] + 1, frames[2] + 1]
            meter.delivered(now_ms)
        elif step == "pause":
            meter.paused(now_ms)
        elif step == "resume":
            meter.resumed(now_ms)
        else:
            cuts.append(meter.cut(now_ms, (frames[0], frames[1], frames[2]), final=False))
    total = (frames[0], frames[1], frames[2])
    cuts.append(meter.cut(now_ms, total, final=True))
    return meter, cuts, now_ms, total


@given(STEPS)
def test_the_windows_add_up_to_the_totals(steps: list[tuple[int, str]]) -> None:
    meter, cuts, _, frames = run(steps)
    used: defaultdict[str, int] = defaultdict(int)
    for window in (window for cut in cuts for window in cut):
        used[window.unit] += window.quantity
    assert used["delivered_ms"] == meter.delivered_ms
    assert used["paused_ms"] == meter.paused_ms
    windows = [window for cut in cuts for window in cut]
    assert sum(window.frames_in for window in windows) == frames[0]
    assert sum(window.frames_out for window in windows) == frames[1]
    assert sum(window.frames_dropped for window in windows) == frames[2]


@given(STEPS)
def test_windows_follow_each_other_and_never_overlap(steps: list[tuple[int, str]]) -> None:
    _, cuts, end_ms, _ = run(steps)
    spans = [(cut[0].from_ms, cut[0].to_ms) for cut in cuts if cut]
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    for cut in cuts:
        assert len({(window.from_ms, window.to_ms) for window in cut}) <= 1
        assert len({window.unit for window in cut}) == len(cut), "a unit once"
    assert spans[-1][1] == end_ms


@given(STEPS)
def test_windows_are_numbered_from_one_without_a_gap(steps: list[tuple[int, str]]) -> None:
    _, cuts, _, _ = run(steps)
    windows = [window for cut in cuts for window in cut]
    assert [window.seq for window in windows] == list(range(1, len(windows) + 1))


@given(STEPS)
def test_no_more_is_used_than_time_went_by(steps: list[tuple[int, str]]) -> None:
    meter, cuts, end_ms, _ = run(steps)
    assert meter.delivered_ms <= end_ms
    assert meter.paused_ms <= end_ms
    for window in (window for cut in cuts for window in cut):
        # a gap between two pictures may reach over the cut; the ledger allows for that second
        assert window.quantity <= window.to_ms - window.from_ms + LONGEST_GAP_MS
        assert window.quantity >= 0


@given(STEPS)
def test_the_last_cut_always_has_a_final_window_and_no_other_has(steps: list[tuple[int, str]]) -> None:
    _, cuts, _, _ = run(steps)
    assert cuts[-1]
    assert [window.final for window in cuts[-1]] == [False] * (len(cuts[-1]) - 1) + [True]
    assert not any(window.final for cut in cuts[:-1] for window in cut)


def test_the_time_between_two_pictures_is_delivery() -> None:
    meter = Meter()
    for at_ms in (1000, 1040, 1080, 2080):
        meter.delivered(at_ms)
    assert meter.delivered_ms == 1080, "the first picture costs nothing by itself"


def test_a_silence_of_more_than_a_second_is_a_stall_and_not_delivery() -> None:
    meter = Meter()
    meter.delivered(0)
    meter.delivered(LONGEST_GAP_MS)
    assert meter.delivered_ms == 1000
    meter.delivered(2 * LONGEST_GAP_MS + 1)
    assert meter.delivered_ms == 1000
    meter.delivered(2 * LONGEST_GAP_MS + 41)
    assert meter.delivered_ms == 1040


def test_a_clock_that_stands_still_costs_nothing() -> None:
    meter = Meter()
    for at_ms in (500, 500, 499, 500):
        meter.delivered(at_ms)
    assert meter.delivered_ms <= 1


def test_a_pause_is_counted_while_it_lasts_and_once() -> None:
    meter = Meter()
    meter.paused(1000)
    meter.paused(1500)
    assert [window.quantity for window in meter.cut(2000, NO_FRAMES, final=False)] == [1000]
    (window,) = meter.cut(3000, NO_FRAMES, final=False)
    assert (window.unit, window.quantity, window.from_ms, window.to_ms) == ("paused_ms", 1000, 2000, 3000)
    meter.resumed(3500)
    meter.resumed(9000)
    assert meter.paused_ms == 2500


def test_a_cut_with_nothing_used_makes_no_window_and_its_frames_are_in_the_next() -> None:
    meter = Meter()
    assert meter.cut(5000, (120, 0, 0), final=False) == []
    meter.delivered(5500)
    meter.delivered(6000)
    (window,) = meter.cut(10_000, (250, 2, 3), final=False)
    assert (window.from_ms, window.to_ms) == (5000, 10_000)
    assert (window.frames_in, window.frames_out, window.frames_dropped) == (250, 2, 3)


def test_a_cut_with_both_units_counts_its_frames_once() -> None:
    meter = Meter()
    meter.delivered(0)
    meter.delivered(500)
    meter.paused(3000)
    delivered, paused = meter.cut(5000, (13, 12, 1), final=False)
    assert (delivered.unit, delivered.quantity, delivered.frames_in) == ("delivered_ms", 500, 13)
    assert (paused.unit, paused.quantity, paused.frames_in) == ("paused_ms", 2000, 0)


def test_a_session_that_delivered_nothing_ends_with_an_empty_window() -> None:
    (window,) = Meter().cut(700, NO_FRAMES, final=True)
    assert (window.seq, window.unit, window.quantity, window.final) == (1, "delivered_ms", 0, True)
