"""What there is to look at: sessions, runners, usage, latency, traces; and `sluice stop`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from rich.console import Console, RenderableType

from sluice import latency, tables, trace, watching
from sluice.client import Json, Session, SluiceClient
from sluice.commands.ending import Ending
from sluice.commands.options import AsJson, Key, Url
from sluice.settings import Access, access

WIDTH: Final = (
    100  # columns of a table at least: where there are fewer, the terminal wraps and nothing is cut
)

T = TypeVar("T")


def sessions(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again each second, until Ctrl-C.")] = False,
    ended: Annotated[bool, typer.Option("--ended", help="Also those that have ended.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Those of every tenant; for operators.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List your sessions, newest first: where they run, how they are, and why they last moved."""
    with Ending(as_json=as_json):
        found = access(url, key, Path.cwd())
        if watch:
            watching.sessions(found, ended=ended, everybodys=every, as_json=as_json)
            return
        answer = _asked(lambda client: client.sessions(ended=ended, everybodys=every), found)
        _print(answer, tables.sessions(answer), as_json=as_json)


def runners(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List the runners and their slots."""
    with Ending(as_json=as_json):
        answer = _asked(SluiceClient.runners, access(url, key, Path.cwd()))
        _print(answer, tables.runners(answer), as_json=as_json)


def usage(as_json: AsJson = False, url: Url = None, key: Key = None) -> None:
    """List what your sessions used and cost, and your balance."""

    async def ask(client: SluiceClient) -> tuple[Json, str]:
        return await client.usage(), (await client.prices())["currency"]

    with Ending(as_json=as_json):
        answer, currency = _asked(ask, access(url, key, Path.cwd()))
        _print(answer, tables.usage(answer, currency), as_json=as_json)


def show_latency(
    session: Annotated[
        str,
        typer.Argument(help="The session's id, ses_...; your newest if none is given.", show_default=False),
    ] = "",
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show where the time of a session's pictures goes, stage by stage, while it runs or after."""

    async def ask(client: SluiceClient) -> Json:
        return await client.latency(session or await client.newest_session())

    with Ending(as_json=as_json):
        answer = _asked(ask, access(url, key, Path.cwd()))
        _print(answer, latency.shown(answer), as_json=as_json)


def show_trace(
    session: Annotated[
        str,
        typer.Argument(help="The session's id, ses_...; your newest if none is given.", show_default=False),
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Also each of the many alike, one line each.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """Show what every service did for a session and when, while it runs or after."""

    async def ask(client: SluiceClient) -> tuple[Json, Session]:
        name = session or await client.newest_session()
        return await client.trace(name), await client.session(name)

    with Ending(as_json=as_json):
        answer, record = _asked(ask, access(url, key, Path.cwd()))
        if as_json:
            typer.echo(json.dumps(answer, indent=2))
        else:
            text = trace.shown(answer, record.id, ended=record.end_reason is not None, every=every)
            Console(highlight=False).print(text, soft_wrap=True)


def stop(
    session: Annotated[str, typer.Argument(help="The session's id, ses_...", show_default=False)],
    url: Url = None,
    key: Key = None,
) -> None:
    """End a session. Its stream stays and can be published again."""
    with Ending(as_json=False):
        _asked(lambda client: client.stop(session), access(url, key, Path.cwd()))
        typer.echo(f"{session} ended")


def _asked(ask: Callable[[SluiceClient], Awaitable[T]], found: Access) -> T:
    async def asking() -> T:
        async with SluiceClient(found.url, found.key) as client:
            return await ask(client)

    return asyncio.run(asking())


def _print(answer: Json, table: RenderableType, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        Console(width=max(WIDTH, Console().width)).print(table)
