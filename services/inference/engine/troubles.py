"""What a stream says of what went wrong with its pipeline: problems, and revisions that will not be shown.

The rule it keeps: every remedy is told, and of frames that are merely held one a second at most.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Final

import structlog

from services.inference.blackbox import Stage
from services.inference.engine import memory
from services.inference.engine.containment import Action
from sluice.pipeline import ParamError

log = structlog.get_logger()

EVERY_S: Final = 1.0
LONGEST_MESSAGE: Final = 500
OUT_OF_MEMORY: Final = "out_of_memory"
PARAM_REFUSED: Final = "param_refused"
POISONED: Final = "poisoned_param"
PIPELINE_ERROR: Final = "pipeline_error"
LOAD_FAILED: Final = "load_failed"


class Troubles:
    """One stream's. `say` takes a message's kind and its fields."""

    def __init__(
        self, slot: int, say: Callable[..., None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._slot = slot
        self._say = say
        self._now_s = now_s
        self._held_s = -EVERY_S

    def problem(
        self, error: BaseException, stage: Stage, action: Action, *, frame: int = 0, pts: int = 0
    ) -> None:
        now_s = self._now_s()
        if action is Action.HELD:
            if now_s - self._held_s < EVERY_S:
                return
            self._held_s = now_s
        kind = kind_of(error, stage, action)
        where = traceback.extract_tb(error.__traceback__)
        log.warning(
            "the pipeline failed",
            slot=self._slot,
            stage=stage.word,
            kind=kind,
            error=repr(error),
            frame=frame,
            pts=pts,
            action=action.value,
            trace=[f"{line.filename}:{line.lineno} {line.name}" for line in where[-8:]],
        )
        self._say(
            "problem",
            stage=stage.word,
            kind=kind,
            error=type(error).__name__,
            message=str(error)[:LONGEST_MESSAGE],
            pts=pts,
            frame=frame,
            action=action.value,
        )

    def refused(self, revision: int, error: BaseException) -> None:
        field = f"params.{error.field}" if isinstance(error, ParamError) and error.field else ""
        self._say(
            "refused", revision=revision, field=field, reason=reason_of(error), message=message_of(error)
        )


def kind_of(error: BaseException, stage: Stage, action: Action) -> str:
    if memory.is_exhausted(error):
        return OUT_OF_MEMORY
    if action is Action.ROLLED_BACK or isinstance(error, ParamError):
        return POISONED
    return LOAD_FAILED if stage is Stage.LOAD else PIPELINE_ERROR


def reason_of(error: BaseException) -> str:
    """Why a revision is refused for the sake of `error`."""
    if memory.is_exhausted(error):
        return OUT_OF_MEMORY
    return PARAM_REFUSED if isinstance(error, ParamError) else POISONED


def message_of(error: BaseException) -> str:
    if isinstance(error, ParamError):
        return error.message[:LONGEST_MESSAGE]
    return f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]
