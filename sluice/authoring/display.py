"""What an author sees while a clip goes through: a line that moves, and a table at the end.

It moves only when a picture is done and never by itself, so that it does not write over a debugger's prompt.
"""

from __future__ import annotations

import time
from typing import Final

from rich.console import Console
from rich.table import Table

from sluice.authoring.run import Report, told
from sluice.bar import Bar

EVERY_S: Final = 0.1
SAYINGS_SHOWN: Final = 3


class Display(Bar):
    """The bar of a clip that is processed here."""

    def __init__(self, console: Console, *, title: str, duration_s: float | None) -> None:
        super().__init__(console, title=title, duration_s=duration_s, moves_by_itself=False)
        self._next_s = 0.0

    def show(self, *, media_s: float, fps: float, process_ms: float) -> None:
        """Move the bar to `media_s` of the clip."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + EVERY_S
            self.move(media_s, f"{fps:.1f} fps", f"process {process_ms:.1f} ms")


def summary(report: Report) -> Table:
    """The stages and how long each took."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "p50 ms", "p95 ms", "in all"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, stage in report.stages.items():
        table.add_row(name, f"{stage.p50_ms:.2f}", f"{stage.p95_ms:.2f}", f"{stage.total_s:.2f} s")
    return table


def lines(report: Report) -> list[str]:
    """What is to be told beside the table."""
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in report.load_stages)
    found = [
        f"{report.pipeline} {report.version}: {report.frames} frames, {report.fps:.1f} fps,"
        f" {report.peak_memory_mb:.0f} MB at most",
        f"loaded in {report.load_s:.2f} s" + (f": {stages}" if stages else ""),
    ]
    found += [told(turn) for turn in report.changes]
    if report.said:
        found.append(f"said {report.said} things:")
        shown = report.sayings[:SAYINGS_SHOWN]
        found += [f"  {one.at_s:.3f} s {dict(one.data)}" for one in shown]
        if report.said > len(shown):
            last = report.sayings[-1]
            found += ["  ...", f"  {last.at_s:.3f} s {dict(last.data)}"]
    found += [f"{count} of what it said cannot go out: {why}" for why, count in report.unsaid.items()]
    if report.damaged_packets:
        found.append(f"the clip is damaged: {report.damaged_packets} of its packets gave no picture")
    return found
