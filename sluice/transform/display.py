"""What a person sees while a clip goes through: one line that moves, on stderr, if that is a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from sluice.money import money


class Display:
    """A progress bar over the clip's media time."""

    def __init__(self, console: Console, *, title: str, duration_s: float | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=duration_s, facts="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        self._progress.console.print(line, highlight=False, markup=False)

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
        self._progress.update(self._task, completed=media_s, facts="  ".join(facts))
