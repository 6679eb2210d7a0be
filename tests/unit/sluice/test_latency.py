from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sluice.latency import CHART_COLUMNS, bar, shown

STAGES = ("ingest", "trickle_in", "decode", "queue", "infer", "encode", "trickle_out", "play")
MS = st.floats(0, 10_000)


def answer(p50_ms: list[float], p95_ms: list[float]) -> dict[str, Any]:
    stages = [
        {"stage": name, "p50_ms": p50, "p95_ms": p95}
        for name, p50, p95 in zip((*STAGES, "total"), p50_ms, p95_ms, strict=True)
    ]
    return {"session": "ses_1", "pipeline": "effects", "live": True, "pictures": 900, "stages": stages}


def printed(said: dict[str, Any], width: int = 100) -> list[str]:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(shown(said))
    return captured.get().splitlines()


def test_every_stage_has_its_numbers_and_a_bar_that_begins_where_the_last_one_ends() -> None:
    lines = printed(answer([1, 1, 2, 0, 10, 4, 1, 1, 20], [2, 2, 4, 1, 20, 8, 2, 2, 40]))
    assert lines[0] == "ses_1  effects  the newest 900 pictures"
    rows = {line.split()[0]: line for line in lines[3:]}
    assert list(rows) == [*STAGES, "total"]
    assert rows["infer"].split()[1:3] == ["10.00", "20.00"]
    begins = [rows[stage].index("█") for stage in ("decode", "infer", "encode")]
    assert begins == sorted(begins)
    assert rows["infer"].count("█") == 5 * rows["decode"].count("█")
    assert rows["total"].count("█") == CHART_COLUMNS // 2
    assert rows["total"].count("░") == CHART_COLUMNS // 2


def test_an_ended_session_is_said_to_show_its_last_pictures() -> None:
    said = {**answer([1] * 9, [1] * 9), "live": False}
    assert printed(said)[0].endswith("the last 900 pictures")


@given(st.lists(MS, min_size=9, max_size=9), st.lists(MS, min_size=9, max_size=9))
def test_any_numbers_are_drawn_within_the_width(p50_ms: list[float], more_ms: list[float]) -> None:
    p95_ms = [low + more for low, more in zip(p50_ms, more_ms, strict=True)]
    assert all(len(line) <= 100 for line in printed(answer(p50_ms, p95_ms)))


@given(MS, MS, MS, MS)
def test_a_bar_fits_its_chart(begin_ms: float, p50_ms: float, more_ms: float, rest_ms: float) -> None:
    drawn = bar(begin_ms, p50_ms, p50_ms + more_ms, begin_ms + p50_ms + more_ms + rest_ms)
    assert len(drawn) <= CHART_COLUMNS + 1


def test_a_chart_of_no_length_has_no_bars() -> None:
    assert bar(0, 0, 0, 0) == ""
