"""The trickle protocol over HTTP: what each request means to the channels of a `Registry`.

One task per request and none per chunk: the body of a POST is appended, and pushed to whoever reads it, from
within the call in which it came from the socket. Nothing outlives its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from copy import copy
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from opentelemetry.trace import SpanKind

from services.common.errors import (
    ExhaustedError,
    InvalidError,
    NotFoundError,
    SluiceError,
    TooLargeError,
    UnauthenticatedError,
)
from services.common.telemetry import span
from services.common.trickle import metrics
from services.common.trickle.channel import Channel, SegmentReader, SegmentWriter
from services.common.trickle.exchange import Exchange
from services.common.trickle.http1 import path_segments
from services.common.trickle.listener import Handler, ListenerLimits, serve_http1
from services.common.trickle.protocol import (
    CLOSED,
    CURRENT,
    CUT,
    DEFAULT_CONTENT_TYPE,
    EXPECT_CONTENT,
    GENERATION,
    LATEST,
    LOST,
    NEXT,
    RESET,
    RESUME,
    SEQ,
    STATUS_MISSING,
    TERMINATED,
    ChannelClosedError,
    SegmentMissingError,
    parse_index,
    parse_name,
)
from services.common.trickle.registry import Registry
from services.common.trickle.resolve import Ask, Lookup, Purpose, Resolve

CONTINUE_INTERVAL_S: Final = 10.0  # the reference's; intermediaries give up after 25 to 60 s of silence
READER_STALL_S: Final = 30.0  # a client that takes nothing for so long holds memory for nobody
FIRST: Final = frozenset({"0", str(NEXT), str(CURRENT)})
ON_CHANNEL: Final = "DELETE, POST"
ON_SEGMENT: Final = "DELETE, GET, HEAD, POST"

_ENDED: Final = {CLOSED: TERMINATED}


@dataclass(frozen=True, slots=True)
class TrickleApp:
    """What `serve_trickle` serves; `close` is called when it stops."""

    handle: Handler
    close: Callable[[], None]
    limits: ListenerLimits


def trickle_app(
    registry: Registry,
    *,
    base_path: str = "/",
    resolve: Resolve | None = None,
    limits: ListenerLimits | None = None,
    continue_interval_s: float = CONTINUE_INTERVAL_S,
    reader_stall_s: float = READER_STALL_S,
) -> TrickleApp:
    """Build the protocol's face to a registry; when it stops being served it closes the registry's channels.

    `resolve` is asked for aliases that the registry does not know; None: only the owner makes channels.
    """
    assert base_path.startswith("/"), base_path
    assert base_path.endswith("/"), base_path
    limits = limits or ListenerLimits()
    face = _Face(registry, Lookup(registry, resolve), base_path, limits, continue_interval_s, reader_stall_s)
    return TrickleApp(face.handle, registry.close_all, limits)


def serve_trickle(
    app: TrickleApp, listen: str, grace_s: float, tls: ssl.SSLContext | None = None
) -> AbstractAsyncContextManager[int]:
    """Serve `app` until the block ends; yields the bound port. Raises OSError when the port is taken.

    `grace_s`: how long readers have, after the channels were closed, to take what is left.
    """
    return serve_http1(app.handle, listen, limits=app.limits, grace_s=grace_s, tls=tls, stopping=app.close)


class _Face:
    """One method per kind of request; each answers, or raises what `_refuse` renders."""

    def __init__(
        self,
        registry: Registry,
        lookup: Lookup,
        base_path: str,
        limits: ListenerLimits,
        continue_interval_s: float,
        reader_stall_s: float,
    ) -> None:
        self._registry = registry
        self._lookup = lookup
        self._base_path = base_path
        self._limits = limits
        self._continue_interval_s = continue_interval_s
        self._reader_stall_s = reader_stall_s
        self._requests = 0

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        try:
            if self._requests >= self._limits.requests:
                raise ExhaustedError("Too many requests at once", reason="TOO_MANY_REQUESTS", retry_after_s=1)
            self._requests += 1
            try:
                await self._route(exchange)
            finally:
                self._requests -= 1
        except SluiceError as error:
            _refuse(exchange, error)

    async def _route(self, exchange: Exchange) -> None:
        match exchange.head.method, path_segments(exchange.head.path, self._base_path):
            case "POST", [name]:
                await self._create(exchange, parse_name(name))
            case "DELETE", [name]:
                self._delete(exchange, parse_name(name))
            case _, [_]:
                _say(exchange, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ON_CHANNEL})
            case "GET" | "HEAD", [name, "next"]:
                await self._next(exchange, parse_name(name))
            case "GET" | "HEAD", [name, index]:
                with _traced(exchange, index):
                    await self._get(exchange, parse_name(name), index)
            case "POST", [name, index]:
                with _traced(exchange, index):
                    await self._post(exchange, parse_name(name), index)
            case "DELETE", [name, index]:
                self._delete_segment(exchange, parse_name(name), index)
            case _, [_, _]:
                _say(exchange, HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ON_SEGMENT})
            case _:
                _say(exchange, HTTPStatus.NOT_FOUND, "Not found\n")

    # --- channels

    async def _create(self, exchange: Exchange, name: str) -> None:
        """Create a channel where clients may, or confirm that it is there."""
        await self._find(exchange, name, Purpose.WRITE, exchange.head.headers.get(EXPECT_CONTENT.lower()))
        exchange.respond(HTTPStatus.OK, {})

    def _delete(self, exchange: Exchange, name: str) -> None:
        """Close and remove a channel; the second time it is a client's mistake, as in the reference."""
        try:
            self._registry.close(self._registry.name_of(name))
        except NotFoundError:
            _say(exchange, HTTPStatus.BAD_REQUEST, "Invalid stream\n")
        else:
            exchange.respond(HTTPStatus.OK, {})

    async def _next(self, exchange: Exchange, name: str) -> None:
        """Tell readers and writers where the head is."""
        channel = await self._find(exchange, name, Purpose.HEAD)
        headers = {LATEST: str(channel.head), RESUME: str(channel.resume())} | _generation(channel)
        exchange.respond(HTTPStatus.OK, headers | (_ENDED if channel.closed else {}))

    async def _find(
        self, exchange: Exchange, name: str, purpose: Purpose, content_type: str | None = None
    ) -> Channel:
        try:
            return self._lookup.known(name, purpose)
        except NotFoundError:
            authorization = exchange.head.headers.get("authorization")
            return await self._lookup.find(
                Ask(name, purpose, authorization, content_type or DEFAULT_CONTENT_TYPE)
            )

    # --- segments: reading

    async def _get(self, exchange: Exchange, name: str, text: str) -> None:
        """Serve a segment as it is written; not even the status goes out before its first byte or its end."""
        requested = parse_index(text, lowest=CURRENT)
        channel = await self._find(exchange, name, Purpose.READ)
        with channel.reading():
            metrics.TRAFFIC.readers += 1
            try:
                await self._read(exchange, channel, requested, text)
            finally:
                metrics.TRAFFIC.readers -= 1

    async def _read(self, exchange: Exchange, channel: Channel, requested: int, text: str) -> None:
        head = channel.head
        index = channel.position(requested)
        try:
            segment = await channel.segment(index, since=_since(exchange) if requested >= 0 else None)
        except ChannelClosedError:
            headers = {SEQ: str(index), LATEST: str(channel.head)} | _generation(channel)
            exchange.respond(HTTPStatus.OK, headers | _ENDED | _cut(channel, index - 1))
            return
        except SegmentMissingError as missing:
            metrics.LAGGED.inc(missing.lost)
            headers = {
                SEQ: text,
                LATEST: str(missing.latest),
                RESUME: str(missing.resume),
                LOST: str(missing.lost),
                GENERATION: str(missing.generation),
            }
            _say(exchange, STATUS_MISSING, missing.message, headers)
            return
        headers = {SEQ: str(index), GENERATION: str(segment.generation)} | _cut(channel, index - 1)
        if segment.empty:
            headers[LATEST] = str(channel.head)
            exchange.respond(HTTPStatus.OK, headers | (_ENDED if channel.closed else {}))
            return
        if index != head:
            headers[LATEST] = str(head)
        exchange.begin(HTTPStatus.OK, headers | {"Content-Type": channel.content_type})
        if exchange.head.method == "GET":
            try:
                await self._flow(exchange, segment)
            finally:
                metrics.BYTES_OUT.inc(exchange.pushed)
        exchange.finish()

    async def _flow(self, exchange: Exchange, segment: SegmentReader) -> None:
        """Send what is there, then what comes, as it comes; wait for a slow client, but not for ever."""
        metrics.SEGMENTS_OUT.inc()
        while True:
            try:
                await exchange.drained(self._reader_stall_s)
            except TimeoutError:
                metrics.SLOW.inc()
                raise ConnectionAbortedError("the reader stalled") from None
            if run := segment.take():
                exchange.push(run)
            elif segment.ended:
                return
            else:
                await segment.follow(exchange.push)

    # --- segments: writing

    async def _post(self, exchange: Exchange, name: str, text: str) -> None:
        """Take a segment's body as it comes; answer early, and hang up, when the segment ends without us."""
        requested = parse_index(text, lowest=NEXT)
        channel = await self._find(exchange, name, Purpose.WRITE, exchange.head.headers.get("content-type"))
        reset = bool(exchange.head.headers.get(RESET.lower()))
        metrics.TRAFFIC.writers += 1
        try:
            with channel.begin_segment(None if requested == NEXT else requested, reset=reset) as writer:
                whole = await self._receive(exchange, channel, writer)
        except ChannelClosedError as closed:
            raise copy(channel.error or closed) from None
        finally:
            metrics.TRAFFIC.writers -= 1
        if channel.error is not None:
            raise copy(channel.error)  # a raised one keeps its frames, and what is in them
        if channel.closed or writer.empty or not whole:
            exchange.closing = True  # a client that still blocks on its body wakes
        exchange.respond(HTTPStatus.OK, {SEQ: str(writer.index)} | (_ENDED if channel.closed else {}))

    async def _receive(self, exchange: Exchange, channel: Channel, writer: SegmentWriter) -> bool:
        """Append the whole body; False when others ended the segment first."""
        writer.on_end(exchange.interrupt)
        encouragement = _Encouragement(exchange, channel, writer, self._continue_interval_s)
        try:
            whole = await exchange.receive(writer.write)
        except TooLargeError:
            metrics.TOO_LARGE.inc()
            raise
        except (InvalidError, asyncio.CancelledError):
            if not writer.empty:
                metrics.BROKEN.inc()
            raise
        finally:
            writer.on_end(None)
            encouragement.cancel()
            metrics.BYTES_IN.inc(writer.size)
        metrics.SEGMENTS_IN.inc()
        if not whole and not writer.empty:
            metrics.ENDED.inc()
        return whole

    def _delete_segment(self, exchange: Exchange, name: str, text: str) -> None:
        """End one segment where it is."""
        index = parse_index(text)
        channel = self._registry.writable(name)
        try:
            channel.end_segment(index)
        except NotFoundError as missing:
            _say(exchange, HTTPStatus.BAD_REQUEST, f"{missing.message}\n")
        else:
            exchange.respond(HTTPStatus.OK, {})


