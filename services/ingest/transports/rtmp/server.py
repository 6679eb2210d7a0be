"""Many RTMP publishers on one port, each in its stream or refused in words that its encoder shows.

What a connection costs is bounded before it said a good key: in time, in bytes, and in their number. Media
goes from the socket to its session's source within one call; a connection's one task waits for the session.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

import structlog
from prometheus_client import Counter, Gauge

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, InvalidError, SluiceError
from services.common.lifecycle import Bulkhead
from services.common.settings import host_port
from services.common.telemetry import report_bug
from services.ingest.publishing import Publishing, end_error
from services.ingest.settings import IngestSettings
from services.ingest.source import DAMAGE, PublisherVanishedError, PushedSource, Speed
from services.ingest.transports.rtmp.chunks import Message
from services.ingest.transports.rtmp.conversation import Conversation, Event, Finished, PublishAsked
from services.ingest.transports.rtmp.units import TagReader

log = structlog.get_logger()
CONNECTIONS: Final = Gauge("sluice_rtmp_connections", "RTMP connections that are open.")
REFUSED: Final = Counter(
    "sluice_rtmp_refused_total", "RTMP connections refused or cut off, by why.", ["reason"]
)
LEFT_OUT: Final = Counter(
    "sluice_rtmp_left_out_total", "RTMP publishers whose sound is of a codec that is not carried."
)

BACKLOG: Final = 512
ASK_S: Final = 10.0  # from a connection to its publish command: three round trips
SILENT_S: Final = 30.0  # a publisher that sends nothing for so long is gone
EVICT_S: Final = 2.0  # for a session to notice that its publisher is gone
LINGER_S: Final = 1.0  # for a client to read why it is refused while it still sends
UNREAD_BYTES: Final = 64 * 1024  # of answers that a client may leave in our memory
MESSAGE_COST: Final = 64  # bytes that a message counts for at least, for each costs time


class Publisher:
    """One publisher's media on their way into its source."""

    def __init__(self, settings: IngestSettings) -> None:
        self.stream = ""  # its id, when the key was looked at
        # The connection itself limits the bitrate, for what is no media costs time as well.
        self.source: Final = PushedSource(first_within_s=settings.first_picture_s, fastest_mbps=None)
        self._speed = Speed(settings.max_bitrate_mbps)
        self._tags = TagReader()
        self._announced = 0
        self._left_out = ""

    def count(self, size: int) -> None:
        """Raises TooLargeError above the bitrate that a publisher may have."""
        self._speed.count(size)

    def take(self, message: Message, arrived_s: float) -> None:
        """Raises InvalidError for pictures that cannot be used."""
        unit = self._tags.read(message)
        streams = self._tags.streams
        if len(streams) != self._announced:
            self._announced = len(streams)
            self.source.announce(streams)
        if self._tags.left_out != self._left_out:
            self._left_out = self._tags.left_out
            if self._left_out:
                LEFT_OUT.inc()
                log.info("sound is left out", stream=self.stream, codec=self._left_out)
        if unit is not None:
            self.source.push(unit, arrived_s)

    def count_damage(self) -> None:
        DAMAGE.labels("damaged_units").inc(self._tags.damaged)


