"""Reads a channel over HTTP: one GET a segment, the next one parked while this one flows.

A segment that was skipped, because this reader fell behind, or cut, because its connection broke, counts in
the `lost` of the next one. The stream ends where the server says that the channel is closed, or forgot it.
"""

from __future__ import annotations

import asyncio
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
    LATEST,
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
    """Yields a segment's bytes as they arrive. `lost`: how many before it were skipped, or cut short."""

    def __init__(self, response: ClientResponse, index: int, lost: int) -> None:
        self._response = response
        self.index: Final = index
        self.lost = lost
        self.cut = False  # the connection broke inside this segment

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
        self._cut = 0  # segments whose connection broke since the last one was handed out
        self._joined = False
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
        result.lost += self._cut
        self._cut = 0
        self._joined = True
        self._current = result
        self._wanted = result.index + 1
        self._fetching = self._group.create_task(self._fetch(self._wanted))
        return result

    def _leave(self) -> None:
        if self._current is not None:
            self._current.close()
            self._cut += self._current.cut
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
        asked = wanted
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
                index = max(asked, 0)
            return ReceivedSegment(response, index, max(index - wanted, 0) if wanted >= 0 else 0)

    async def _get(self, index: int) -> ClientResponse | None:
        """One GET, or None when it was parked for so long that it is time to ask again."""
        scope = asyncio.timeout(self._patience.poll_s)
        try:
            async with scope:
                return await self._session.get(
                    segment_url(self._url, index), timeout=long_request(self._patience)
                )
        except TimeoutError:
            if not scope.expired():
                raise
            return None

    async def _jump(self, response: ClientResponse, asked: int) -> int:
        """Where a 470 sends us."""
        response.release()
        latest = index_header(response, LATEST)
        if latest is None:
            return NEXT
        resume = index_header(response, RESUME)
        target = after_missing(asked, latest=latest, resume=resume, joined=self._joined)
        if target is None:
            await asyncio.sleep(EARLY_S)
            return asked
        return target
