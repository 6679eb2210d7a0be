"""Mailboxes with a capacity and a policy: `Latest` keeps the newest value, `DropOldest` the newest few."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """A value that many wait on and one sets; a waiter that was slow sees only the newest."""

    def __init__(self, value: T) -> None:
        self.value = value
        self.version = 0
        self._changed = asyncio.Event()

    def set(self, value: T) -> None:
        self.value = value
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def newer_than(self, version: int) -> tuple[int, T]:
        """Wait until there is a version above `version`; returns it with its value."""
        while self.version <= version:
            await self._changed.wait()
        return self.version, self.value


class DropOldest(Generic[T]):
    """A bounded queue for live data: a full queue drops its oldest item and counts it."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self.dropped = 0
        self._items: deque[T] = deque()
        self._ready = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        if len(self._items) == self.capacity:
            self._items.popleft()
            self.dropped += 1
        self._items.append(item)
        self._ready.set()

    async def get(self) -> T:
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        return self._items.popleft()
