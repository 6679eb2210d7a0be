"""Counts of a session over several engines."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.inference.assignment import Report
from services.inference.intake import Intake
from services.inference.tally import Tally


def stats(decoded: int, **more: Any) -> dict[str, Any]:
    quiet = {"dropped": 0, "dropped_sounds": 0, "infer_ms": 1.0, "unsaid": {}, "snapshots_dropped": {}}
    return quiet | {"decoded": decoded, "inferred": decoded, "encoded": decoded} | more


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), min_size=1, max_size=5))
def test_no_count_jumps_back_whatever_engines_come(engines: list[list[int]]) -> None:
    """Each engine counts from nothing, in steps."""
    tally, report, seen, total = Tally("passthrough"), Report(), 0, 0
    for steps in engines:
        decoded = 0
        for step in steps:
            decoded, total = decoded + step, total + step
            report = tally.count(report, stats(decoded, dropped=decoded), Intake(), Intake(), 0)
            assert report.decoded == report.dropped == total >= seen
            seen = report.decoded
        tally.next_engine(Intake())


def test_the_metrics_see_each_drop_once() -> None:
    tally, packets, output = Tally("passthrough"), Intake(), Intake()
    before = (
        counted("sluice_frame_drop_total", stage="input"),
        counted("sluice_frames_total", stage="decoded"),
    )
    packets.dropped = 5
    tally.count(Report(), stats(10), packets, output, 0)
    packets.dropped = 7
    tally.next_engine(packets)
    report = tally.count(Report(), stats(3), Intake(), output, 0)
    assert counted("sluice_frame_drop_total", stage="input") == before[0] + 7
    assert counted("sluice_frames_total", stage="decoded") == before[1] + 13
    assert (report.decoded, report.dropped) == (13, 7)


def test_what_was_not_let_through_is_counted_over_engines() -> None:
    tally = Tally("passthrough")
    said = stats(1, unsaid={"too_large": 2}, snapshots_dropped={"too_slow": 1})
    before = counted("sluice_snapshots_dropped_total", reason="too_slow")
    tally.count(Report(), said, Intake(), Intake(), 0)
    tally.next_engine(Intake())
    tally.count(Report(), said, Intake(), Intake(), 0)
    assert tally.unsaid(said) == {"too_large": 4}
    assert counted("sluice_snapshots_dropped_total", reason="too_slow") == before + 2


def test_pictures_are_told_with_the_time_of_each_step() -> None:
    tally = Tally("passthrough")
    received_s = {90_000: 1.0}
    stamps = [(90_000, 1.001, 1.003, 1.006, 1.010), (93_000, 1.1, 1.2, 1.3, 1.4)]
    assert tally.pictures(stamps, received_s) == [[90_000, 1_000_000, 1000, 2000, 3000, 4000]]
    assert received_s == {}
    assert counted("sluice_infer_seconds_count", pipeline="passthrough") >= 2
