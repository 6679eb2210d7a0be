"""A played NATS: a server that can die, freeze and be cut off, and keeps what it stored.

The rules it keeps are those that were measured: a write that timed out may have been stored, also later; a
watcher goes silent with the connection that it was made on; an expired key leaves a marker; an ack that does
not come brings the message again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Final

import nats.errors
import nats.js.errors
from nats.js.kv import KV_MARKER_REASON, KV_OP

from tests.sim.clock import wall_s
from tests.sim.weather import Weather

if TYPE_CHECKING:
    from tests.sim.nats_client import Client, Watcher

NOTICE_S: Final = 0.1
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
MESSAGE_ID: Final = "Nats-Msg-Id"
ACK_WAIT_S: Final = 30.0
DUPLICATES_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message."""

    seq: int
    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def gone(self) -> bool:
        return KV_OP in self.headers or KV_MARKER_REASON in self.headers


@dataclass(frozen=True, slots=True)
class Ack:
    """What a publish into a stream is answered with."""

    seq: int


@dataclass(frozen=True, slots=True)
class Info:
    """What there is to know of a stream."""

    created: datetime
    state: State


@dataclass(frozen=True, slots=True)
class State:
    """What is in it."""

    last_seq: int


class Stored:
    """A stream: every message of it, and of each subject the newest."""

    def __init__(self, name: str, subjects: tuple[str, ...], markers_s: float = 0.0) -> None:
        self.name = name
        self.subjects = subjects
        self.markers_s = markers_s
        self.created = datetime.fromtimestamp(wall_s(), UTC)
        self.seq = 0
        self.newest: dict[str, Message] = {}
        self.log: list[Message] = []
        self.watchers: list[Watcher] = []
        self.consumers: dict[str, Consumer] = {}
        self._ids: dict[str, tuple[int, float]] = {}

    @property
    def info(self) -> Info:
        return Info(self.created, State(self.seq))

    @property
    def keyed(self) -> bool:
        return self.name.startswith("KV_")

    def known(self, message_id: str, now_s: float) -> int | None:
        """The sequence under which this id was stored not long ago."""
        seq, until_s = self._ids.get(message_id, (0, 0.0))
        return seq if until_s > now_s else None

    def add(self, subject: str, data: bytes, headers: Mapping[str, str], now_s: float) -> Message:
        self.seq += 1
        message = self.newest[subject] = Message(self.seq, subject, data, headers)
        if MESSAGE_ID in headers:
            self._ids[headers[MESSAGE_ID]] = (self.seq, now_s + DUPLICATES_S)
        if not self.keyed:
            self.log.append(message)
            for consumer in self.consumers.values():
                consumer.wake()
        return message


