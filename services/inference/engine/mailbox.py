"""What stands between two threads of a stream and loses nothing: who puts waits for room."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiting(Generic[T]):
    """Holds up to `capacity` items. `finish`: nothing more comes. `abort`: nobody cares any more."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._aborted = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        with self._changed:
            while len(self._items) >= self._capacity and not self._aborted:
                self._changed.wait()
            if not self._aborted:
                self._items.append(item)
                self._changed.notify_all()

    def get(self) -> T | None:
        """The next item; None at the end."""
        with self._changed:
            while not self._items and not self._finished:
                self._changed.wait()
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def finish(self) -> None:
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._items.clear()
            self._finished = self._aborted = True
            self._changed.notify_all()
