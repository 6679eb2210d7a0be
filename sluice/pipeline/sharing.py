"""What streams of one engine have in common: made once for each key, closed with its last user.

Of one key there is never more than one: whoever asks while it is made or closed waits for that.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, cast, runtime_checkable

T = TypeVar("T")

LONGEST_WAIT_S: Final = 900.0  # for somebody else's loading; the largest models take minutes


@runtime_checkable
class Closeable(Protocol):
    """What is told when nobody uses it any more."""

    def close(self) -> None: ...


class _State(enum.Enum):
    MAKING = "making"
    MADE = "made"
    FAILED = "failed"
    CLOSING = "closing"


class _Entry:
    """One key's value, while somebody makes, uses or closes it."""

    def __init__(self) -> None:
        self.state = _State.MAKING
        self.busy: int | None = threading.get_ident()  # the thread that makes or closes it
        self.users = 0
        self.value: Any = None
        self.error: BaseException | None = None


class Sharing:
    """All that is shared in a process. Any thread may ask."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[Hashable, _Entry] = {}

    def share(self, key: Hashable, make: Callable[[], T]) -> Shared[T]:
        """The value for `key`, made by whoever asks first; others wait for it, and get what `make` raises.

        A value with a `close` is closed when its last user lets go of it. After a failure the next who asks
        makes it anew. Raises RuntimeError when `make` or `close` of a value asks for its own key.
        """
        entry = self._made(key)
        if entry is None:
            entry = self._make(key, make)
        return Shared(cast("T", entry.value), lambda: self._leave(key, entry))

    def _made(self, key: Hashable) -> _Entry | None:
        """An entry that is ready and has one user more, or None if it is for the caller to make."""
        deadline = time.monotonic() + LONGEST_WAIT_S
        with self._changed:
            while (entry := self._entries.get(key)) is not None:
                if entry.state is _State.MADE:
                    entry.users += 1
                    return entry
                if entry.busy == threading.get_ident():
                    raise RuntimeError(f"what makes or closes {key!r} asks for it")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"{key!r} is still {entry.state.value}")
                if entry.error is not None:
                    raise entry.error
            self._entries[key] = _Entry()
            return None

    def _make(self, key: Hashable, make: Callable[[], T]) -> _Entry:
        entry = self._entries[key]
        try:
            value = make()
        except BaseException as error:
            with self._changed:
                entry.state, entry.error = _State.FAILED, error
                del self._entries[key]
                self._changed.notify_all()
            raise
        with self._changed:
            entry.state, entry.value, entry.busy, entry.users = _State.MADE, value, None, 1
            self._changed.notify_all()
        return entry

    def _leave(self, key: Hashable, entry: _Entry) -> None:
        with self._changed:
            entry.users -= 1
            if entry.users:
                return
            entry.state, entry.busy = _State.CLOSING, threading.get_ident()
            value, entry.value = entry.value, None  # so that what it holds is free before the next is made
        try:
            if isinstance(value, Closeable):
                value.close()
        finally:
            del value
            with self._changed:
                del self._entries[key]
                self._changed.notify_all()


class Shared(Generic[T]):
    """One user's hold on a shared value; `close` gives it up, once."""

    def __init__(self, value: T, leave: Callable[[], None]) -> None:
        self._held: tuple[T, Callable[[], None]] | None = value, leave

    @property
    def value(self) -> T:
        if self._held is None:
            raise RuntimeError("it was given up")
        return self._held[0]

    def close(self) -> None:
        if self._held is not None:
            leave = self._held[1]
            self._held = None
            leave()

    def __enter__(self) -> T:
        return self.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