class Consumer:
    """A durable's place in a stream; what is not acked in time comes again."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._next = 0
        self._unacked: dict[int, float] = {}  # by sequence, when it comes again
        self._again: list[int] = []
        self._waiters: list[asyncio.Future[None]] = []

    def wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def news(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def take(self, batch: int) -> list[Message]:
        now_s = asyncio.get_running_loop().time()
        for seq in [seq for seq, at_s in self._unacked.items() if at_s <= now_s]:
            del self._unacked[seq]
            heapq.heappush(self._again, seq)
        found: list[Message] = []
        while self._again and len(found) < batch:
            found.append(self._stored.log[heapq.heappop(self._again) - 1])
        while self._next < len(self._stored.log) and len(found) < batch:
            found.append(self._stored.log[self._next])
            self._next += 1
        self._unacked.update((message.seq, now_s + ACK_WAIT_S) for message in found)
        return found

    def ack(self, seq: int) -> None:
        self._unacked.pop(seq, None)

    def nak(self, seq: int, delay_s: float) -> None:
        if seq in self._unacked:
            self._unacked[seq] = asyncio.get_running_loop().time() + delay_s

    @property
    def settled(self) -> bool:
        return not self._unacked and not self._again and self._next == len(self._stored.log)


class Broker:
    """The server. What it stores survives its death; what was on the wire does not."""

    def __init__(self, weather: Weather, random: Random) -> None:
        self.up = True
        self.frozen = False
        self.streams: dict[str, Stored] = {}
        self.clients: list[Client] = []
        self.cut: set[str] = set()  # names of processes that it cannot be reached from
        self.written: Callable[[str, str, Message], None] = lambda bucket, key, message: None
        self.stored: Callable[[Message], None] = lambda message: None
        self.weather = weather
        self.random = random
        self._parked: deque[Callable[[], None]] = deque()

    # --- what happens to it

    def die(self) -> None:
        self.up = False
        self._parked.clear()

    def restart(self) -> None:
        self.up = True

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        """What was sent meanwhile is done now, though nobody waits for it any more."""
        self.frozen = False
        while self._parked and not self.frozen:
            self._parked.popleft()()

    async def watch_links(self) -> None:
        """Let clients notice what became of their connections: for ever."""
        while True:
            await asyncio.sleep(NOTICE_S)
            self.clients = [client for client in self.clients if not client.process.dead]
            for client in self.clients:
                client.look()

    def reachable(self, client: Client) -> bool:
        return self.up and not self.frozen and client.process.name not in self.cut

    def connected(self, name: str, for_s: float) -> bool:
        """Whether that process's connection was sound for so long."""
        now_s = asyncio.get_running_loop().time()
        return any(
            client.is_connected and self.reachable(client) and now_s - client.since_s >= for_s
            for client in self.clients
            if client.process.name == name
        )

    # --- what it is asked

    def take(self, operation: Callable[[], None]) -> None:
        if not self.up:
            return
        if self.frozen:
            self._parked.append(operation)
        else:
            operation()

    def stream_of(self, subject: str) -> Stored:
        for stored in self.streams.values():
            if any(matches(pattern, subject) for pattern in stored.subjects):
                return stored
        raise nats.js.errors.NoStreamResponseError

    def store(self, subject: str, data: bytes, headers: Mapping[str, str], ttl_s: float | None) -> Ack:
        stored = self.stream_of(subject)
        now_s = asyncio.get_running_loop().time()
        known = stored.known(headers[MESSAGE_ID], now_s) if MESSAGE_ID in headers else None
        if known is not None:
            return Ack(known)
        before = stored.newest.get(subject)
        if EXPECTED in headers and int(headers[EXPECTED]) != (before.seq if before else 0):
            raise nats.js.errors.APIError(code=400, err_code=10071, description="wrong last sequence")
        kept = {name: value for name, value in headers.items() if name != EXPECTED}
        message = stored.add(subject, data, kept, now_s)
        if ttl_s:
            self._later(ttl_s, lambda: self._expire(stored, message))
        self._tell(stored, message)
        return Ack(message.seq)

    def _later(self, after_s: float, what: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(after_s, self._when_up, what)

    def _when_up(self, what: Callable[[], None]) -> None:
        if self.up and not self.frozen:
            what()
        else:
            self._later(NOTICE_S, what)

    def _expire(self, stored: Stored, message: Message) -> None:
        subject = message.subject
        if stored.newest.get(subject) is not message:
            return
        if message.gone:
            del stored.newest[subject]
            return
        marker = stored.add(subject, b"", {KV_MARKER_REASON: "MaxAge"}, asyncio.get_running_loop().time())
        self._tell(stored, marker)
        if stored.markers_s:
            self._later(stored.markers_s, lambda: self._expire(stored, marker))

    def _tell(self, stored: Stored, message: Message) -> None:
        if not stored.keyed:
            self.stored(message)
            self.route(message.subject, message.data, message.headers)
            return
        _, bucket, key = message.subject.split(".", 2)
        self.written(bucket, key, message)
        stored.watchers = [watcher for watcher in stored.watchers if not watcher.over]
        for watcher in stored.watchers:
            watcher.hear(message)

    def route(self, subject: str, data: bytes, headers: Mapping[str, str]) -> None:
        for client in self.clients:
            client.hear(subject, data, headers)


def matches(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    for place, token in enumerate(wanted):
        if token == ">":
            return len(given) > place
        if place >= len(given) or token not in {"*", given[place]}:
            return False
    return len(wanted) == len(given)
