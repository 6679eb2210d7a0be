"""Work of several streams in one call: who waits together is served together, in the order of arrival.

A stream waits for the batch that is under way, for `wait_s` at most, and for its own; batches are smaller
than they could be only where that was measured to be quicker for all who wait.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

SAMPLES: Final = 5  # of a size, whose median counts: one slow call, such as a compilation, does not
TRUSTED: Final = 3  # fewer samples decide nothing
TRY_EVERY: Final = 200  # batches after which a size is tried again, for the world may have changed
TRY_SOON: Final = 20  # the same of a size of which too little is known
BETTER_BY: Final = 1.05  # a smaller size must be; less is noise
CLOSE_S: Final = 30.0  # for the batch that is under way


class Throughput:
    """How large a batch is worth while, as far as was measured. Pure but for what it remembers."""

    def __init__(self) -> None:
        self._seconds: dict[int, deque[float]] = {}
        self._seen: dict[int, int] = {}  # at which batch a size was seen last
        self._batches = 0

    def record(self, size: int, seconds: float) -> None:
        self._batches += 1
        self._seen[size] = self._batches
        self._seconds.setdefault(size, deque(maxlen=SAMPLES)).append(seconds)

    def best(self, waiting: int) -> int:
        """Of `waiting` items, how many to take: all of them, or a half, a quarter, ... where it is quicker.

        Two batches of half the size are quicker for everybody if each takes less than half the time. Only
        sizes that came about by themselves are compared, as when streams join one by one: a new one may cost
        a compilation, for which nobody asked.
        """
        sizes = list(_halves(waiting))
        for size in sizes:
            if self._due(size):
                return size
        best, most = waiting, (self._rate(waiting) or float("inf")) * BETTER_BY
        for size in sizes[1:]:
            rate = self._rate(size)
            if rate is not None and rate > most:
                best, most = size, rate
        return best

    def _due(self, size: int) -> bool:
        if size not in self._seen:
            return False
        known = len(self._seconds[size]) >= TRUSTED
        return self._batches - self._seen[size] >= (TRY_EVERY if known else TRY_SOON)

    def _rate(self, size: int) -> float | None:
        seconds = self._seconds.get(size, ())
        return size / max(statistics.median(seconds), 1e-9) if len(seconds) >= TRUSTED else None


def _halves(size: int) -> Iterator[int]:
    while size >= 1:
        yield size
        size //= 2


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[In, Out]):
    item: In
    since: float  # time.monotonic()
    result: Future[Out]


class Batcher(Generic[In, Out]):
    """Calls `run` on a thread of its own with what waits: at most `largest` items, one of each stream.

    A batch starts when everybody who takes part waits, when as many wait as is worth while, or when the
    first has waited for `wait_s` since the batcher was free. `run` returns as many results as it gets items,
    in their order, and returns only when they are there: how long it takes is measured. When it raises for
    several, it is called again for each of them alone.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out]],
        *,
        largest: int,
        wait_s: float = 0.002,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert largest >= 1, largest
        self._run = run
        self._largest = largest
        self._wait_s = wait_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting[In, Out]] = deque()  # one of each stream at most
        self._participants = 0
        self._throughput = Throughput()
        self._free_since = time.monotonic()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="batcher", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """A stream takes part from now on: others wait for it, `wait_s` at most."""
        with self._changed:
            self._participants += 1

    def leave(self) -> None:
        """A stream takes part no longer. One that ends without it costs the others `wait_s` a batch."""
        with self._changed:
            assert self._participants > 0, "more have left than joined"
            self._participants -= 1
            self._changed.notify_all()

    def __call__(self, item: In) -> Out:
        """Wait for the item's batch; what `run` raises for the item is raised here.

        Raises RuntimeError when the batcher is closed.
        """
        waiting: _Waiting[In, Out] = _Waiting(item, time.monotonic(), Future())
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(waiting)
            self._changed.notify_all()
        return waiting.result.result()

    def close(self) -> None:
        """End it after the batch that is under way; whoever still waits gets a RuntimeError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_S)

    def _serve(self) -> None:
        try:
            while self._serve_one():
                pass
        finally:  # of a bug, too: nobody waits for a thread that has ended
            with self._changed:
                self._closed = True
                _refuse(self._waiting, RuntimeError("the batcher is closed"))
                self._waiting.clear()

    def _serve_one(self) -> bool:
        """Serve a batch, and keep nothing of it; False when there will be no more."""
        batch = self._next()
        if not batch:
            return False
        try:
            started = self._clock()
            results = self._run([one.item for one in batch])
            self._throughput.record(len(batch), self._clock() - started)
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and is raised there
            if len(batch) == 1:
                _refuse(batch, error)
            else:
                self._serve_apart(batch)
        else:
            _give(batch, results)
        self._free_since = time.monotonic()
        return True

    def _serve_apart(self, batch: Sequence[_Waiting[In, Out]]) -> None:
        """The batch failed: one stream's item, or one too many of them, is not the others' fault."""
        for one in batch:
            try:
                results = self._run([one.item])
            except BaseException as error:  # noqa: BLE001 - as above
                _refuse([one], error)
            else:
                _give([one], results)

    def _next(self) -> list[_Waiting[In, Out]]:
        """Wait for the next batch; none is the end."""
        with self._changed:
            while not self._closed:
                if not self._waiting:
                    self._changed.wait()
                    continue
                together = max(self._participants, len(self._waiting))
                wanted = self._throughput.best(min(self._largest, together))
                left_s = max(self._waiting[0].since, self._free_since) + self._wait_s - time.monotonic()
                if len(self._waiting) < wanted and left_s > 0:
                    self._changed.wait(left_s)
                    continue
                if len(self._waiting) < wanted:
                    wanted = self._throughput.best(len(self._waiting))
                return [self._waiting.popleft() for _ in range(wanted)]
            return []


def _give(batch: Sequence[_Waiting[In, Out]], results: Sequence[Out]) -> None:
    if len(results) != len(batch):
        _refuse(batch, ValueError(f"run made {len(results)} results of {len(batch)} items"))
        return
    for one, result in zip(batch, results, strict=True):
        one.result.set_result(result)


def _refuse(batch: Iterable[_Waiting[In, Out]], error: BaseException) -> None:
    for one in batch:
        one.result.set_exception(error)
