"""What went wrong in an author's code, told as the author sees it: whole, and without a line of ours."""

from __future__ import annotations

import importlib
import traceback
from pathlib import Path
from typing import Final

OURS: Final = (str(Path(__file__).resolve().parents[1]) + "/", "<frozen ", importlib.__file__)


class ContractError(Exception):
    """A pipeline did what none may do, such as return no frame; there is no line of the author's to show."""


class AuthorError(Exception):
    """An author's code failed. Says where; `trace` shows how."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(f"{message}: {cause}" if isinstance(cause, ContractError) else message)
        self.trace = "" if isinstance(cause, ContractError) else trace_of(cause)


def trace_of(error: BaseException) -> str:
    """The traceback of `error` and of what led to it, from the author's first line on."""
    whole = traceback.TracebackException.from_exception(error)
    told = [whole]
    while told:
        one = told.pop()
        one.stack = traceback.StackSummary.from_list([line for line in one.stack if not _is_ours(line)])
        told += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "".join(whole.format()).rstrip()


def sentence_of(error: BaseException) -> str:
    """`error` in a line: its class, what it says, and the author's line where it was raised."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, ContractError):
        said = str(error)
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not _is_ours(line)]
    return f"{said} ({Path(lines[-1].filename).name}:{lines[-1].lineno})" if lines else said


def _is_ours(line: traceback.FrameSummary) -> bool:
    return line.filename.startswith(OURS)
