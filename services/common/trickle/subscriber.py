"""Reads a channel over HTTP: one GET a segment, the next one parked while this one flows.

A segment that was skipped, because this reader fell behind, or cut, because its publisher or its connection
broke, counts in the `lost` of the next one. The stream ends where the server says that the channel is closed,
or forgot it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import ClientResponse, ClientSession

from services.common.errors import SluiceError, UnavailableError
from services.common.trickle.connection import (
    DEFAULT_PATIENCE,
    TRANSPORT_ERRORS,
    Failures,
    Patience,
    check,
    find_head,
    index_header,
    long_request,
    segment_url,
)
from services.common.trickle.protocol import (
    CURRENT,
    CUT,
    GENERATION,
    LATEST,
    LOST,
    NEXT,
    RANDOM_ACCESS,
    RESUME,
    SEQ,
    STATUS_MISSING,
    ChannelClosedError,
    after_missing,
)

EARLY_S: Final = 0.25  # before an index that is still to come is asked for again


class ReceivedSegment:
    """Yields a segment's bytes as they arrive. `lost`: how many before it were skipped, or cut short.

    `restarted`: it is the first that this reader has of another publisher; what came before it has no
    continuation. `generation` counts publishers, where the server does.
    """

    def __init__(
        self,
        response: ClientResponse,
        index: int,
        *,
        lost: int,
        generation: int | None,
        restarted: bool,
        after_cut: bool,
    ) -> None:
        self._response = response
        self.after_cut: Final = after_cut  # the server says so of the segment before
        self.index: Final = index
        self.generation: Final = generation
        self.restarted: Final = restarted
        self.lost = lost
        self.cut = False  # its connection broke; what its publisher broke off is told with the next one

    def __aiter__(self) -> ReceivedSegment:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except TRANSPORT_ERRORS:
            self.cut = True
            chunk = b""
        if not chunk:
            self.close()
            raise StopAsyncIteration
        return chunk

    def close(self) -> None:
        """Read no more of it; what the server still sends is refused."""
        self._response.close()


@dataclass(frozen=True, slots=True)
class _Position:
    """What is asked for, as `generation` counts; whoever gets `expected` has lost `lost`, and no more."""

    index: int
    generation: int | None
    expected: int
    lost: int = 0


class Subscriber:
    """Reads one channel, segment by segment, from `start`: CURRENT, NEXT, RANDOM_ACCESS or an index.

    Iterating ends with the channel. It raises InvalidError when the server refuses, and UnavailableError when
    it cannot be reached in `Patience.failures` attempts; iterating again tries again, at the same segment.
    """

    def __init__(
        self,
        session: ClientSession,
        url: str,
        *,
        start: int = CURRENT,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self._session = session
        self._url = url
        self._wanted = start
        self._patience = patience
        self._group = asyncio.TaskGroup()
        self._fetching: asyncio.Task[ReceivedSegment | SluiceError] | None = None
        self._current: ReceivedSegment | None = None
        self._cut = False  # the connection of the last segment broke
        self._joined = False
        self._generation: int | None = None  # of the last segment
        self._closed = False

    async def __aenter__(self) -> Subscriber:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        fetching = self._fetching
        if fetching is not None:
            fetching.cancel()
        await self._group.__aexit__(None, None, None)
        if fetching is not None and not fetching.cancelled():
            unread = fetching.result()
            if isinstance(unread, ReceivedSegment):
                unread.close()
        self._leave()

    def __aiter__(self) -> Subscriber:
        return self

    async def __anext__(self) -> ReceivedSegment:
        self._leave()
        if self._closed:
            raise StopAsyncIteration
        if self._fetching is None:
            self._fetching = self._group.create_task(self._fetch(self._wanted))
        await asyncio.wait([self._fetching])  # cancelling us leaves the request parked for the next call
        result, self._fetching = self._fetching.result(), None
        if isinstance(result, ChannelClosedError):
            self._closed = True
            raise StopAsyncIteration
        if isinstance(result, SluiceError):
            raise result
        result.lost += self._cut or result.after_cut
        self._cut = False
        self._joined = True
        self._generation = result.generation
        self._current = result
        self._wanted = result.index + 1
        self._fetching = self._group.create_task(self._fetch(self._wanted))
        return result

    def _leave(self) -> None:
        if self._current is not None:
            self._current.close()
            self._cut = self._current.cut
            self._current = None

    async def _fetch(self, wanted: int) -> ReceivedSegment | SluiceError:
        """Ask for `wanted` until it begins, or something else is to be read in its place, or all is over."""
        try:
            if wanted == RANDOM_ACCESS:
                _, resume = await find_head(self._session, self._url, self._patience)
                wanted = CURRENT if resume is None else resume
            return await self._park(wanted)
        except SluiceError as error:
            return error

    async def _park(self, wanted: int) -> ReceivedSegment:
        failures = Failures(self._patience)
        asked = _Position(wanted, self._generation, expected=wanted)
        while True:
            failures.attempt()
            try:
                response = await self._get(asked)
                if response is None:
                    continue
                if response.status == STATUS_MISSING:
                    asked = await self._jump(response, asked)
                    continue
                check(response)
            except (*TRANSPORT_ERRORS, UnavailableError) as error:
                await failures.failed(error)
                continue
            index = index_header(response, SEQ)
            if index is None:
                index = max(asked.index, 0)
            return ReceivedSegment(
                response,
                index,
                lost=asked.lost + (max(index - asked.expected, 0) if asked.expected >= 0 else 0),
                generation=(generation := index_header(response, GENERATION)),
                restarted=self._anew(generation) if generation is not None else index < wanted,
                after_cut=self._joined and index_header(response, CUT) == wanted - 1,
            )

    def _anew(self, generation: int | None) -> bool:
        return None not in {self._generation, generation} and generation != self._generation

    async def _get(self, asked: _Position) -> ClientResponse | None:
        """One GET, or None when it was parked for so long that it is time to ask again."""
        headers = {} if asked.generation is None else {GENERATION: str(asked.generation)}
        scope = asyncio.timeout(self._patience.poll_s)
        try:
            async with scope:
                return await self._session.get(
                    segment_url(self._url, asked.index),
                    headers=headers,
                    timeout=long_request(self._patience),
                )
        except TimeoutError:
            if not scope.expired():
                raise
            return None

    async def _jump(self, response: ClientResponse, asked: _Position) -> _Position:
        """Where a 470 sends us."""
        response.release()
        latest = index_header(response, LATEST)
        if latest is None:
            return replace(asked, index=NEXT)
        resume = index_header(response, RESUME)
        generation = index_header(response, GENERATION)
        target = after_missing(
            asked.index,
            latest=latest,
            resume=resume,
            joined=self._joined,
            restarted=self._anew(generation) and generation != asked.generation,
        )
        if target is None:
            await asyncio.sleep(EARLY_S)
            return asked
        lost = index_header(response, LOST)
        if lost is None or target != resume:
            return replace(asked, index=target, generation=generation)
        return _Position(target, generation, expected=target, lost=asked.lost + lost)
