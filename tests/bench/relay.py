"""How long a chunk is in our trickle server and what a stream costs it, beside a plain aiohttp relay.

The server has a core of its own. Publishers and subscribers are two processes on the other cores, synchronous
and on raw sockets, so that they stay far from busy; how late they were is a figure too.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import select
import socket
import struct
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final

import psutil
from aiohttp import web

from services.common import lifecycle
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from tests.bench.figures import Figure, percentile, show

STREAMS: Final = 100
CHUNKS_PER_S: Final = 30  # one picture each
CHUNK_BYTES: Final = 1_000_000 // 8 // CHUNKS_PER_S  # 1 Mbit/s
CHUNKS_PER_SEGMENT: Final = CHUNKS_PER_S  # 1 s
ROUNDS: Final = 2  # of each server, in turn: a neighbour that is busy for a while meets both
WARM_UP_S: Final = 3.0
MEASURED_S: Final = 9.0
TAIL_S: Final = 0.5  # published beyond the measurement, so that its last chunk is no special case
ANSWER_S: Final = 10.0  # for anything that one process waits for from another
LATE_MS_P50: Final = 2.0  # a generator that is later than this most of the time did not offer the load
STAMP: Final = struct.Struct(
    "!IQ"
)  # the chunk's number in its stream, CLOCK_MONOTONIC in ns when it was sent
FILL: Final = bytes(CHUNK_BYTES - STAMP.size)
HEAD_END: Final = b"\r\n\r\n"
BODY_END: Final = b"0\r\n\r\n"


# --- the servers


async def serve_ours(tell: Connection) -> None:
    """The platform's relay, as ingest serves it."""
    registry = Registry(max_channels=STREAMS)
    for stream in range(STREAMS):
        registry.open(str(stream), read_alias=str(stream), write_alias=str(stream))
    async with serve_trickle(trickle_app(registry), "127.0.0.1:0", 1.0) as port:
        tell.send(port)
        await lifecycle.until_terminated()


@dataclass(slots=True)
class PlainSegment:
    """What the plain relay keeps of a segment."""

    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.grown.set()
        self.grown.clear()


class PlainRelay:
    """The same protocol's two requests, the obvious way: no limits, no errors, no end of a channel."""

    def __init__(self) -> None:
        self._segments: dict[tuple[str, int], PlainSegment] = {}

    def _segment(self, request: web.Request) -> PlainSegment:
        name, index = request.match_info["name"], int(request.match_info["index"])
        self._segments.pop((name, index - 5), None)
        return self._segments.setdefault((name, index), PlainSegment())

    async def post(self, request: web.Request) -> web.Response:
        segment = self._segment(request)
        async for data in request.content.iter_any():
            segment.chunks.append(data)
            segment.wake()
        segment.ended = True
        segment.wake()
        return web.Response()

    async def get(self, request: web.Request) -> web.StreamResponse:
        segment = self._segment(request)
        response = web.StreamResponse()
        position = 0
        while True:
            while position < len(segment.chunks):
                if not response.prepared:
                    await response.prepare(request)
                await response.write(segment.chunks[position])
                position += 1
            if segment.ended:
                return response
            await segment.grown.wait()


@asynccontextmanager
async def plain_relay() -> AsyncIterator[int]:
    """Serve it until the block ends; yields the bound port."""
    relay = PlainRelay()
    app = web.Application()
    app.router.add_post("/{name}/{index}", relay.post)
    app.router.add_get("/{name}/{index}", relay.get)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def serve_plain(tell: Connection) -> None:
    async with plain_relay() as port:
        tell.send(port)
        await lifecycle.until_terminated()


class Server(Enum):
    OURS = "ours"
    PLAIN = "plain"


def serve(server: Server, core: int, tell: Connection) -> None:
    """Be a server, on one core, until terminated."""
    os.sched_setaffinity(0, {core})
    lifecycle.run((serve_ours if server is Server.OURS else serve_plain)(tell))


# --- the load


