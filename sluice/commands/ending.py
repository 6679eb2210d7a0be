"""How a command ends: what went wrong is a sentence and an exit code; a bug keeps its trace."""

from __future__ import annotations

import json
from typing import Final

import typer

from services.common.errors import InvalidError
from sluice.authoring.mistakes import AuthorError
from sluice.client import ApiError, UnreachableError
from sluice.transform.exchange import RunFailedError

FAILED: Final = 1
WRONG: Final = 2
NO_CAPACITY: Final = 3
NO_CREDIT: Final = 4
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
TERMINATED: Final = 143


def exit_code(error: Exception) -> int:
    """What the shell is told of `error`."""
    match error:
        case InvalidError():
            return WRONG
        case ApiError(status=402) | RunFailedError(reason="credit_exhausted"):
            return NO_CREDIT
        case ApiError(status=503) if error.reason in {"NO_CAPACITY", "INGEST_FULL"}:
            return NO_CAPACITY
        case ApiError(status=400 | 401 | 403 | 404 | 409):
            return WRONG
        case _:
            return FAILED


class Ending:
    """Turns what went wrong into a sentence and an exit code; anything else is a bug and keeps its trace."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        if isinstance(error, InvalidError | ApiError | UnreachableError | RunFailedError | AuthorError):
            if isinstance(error, AuthorError) and error.trace:
                typer.echo(error.trace, err=True)
            typer.echo(f"sluice: {error}", err=True)
            if self._as_json:
                typer.echo(json.dumps({"error": str(error), "code": getattr(error, "code", None)}))
            raise typer.Exit(exit_code(error)) from None
