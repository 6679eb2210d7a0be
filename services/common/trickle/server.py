"""The trickle protocol over HTTP: an aiohttp application over a `Registry`, and the block that serves it.

One handler per request and no task per chunk: a POST appends what the socket gives, a GET flushes each run.
Nothing outlives its client: aiohttp cancels a handler whose connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Final

from aiohttp import HttpVersion11, web
from opentelemetry.trace import SpanKind

from services.common.errors import ConflictError, InvalidError, NotFoundError, SluiceError, TooLargeError
from services.common.settings import host_port
from services.common.telemetry import span
from services.common.trickle import metrics
from services.common.trickle.channel import Channel, SegmentReader, SegmentWriter
from services.common.trickle.protocol import (
    CLOSED,
    CONTINUE,
    CURRENT,
    DEFAULT_CONTENT_TYPE,
    EXPECT_CONTENT,
    LATEST,
    NEXT,
    RESET,
    RESUME,
    SEQ,
    STATUS_MISSING,
    TERMINATED,
    ChannelClosedError,
    ChannelLimits,
    SegmentMissingError,
    parse_index,
    parse_name,
)
from services.common.trickle.registry import Registry

CONTINUE_INTERVAL_S: Final = 10.0  # the reference's; intermediaries give up after 25 to 60 s of silence
READER_STALL_S: Final = 30.0  # a client that takes nothing for so long holds memory for nobody
LINGER_S: Final = (
    0.5  # how long a POST that we end may go on sending before its connection is cut: the reference's
)
KEEPALIVE_S: Final = 600.0  # an idle connection's life: the reference's
BACKLOG: Final = 512
FIRST: Final = frozenset({"0", str(NEXT), str(CURRENT)})

_ENDED: Final = {CLOSED: TERMINATED}


def trickle_app(
    registry: Registry,
    *,
    base_path: str = "/",
    autocreate: ChannelLimits | None = None,
    continue_interval_s: float = CONTINUE_INTERVAL_S,
    reader_stall_s: float = READER_STALL_S,
) -> web.Application:
    """Build the application; when it shuts down it closes the registry's channels.

    `autocreate`: the limits of channels that any client makes by a POST to a free name; None: only the owner
    makes channels. Serve it by `serve_trickle`: it relies on handlers being cancelled with their connection.
    """
    assert base_path.startswith("/"), base_path
    assert base_path.endswith("/"), base_path
    faces = _Handlers(registry, autocreate, continue_interval_s, reader_stall_s)
    app = web.Application(middlewares=[_translate])
    app.router.add_post(base_path + "{name}", faces.create)
    app.router.add_delete(base_path + "{name}", faces.delete)
    app.router.add_get(base_path + "{name}/next", faces.next)
    app.router.add_get(base_path + "{name}/{index}", faces.get)
    app.router.add_post(base_path + "{name}/{index}", faces.post)
    app.router.add_delete(base_path + "{name}/{index}", faces.delete_segment)

    async def close_channels(_: web.Application) -> None:
        registry.close_all()

    app.on_shutdown.append(close_channels)
    return app


@asynccontextmanager
async def serve_trickle(
    app: web.Application, listen: str, grace_s: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the bound port. Raises OSError when the port is taken.

    `grace_s`: how long readers have, after the channels were closed, to take what is left.
    """
    host, port = host_port(listen)
    listener = socket.create_server((host, port), backlog=BACKLOG)
    runner = web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        lingering_time=LINGER_S,
        shutdown_timeout=grace_s,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG, ssl_context=tls).start()
        yield listener.getsockname()[1]
    finally:
        await runner.cleanup()
        listener.close()


def _traced(request: web.Request) -> AbstractContextManager[object]:
    """A span for the first segment that a client reads or writes, if it says to whose trace it belongs."""
    if "traceparent" not in request.headers or request.match_info.get("index") not in FIRST:
        return contextlib.nullcontext()
    return span(f"trickle {request.method}", carrier=request.headers, kind=SpanKind.SERVER)