@dataclass(frozen=True, slots=True)
class Plan:
    """When a round does what, on CLOCK_MONOTONIC, in ns."""

    start: int
    measure: int
    end: int

    @classmethod
    def from_now(cls) -> Plan:
        start = time.monotonic_ns() + 200_000_000
        measure = start + round(WARM_UP_S * 1e9)
        return cls(start, measure, measure + round(MEASURED_S * 1e9))


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Publisher:
    """Writes one stream over two connections: the next POST is parked while this segment's body flows."""

    def __init__(self, port: int, stream: int) -> None:
        self._stream = stream
        self._connections = (connect(port), connect(port))
        self._park(0)
        self._park(1)

    def _park(self, segment: int) -> None:
        self._connections[segment % 2].sendall(
            f"POST /{self._stream}/{segment} HTTP/1.1\r\nHost: relay\r\nContent-Type: video/MP2T\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )

    def send(self, number: int) -> int:
        """Write the chunk with this number in the stream; returns its stamp."""
        segment, position = divmod(number, CHUNKS_PER_SEGMENT)
        current, other = self._connections[segment % 2], self._connections[1 - segment % 2]
        if position == 0 and segment > 0:
            other.sendall(BODY_END)
        if position == 1 and segment > 0:
            answer = b""
            while not answer.endswith(HEAD_END):
                answer += other.recv(4096) or b" closed" + HEAD_END
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            self._park(segment + 1)
        now = time.monotonic_ns()
        current.sendall(b"%x\r\n%b%b\r\n" % (CHUNK_BYTES, STAMP.pack(number, now), FILL))
        return now


@dataclass(frozen=True, slots=True)
class Published:
    sent: int  # in the measured time
    late_ms: Sequence[float]


def publish(port: int, cores: Sequence[int], parent: Connection) -> None:
    """Be all publishers: each at its own phase, like cameras that know nothing of each other."""
    os.sched_setaffinity(0, cores)
    gc.disable()  # nothing here makes cycles, and a collection would be our own lateness
    publishers = [Publisher(port, stream) for stream in range(STREAMS)]
    parent.send(None)
    plan: Plan = parent.recv()
    dice = random.Random(7)
    tick_ns = 1_000_000_000 // CHUNKS_PER_S
    order = sorted((dice.randrange(tick_ns), stream) for stream in range(STREAMS))
    first_tick = [dice.randrange(CHUNKS_PER_SEGMENT) for _ in range(STREAMS)]  # spreads the segments' edges
    sent, late_ms, tick, last = 0, array("d"), 0, plan.end + round(TAIL_S * 1e9)
    while plan.start + tick * tick_ns < last:
        for phase, stream in order:
            if tick < first_tick[stream]:
                continue
            due = plan.start + tick * tick_ns + phase
            wait = due - time.monotonic_ns()
            if wait > 0:
                time.sleep(wait * 1e-9)
            stamp = publishers[stream].send(tick - first_tick[stream])
            if plan.measure <= stamp < plan.end:
                sent += 1
                late_ms.append((stamp - due) * 1e-6)
        tick += 1
    parent.send(Published(sent, late_ms))


class Arrivals:
    """The stamps in one connection's responses, whatever the pieces in which their bytes arrive."""

    def __init__(self) -> None:
        self._raw = bytearray()
        self._body = bytearray()
        self._inside = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int] | None]:
        """Yield the number and stamp of each whole chunk, and None where a response ends."""
        self._raw += data
        while True:
            end = self._raw.find(b"\r\n" if self._inside else HEAD_END)
            if end < 0:
                return
            if not self._inside:
                assert self._raw.startswith(b"HTTP/1.1 200 "), bytes(self._raw[:end])
                self._inside = True
                del self._raw[: end + len(HEAD_END)]
                continue
            size = int(self._raw[:end], 16)
            beyond = end + 2 + size + 2
            if len(self._raw) < beyond:
                return
            self._body += self._raw[end + 2 : beyond - 2]
            del self._raw[:beyond]
            while len(self._body) >= CHUNK_BYTES:
                yield STAMP.unpack_from(self._body)
                del self._body[:CHUNK_BYTES]
            if size == 0:
                self._inside = False
                yield None


