"""Where a channel of a session is; when that is at another bridge, what was done at the old one begins anew.

The rule it keeps: nobody goes on, or waits, at a place that the session has left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.inference.assignment import Channels


class Address:
    """The URL of one channel; `at_each` for those who use it, `move` when the session goes on elsewhere."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._scopes: set[asyncio.Timeout] = set()  # of what is going on at the URL

    def move(self, url: str) -> None:
        self.url = url
        scopes, self._scopes = self._scopes, set()
        for scope in scopes:
            scope.reschedule(asyncio.get_running_loop().time())

    async def at_each(self, work: Callable[[str], Awaitable[None]]) -> None:
        """Do `work` where the channel is, and anew whenever that moves; returns when `work` does."""
        while True:
            scope = asyncio.timeout(None)
            try:
                async with scope:
                    self._scopes.add(scope)
                    try:
                        await work(self.url)
                    finally:
                        self._scopes.discard(scope)
            except TimeoutError:
                if not scope.expired():
                    raise
            else:
                return


class Berth:
    """The addresses of all channels of a session, which move together."""

    def __init__(self, channels: Channels) -> None:
        self.in_ = Address(channels.in_)
        self.out = Address(channels.out)
        self.control = Address(channels.control)
        self.events = Address(channels.events)
        self.data = Address(channels.data)
        self.state = Address(channels.state)

    def move(self, channels: Channels) -> None:
        self.in_.move(channels.in_)
        self.out.move(channels.out)
        self.control.move(channels.control)
        self.events.move(channels.events)
        self.data.move(channels.data)
        self.state.move(channels.state)
