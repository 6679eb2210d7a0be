"""`sluice move` and `sluice drain`: sessions go to other runners while they run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer

from sluice.client import ApiError, Json, SluiceClient, UnreachableError
from sluice.commands.ending import FAILED, Ending
from sluice.commands.options import Key, Url
from sluice.settings import Access, access

LOOK_S: Final = 1.0  # between two looks at what is left
MOVE_LOOK_S: Final = 0.2
T = TypeVar("T")


def move(
    session: Annotated[str, typer.Argument(help="The session's id, ses_...", show_default=False)],
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="How long to wait for it, in seconds.")
    ] = 60.0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Move a session to another runner, without a gap, and say how it went.

    Without another runner that has room it stays, and moves as soon as there is one.
    """
    with Ending(as_json=False):
        asyncio.run(_move(access(url, key, Path.cwd()), session, timeout_s))


async def _move(found: Access, session: str, timeout_s: float) -> None:
    async with SluiceClient(found.url, found.key) as client:
        shown = await client.move(session)
        known = shown["moves"]
        try:
            async with asyncio.timeout(timeout_s):
                while shown["moves"] == known and not shown["end_reason"]:
                    await asyncio.sleep(MOVE_LOOK_S)
                    shown = await _surely(lambda: client.session_object(session))
        except TimeoutError:
            where = shown["runner"] or "where it is"
            typer.echo(f"{session} is still on {where}; it moves when another runner has room", err=True)
            raise typer.Exit(FAILED) from None
    if shown["moves"] == known:
        typer.echo(f"{session} ended before it moved: {shown['end_reason']}", err=True)
        raise typer.Exit(FAILED)
    typer.echo(f"{session} {went(shown['moves'][-1])}")


def went(move: Json) -> str:
    """How a move went, in words."""
    froze = f"froze {move['freeze_ms'] / 1000:.2f} s"
    return f"moved from {move['from']} to {move['to']}: {froze}, {move['lost']} pictures lost"


def drain(
    runner: Annotated[
        str, typer.Argument(help="The runner, as `sluice runners` names it.", show_default=False)
    ],
    cancel: Annotated[bool, typer.Option("--cancel", help="Let it take sessions again.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=1, help="How long to wait until it is empty, in seconds.")
    ] = 300.0,
    url: Url = None,
    key: Key = None,
) -> None:
    """Empty a runner: it takes no new session, and those it has move to others without a gap.

    Says how many are left until there is none. It goes on draining when this command ends before that; for
    operators.
    """
    with Ending(as_json=False):
        asyncio.run(_drain(access(url, key, Path.cwd()), runner, cancel, timeout_s))


async def _drain(found: Access, runner: str, cancel: bool, timeout_s: float) -> None:
    async with SluiceClient(found.url, found.key) as client:
        left = await client.drain(runner, cancel=cancel)
        if cancel:
            typer.echo(f"{runner} takes sessions again")
            return
        try:
            async with asyncio.timeout(timeout_s):
                while left:
                    typer.echo(f"{runner}: {sessions(left)} left")
                    left = await _fewer(client, runner, left)
        except _LeftError:
            typer.echo(f"{runner} has left")
            return
        except TimeoutError:
            typer.echo(
                f"{runner} still has {sessions(left)} after {timeout_s:g} s; it goes on draining", err=True
            )
            raise typer.Exit(FAILED) from None
        typer.echo(f"{runner} is empty and takes no session; `sluice drain {runner} --cancel` ends that")


class _LeftError(Exception):
    """The runner was there, and is not any more: it was also told to end."""


async def _fewer(client: SluiceClient, runner: str, left: int) -> int:
    """How many sessions are left, as soon as it is another number; each look asks to drain again."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            now = await _surely(lambda: client.drain(runner))
        except ApiError as error:
            if error.reason != "RUNNER_NOT_FOUND":
                raise
            raise _LeftError from error
        if now != left:
            return now


def sessions(count: int) -> str:
    return "1 session" if count == 1 else f"{count} sessions"


async def _surely(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask until the server answers, for it may be restarted meanwhile; the caller bounds it."""
    while True:
        try:
            return await ask()
        except UnreachableError:
            pass
        except ApiError as error:
            if error.status not in {502, 503, 504}:
                raise
        await asyncio.sleep(LOOK_S)
