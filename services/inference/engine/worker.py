"""A loaded pipeline in a thread of its own, which waits for the one stream that it will serve."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

from services.inference.engine.stream import Stream
from sluice.pipeline import Pipeline

log = structlog.get_logger()


class Worker:
    """Loads at once. An instance serves one stream, from one thread, so all of its methods are called here."""

    def __init__(self, pipeline: type[Pipeline]) -> None:
        self._pipeline = pipeline
        self._instance: Pipeline | None = None
        self._assigned: queue.SimpleQueue[tuple[Stream, Callable[[], None]]] = queue.SimpleQueue()
        self.settled = threading.Event()  # loaded, or failed to
        self.problem: BaseException | None = None
        threading.Thread(target=self._run, name=f"pipeline-{pipeline.name}", daemon=True).start()

    def serve(self, stream: Stream, released: Callable[[], None]) -> None:
        """Serve `stream`; `released` is called when the instance has let go of everything."""
        self._assigned.put((stream, released))

    def _run(self) -> None:
        try:
            self._load()
        except BaseException as error:  # noqa: BLE001 - an author's code, and its failure is one stream's
            log.error("pipeline does not load", pipeline=self._pipeline.name, exc_info=error)
            self.problem = error
        self.settled.set()
        stream, released = self._assigned.get()
        try:
            if self.problem is not None:
                raise self.problem
            assert self._instance is not None
            stream.infer(self._instance, self._reload)
        except BaseException as error:  # noqa: BLE001 - as above
            log.error("pipeline failed", pipeline=self._pipeline.name, slot=stream.slot, exc_info=error)
            stream.fail(
                "pipeline_failed", f"{type(error).__name__}: {error} (after {stream.inferred} frames)"[:1000]
            )
        self._close()
        released()

    def _load(self) -> None:
        self._instance = self._pipeline()
        self._instance.load()

    def _reload(self) -> Pipeline:
        self._close()
        self._load()
        assert self._instance is not None
        return self._instance

    def _close(self) -> None:
        instance, self._instance = self._instance, None
        if instance is None:
            return
        try:
            instance.close()
        except BaseException as error:  # noqa: BLE001 - as above; the instance is gone either way
            log.error("pipeline does not close", pipeline=self._pipeline.name, exc_info=error)
