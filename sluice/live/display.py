"""What a person sees of a live stream: one line that changes, on a terminal, and lines that stay."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from sluice.client import Session
from sluice.money import money


class Display:
    """The line under what was said."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._status: Status | None = Status(title, console=console) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def show(self, session: Session, elapsed_s: float, currency: str | None) -> None:
        """Change the line to what `session` is now."""
        facts = [self._title, session.phase, clock(elapsed_s)]
        if session.fps_in is not None and session.fps_out is not None:
            facts.append(f"{session.fps_in:.1f} fps in, {session.fps_out:.1f} out")
        if session.latency_ms is not None:
            facts.append(f"{session.latency_ms:.0f} ms")
        if session.viewers:
            facts.append(f"{session.viewers} watching")
        if session.cost_micro is not None and currency is not None:
            facts.append(f"~{money(session.cost_micro, currency)}")
        self.line("  ".join(facts))

    def line(self, text: str) -> None:
        if self._status is not None:
            self._status.update(text)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