@web.middleware
async def _translate(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Render what a handler raised before its response began; a POST's connection ends with it."""
    try:
        with _traced(request):
            return await handler(request)
    except SegmentMissingError as missing:
        metrics.LAGGED.inc(max(missing.latest - missing.index, 0))
        return web.Response(
            status=STATUS_MISSING,
            reason="Entry not found",
            text=missing.message,
            headers={
                SEQ: request.match_info["index"],
                LATEST: str(missing.latest),
                RESUME: str(missing.resume),
            },
        )
    except SluiceError as error:
        response = web.Response(status=error.http_status, text=f"{error.message}\n")
        if "retry_after_s" in error.details:
            response.headers["Retry-After"] = error.details["retry_after_s"]
        if request.method == "POST":
            response.force_close()
        return response


class _Handlers:
    """One method per route of the protocol."""

    def __init__(
        self,
        registry: Registry,
        autocreate: ChannelLimits | None,
        continue_interval_s: float,
        reader_stall_s: float,
    ) -> None:
        self._registry = registry
        self._autocreate = autocreate
        self._continue_interval_s = continue_interval_s
        self._reader_stall_s = reader_stall_s

    async def create(self, request: web.Request) -> web.Response:
        """Create a channel where clients may, or confirm that it is there."""
        self._writable(request, request.headers.get(EXPECT_CONTENT, DEFAULT_CONTENT_TYPE))
        return web.Response()

    async def delete(self, request: web.Request) -> web.Response:
        """Close and remove a channel; the second time it is a client's mistake, as in the reference."""
        try:
            name = self._registry.name_of(_name(request))
        except NotFoundError:
            return web.Response(status=400, text="Invalid stream\n")
        self._registry.close(name)
        return web.Response()

    async def delete_segment(self, request: web.Request) -> web.Response:
        """End one segment where it is."""
        index = parse_index(request.match_info["index"])
        channel = self._registry.writable(_name(request))
        try:
            channel.end_segment(index)
        except NotFoundError as missing:
            return web.Response(status=400, text=f"{missing.message}\n")
        return web.Response()

    async def next(self, request: web.Request) -> web.Response:
        """Tell readers and writers where the head is."""
        alias = _name(request)
        try:
            channel = self._registry.writable(alias)
        except NotFoundError:
            channel = self._registry.readable(alias)
        headers = {LATEST: str(channel.head), RESUME: str(channel.resume())}
        return web.Response(headers=headers | (_ENDED if channel.closed else {}))

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve a segment as it is written; not even the status goes out before its first byte or its end."""
        requested = parse_index(request.match_info["index"], lowest=CURRENT)
        channel = self._registry.readable(_name(request))
        head = channel.head
        index = channel.position(requested)
        with channel.reading(), metrics.READERS.track_inprogress():
            try:
                segment = await channel.segment(index)
            except ChannelClosedError:
                return web.Response(headers={SEQ: str(index), LATEST: str(channel.head)} | _ENDED)
            if segment.empty:
                headers = {SEQ: str(index), LATEST: str(channel.head)}
                return web.Response(headers=headers | (_ENDED if channel.closed else {}))
            headers = {SEQ: str(index), "Content-Type": channel.content_type}
            if index != head:
                headers[LATEST] = str(head)
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # the client left: nobody to tell
                if request.method == "GET":
                    await self._flow(request, response, segment)
                await response.write_eof()
        return response

    async def _flow(self, request: web.Request, response: web.StreamResponse, segment: SegmentReader) -> None:
        metrics.SEGMENTS_OUT.inc()
        try:
            async for run in segment:
                async with asyncio.timeout(self._reader_stall_s):
                    await response.write(run)
                metrics.BYTES_OUT.inc(len(run))
        except TimeoutError:
            metrics.SLOW.inc()
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionAbortedError("the reader stalled") from None

    async def post(self, request: web.Request) -> web.Response:
        """Take a segment's body as it comes; answer early, and hang up, when the segment ends without us."""
        requested = parse_index(request.match_info["index"], lowest=NEXT)
        channel = self._writable(request, request.content_type)
        try:
            with channel.begin_segment(
                None if requested == NEXT else requested, reset=bool(request.headers.get(RESET))
            ) as writer:
                whole = await self._receive(request, writer)
        except TooLargeError:
            metrics.TOO_LARGE.inc()
            raise
        except (web.RequestPayloadError, ConnectionError):
            raise InvalidError("The body broke off", reason="BODY_BROKEN") from None
        response = web.Response(headers={SEQ: str(writer.index)})
        if channel.closed:
            response.headers[CLOSED] = TERMINATED
        if channel.closed or writer.empty or not whole:
            response.force_close()  # a client that still blocks on its body wakes
        return response

    async def _receive(self, request: web.Request, writer: SegmentWriter) -> bool:
        """Append the whole body; False when others ended the segment first."""
        try:
            async with _until_ended(writer):
                data = await self._first_bytes(request)
                metrics.SEGMENTS_IN.inc()
                while data:
                    metrics.BYTES_IN.inc(len(data))
                    writer.write(data)
                    data = await request.content.readany()
        except (ConflictError, ChannelClosedError):
            return False
        except (web.RequestPayloadError, ConnectionError, asyncio.CancelledError):
            if not writer.empty:
                metrics.BROKEN.inc()
            raise
        return True

    async def _first_bytes(self, request: web.Request) -> bytes:
        """Wait for the body's first bytes, or its end, and say now and then that we still do."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._continue_interval_s):
                    return await request.content.readany()
            if request.transport is not None and request.version >= HttpVersion11:
                request.transport.write(CONTINUE)

    def _writable(self, request: web.Request, content_type: str) -> Channel:
        alias = _name(request)
        try:
            return self._registry.writable(alias)
        except NotFoundError:
            if self._autocreate is None:
                raise
        opened = self._registry.open(
            alias, content_type=content_type, limits=self._autocreate, read_alias=alias, write_alias=alias
        )
        return opened.channel


@asynccontextmanager
async def _until_ended(writer: SegmentWriter) -> AsyncIterator[None]:
    """Interrupt the block when others end the segment. Raises ConflictError."""
    try:
        async with asyncio.timeout(None) as scope:
            writer.on_end(lambda: scope.reschedule(0))
            try:
                yield
            finally:
                writer.on_end(None)
    except TimeoutError:
        raise ConflictError("The segment has ended", reason="SEGMENT_ENDED", index=writer.index) from None


def _name(request: web.Request) -> str:
    return parse_name(request.match_info["name"])
