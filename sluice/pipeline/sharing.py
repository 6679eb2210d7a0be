"""What streams of one engine have in common: made once for each key, closed with its last user."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast, runtime_checkable

T = TypeVar("T")


@runtime_checkable
class Closeable(Protocol):
    """What is told when nobody uses it any more."""

    def close(self) -> None: ...


class _Entry:
    """One key's value, while somebody uses it or makes it."""

    def __init__(self) -> None:
        self.making = threading.Lock()
        self.users = 0
        self.made = False
        self.value: Any = None


class Sharing:
    """All that is shared in a process. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[Hashable, _Entry] = {}

    def share(self, key: Hashable, make: Callable[[], T]) -> Shared[T]:
        """The value for `key`, made by whoever asks first; others wait for it. What `make` raises, each gets.

        A value with a `close` is closed when its last user lets go of it.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.users += 1
        try:
            with entry.making:
                if not entry.made:
                    entry.value = make()
                    entry.made = True
        except BaseException:
            self._leave(key, entry)
            raise
        return Shared(cast("T", entry.value), lambda: self._leave(key, entry))

    def _leave(self, key: Hashable, entry: _Entry) -> None:
        with self._lock:
            entry.users -= 1
            if entry.users:
                return
            del self._entries[key]
        if isinstance(entry.value, Closeable):
            entry.value.close()


class Shared(Generic[T]):
    """One user's hold on a shared value; `close` gives it up, once."""

    def __init__(self, value: T, leave: Callable[[], None]) -> None:
        self.value = value
        self._leave: Callable[[], None] | None = leave

    def close(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def __enter__(self) -> T:
        return self.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