class Subscriber:
    """Reads one stream over two connections: when a segment begins, the next one's GET is parked."""

    def __init__(self, port: int, stream: int) -> None:
        self._stream = stream
        self.connections = (connect(port), connect(port))
        self._arrivals = (Arrivals(), Arrivals())
        self._idle = [True, True]
        self._expected = [0, 0]  # the next chunk on each connection
        self._next = 0  # the next segment to ask for
        self._begun = 0  # the newest segment of which something came
        self._ask()
        self._ask()

    def _ask(self) -> None:
        """Park the next GET, if it is time and its connection is free."""
        which = self._next % 2
        if self._next <= self._begun + 1 and self._idle[which]:
            self._idle[which] = False
            self._expected[which] = self._next * CHUNKS_PER_SEGMENT
            path = f"/{self._stream}/{self._next}"
            self.connections[which].sendall(f"GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())
            self._next += 1

    def receive(self, which: int) -> Iterator[int]:
        """Yield the stamp of each chunk that has come; none may be missing."""
        data = self.connections[which].recv(65536)
        assert data, "the server hung up"
        for arrival in self._arrivals[which].feed(data):
            if arrival is None:
                self._idle[which] = True
            else:
                number, stamp = arrival
                assert number == self._expected[which], (number, self._expected)
                self._expected[which] += 1
                self._begun = max(self._begun, number // CHUNKS_PER_SEGMENT)
                yield stamp
            self._ask()


def subscribe(port: int, cores: Sequence[int], parent: Connection) -> None:
    """Be all subscribers; answer with the latency in ms of each chunk sent in the measured time."""
    os.sched_setaffinity(0, cores)
    gc.disable()
    subscribers = [Subscriber(port, stream) for stream in range(STREAMS)]
    by_socket = {
        connection.fileno(): (subscriber, which)
        for subscriber in subscribers
        for which, connection in enumerate(subscriber.connections)
    }
    with select.epoll() as readable:
        for fileno in by_socket:
            readable.register(fileno, select.EPOLLIN)
        parent.send(None)
        plan: Plan = parent.recv()
        latency_ms = array("d")
        last = plan.end + round(2 * TAIL_S * 1e9)  # a reader that left before its writer would be an error
        while time.monotonic_ns() < last:
            for fileno, _ in readable.poll(0.1):
                subscriber, which = by_socket[fileno]
                for stamp in subscriber.receive(which):
                    if plan.measure <= stamp < plan.end:
                        latency_ms.append((time.monotonic_ns() - stamp) * 1e-6)
    parent.send(latency_ms)


# --- one round


@dataclass(slots=True)
class Measured:
    """What the rounds of one server gave."""

    latency_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0
    rss_mb: float = 0.0  # the most that it held

    @property
    def cpu_percent_per_stream(self) -> float:
        return self.cpu_s / self.wall_s * 100 / STREAMS


@contextmanager
def child(target: Callable[[Connection], None]) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run `target` in a process of its own, with one end of a pipe, until the block ends."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there,))
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.terminate()
        process.join(ANSWER_S)


def heard(pipe: Connection, within_s: float = ANSWER_S) -> Any:
    """What the other process said. Raises EOFError when it died without a word."""
    assert pipe.poll(within_s), f"no word from a child within {within_s:g} s"
    return pipe.recv()


def busy_s(core: int) -> float:
    """How long a core has worked, for anybody."""
    times = psutil.cpu_times(percpu=True)[core]
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def sleep_until(moment_ns: int) -> None:
    time.sleep(max(0.0, (moment_ns - time.monotonic_ns()) * 1e-9))


def measure(server: Server, core: int, others: Sequence[int], into: Measured) -> None:
    """One round: a fresh server under the whole load."""
    with (
        child(partial(serve, server, core)) as (process, relay),
        child(partial(subscribe, port := heard(relay), others)) as (_, subscribers),
    ):
        heard(subscribers)
        with child(partial(publish, port, others)) as (_, publishers):
            heard(publishers)
            plan = Plan.from_now()
            publishers.send(plan)
            subscribers.send(plan)
            watched = psutil.Process(process.pid)
            sleep_until(plan.measure)
            before_s, core_before_s = cpu_s(watched), busy_s(core)
            sleep_until(plan.end)
            used_s, core_s = cpu_s(watched) - before_s, busy_s(core) - core_before_s
            rss_mb = watched.memory_info().rss / 1e6
            published: Published = heard(publishers)
            latency_ms: Sequence[float] = heard(subscribers)
    if len(latency_ms) != published.sent:
        raise SystemExit(f"{server.value}: {published.sent} chunks went in and {len(latency_ms)} came out")
    into.latency_ms += latency_ms
    into.late_ms += published.late_ms
    into.cpu_s += used_s
    into.wall_s += MEASURED_S
    into.rss_mb = max(into.rss_mb, rss_mb)
    sys.stderr.write(
        f"{server.value:>6}: {published.sent} chunks, p50 {percentile(latency_ms, 50):.3f} ms, "
        f"p99 {percentile(latency_ms, 99):.3f} ms, "
        f"{used_s / MEASURED_S * 100 / STREAMS:.3f} % of a core a stream, {rss_mb:.0f} MB; "
        f"the generator was {percentile(published.late_ms, 99):.2f} ms late (p99), "
        f"others took {max(0.0, core_s - used_s) / MEASURED_S:.0%} of the server's core\n"
    )


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    others = cores[1:] or cores
    if len(cores) == 1:
        sys.stderr.write("one core: the load and the server share it, and both look slower than they are\n")
    measured = {server: Measured() for server in Server}
    for _ in range(ROUNDS):
        for server, into in measured.items():
            measure(server, cores[0], others, into)
    ours, plain = measured[Server.OURS], measured[Server.PLAIN]
    late_ms = max(percentile(each.late_ms, 50) for each in measured.values())
    if late_ms > LATE_MS_P50:
        raise SystemExit(f"the generator was {late_ms:.1f} ms late (p50): no figures from a machine so busy")
    show(
        [
            Figure("relay", name, value(ours), unit, value(plain))
            for name, unit, value in (
                ("p50_ms", "ms", lambda each: percentile(each.latency_ms, 50)),
                ("p99_ms", "ms", lambda each: percentile(each.latency_ms, 99)),
                ("cpu_percent_per_stream", "% of a core", lambda each: each.cpu_percent_per_stream),
                ("rss_mb", "MB", lambda each: each.rss_mb),
                ("generator_late_ms_p99", "ms", lambda each: percentile(each.late_ms, 99)),
            )
        ]
    )


if __name__ == "__main__":
    main()
