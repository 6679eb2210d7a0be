from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.bridge.stages import AWAITED, KEPT, STAGES, PictureTimes, Stage, Stages

OURS = "this machine"
STEPS_US = (1_000, 2_000, 3_000, 4_000)


def times(arrived_s: float, *, there_s: float = 0.002, back_s: float = 0.003) -> PictureTimes:
    """A picture that took 1 ms at ingest, and came back after its ten at the runner."""
    sent_s = arrived_s + 0.001
    returned_s = sent_s + there_s + 0.010 + back_s
    return PictureTimes(arrived_s, sent_s, returned_s, returned_s + 0.0005)


def received_us(arrived_s: float, *, there_s: float = 0.002, ahead_s: float = 0.0) -> int:
    return round(1e6 * (arrived_s + 0.001 + there_s + ahead_s))


def test_on_one_machine_every_stage_is_what_was_measured() -> None:
    stages = Stages(OURS)
    stages.returned(90_000, times(100.0))
    (picture,) = stages.complete(OURS, [[90_000, received_us(100.0), *STEPS_US]])
    assert {stage: round(1000 * time_s, 3) for stage, time_s in picture.items()} == {
        Stage.INGEST: 1.0,
        Stage.TRICKLE_IN: 2.0,
        Stage.DECODE: 1.0,
        Stage.QUEUE: 2.0,
        Stage.INFER: 3.0,
        Stage.ENCODE: 4.0,
        Stage.TRICKLE_OUT: 3.0,
        Stage.PLAY: 0.5,
    }
    reported = stages.report()
    assert reported is not None
    by_stage, total = reported
    assert (total.pictures, round(1000 * total.p50_s, 3)) == (1, 16.5)
    assert sum(by_stage[stage].p50_s for stage in STAGES) == pytest.approx(total.p50_s, abs=1e-5)


@given(st.floats(-1e5, 1e5), st.lists(st.floats(0, 0.02), min_size=1, max_size=30))
def test_another_machines_clock_is_found_to_within_half_a_round_trip(
    ahead_s: float, delays_s: list[float]
) -> None:
    stages = Stages(OURS)
    best_s = 1.0
    for index, delay_s in enumerate(delays_s):
        arrived_s, there_s, back_s = index / 30, 0.001 + delay_s, 0.001
        stages.returned(index, times(arrived_s, there_s=there_s, back_s=back_s))
        received = received_us(arrived_s, there_s=there_s, ahead_s=200_000 + ahead_s)
        (picture,) = stages.complete("another machine", [[index, received, *STEPS_US]])
        best_s = min(best_s, there_s + back_s)
        assert picture[Stage.TRICKLE_IN] == pytest.approx(there_s, abs=best_s / 2 + 1e-4)
        assert picture[Stage.TRICKLE_OUT] == pytest.approx(back_s, abs=best_s / 2 + 1e-4)


def test_a_clock_that_drifts_is_found_anew() -> None:
    stages = Stages(OURS)
    for index in range(3000):
        arrived_s = index / 30
        ahead_s = 1000 + index * 1e-5  # a hundred times what quartz does
        stages.returned(index, times(arrived_s, there_s=0.002, back_s=0.002))
        received = received_us(arrived_s, ahead_s=ahead_s)
        (picture,) = stages.complete("another machine", [[index, received, *STEPS_US]])
        assert picture[Stage.TRICKLE_IN] == pytest.approx(0.002, abs=0.003)


def test_a_viewer_ends_the_way_of_what_it_took_and_only_the_first_viewer_counts() -> None:
    stages = Stages(OURS)
    for index in range(3):
        stages.returned(index, times(100.0 + index))
    stages.seen(1, 102.0)
    stages.seen(1, 110.0)
    pictures = stages.complete(OURS, [[index, received_us(100.0 + index), *STEPS_US] for index in range(3)])
    assert [round(picture[Stage.PLAY], 4) for picture in pictures] == [
        round(102.0 - 100.016, 4),
        round(102.0 - 101.016, 4),
        0.0005,
    ]


def test_without_a_picture_known_from_end_to_end_there_is_no_report() -> None:
    stages = Stages(OURS)
    stages.returned(90_000, times(100.0))
    assert stages.complete(OURS, [[93_000, 1, *STEPS_US]]) == []
    assert stages.report() is None


def test_a_runner_that_never_says_costs_a_bounded_memory() -> None:
    stages = Stages(OURS)
    for index in range(3 * AWAITED):
        stages.returned(index, times(index / 30))
    told = [[index, received_us(index / 30), *STEPS_US] for index in range(3 * AWAITED)]
    assert len(stages.complete(OURS, told)) == AWAITED


def test_the_report_speaks_of_the_newest_pictures() -> None:
    stages = Stages(OURS)
    for index in range(2 * KEPT):
        infer_us = 3_000 if index < KEPT else 30_000
        stages.returned(index, times(index / 30))
        stages.complete(OURS, [[index, received_us(index / 30), 1_000, 2_000, infer_us, 4_000]])
    reported = stages.report()
    assert reported is not None
    by_stage, total = reported
    assert total.pictures == KEPT
    assert by_stage[Stage.INFER].p50_s == pytest.approx(0.030)


def test_the_95th_percentile_is_what_19_of_20_do_not_exceed() -> None:
    stages = Stages(OURS)
    for index in range(100):
        stages.returned(index, times(float(index)))
        told = [index, received_us(float(index)), 1_000, 2_000, 1_000 * (index + 1), 4_000]
        stages.complete(OURS, [told])
    reported = stages.report()
    assert reported is not None
    infer = reported[0][Stage.INFER]
    assert [infer.p50_s, infer.p95_s] == pytest.approx([0.050, 0.095])
