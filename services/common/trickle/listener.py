"""HTTP/1.1 connections as a relay needs them: a body goes from the socket to its reader within one call.

A request has a task of its own, which ends with its connection; a chunk has none. What waits for a client is
bounded in time, and what is kept for one in bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, cast

from services.common.errors import InvalidError
from services.common.settings import host_port
from services.common.telemetry import report_bug
from services.common.trickle import metrics
from services.common.trickle.exchange import Exchange
from services.common.trickle.http1 import HEAD_END, Head, parse_head, render_head

BACKLOG: Final = 512
# An idle connection's life: the reference's. A silent new one has as long, for aiohttp's clients connect
# ahead and send not even a head before their body's first byte.
KEEPALIVE_S: Final = 600.0
HEAD_S: Final = 30.0  # from a head's first byte to its last
LINGER_S: Final = 0.5  # a body that nobody wants may go on for so long, while its sender reads our answer
CLOSE_S: Final = 30.0  # for a client to take the rest of an answer after which its connection ends


@dataclass(frozen=True, slots=True)
class ListenerLimits:
    """What one listener may hold, whoever its clients are. A stream costs two POSTs, a viewer two GETs."""

    connections: int = 8192
    requests: int = 8192  # at once, parked ones too
    header_bytes: int = 16 * 1024
    # A client's host that acknowledges nothing for so long is gone, also when nothing is under way to it.
    peer_timeout_s: float = 15.0


Handler = Callable[[Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One client: its requests one after the other, each answered before the next is looked at."""

    def __init__(self, listener: Listener) -> None:
        self.listener: Final = listener
        self._transport: asyncio.Transport | None = None
        self._ahead = b""  # what came and belongs to no exchange yet
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heading = False  # part of a head was there
        self._deaf = False  # what still comes is of no interest
        self._paused = False
        self._writable: asyncio.Future[None] | None = None

    # --- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.listener.admit(self):
            self._expire(KEEPALIVE_S, self.abort)
        else:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections")

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if self._deaf:
            return
        if exchange is not None and not exchange.received:
            exchange.feed(data)
            return
        self._ahead += data
        if exchange is None:
            self._next()
        elif len(self._ahead) > self.listener.limits.header_bytes:
            self.abort()  # nobody pipelines so much in good faith

    def eof_received(self) -> bool:
        """A client that asked for something in whole and wants to say no more still gets its answer."""
        exchange = self._exchange
        if exchange is None or exchange.head.method in {"GET", "HEAD"} or not exchange.received:
            return False
        exchange.closing = True
        assert self._transport is not None
        return self._transport.get_extra_info("sslcontext") is None  # TLS knows no half-open connections

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._calm()
        self.resume_writing()
        self.listener.left(self)
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    # --- what exchanges call

    @property
    def slow(self) -> bool:
        """True while the client has yet to take what was sent, and when it is gone."""
        return self._paused or self._transport is None or self._transport.is_closing()

    def write(self, data: bytes) -> bool:
        """Send; False when the client is slow, or gone."""
        if self._transport is None or self._transport.is_closing():
            return False
        self._transport.write(data)
        return not self._paused

    async def drained(self) -> None:
        """Wait until the client is not slow any more. Raises ConnectionResetError when it is gone."""
        while self.slow:
            if self._transport is None or self._transport.is_closing():
                raise ConnectionResetError("the client left")
            self._writable = asyncio.get_running_loop().create_future()
            await self._writable

    def pause(self) -> None:
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- requests

    def _next(self) -> None:
        """Begin with the next request, if its head is there."""
        self._ahead = self._ahead.lstrip(b"\r\n")
        end = self._ahead.find(HEAD_END)
        most = self.listener.limits.header_bytes
        if end > most or (end < 0 and len(self._ahead) > most):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large")
        elif end >= 0:
            raw, self._ahead = self._ahead[:end], self._ahead[end + len(HEAD_END) :]
            try:
                head = parse_head(raw)
            except InvalidError:
                self._refuse(HTTPStatus.BAD_REQUEST, "malformed")
            else:
                self._begin(head)
        elif self._ahead and not self._heading:
            self._heading = True
            self._expire(HEAD_S, self.abort)

    def _begin(self, head: Head) -> None:
        self._heading = False
        self._calm()
        exchange = self._exchange = Exchange(self, head)
        if self._ahead and not exchange.received:
            body, self._ahead = self._ahead, b""
            exchange.feed(body)
        self._task = self.listener.start(self._serve(exchange))

    async def _serve(self, exchange: Exchange) -> None:
        """Answer one request; what its handler did not foresee ends this connection and nothing else."""
        try:
            if self.slow:  # a client that takes no answers gets no more of them
                await exchange.drained(CLOSE_S)
            await self.listener.handle(exchange)
            assert exchange.answered, exchange.head.method
        except ConnectionError:
            self.abort()
        except Exception as error:  # noqa: BLE001 - one request's failure ends at its connection
            report_bug("trickle", error, method=exchange.head.method)
            if exchange.answered:
                self.abort()
            else:
                exchange.closing = True
                exchange.respond(HTTPStatus.INTERNAL_SERVER_ERROR, {})
        self._exchange = self._task = None
        self.resume()
        if exchange.closing or not exchange.received or self.listener.stopping:
            self._part(whole=exchange.received)
        elif self._ahead:
            self._next()
        else:
            self._expire(KEEPALIVE_S, self.abort)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answer what is no request that a handler could have, and part."""
        metrics.REFUSED.labels(reason).inc()
        headers = {"Content-Length": "0", "Connection": "close", "Date": self.listener.date()}
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers["Retry-After"] = "1"
        self.write(render_head(status, headers))
        self._part(whole=False)

    def _part(self, *, whole: bool) -> None:
        """End the connection when its client had what was sent.

        Closing while a body still comes would reset the connection, and the client might not see the answer.
        """
        self._deaf = True
        if self._transport is None:
            return
        if whole:
            self._close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._expire(LINGER_S, self._close)

    def part_when_idle(self) -> None:
        if self._exchange is None and not self._deaf:
            self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._expire(CLOSE_S, self.abort)

    def _expire(self, seconds: float, then: Callable[[], None]) -> None:
        self._calm()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Listener:
    """The connections and tasks of one listening socket."""

    def __init__(self, handle: Handler, limits: ListenerLimits) -> None:
        self.handle: Final = handle
        self.limits: Final = limits
        self.stopping = False
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deserted = asyncio.Event()
        self._deserted.set()
        self._date = ""
        self._date_at = 0

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; False when there was no room for it."""
        room = len(self._connections) < self.limits.connections
        self._connections.add(connection)
        self._deserted.clear()
        metrics.TRAFFIC.connections += 1
        return room

    def left(self, connection: Connection) -> None:
        self._connections.remove(connection)
        metrics.TRAFFIC.connections -= 1
        if not self._connections:
            self._deserted.set()

    def start(self, serving: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(serving)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def date(self) -> str:
        """The time as headers tell it, made once a second."""
        now = int(time.time())
        if now != self._date_at:
            self._date, self._date_at = formatdate(now, usegmt=True), now
        return self._date

    async def stop(self, grace_s: float) -> None:
        """Let requests end for a while, then end them; returns when nothing is left."""
        self.stopping = True
        for connection in tuple(self._connections):
            connection.part_when_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._deserted.wait()
        for connection in tuple(self._connections):
            connection.abort()
        await self._deserted.wait()
        if self._tasks:
            await asyncio.wait(self._tasks)


def _listen(listen: str, peer_timeout_s: float) -> socket.socket:
    """A bound socket whose connections notice within `peer_timeout_s` that their other host is gone."""
    host, port = host_port(listen)
    listener = socket.create_server((host, port), backlog=BACKLOG)
    probe_s = max(1, round(peer_timeout_s / 3))
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(peer_timeout_s * 1000)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        listener.setsockopt(level, option, value)  # inherited by what is accepted
    return listener


@asynccontextmanager
async def serve_http1(
    handle: Handler,
    listen: str,
    *,
    limits: ListenerLimits,
    grace_s: float,
    tls: ssl.SSLContext | None,
    stopping: Callable[[], None],
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the bound port. Raises OSError when the port is taken.

    `stopping` is called when no connection is accepted any more; then requests have `grace_s` to end.
    """
    bound = _listen(listen, limits.peer_timeout_s)
    listener = Listener(handle, limits)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(listener), sock=bound, backlog=BACKLOG, ssl=tls)
    try:
        yield bound.getsockname()[1]
    finally:
        server.close()
        stopping()
        await listener.stop(grace_s)
