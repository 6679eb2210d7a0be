"""Says on the session's `events` channel what happens to it: JSON, one trickle segment a message.

The rule it keeps: media never waits for it. Of statuses only the newest waits; nothing else is dropped.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import Final

import structlog
from aiohttp import ClientSession

from services.common.trickle.publisher import Publisher
from services.inference.address import Address
from services.inference.upstream import keep_publishing

log = structlog.get_logger()

CAPACITY: Final = 1000  # a bridge that takes none of so many is not there


class Announcer:
    """`run` publishes what `tell` and `status` leave."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waiting: deque[dict[str, object]] = deque()
        self._status: dict[str, object] | None = None
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()

    @property
    def full(self) -> bool:
        """So much waits that the session should end, with last words."""
        return len(self._waiting) >= CAPACITY

    def tell(self, **event: object) -> None:
        self._waiting.append(event)
        self._wake()

    def status(self, **event: object) -> None:
        self._status = event
        self._wake()

    async def delivered(self, within_s: float) -> None:
        """Wait until all of it is at the bridge, or the time is over."""
        try:
            async with asyncio.timeout(within_s):
                await self._emptied.wait()
        except TimeoutError:
            log.warning("events were lost", waiting=len(self._waiting))

    async def run(self, session: ClientSession) -> None:
        """A loop for `background`; a bridge that cannot be reached is tried again, a closed one is not."""
        await self._address.at_each(lambda url: self._announce(session, url))

    async def _announce(self, session: ClientSession, url: str) -> None:
        self._wake()  # what could not be told at the bridge before
        await keep_publishing(session, url, "application/json", self._publish, self._emptied.set)

    async def _publish(self, publisher: Publisher) -> None:
        if self._waiting:
            await self._send(publisher, self._waiting[0])
            self._waiting.popleft()
        elif self._status is not None:
            status, self._status = self._status, None
            await self._send(publisher, status)
        else:
            await publisher.flush()
            self._filled.clear()
            if not self._waiting and self._status is None:
                self._emptied.set()
                await self._filled.wait()

    async def _send(self, publisher: Publisher, event: dict[str, object]) -> None:
        async with publisher.segment() as segment:
            await segment.write(json.dumps(event).encode() + b"\n")

    def _wake(self) -> None:
        self._emptied.clear()
        self._filled.set()
