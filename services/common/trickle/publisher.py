"""Publishes a channel over HTTP: one POST a segment, the next one connected while this one flows.

What is written goes to the socket from the writer's own task; the task of a POST only waits for its answer. A
POST is tried again while none of its bytes went out, and never after.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, NoReturn

from aiohttp import ClientError, ClientSession, ClientTimeout
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload
from yarl import URL

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    SluiceError,
    UnavailableError,
)
from services.common.trickle.connection import (
    DEFAULT_PATIENCE,
    TRANSPORT_ERRORS,
    Failures,
    Patience,
    check,
    find_head,
    segment_url,
)
from services.common.trickle.protocol import NEXT, RESET, ChannelClosedError

NO_INDEX: Final = "400"  # the answer to `/next` of a server that takes it for an index
IN_FLIGHT: Final = 3  # the reference gateway's: more means that the server is too slow for a live stream


class _Post:
    """One POST: parked until its first write, answered after its end, or early when the server ended it."""

    def __init__(self, index: int, headers: dict[str, str]) -> None:
        self.index = index
        self.headers = headers
        self.taken = False  # handed out as a segment
        self.wrote = False  # a body byte went out: it cannot be tried again
        self.over = asyncio.Event()  # no more of the body
        self.answered = False
        self.error: SluiceError | None = None
        self._answer_by: asyncio.Timeout | None = None
        self._writer: AbstractStreamWriter | None = None
        self._changed = asyncio.Event()

    def connected(self, writer: AbstractStreamWriter | None) -> None:
        self._writer = writer
        self._changed.set()

    def end(self, answer_s: float) -> None:
        """End the body; from here on the answer is due."""
        self.over.set()
        if self._answer_by is not None:
            self._answer_by.reschedule(asyncio.get_running_loop().time() + answer_s)

    @asynccontextmanager
    async def answer_due(self, answer_s: float) -> AsyncIterator[None]:
        """Bound the block once the body is over. Raises TimeoutError."""
        async with asyncio.timeout(answer_s if self.over.is_set() else None) as scope:
            self._answer_by = scope
            try:
                yield
            finally:
                self._answer_by = None

    def settle(self, error: SluiceError | None) -> None:
        self.answered = True
        self.error = error
        self.over.set()
        self._changed.set()

    async def writer(self) -> AbstractStreamWriter:
        """Wait for a live connection. Raises what `ended` raises when there will be none."""
        while not self.answered:
            if self._writer is not None and _alive(self._writer):
                return self._writer
            self._changed.clear()
            await self._changed.wait()
        return await self.ended()

    async def ended(self) -> NoReturn:
        """Wait for the answer. Raises what it said, or ConflictError when it was a plain, early one."""
        while not self.answered:
            self._changed.clear()
            await self._changed.wait()
        raise self.error or ConflictError(
            "The server ended the segment", reason="SEGMENT_ENDED", index=self.index
        )


def _alive(writer: AbstractStreamWriter) -> bool:
    return writer.transport is not None and not writer.transport.is_closing()


class _Body(Payload):
    """A request body that its owner writes to the connection; this only holds the request open meanwhile."""

    def __init__(self, post: _Post, content_type: str) -> None:
        super().__init__(post, content_type=content_type)
        self._post = post

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a live body is not text")

    async def write(self, writer: AbstractStreamWriter) -> None:
        writer.send_headers()  # else aiohttp keeps them back until the first byte, and nothing is parked
        self._post.connected(writer)
        await self._post.over.wait()
        if not _alive(writer):
            raise ConnectionResetError("the connection was lost")


class PublishedSegment:
    """The segment being written."""

    def __init__(self, post: _Post, write_s: float) -> None:
        self._post = post
        self._write_s = write_s
        self.index: Final = post.index

    async def write(self, data: bytes) -> None:
        """Send `data`; it waits only while there is no connection yet, or the socket is full.

        Raises ChannelClosedError, ConflictError (the server ended this segment), TooLargeError or
        UnavailableError.
        """
        writer = await self._post.writer()
        if not data:
            return
        self._post.wrote = True
        try:
            async with asyncio.timeout(self._write_s):
                await writer.write(data)
        except TimeoutError:
            raise UnavailableError("The connection takes nothing", index=self.index) from None
        except (ClientError, OSError):
            await self._post.ended()


class Publisher:
    """Writes one channel. Leaving its block drops what is unfinished; `close` ends the channel for everybody.

    `start`: the first index, or NEXT to go on, with a reset, where an earlier publisher left off.
    `headers` go with every POST. `failed` counts segments that were written but not confirmed by the server.
    """

    def __init__(
        self,
        session: ClientSession,
        url: str,
        *,
        start: int = 0,
        content_type: str = "video/MP2T",
        headers: Mapping[str, str] | None = None,
        in_flight: int = IN_FLIGHT,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self._session = session
        self._url = url
        self._start = start
        self._content_type = content_type
        self._headers = dict(headers or {})
        self._patience = patience
        self._slots = asyncio.Semaphore(in_flight)
        self._group = asyncio.TaskGroup()
        self._tasks: dict[asyncio.Task[None], _Post] = {}
        self._closed = False
        self.failed = 0

    async def __aenter__(self) -> Publisher:
        index, reset = (await self._next()) if self._start == NEXT else (self._start, {})
        await self._group.__aenter__()
        self._parked = self._open(index, reset)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in list(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _next(self) -> tuple[int, dict[str, str]]:
        """Where to go on, and what to say there."""
        try:
            index, _ = await find_head(self._session, self._url, self._patience)
        except InvalidError as error:
            if error.details.get("status") != NO_INDEX:
                raise
            return 0, {}  # http-trickle, the reference's ancestor, knows neither `/next` nor resets
        return index, {RESET: "1"}

    @asynccontextmanager
    async def segment(self) -> AsyncIterator[PublishedSegment]:
        """Write the next segment in the block; an exception in it breaks the segment off for readers too.

        The server's answer is not awaited: it shows in the next segment's errors. Raises ChannelClosedError,
        UnavailableError, or ExhaustedError when too many segments stay unanswered for `Patience.answer_s`.
        """
        task, post = await self._take()
        try:
            yield PublishedSegment(post, self._patience.write_s)
        except BaseException:
            task.cancel()
            raise
        post.end(self._patience.answer_s)

    async def flush(self) -> None:
        """Wait, for a while, until the server confirmed the segments that were written."""
        written = [task for task, post in self._tasks.items() if post.taken]
        if written:
            await asyncio.wait(written, timeout=self._patience.answer_s)

    async def close(self) -> None:
        """Confirm what was written, delete the channel, end the parked POST: in this order nothing is cut.

        Raises UnavailableError when the server cannot be told.
        """
        await self.flush()
        self._closed = True
        try:
            timeout = ClientTimeout(total=self._patience.answer_s, sock_connect=self._patience.connect_s)
            async with self._session.delete(URL(self._url, encoded=True), timeout=timeout):
                pass  # 400 and 404 say that it is gone already
        except TRANSPORT_ERRORS as error:
            raise UnavailableError("The trickle server cannot be reached") from error
        finally:
            for post in self._tasks.values():
                post.end(self._patience.answer_s)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=self._patience.answer_s)

    async def _take(self) -> tuple[asyncio.Task[None], _Post]:
        if self._closed:
            raise ChannelClosedError("The channel is closed")
        try:
            async with asyncio.timeout(self._patience.answer_s):
                await self._slots.acquire()
        except TimeoutError:
            raise ExhaustedError("Too many segments in flight", reason="TOO_MANY_IN_FLIGHT") from None
        try:
            return self._take_parked()
        except BaseException:
            self._slots.release()
            raise

    def _take_parked(self) -> tuple[asyncio.Task[None], _Post]:
        task, post = self._parked
        if post.error is not None:
            self._parked = self._open(post.index, post.headers)
            raise post.error
        if post.answered:  # the server ended this index while it was parked
            task, post = self._open(post.index + 1)
        post.taken = True
        self._parked = self._open(post.index + 1)
        return task, post

    def _open(self, index: int, extra: Mapping[str, str] | None = None) -> tuple[asyncio.Task[None], _Post]:
        post = _Post(index, self._headers | dict(extra or {}))
        task = self._group.create_task(self._deliver(post), name=f"trickle post {index}")
        self._tasks[task] = post
        task.add_done_callback(self._delivered)
        return task, post

    def _delivered(self, task: asyncio.Task[None]) -> None:
        post = self._tasks.pop(task)
        if post.taken:
            self._slots.release()
            self.failed += post.error is not None
        if not post.answered:
            post.settle(UnavailableError("The segment was dropped", index=post.index))

    async def _deliver(self, post: _Post) -> None:
        """Send one POST until it is answered, and settle it: nothing is raised here."""
        failures = Failures(self._patience)
        try:
            while not post.answered:
                failures.attempt()
                try:
                    await self._attempt(post)
                except (*TRANSPORT_ERRORS, UnavailableError) as error:
                    post.connected(None)
                    if post.wrote:
                        raise UnavailableError("The segment was cut", index=post.index) from error
                    await failures.failed(error)
        except SluiceError as error:
            self._closed |= isinstance(error, ChannelClosedError)
            post.settle(error)

    async def _attempt(self, post: _Post) -> None:
        async with post.answer_due(self._patience.answer_s):
            response = await self._session.post(
                segment_url(self._url, post.index),
                data=_Body(post, self._content_type),
                headers=post.headers,
                timeout=ClientTimeout(total=None, sock_connect=self._patience.connect_s),
            )
        try:
            check(response)
            post.settle(None)
        finally:
            response.release()
