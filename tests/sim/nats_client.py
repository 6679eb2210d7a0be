"""NATS as production code meets it: as much of nats-py as the bus uses, on the played server.

The rule it keeps: what the real client does when a connection breaks, it does too, with all that gets lost,
comes late or goes stale thereby.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import nats.errors
import nats.js.errors
from nats.js.api import ConsumerConfig, ConsumerInfo, SequenceInfo
from nats.js.kv import KV_DEL, KV_OP

from tests.sim.broker import (
    EXPECTED,
    NOTICE_S,
    Ack,
    Broker,
    Consumer,
    Info,
    Message,
    Stored,
    matches,
)
from tests.sim.clock import PROCESS, Process

T = TypeVar("T")

PINGS_S: Final = 2.5  # two pings of 1 Hz without an answer
RETRY_S: Final = 0.25


class Received:
    """A message as a subscriber or a consumer gets it."""

    def __init__(
        self, client: Client, message: Message, consumer: Consumer | None = None, *, pending: int = 0
    ) -> None:
        self.reply = f"$JS.ACK.stream.consumer.1.{message.seq}.1.0.{pending}"
        self.subject = message.subject
        self.data = message.data
        self.headers = dict(message.headers)
        self.seq = message.seq
        self._client = client
        self._consumer = consumer

    async def ack(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        self._client.send(lambda: consumer.ack(self.seq))

    async def nak(self, delay: float = 0.0) -> None:
        consumer = self._consumer
        assert consumer is not None
        self._client.send(lambda: consumer.nak(self.seq, delay))


class Mailbox:
    """What was delivered and not read yet; made in the process that reads it."""

    def __init__(self) -> None:
        self._items: deque[Any] = deque()
        self._ready = asyncio.Event()

    def put(self, item: object) -> None:
        self._items.append(item)
        self._ready.set()

    def __aiter__(self) -> Mailbox:
        return self

    async def __anext__(self) -> Any:
        while not self._items:
            self._ready.clear()
            await self._ready.wait()
        return self._items.popleft()


class Subscription:
    """Of a core subject; the client makes it again with every connection."""

    def __init__(self, client: Client, pattern: str, cb: Callable[[Received], Awaitable[None]]) -> None:
        self.pattern = pattern
        self._client = client
        self._messages = Mailbox()
        self._calling = asyncio.ensure_future(self._call(cb))

    def hear(self, message: Received) -> None:
        self._messages.put(message)

    async def _call(self, cb: Callable[[Received], Awaitable[None]]) -> None:
        async for message in self._messages:
            await cb(message)

    async def unsubscribe(self) -> None:
        if self in self._client.subscriptions:
            self._client.subscriptions.remove(self)
        self._calling.cancel()


class Watcher:
    """An ordered consumer of a bucket; it hears nothing after its connection broke."""

    def __init__(self, client: Client, cb: Callable[[Received], Awaitable[None]]) -> None:
        self.over = False
        self.told = 0
        self._client = client
        self._connection = client.connections
        self._messages = Mailbox()
        self._at_s = 0.0
        self._calling = asyncio.ensure_future(self._call(cb))

    def hear(self, message: Message, pending: int = 0) -> None:
        """`pending` are to come of what is there already."""
        self.told += 1
        client = self._client
        if self._connection != client.connections or not client.is_connected:
            client.broker.weather.sometimes("a watcher went stale")
            self.over = True
            return
        loop = asyncio.get_running_loop()
        at_s = loop.time() + client.delay_s() + client.broker.weather.watch_lag_s(client.process.name)
        self._at_s = max(self._at_s, at_s)
        received = Received(client, message, pending=pending)
        client.process.call(self._messages.put, received, after_s=self._at_s - loop.time())

    async def _call(self, cb: Callable[[Received], Awaitable[None]]) -> None:
        async for message in self._messages:
            await cb(message)

    async def consumer_info(self) -> ConsumerInfo:
        return ConsumerInfo(
            "consumer",
            "stream",
            ConsumerConfig(),
            datetime.now(UTC),
            SequenceInfo(self.told, 0),
            num_pending=0,
        )

    async def unsubscribe(self) -> None:
        self.over = True
        self._calling.cancel()


class Client:
    """As much of nats-py's client as the bus uses. It reconnects for ever."""

    def __init__(
        self,
        broker: Broker,
        process: Process,
        *,
        disconnected_cb: Callable[[], Awaitable[None]],
        reconnected_cb: Callable[[], Awaitable[None]],
    ) -> None:
        self.broker = broker
        self.process = process
        self.is_connected = True
        self.connections = 1
        self.since_s = asyncio.get_running_loop().time()
        self.subscriptions: list[Subscription] = []
        self._disconnected_cb = disconnected_cb
        self._reconnected_cb = reconnected_cb
        self._silent_since_s: float | None = None
        self._again_s: float | None = None
        self._closed = False
        self._buffered: list[Callable[[], None]] = []
        broker.clients.append(self)

    def delay_s(self) -> float:
        return self.broker.weather.hop_s()

    # --- its connection

    def look(self) -> None:
        """What its pings and its socket tell it, a tenth of a second later."""
        now_s = asyncio.get_running_loop().time()
        if self._closed:
            return
        if self.broker.reachable(self):
            self._silent_since_s = None
            if not self.is_connected:
                if self._again_s is None:
                    self._again_s = now_s + RETRY_S * self.broker.random.uniform(0.5, 3.0)
                elif now_s >= self._again_s:
                    self.process.call(self._came_back)
            return
        self._again_s = None
        if not self.is_connected:
            return
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        if not self.broker.up or now_s - self._silent_since_s >= PINGS_S:
            self.process.call(self._went_down)

    def _went_down(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self.broker.weather.sometimes("a connection to NATS broke")
            self.process.start(_awaited(self._disconnected_cb()), "disconnected")

    def _came_back(self) -> None:
        if self.is_connected or not self.broker.reachable(self):
            return
        self.is_connected = True
        self.connections += 1
        self.since_s = asyncio.get_running_loop().time()
        buffered, self._buffered = self._buffered, []
        for operation in buffered:
            self._transmit(operation)
        self.process.start(_awaited(self._reconnected_cb()), "reconnected")

    async def close(self) -> None:
        self._closed = True
        self.is_connected = False
        if self in self.broker.clients:
            self.broker.clients.remove(self)

    # --- messages

    def send(self, operation: Callable[[], None]) -> None:
        """Have it done at the server, if the message gets there."""
        if self.process.dead or self._closed:
            return
        if self.is_connected:
            self._transmit(operation)
        else:
            self._buffered.append(operation)

    def _transmit(self, operation: Callable[[], None]) -> None:
        connection = self.connections
        asyncio.get_running_loop().call_later(self.delay_s(), self._arrive, connection, operation)

    def _arrive(self, connection: int, operation: Callable[[], None]) -> None:
        if connection != self.connections or not self.is_connected:
            return  # it was in the buffers of a connection that broke
        if self.process.name in self.broker.cut:  # TCP tries again until the client gives up
            asyncio.get_running_loop().call_later(NOTICE_S, self._arrive, connection, operation)
        else:
            self.broker.take(operation)

    async def request(self, operation: Callable[[], T], timeout_s: float) -> T:
        """Ask the server. A time-out says nothing about what was done."""
        if self.process.dead:
            raise nats.errors.ConnectionClosedError
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        connection = self.connections

        def reply(settle: Callable[[], None]) -> None:
            if not answer.done():
                settle()

        def respond(settle: Callable[[], None]) -> None:
            lost = self.broker.weather.loses_answer() or self.process.name in self.broker.cut
            if lost or connection != self.connections:
                self.broker.weather.sometimes("NATS did it and the answer was lost")
                return
            self.process.call(reply, settle, after_s=self.delay_s())

        def at_the_server() -> None:
            try:
                result = operation()
            except nats.errors.Error as error:
                failure = error
                respond(lambda: answer.set_exception(failure))
            else:
                respond(lambda: answer.set_result(result))

        if not self.broker.weather.loses_request():
            self.send(at_the_server)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise nats.errors.TimeoutError from None

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send(lambda: self.broker.route(subject, payload, headers or {}))

    async def subscribe(self, subject: str, cb: Callable[[Received], Awaitable[None]]) -> Subscription:
        subscription = Subscription(self, subject, cb)
        self.subscriptions.append(subscription)
        return subscription

    def hear(self, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        for subscription in self.subscriptions:
            if matches(subscription.pattern, subject):
                connection = self.connections
                self.process.call(
                    self._deliver,
                    connection,
                    subscription,
                    Message(0, subject, data, headers),
                    after_s=self.delay_s(),
                )

    def _deliver(self, connection: int, subscription: Subscription, message: Message) -> None:
        cut = self.process.name in self.broker.cut
        if connection == self.connections and self.is_connected and not cut:
            subscription.hear(Received(self, message))

    def jetstream(self, timeout: float) -> JetStream:
        return JetStream(self, timeout)


async def _awaited(work: Awaitable[None]) -> None:
    await work


class JetStream:
    """Streams and buckets, as nats-py offers them."""

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._broker = client.broker
        self.timeout_s = timeout_s

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        msg_ttl: float | None = None,
    ) -> Ack:
        return await self._client.request(
            lambda: self._broker.store(subject, payload, headers or {}, msg_ttl), timeout or self.timeout_s
        )

    async def get_last_msg(self, stream: str, subject: str) -> Message:
        def look() -> Message:
            stored = self._stream(stream)
            if subject not in stored.newest:
                raise nats.js.errors.NotFoundError(code=404, err_code=10037, description="no message found")
            return stored.newest[subject]

        return await self._client.request(look, self.timeout_s)

    def _stream(self, name: str) -> Stored:
        if name not in self._broker.streams:
            raise nats.js.errors.NotFoundError(code=404, err_code=10059, description="stream not found")
        return self._broker.streams[name]

    async def stream_info(self, name: str) -> Info:
        return await self._client.request(lambda: self._stream(name).info, self.timeout_s)

    async def add_stream(self, config: Any) -> None:
        def add() -> None:
            self._broker.streams.setdefault(config.name, Stored(config.name, tuple(config.subjects)))

        await self._client.request(add, self.timeout_s)

    async def create_key_value(self, config: Any) -> KeyValue:
        name = f"KV_{config.bucket}"

        def add() -> None:
            subjects = (f"$KV.{config.bucket}.>",)
            self._broker.streams.setdefault(name, Stored(name, subjects, config.limit_marker_ttl or 0.0))

        await self._client.request(add, self.timeout_s)
        return KeyValue(self._client, self, config.bucket)

    async def subscribe(
        self, _: str, *, stream: str, cb: Callable[[Received], Awaitable[None]], **__: object
    ) -> Watcher:
        watcher = Watcher(self._client, cb)

        def begin() -> None:
            stored = self._stream(stream)
            there = sorted(stored.newest.values(), key=lambda message: message.seq)
            for number, message in enumerate(there, 1):
                watcher.hear(message, len(there) - number)
            stored.watchers.append(watcher)

        try:
            await self._client.request(begin, self.timeout_s)
        except nats.errors.Error:
            await watcher.unsubscribe()
            raise
        return watcher

    async def pull_subscribe(self, subject: str, durable: str, *, stream: str, config: Any) -> Pull:
        def add() -> Consumer:
            stored = self._stream(stream)
            return stored.consumers.setdefault(durable, Consumer(stored))

        return Pull(self._client, await self._client.request(add, self.timeout_s), self.timeout_s)


class Pull:
    """A consumer that asks for its messages."""

    def __init__(self, client: Client, consumer: Consumer, timeout_s: float) -> None:
        self._client = client
        self._consumer = consumer
        self._timeout_s = timeout_s

    async def fetch(self, batch: int, timeout: float) -> list[Received]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + timeout
        while True:
            news = self._consumer.news()
            found = await self._client.request(lambda: self._consumer.take(batch), self._timeout_s)
            if found:
                return [Received(self._client, message, self._consumer) for message in found]
            try:
                async with asyncio.timeout_at(until_s):
                    await news
            except TimeoutError:
                raise nats.errors.TimeoutError from None

    async def unsubscribe(self) -> None:
        """The durable stays where it is."""


class KeyValue:
    """A bucket, with nats-py's own habits: its `create` knows the markers of deletes, not those of expiry."""

    def __init__(self, client: Client, jetstream: JetStream, bucket: str) -> None:
        self._client = client
        self._jetstream = jetstream
        self._bucket = bucket

    async def _put(
        self, key: str, value: bytes, last: int | None, ttl_s: float | None = None, operation: str = ""
    ) -> int:
        headers = {EXPECTED: str(last)} if last is not None else {}
        if operation:
            headers[KV_OP] = operation
        try:
            ack = await self._jetstream.publish(f"$KV.{self._bucket}.{key}", value, headers, msg_ttl=ttl_s)
        except nats.js.errors.APIError as error:
            if error.err_code == 10071:
                raise nats.js.errors.KeyWrongLastSequenceError(description=error.description) from error
            raise
        return ack.seq

    async def create(self, key: str, value: bytes, msg_ttl: float | None = None) -> int:
        try:
            return await self._put(key, value, 0, msg_ttl)
        except nats.js.errors.KeyWrongLastSequenceError:
            newest = await self._jetstream.get_last_msg(f"KV_{self._bucket}", f"$KV.{self._bucket}.{key}")
            if KV_OP not in newest.headers:
                raise
            return await self._put(key, value, newest.seq, msg_ttl)

    async def update(self, key: str, value: bytes, last: int | None = None) -> int:
        return await self._put(key, value, last or 0)

    async def delete(self, key: str, last: int | None = None) -> bool:
        await self._put(key, b"", last or None, operation=KV_DEL)
        return True


def connector(broker: Broker) -> Callable[..., Awaitable[Client]]:
    """`nats.connect`, for the process that calls it."""

    async def connect(_: str, **options: Any) -> Client:
        process = PROCESS.get()
        assert process is not None, "who connects is a process"
        while not (broker.up and not broker.frozen and process.name not in broker.cut):
            await asyncio.sleep(RETRY_S)
        return Client(
            broker,
            process,
            disconnected_cb=options["disconnected_cb"],
            reconnected_cb=options["reconnected_cb"],
        )

    return connect
