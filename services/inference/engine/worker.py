"""A loaded pipeline in a thread of its own, which waits for the one stream that it will serve."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from services.inference.engine.stream import Stream
from sluice.pipeline import Pipeline, Setup, defaults

log = structlog.get_logger()


class Worker:
    """Loads at once. An instance serves one stream from one thread, so all its methods are called there."""

    def __init__(self, pipeline: type[Pipeline], setup: Setup) -> None:
        self._pipeline = pipeline
        self._setup = setup
        self._instance: Pipeline | None = None
        # Never longer than the runner's slots: a session without one is refused before it gets here.
        self._assigned: queue.SimpleQueue[tuple[Stream, Callable[[], None]]] = queue.SimpleQueue()
        self.settled = threading.Event()  # loaded, or failed to
        self.problem: BaseException | None = None
        threading.Thread(target=self._run, name=f"pipeline-{pipeline.name}", daemon=True).start()

    def serve(self, stream: Stream, released: Callable[[], None]) -> None:
        """Serve `stream`; `released` is called when the instance has let go of everything."""
        self._assigned.put((stream, released))

    def _run(self) -> None:
        try:
            self._load(defaults(self._pipeline))
        except BaseException as error:  # an author's code may even exit; its failure is one stream's
            log.exception("pipeline does not load", pipeline=self._pipeline.name)
            self.problem = error
        self.settled.set()
        stream, released = self._assigned.get()
        if self._instance is not None:
            try:
                stream.infer(self._instance, self._reload)
            except BaseException as error:  # as above
                log.exception("pipeline failed", pipeline=self._pipeline.name, slot=stream.slot)
                self.problem = error
        if self.problem is not None:
            said = f"{type(self.problem).__name__}: {self.problem}"[:1000]
            stream.fail("pipeline_failed", f"{said} (after {stream.inferred} frames)")
        self._close()
        released()

    def _load(self, params: Mapping[str, Any]) -> None:
        self._instance = self._pipeline()
        self._instance.load(self._setup, params)

    def _reload(self, params: Mapping[str, Any]) -> Pipeline:
        self._close()
        self._load(params)
        assert self._instance is not None
        return self._instance

    def _close(self) -> None:
        instance, self._instance = self._instance, None
        if instance is None:
            return
        try:
            instance.close()
        except BaseException:  # as above; the instance is gone either way
            log.exception("pipeline does not close", pipeline=self._pipeline.name)