class Connection(asyncio.Protocol):
    """One client, from its handshake to the end of what it publishes."""

    def __init__(self, server: RtmpServer) -> None:
        self._server = server
        self.address = ""
        self.key = ""  # that it publishes with
        self.task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._conversation = Conversation()
        self._publisher: Publisher | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._arrived_s = time.monotonic()
        self._deaf = False  # what still comes is of no interest

    # --- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        if self._server.admit(self):
            self._expire(ASK_S, self._too_slow)
        else:
            REFUSED.labels("TOO_MANY_CONNECTIONS").inc()
            self._deaf = True
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._arrived_s = time.monotonic()
        try:
            before = self._conversation.messages
            events = self._conversation.feed(data)
            if self._publisher is not None:
                messages = self._conversation.messages - before
                self._publisher.count(max(len(data), MESSAGE_COST * messages))
            for event in events:
                self._handle(event)
        except SluiceError as error:
            self._fail(error)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._calm()
        self._server.left(self)
        if self._publisher is not None:
            self._publisher.source.vanish()  # of no effect after an orderly end

    # --- what a client says

    def _handle(self, event: Event) -> None:
        if isinstance(event, PublishAsked):
            self._publisher = Publisher(self._server.settings)
            self._expire(SILENT_S, self._look)
            self.key = event.key
            self.task = self._server.start(self._publish(event.key, self._publisher))
            return
        assert self._publisher is not None
        if isinstance(event, Finished):
            self._publisher.source.end()
        else:
            self._publisher.take(event, self._arrived_s)

    def _fail(self, error: SluiceError) -> None:
        """What came can never work. A publisher's task says so, for it knows what became of the session."""
        if self._publisher is not None:
            self._deaf = True
            self._publisher.source.fail(error)
        else:
            self.refuse(error)

    async def _admit(self, key: str) -> sessions_pb2.Stream:
        """Who lost its network is back before we know that it was lost: the old connection gives way."""
        publishing = self._server.publishing
        try:
            stream = await publishing.admit(key)
        except ConflictError:
            if not await self._server.evict(key, but=self):
                raise
            stream = await publishing.admit(key)
        if stream.delivery == runner_pb2.DELIVERY_COMPLETE:
            raise InvalidError(
                "a `complete` stream holds its publisher back, which no encoder expects: publish it to /ts",
                reason="COMPLETE_NOT_SERVED",
                field="delivery",
            )
        return stream

    async def _publish(self, key: str, publisher: Publisher) -> None:
        """The life of a publisher, and its last words."""
        publishing = self._server.publishing
        try:
            stream = await self._admit(key)
            publisher.stream = stream.id
            self._conversation.accept()
            self._flush()
            published = await publishing.publish(stream, publisher.source)
            if published.ended is None:
                self._conversation.confirm()
                self._await_leaving()
            else:
                self.refuse(end_error(published.ended))
        except PublisherVanishedError:
            self.abort()
        except SluiceError as error:
            self.refuse(error)
        except BaseException:
            self.abort()
            raise
        finally:
            publisher.count_damage()

    def refuse(self, error: SluiceError) -> None:
        """Say why, and part."""
        REFUSED.labels(error.reason).inc()
        stream = self._publisher.stream if self._publisher is not None else ""
        log.info("rtmp publisher refused", stream=stream, reason=error.reason, message=error.message)
        self._conversation.refuse(error)
        self._part()

    # --- how it ends

    def _part(self) -> None:
        """End the connection when its client had the words: closed while it sends, it would lose them."""
        self._await_leaving()
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.can_write_eof():
            with suppress(OSError):  # the client was quicker
                self._transport.write_eof()

    def _await_leaving(self) -> None:
        """Hear nothing more, and let the client close the connection: some take our doing so for an error."""
        self._deaf = True
        self._flush()
        if self._transport is not None:
            self._expire(LINGER_S, self.abort)

    def abort(self) -> None:
        self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def _too_slow(self) -> None:
        self.refuse(InvalidError(f"nothing was published within {ASK_S:g} s", reason="RTMP_TOO_SLOW"))

    def _look(self) -> None:
        """Let a publisher go whose host fell silent; a connection does not notice that by itself."""
        if self.silent_s >= SILENT_S:
            REFUSED.labels("RTMP_SILENT").inc()
            self.abort()
        else:
            self._expire(SILENT_S - self.silent_s, self._look)

    def _flush(self) -> None:
        said = self._conversation.take()
        if not said or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(said)
        if self._transport.get_write_buffer_size() > UNREAD_BYTES:
            REFUSED.labels("RTMP_DEAF").inc()
            self.abort()

    def _expire(self, seconds: float, then: Callable[[], None]) -> None:
        self._calm()
        self._timer = asyncio.get_running_loop().call_later(seconds, then)

    def _calm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._arrived_s

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything here."""
        return self._publisher is None and not self._deaf


class RtmpServer:
    """The connections of one listening socket, and their tasks."""

    def __init__(self, publishing: Publishing, settings: IngestSettings, tasks: Bulkhead) -> None:
        self.publishing: Final = publishing
        self.settings: Final = settings
        self._tasks = tasks
        self._started = 0
        self._connections: set[Connection] = set()
        self._addresses: Tally[str] = Tally()
        self._deserted = asyncio.Event()
        self._deserted.set()

    def admit(self, connection: Connection) -> bool:
        """Take a connection in; False when there was no room for it, or none for its address."""
        settings = self.settings
        room = (
            len(self._connections) < settings.rtmp_max_connections
            and self._addresses[connection.address] < settings.rtmp_max_connections_per_address
        )
        self._connections.add(connection)
        self._addresses[connection.address] += 1
        self._deserted.clear()
        CONNECTIONS.inc()
        return room

    def left(self, connection: Connection) -> None:
        self._connections.remove(connection)
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]
        CONNECTIONS.dec()
        if not self._connections:
            self._deserted.set()

    def start(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run a publisher's task until it ends or the server does."""
        self._started += 1
        return self._tasks.start(f"rtmp/{self._started}", work)

    async def evict(self, key: str, *, but: Connection) -> bool:
        """End another connection that publishes with `key`, if it is silent; False when there is none."""
        silent = [
            (one, one.task)
            for one in self._connections
            if one is not but and one.key == key and one.silent_s > self.settings.silent_after_s
        ]
        tasks = {task for _, task in silent if task is not None and not task.done()}
        for one, _ in silent:
            one.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=EVICT_S)
        return bool(tasks)

    async def stop(self, grace_s: float) -> None:
        """Let those go who are being told why, then all; returns when nobody is left."""
        for connection in tuple(self._connections):
            if connection.idle:
                connection.abort()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._deserted.wait()
        for connection in tuple(self._connections):
            connection.abort()
        await self._deserted.wait()


def _failed(_: str, error: Exception) -> None:
    report_bug("rtmp", error)


def _tls(settings: IngestSettings) -> ssl.SSLContext | None:
    """What makes the port one of RTMPS. Raises OSError when the files are of no use."""
    if not settings.rtmp_tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.rtmp_tls_cert, settings.rtmp_tls_key or None)
    return context


@asynccontextmanager
async def serve_rtmp(publishing: Publishing, settings: IngestSettings) -> AsyncIterator[int]:
    """Serve until the block ends; yields the bound port. Raises OSError when it is taken."""
    tls = _tls(settings)
    bound = socket.create_server(host_port(settings.rtmp_listen), backlog=BACKLOG)
    async with Bulkhead(_failed) as tasks:
        server = RtmpServer(publishing, settings, tasks)
        listener = await asyncio.get_running_loop().create_server(
            lambda: Connection(server),
            sock=bound,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=ASK_S if tls else None,
        )
        try:
            yield bound.getsockname()[1]
        finally:
            listener.close()
            await server.stop(settings.shutdown_grace_s)
