"""Mailboxes with a capacity and a policy.

`Latest` keeps the newest value, `DropOldest` the newest few, `Batches` all: who puts waits while it is full.
"""

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
        self._waiting: dict[asyncio.Future[None], None] = {}

    def set(self, value: T) -> None:
        """Cheap where nobody waits: it is called thousands of times a second."""
        self.value = value
        self.version += 1
        if self._waiting:
            waiting, self._waiting = self._waiting, {}
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def newer_than(self, version: int) -> tuple[int, T]:
        """Wait until there is a version above `version`; returns it with its value."""
        while self.version <= version:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting[waiter] = None
            try:
                await waiter
            finally:
                self._waiting.pop(waiter, None)
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


class Batches(Generic[T]):
    """A bounded queue for bursts: who puts waits while it is full, who takes gets all there is at once."""

    def __init__(self, capacity: int) -> None:
        assert capacity > 0, capacity
        self.capacity = capacity
        self._items: list[T] = []
        self._ready = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, item: T) -> None:
        while len(self._items) >= self.capacity:
            self._room.clear()
            await self._room.wait()
        self._items.append(item)
        self._ready.set()

    async def take(self) -> list[T]:
        """One or more, the oldest first."""
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        items, self._items = self._items, []
        self._room.set()
        return items
