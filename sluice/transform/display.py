"""What a person sees while a clip goes through: one line that moves, on stderr, if that is a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import TimeRemainingColumn

from sluice.bar import Bar
from sluice.money import money


class Display(Bar):
    """The bar of a clip that is sent."""

    def __init__(self, console: Console, *, title: str, duration_s: float | None) -> None:
        remaining = TimeRemainingColumn()
        super().__init__(console, remaining, title=title, duration_s=duration_s, moves_by_itself=True)

    def show(
        self,
        *,
        media_s: float,
        fps: float,
        latency_ms: float | None,
        cost_micro: int | None,
        currency: str | None,
    ) -> None:
        """Move the bar to `media_s` of the clip."""
        facts = [f"{fps:.1f} fps"]
        if latency_ms is not None:
            facts.append(f"{latency_ms:.0f} ms")
        if cost_micro is not None and currency is not None:
            facts.append(f"~{money(cost_micro, currency)}")
        self.move(media_s, *facts)
