"""A pipeline's instance in a thread of its own, which loads it, then waits for the stream that it will serve.

The rule it keeps: all methods of an instance but `prepare` are called on its thread, and whatever an author's
code raises there, an exit even, ends no other stream.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from services.inference.blackbox import BlackBox, Stage
from services.inference.engine import memory
from services.inference.engine.progress import Loading, Progress
from sluice.pipeline import ParamError, Pipeline, Setup

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Successor:
    """What serves a stream next: a worker that has loaded beside, or else one that loads with `params`."""

    params: Mapping[str, Any]
    why: str
    worker: Worker | None = None
    revisions: tuple[int, ...] = ()  # that it is for


class Served(Protocol):
    """What a worker needs of a stream."""

    slot: int
    pipeline: type[Pipeline]

    def play(self, worker: Worker) -> Successor | None:
        """Serve until the stream is over, or another instance is needed. Never raises."""

    def tell_loading(self, loading: Loading) -> None: ...

    def over(self) -> None:
        """Its last instance has let go of everything."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What instances of this engine are loaded with."""

    setup: Setup
    box: BlackBox
    memory_limit_bytes: int | None

    def has_room_for(self, worker: Worker) -> bool:
        """Whether another one like `worker` can be loaded beside it."""
        return memory.room_for(worker.cost_bytes, self.setup.device, self.memory_limit_bytes)


class Worker:
    """Loads at once. `settled`: it has loaded, or failed to, with `problem`; then `serve` or `dismiss` it."""

    def __init__(
        self,
        pipeline: type[Pipeline],
        params: Mapping[str, Any],
        workshop: Workshop,
        *,
        why: str,
        tell: Callable[[Loading], None],
        slot: int | None = None,
        beside: bool = False,
        revisions: tuple[int, ...] = (),
    ) -> None:
        """`slot` of the stream, and `revisions`, that it is for, if that is known."""
        self.pipeline = pipeline
        self.params = params
        self.instance: Pipeline | None = None
        self.settled = threading.Event()
        self.problem: BaseException | None = None
        self.cost_bytes = 0
        self.preparing: threading.Event | None = None  # set when the instance may be closed
        self._workshop = workshop
        self._slot = slot
        self._lane = int(beside)
        self._revisions = revisions
        self._progress = Progress(why, tell, beside=beside)
        self._settling = threading.Lock()  # what the black box says of the slot, and `settled`, go together
        # Never longer than the runner's slots: a session without one is refused before it gets here.
        self._assigned: queue.SimpleQueue[Served | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"pipeline-{pipeline.name}", daemon=True).start()

    def serve(self, stream: Served, why: str = "start") -> None:
        """Serve `stream`, which is told why it waits if this has not loaded yet."""
        with self._settling:
            if not self.settled.is_set():  # from now on this load keeps somebody waiting
                self._slot = stream.slot
                self._enter(Stage.LOAD)
        self._progress.listen(why, stream.tell_loading)
        self._assigned.put(stream)

    def dismiss(self) -> None:
        """Nobody needs it, and nobody is kept waiting by it."""
        with self._settling:
            if not self.settled.is_set():
                self._leave()
                self._slot = None
        self._assigned.put(None)

    def _run(self) -> None:
        self._load()
        stream = self._assigned.get()
        if stream is None:
            self._close()
            return
        self._slot, self._lane = stream.slot, 0
        following = stream.play(self)
        if following is None and self.preparing is not None and not self.preparing.is_set():
            stream.over()  # the slot is free; what an author's code is at ends when it ends
            self._slot = None
            self._close()
        elif following is None:
            self._close()
            stream.over()
        elif following.worker is not None:
            following.worker.serve(stream)
            self._lane = 1  # the other is its successor's
            self._close()
        else:
            self._close()
            memory.free()
            Worker(
                self.pipeline,
                following.params,
                self._workshop,
                why=following.why,
                tell=stream.tell_loading,
                slot=stream.slot,
                revisions=following.revisions,
            ).serve(stream, following.why)

    def _load(self) -> None:
        setup = replace(self._workshop.setup, progress=self._progress)
        before_bytes = memory.used_bytes(setup.device)
        self._enter(Stage.LOAD)
        try:
            self.instance = self.pipeline()
            self.instance.load(setup, self.params)
        except BaseException as error:  # an author's code may even exit; its failure is one stream's
            if isinstance(error, ParamError):
                log.info("a value cannot be had", pipeline=self.pipeline.name, field=error.field)
            else:
                log.exception("pipeline does not load", pipeline=self.pipeline.name)
            self.problem = error.with_traceback(None)  # whose frames hold what was allocated so far
            self._close()
        self.cost_bytes = max(memory.used_bytes(setup.device) - before_bytes, 0)
        with self._settling:
            self._leave()
            self.settled.set()
        self._progress.done()

    def _close(self) -> None:
        if self.preparing is not None:
            self.preparing.wait()
        instance, self.instance = self.instance, None
        if instance is None:
            return
        self._enter(Stage.CLOSE)
        try:
            instance.close()
        except BaseException:  # as above; the instance is gone either way
            log.exception("pipeline does not close", pipeline=self.pipeline.name)
        finally:
            self._leave()

    def _enter(self, stage: Stage) -> None:
        if self._slot is not None:
            self._workshop.box.enter(self._slot, stage, revisions=self._revisions, lane=self._lane)

    def _leave(self) -> None:
        if self._slot is not None:
            self._workshop.box.leave(self._slot, self._lane)
