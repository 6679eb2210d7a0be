"""Where the time of a session's pictures goes, as a table and a chart for people. Pure: JSON in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

CHART_COLUMNS: Final = 40
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
SPREAD: Final = "░"  # from the 50th to the 95th percentile

# What a stage is, for somebody who sees its name for the first time.
MEANINGS: Final[Mapping[str, str]] = {
    "ingest": "demux, clock, mux",
    "trickle_in": "to the runner",
    "decode": "to the engine, decoded",
    "queue": "waits for the pipeline",
    "infer": "through the pipeline",
    "encode": "waits, encoded",
    "trickle_out": "back to the bridge",
    "play": "to a viewer's connection",
}


def shown(answer: Mapping[str, Any]) -> RenderableType:
    """The answer of `/v1/sessions/{id}/latency`."""
    total = next(item for item in answer["stages"] if item["stage"] == "total")
    stages = [item for item in answer["stages"] if item["stage"] != "total"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", min_width=len("trickle_out"))
    table.add_column("p50 ms", justify="right", min_width=len("1000.00"))
    table.add_column("p95 ms", justify="right", min_width=len("1000.00"))
    table.add_column("█ p50  ░ to p95", no_wrap=True, min_width=CHART_COLUMNS)
    table.add_column("", no_wrap=True, style="dim")
    begin_ms = 0.0
    end_ms = max(total["p95_ms"], _end(stages))
    for item in stages:
        table.add_row(*_row(item, begin_ms, end_ms), MEANINGS.get(item["stage"], ""))
        begin_ms += item["p50_ms"]
    table.add_row(*_row(total, 0.0, end_ms), "from the last byte sent", style="bold")
    when = "the newest" if answer["live"] else "the last"
    title = f"{answer['session']}  {answer['pipeline']}  {when} {answer['pictures']} pictures"
    return Group(Text(title), Text(""), table)


def _end(stages: Sequence[Mapping[str, Any]]) -> float:
    """The furthest that a stage's bar reaches, each beginning where the one before it usually ends."""
    begin_ms = furthest_ms = 0.0
    for item in stages:
        furthest_ms = max(furthest_ms, begin_ms + item["p95_ms"])
        begin_ms += item["p50_ms"]
    return furthest_ms


def _row(item: Mapping[str, Any], begin_ms: float, end_ms: float) -> tuple[str, str, str, str]:
    p50_ms, p95_ms = item["p50_ms"], item["p95_ms"]
    return item["stage"], f"{p50_ms:.2f}", f"{p95_ms:.2f}", bar(begin_ms, p50_ms, p95_ms, end_ms)


def bar(begin_ms: float, p50_ms: float, p95_ms: float, end_ms: float) -> str:
    """A bar from `begin_ms`, solid to its p50 and light to its p95; the whole chart is `end_ms` long."""
    if end_ms <= 0:
        return ""
    start = round(begin_ms / end_ms * CHART_COLUMNS)
    eighths = max(1, round(p50_ms / end_ms * CHART_COLUMNS * 8))
    solid = EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()
    light = max(0, round((begin_ms + p95_ms) / end_ms * CHART_COLUMNS) - start - len(solid))
    return " " * start + solid + SPREAD * light
