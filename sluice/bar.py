"""A bar over a clip's media time, on stderr, if that is a terminal; lines that stay go above it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn


class Bar:
    """Shows what a subclass moves it to."""

    def __init__(
        self,
        console: Console,
        *columns: ProgressColumn,
        title: str,
        duration_s: float | None,
        moves_by_itself: bool,
    ) -> None:
        """`moves_by_itself`: also between two pictures; not where a debugger may have a prompt there."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            *columns,
            console=console,
            disable=not console.is_terminal,
            auto_refresh=moves_by_itself,
            redirect_stdout=moves_by_itself,
            redirect_stderr=moves_by_itself,
        )
        self._refresh = not moves_by_itself
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

    def move(self, media_s: float, *facts: str) -> None:
        self._progress.update(self._task, completed=media_s, facts="  ".join(facts), refresh=self._refresh)
