"""`sluice sessions --watch`: the table again each second; where there is no terminal, a line for each change.

The rule it keeps: a server that is away for a while is said to be, and asked again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from sluice import tables
from sluice.client import ApiError, Json, SluiceClient, UnreachableError
from sluice.settings import Access

LOOK_S: Final = 1.0
AWAY: Final = range(500, 600)  # what an answer is that another time may be better


def sessions(found: Access, *, ended: bool, everybodys: bool, as_json: bool) -> None:
    """Look until Ctrl-C. Raises as a call does, if the first look fails."""
    console = Console(highlight=False)
    which = {"ended": ended, "everybodys": everybodys}
    try:
        if as_json:
            asyncio.run(look(found, lambda answer: typer.echo(json.dumps(answer)), _to_stderr, **which))
        elif console.is_terminal:
            with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
                screen = Screen(live)
                asyncio.run(look(found, screen.show, screen.away, **which))
        else:
            asyncio.run(look(found, Lines(typer.echo).show, _to_stderr, **which))
    except KeyboardInterrupt:
        return  # the way to end it


def _to_stderr(text: str) -> None:
    typer.echo(text, err=True)


async def look(
    found: Access,
    show: Callable[[Json], object],
    away: Callable[[str], object],
    *,
    ended: bool = False,
    everybodys: bool = False,
) -> None:
    """Show the sessions each second, for ever; `away` hears why there is no answer."""
    async with SluiceClient(found.url, found.key) as client:
        show(await client.sessions(ended=ended, everybodys=everybodys))
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                answer = await client.sessions(ended=ended, everybodys=everybodys)
            except (ApiError, UnreachableError) as error:
                if isinstance(error, ApiError) and error.status not in AWAY:
                    raise
                away(f"no answer: {error}")
            else:
                show(answer)


class Screen:
    """Redraws the table in its place; while there is none, says so there."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, answer: Json) -> None:
        shown = tables.sessions(answer) if answer["data"] else Text("no session runs")
        self._live.update(shown, refresh=True)

    def away(self, text: str) -> None:
        self._live.update(Text(text), refresh=True)


class Lines:
    """Says a session again when its phase, its runner or its moves are others, and when it is gone."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say
        self._known: dict[str, tuple[object, ...]] = {}

    def show(self, answer: Json) -> None:
        for row in reversed(answer["data"]):
            facts = (tables.phase(row), row["runner"], len(row.get("moves", [])))
            if self._known.get(row["session"]) != facts:
                self._known[row["session"]] = facts
                self._say(line(row))
        here = {row["session"] for row in answer["data"]}
        for session in [session for session in self._known if session not in here]:
            del self._known[session]
            self._say(f"{session}  gone")


def line(row: Json) -> str:
    """A session in one line."""
    fps = f"{row['fps_out']:.1f} fps" if "fps_out" in row else ""
    words = [row["session"], row["pipeline"], tables.phase(row), row["runner"] or "", fps]
    return "  ".join(word for word in [*words, tables.age(row["age_s"]), tables.last_move(row)] if word)