class _Encouragement:
    """Says now and then, while no byte has come, that we still wait; a publisher that hears it is alive."""

    def __init__(
        self, exchange: Exchange, channel: Channel, writer: SegmentWriter, interval_s: float
    ) -> None:
        self._exchange = exchange
        self._channel = channel
        self._writer = writer
        self._interval_s = interval_s
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._encourage)

    def _encourage(self) -> None:
        if self._writer.empty:
            self._exchange.proceed()
            self._channel.touch()
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._encourage)

    def cancel(self) -> None:
        self._timer.cancel()  # which also breaks the circle that would keep the segment's bytes


def _generation(channel: Channel) -> dict[str, str]:
    return {GENERATION: str(channel.generation)}


def _cut(channel: Channel, index: int) -> dict[str, str]:
    return {CUT: str(index)} if channel.was_cut(index) else {}


def _since(exchange: Exchange) -> int | None:
    """The publisher that a reader of ours has read from, if it says so."""
    text = exchange.head.headers.get(GENERATION.lower(), "")
    return int(text) if text.isdecimal() and len(text) < 16 else None


def _traced(exchange: Exchange, index: str) -> AbstractContextManager[object]:
    """A span for the first segment that a client reads or writes, if it says to whose trace it belongs."""
    if "traceparent" not in exchange.head.headers or index not in FIRST:
        return contextlib.nullcontext()
    return span(f"trickle {exchange.head.method}", carrier=exchange.head.headers, kind=SpanKind.SERVER)


def _say(exchange: Exchange, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> None:
    """Answer in plain text."""
    plain = {"Content-Type": "text/plain; charset=utf-8"}
    exchange.respond(status, plain | dict(headers or {}), text.encode())


def _refuse(exchange: Exchange, error: SluiceError) -> None:
    """Render what a request failed with; a POST's connection ends with it."""
    metrics.REFUSED.labels(error.reason.lower()).inc()
    headers = {}
    if "retry_after_s" in error.details:
        headers["Retry-After"] = error.details["retry_after_s"]
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    exchange.closing |= exchange.head.method == "POST"
    _say(exchange, error.http_status, f"{error.message}\n", headers)
