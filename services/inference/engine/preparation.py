"""What `prepare` builds on a thread of its own, while frames go on as before."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from services.inference.blackbox import BlackBox, Stage
from services.inference.engine.changes import Target
from services.inference.engine.progress import Loading, Progress
from sluice.pipeline import ParamError, Pipeline

log = structlog.get_logger()


class Preparation:
    """Begins at once. `settled`: there is `prepared`, or a `problem`."""

    def __init__(
        self, slot: int, instance: Pipeline, target: Target, box: BlackBox, tell: Callable[[Loading], None]
    ) -> None:
        self.settled = threading.Event()
        self.prepared: object = None
        self.problem: BaseException | None = None
        self._slot = slot
        self._instance = instance
        self._target = target
        self._box = box
        self._progress = Progress("warm", tell, beside=True)
        self._leaving = threading.Lock()  # what the black box says of the slot is another's after `dismiss`
        self._left = False
        threading.Thread(target=self._run, name=f"prepare-{slot}", daemon=True).start()

    def dismiss(self) -> None:
        """Nobody needs it, and nobody is kept waiting by it; but its instance must not close under it."""
        self._leave()

    def _run(self) -> None:
        self._box.enter(self._slot, Stage.PREPARE, revisions=self._target.revisions, lane=1)
        try:
            self.prepared = self._instance.prepare(self._target.params)
        except BaseException as error:  # an author's code may even exit; frames go on with the values before
            if isinstance(error, ParamError):
                log.info("a value cannot be had", slot=self._slot, field=error.field)
            else:
                log.exception("values cannot be prepared", slot=self._slot)
            self.problem = error.with_traceback(None)  # whose frames hold what was allocated so far
        finally:
            self._leave()
            self._progress.done()
            self.settled.set()

    def _leave(self) -> None:
        with self._leaving:
            if not self._left:
                self._left = True
                self._box.leave(self._slot, 1)
