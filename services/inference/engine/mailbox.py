"""What stands between two threads of a stream: `Newest` for live delivery, `Waiting` for complete."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Mailbox(Protocol[T]):
    """One thread puts, one gets. `finish`: nothing more comes. `abort`: nobody cares any more."""

    dropped: int

    def put(self, item: T) -> None: ...

    def get(self) -> T | None:
        """The next item; None at the end."""

    def finish(self) -> None: ...

    def abort(self) -> None: ...

    def __len__(self) -> int: ...


class Waiting(Generic[T]):
    """Holds up to `capacity` items; who puts waits for room, and nothing is dropped before `abort`."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._aborted = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        with self._changed:
            self._make_room()
            if not self._aborted:
                self._items.append(item)
                self._changed.notify_all()

    def get(self) -> T | None:
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

    def _make_room(self) -> None:
        while len(self._items) >= self._capacity and not self._aborted:
            self._changed.wait()


class Newest(Waiting[T]):
    """Holds one item: a newer one takes its place, and that is counted."""

    def __init__(self) -> None:
        super().__init__(1)

    def _make_room(self) -> None:
        if self._items:
            self._items.clear()
            self.dropped += 1
