"""How a listener finds a channel that its registry does not know: it asks, once for all who want the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final
from weakref import WeakValueDictionary

from services.common.errors import DeadlineExceededError, NotFoundError
from services.common.trickle.channel import Channel
from services.common.trickle.protocol import RESERVED, ChannelLimits
from services.common.trickle.registry import Registry

RESOLVE_S: Final = 30.0  # a session that starts for a first POST waits for a slot; clients wait 30 s and more


class Purpose(Enum):
    """What a client wants with a channel."""

    READ = "read"
    WRITE = "write"
    HEAD = "head"  # where it is (`/next`): readers may ask, and publishers before they write


@dataclass(frozen=True, slots=True)
class Ask:
    """A client at an alias that nobody opened. `authorization` is the header as it came, or None.

    `content_type` is what a writer says that its channel will hold.
    """

    alias: str
    purpose: Purpose
    authorization: str | None
    content_type: str


# Returns the channel, or raises the SluiceError that the clients are to see. A channel that is also opened in
# the registry under this alias is not asked for again, and DELETE finds it there. It is cancelled when all
# who wait for it have left.
Resolve = Callable[[Ask], Awaitable[Channel]]


def autocreating(registry: Registry, limits: ChannelLimits) -> Resolve:
    """Let any client make a channel by writing to a free name, which is announced and good for reading."""

    async def resolve(ask: Ask) -> Channel:
        if ask.purpose is not Purpose.WRITE:
            raise NotFoundError("Stream not found", reason="CHANNEL_NOT_FOUND")
        opened = registry.open(
            ask.alias,
            content_type=ask.content_type,
            limits=limits,
            read_alias=ask.alias,
            write_alias=ask.alias,
            announce=True,
        )
        return opened.channel

    return resolve


@dataclass(slots=True)
class _Asking:
    """One question under way, and how many clients wait for its answer."""

    task: asyncio.Task[Channel]
    waiting: int = 0


class Lookup:
    """Finds channels by alias: in the registry, else by asking; of an alias one thing at a time."""

    def __init__(self, registry: Registry, resolve: Resolve | None, resolve_s: float = RESOLVE_S) -> None:
        self._registry = registry
        self._resolve = resolve
        self._resolve_s = resolve_s
        self._asking: dict[Ask, _Asking] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find(self, ask: Ask) -> Channel:
        """Ask for the channel. Raises what the resolver raises, NotFoundError, DeadlineExceededError."""
        # A reserved name is never a client's to make: that would be a channel which nobody may write.
        if self._resolve is None or ask.alias.startswith(RESERVED):
            raise NotFoundError("Stream not found", reason="CHANNEL_NOT_FOUND")
        try:
            async with asyncio.timeout(self._resolve_s):
                return await self._answer(ask, self._resolve)
        except TimeoutError:
            raise DeadlineExceededError(
                "The stream did not start in time", reason="RESOLVE_TIMEOUT"
            ) from None

    async def _answer(self, ask: Ask, resolve: Resolve) -> Channel:
        """Wait for the answer together with all who ask the same; the last who leaves ends the question."""
        asking = self._asking.get(ask)
        if asking is None:
            task = asyncio.get_running_loop().create_task(self._in_turn(ask, resolve), name="resolve")
            asking = self._asking[ask] = _Asking(task)
        asking.waiting += 1
        try:
            await asyncio.wait([asking.task])
            return asking.task.result()
        finally:
            asking.waiting -= 1
            if not asking.waiting:
                self._asking.pop(ask, None)
                asking.task.cancel()
                await asyncio.wait([asking.task])
                if not asking.task.cancelled():
                    asking.task.exception()  # what nobody waited for any more is no unheard failure

    async def _in_turn(self, ask: Ask, resolve: Resolve) -> Channel:
        turn = self._turns.setdefault(ask.alias, asyncio.Lock())
        async with turn:
            try:
                return self.known(ask.alias, ask.purpose)  # whoever asked before us may have had it opened
            except NotFoundError:
                return await resolve(ask)

    def known(self, alias: str, purpose: Purpose) -> Channel:
        """The channel that was opened under an alias. Raises NotFoundError, or why it was closed."""
        if purpose is Purpose.READ:
            return self._registry.readable(alias)
        if purpose is Purpose.WRITE:
            return self._registry.writable(alias)
        try:
            return self._registry.readable(alias)
        except NotFoundError:
            return self._registry.writable(alias)
