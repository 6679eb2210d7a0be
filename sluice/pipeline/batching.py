"""Work of several streams in one call: who waits together is served together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


class Batcher(Generic[In, Out]):
    """Calls `run` on a thread of its own with what waits: at most `largest` items, one of each stream.

    A batch starts when everybody who takes part waits, when `largest` wait, or when the first has waited for
    `wait_s`.
    """

    def __init__(
        self, run: Callable[[Sequence[In]], Sequence[Out]], *, largest: int, wait_s: float = 0.002
    ) -> None:
        self._run = run
        self._largest = largest
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._waiting: deque[tuple[In, Future[Out], float]] = deque()
        self._participants = 0
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """A stream takes part from now on."""
        with self._changed:
            self._participants += 1

    def leave(self) -> None:
        """A stream takes part no longer."""
        with self._changed:
            self._participants -= 1
            self._changed.notify_all()

    def __call__(self, item: In) -> Out:
        """Wait for the item's batch; what `run` raises is raised here."""
        future: Future[Out] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append((item, future, time.monotonic()))
            self._changed.notify_all()
        return future.result()

    def close(self) -> None:
        """Whoever still waits gets a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            try:
                made = self._run([item for item, _, _ in batch])
            except BaseException as error:  # noqa: BLE001 - it is each caller's, and raised there
                for _, future, _ in batch:
                    future.set_exception(error)
                continue
            for (_, future, _), result in zip(batch, made, strict=True):
                future.set_result(result)

    def _next(self) -> list[tuple[In, Future[Out], float]] | None:
        with self._changed:
            while not self._closed:
                if self._waiting:
                    left_s = self._waiting[0][2] + self._wait_s - time.monotonic()
                    enough = min(self._largest, max(self._participants, 1))
                    if len(self._waiting) >= enough or left_s <= 0:
                        count = min(self._largest, len(self._waiting))
                        return [self._waiting.popleft() for _ in range(count)]
                    self._changed.wait(left_s)
                else:
                    self._changed.wait()
            for _, future, _ in self._waiting:
                future.set_exception(RuntimeError("the batcher is closed"))
            return None
