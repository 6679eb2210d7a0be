"""Results of nodes that no frame reaches, by their keys: made once for all plans and streams of an engine.

Bounded by their bytes: what was not asked for the longest goes first. Who runs a plan holds what it needs, so
nothing that is in use is lost by that.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import numpy as np

BYTES_MAX: Final = 256 << 20
WAIT_S: Final = 60.0  # for another stream that makes the same result; above what any node here takes

Outputs = tuple[Any, ...]


class StaticResults:
    """Any thread may ask."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._results: OrderedDict[bytes, Outputs] = OrderedDict()
        self._making: dict[bytes, Future[Outputs]] = {}
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def get(self, key: bytes, make: Callable[[], Outputs]) -> Outputs:
        """The result of `key`; made, if need be, by whoever asks first. What `make` raises, each gets."""
        with self._lock:
            if key in self._results:
                self.hits += 1
                self._results.move_to_end(key)
                return self._results[key]
            made_elsewhere = self._making.get(key)
            if made_elsewhere is None:
                self.misses += 1
                future = self._making[key] = Future()
            else:
                future = made_elsewhere
        if made_elsewhere is not None:
            return made_elsewhere.result(WAIT_S)
        try:
            outputs = make()
        except BaseException as error:
            with self._lock:
                del self._making[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._making[key]
            self._keep(key, outputs)
        future.set_result(outputs)
        return outputs

    def _keep(self, key: bytes, outputs: Outputs) -> None:
        self._results[key] = outputs
        self.bytes += size(outputs)
        while self.bytes > self._bytes_max:
            _, gone = self._results.popitem(last=False)
            self.bytes -= size(gone)


def size(outputs: Outputs) -> int:
    """Bytes of the arrays among them."""
    return sum(output.nbytes for output in outputs if isinstance(output, np.ndarray))
