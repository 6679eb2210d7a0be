"""The real server against the specification in plain Python, whatever clients do and in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from tests.contract.trickle.model import Expected, Model
from tests.contract.trickle.wire import Answer, Connection, Served, ask, connect, metric, serving, until

LIMITS = ChannelLimits(
    depth=3, segments=3, segment_bytes=40, channel_bytes=90, writers=4, readers=50, idle_s=30.0
)
T = TypeVar("T")


@dataclass
class Client:
    """One connection with one request, and the path's index."""

    connection: Connection
    index: int
    head: Answer | None = None
    body: bytes = b""


class Relay(RuleBasedStateMachine):
    """Each rule is something that a client, the owner or time does; then whoever is owed an answer has it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.stack = AsyncExitStack()
        self.clients: dict[int, Client] = {}
        self.numbers = 0

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(10):
                return await work

        return self.runner.run(bounded())

    @initialize()
    def start(self) -> None:
        self.served: Served = self.run(self.stack.enter_async_context(serving(linger_s=1000.0)))
        self.open()

    def open(self) -> None:
        async def opened() -> Channel:
            return self.served.open(limits=LIMITS).channel

        self.channel = self.run(opened())
        self.model = Model(LIMITS)

    def teardown(self) -> None:
        async def leave() -> None:
            for client in self.clients.values():
                client.connection.kill()
            await until(lambda: metric("sluice_trickle_connections") == 0)
            await self.stack.aclose()
            await until(lambda: len(asyncio.all_tasks()) == 1)

        self.run(leave())
        assert metric("sluice_trickle_readers") == metric("sluice_trickle_writers") == 0
        assert not self.channel._parked
        self.runner.close()

    # --- writers

    @rule(
        requested=st.one_of(st.sampled_from([-1, 0]), st.integers(1, 5), st.integers(96, 102)),
        reset=st.booleans(),
        empty=st.booleans(),
    )
    def post(self, requested: int, reset: bool, empty: bool) -> None:
        """Indices from 96 to 102 count from the head."""
        if requested > 50:
            requested = max(self.model.head + requested - 100, 0)
        number = self._connected(requested)
        lines = [f"POST /c/{requested} HTTP/1.1", "Host: test"]
        lines += ["Lp-Trickle-Reset: 1"] if reset else []
        lines += ["Content-Length: 0" if empty else "Transfer-Encoding: chunked", "", ""]
        self.clients[number].connection.writer.write("\r\n".join(lines).encode())
        answer = self.model.post(number, requested, reset=reset)
        if answer is None and empty:
            answer = self.model.finish(number)
        self._settle(number, answer)

    @precondition(lambda self: self.model.posts)
    @rule(data=st.data(), size=st.integers(1, 30), split=st.booleans(), last=st.booleans())
    def write(self, data: st.DataObject, size: int, split: bool, last: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.posts)))
        body = bytes(number % 256 for _ in range(size))
        pieces = [bytes([byte]) for byte in body] if split else [body]
        wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        self.clients[number].connection.writer.write(wire + (b"0\r\n\r\n" if last else b""))
        answer = None
        for piece in pieces:
            answer = answer or self.model.write(number, piece)
        if last and number in self.model.posts:
            answer = self.model.finish(number)
        self._settle(number, answer)

    @rule(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4))
    def publish(self, sizes: list[int]) -> None:
        """Whole segments, as a publisher in good health sends them."""
        for size in sizes:
            number = self._connected(-1)
            body = bytes(number % 256 for _ in range(size))
            head = b"POST /c/-1 HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size
            self.clients[number].connection.writer.write(head + body)
            answer = self.model.post(number, -1, reset=False)
            if answer is None:
                answer = self.model.write(number, body) or self.model.finish(number)
            self._settle(number, answer)

    @precondition(lambda self: self.model.posts)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.posts)))
        self.clients[number].connection.end()
        self._settle(number, self.model.finish(number))

    @precondition(lambda self: self.model.posts)
    @rule(data=st.data(), how=st.sampled_from(["reset", "finished", "malformed", "in a chunk"]))
    def lose(self, data: st.DataObject, how: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.model.posts)))
        connection = self.clients[number].connection
        self.model.lose(number)
        if how == "malformed":
            connection.writer.write(b"zz\r\n")
            answer = Expected(400, {"connection": "close"}, body=b"Malformed body\n")
            self._settle(number, answer)
            return
        if how == "in a chunk":
            connection.writer.write(b"20\r\n")
        if how == "reset":
            connection.kill()
        else:
            connection.writer.close()
        del self.clients[number]
        self._settle(None, None)

    # --- readers

    @rule(
        requested=st.one_of(st.just(-1), st.just(-2), st.integers(0, 5), st.integers(96, 103)),
        method=st.sampled_from(["GET", "GET", "HEAD"]),
    )
    def get(self, requested: int, method: str) -> None:
        if requested > 50:
            requested = max(self.model.head + requested - 100, 0)
        number = self._connected(requested)
        self.clients[number].connection.request(method, f"/c/{requested}")
        self.model.get(number, requested)
        if method == "HEAD":
            self._settle_head(number)
        else:
            self._settle(None, None)

    @precondition(lambda self: self.model.parked or self.model.flowing)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted({*self.model.parked, *self.model.flowing})))
        self.clients.pop(number).connection.kill()
        self.model.parked.pop(number, None)
        if self.model.flowing.pop(number, None) is not None:
            del self.model.settled[number]
        self._settle(None, None)

    # --- the others

    @rule(index=st.integers(-2, 9))
    def delete_segment(self, index: int) -> None:
        answer = self.run(ask(self.served, "DELETE", f"/c/{index}"))
        expected = Expected(400, body=b"Invalid idx\n") if index < 0 else self.model.delete_segment(index)
        agree(answer, expected)
        self._settle(None, None)

    @rule(index=st.sampled_from([-2, -3, -(10**12)]), method=st.sampled_from(["GET", "POST", "HEAD"]))
    def ask_for_nonsense(self, index: int, method: str) -> None:
        index -= method != "POST"
        answer = self.run(ask(self.served, method, f"/c/{index}", "Content-Length: 0"))
        agree(answer, Expected(400, body=None))
        self._settle(None, None)

    @precondition(lambda self: self.model.closed or len(self.model.pieces) > 2)
    @rule(how=st.sampled_from(["deleted", "idle", "by its owner"]))
    def close(self, how: str) -> None:
        if how == "deleted":
            expected = Expected(400, body=b"Invalid stream\n") if self.model.closed else Expected(200)
            agree(self.run(ask(self.served, "DELETE", "/c")), expected)
        elif how == "idle":
            self.channel.active_at -= 31.0
            self.run(self._sweep())
        else:
            self.run(self._close())
        if not self.model.closed:
            self.model.close()
        self._settle(None, None)

    async def _sweep(self) -> None:
        self.served.registry.sweep_once()

    async def _close(self) -> None:
        self.served.registry.close("c")

    @precondition(lambda self: self.model.closed)
    @rule()
    def create_again(self) -> None:
        assert not {*self.model.parked, *self.model.flowing, *self.model.posts}
        self.open()

    @invariant()
    def the_head_is_where_the_specification_says(self) -> None:
        answer = self.run(ask(self.served, "GET", "/c/next"))
        expected = {
            "lp-trickle-latest": str(self.model.head),
            "lp-trickle-generation": str(self.model.publisher),
        }
        agree(answer, self.model._maybe_closed(Expected(200, expected)))

    @precondition(lambda self: not self.model.closed)
    @invariant()
    def what_is_kept_is_what_the_specification_keeps(self) -> None:
        kept = {index: (each.size, each.ended) for index, each in self.channel._segments.items()}
        assert kept == {index: (len(each.data), each.ended) for index, each in self.model.pieces.items()}

    @invariant()
    def memory_is_bounded_and_nobody_is_kept_who_left(self) -> None:
        kept = self.channel._segments.values()
        assert sum(segment.size for segment in kept) <= LIMITS.channel_bytes
        assert len(kept) <= LIMITS.segments + LIMITS.writers
        assert metric("sluice_trickle_writers") == len(self.model.posts)
        assert metric("sluice_trickle_readers") == len(self.model.parked) + len(self.model.flowing)

    # --- how answers are compared

    def _connected(self, index: int) -> int:
        self.numbers += 1
        connection = self.run(self.stack.enter_async_context(connect(self.served)))
        self.clients[self.numbers] = Client(connection, index)
        return self.numbers

    def _settle(self, number: int | None, answer: Expected | None) -> None:
        """Let everybody who waits look, and compare what they are told; nobody else may have heard of it."""
        if number is not None and answer is not None:
            self.model.settled[number] = answer
        self.model.turn({number: client.index for number, client in self.clients.items()})
        self.run(self._compare())

    def _settle_head(self, number: int) -> None:
        """Like `_settle`, for a HEAD: it has no body, so it is over with its first byte."""
        self.model.turn({number: client.index for number, client in self.clients.items()})
        answered = number in self.model.settled
        if answered:
            self.model.settled[number].body = b""
            self.model.flowing.pop(number, None)
        self.run(self._compare(head=number))
        if not answered:  # parked: what it would get in the end is a GET's head
            self.clients.pop(number).connection.kill()
            del self.model.parked[number]
            self._settle(None, None)

    async def _compare(self, head: int | None = None) -> None:
        for number, expected in list(self.model.settled.items()):
            client = self.clients[number]
            if client.head is None:
                client.head = await client.connection.head()
            if number in self.model.flowing:
                client.body += await self._arrived(client, len(self.model.flowing[number].data))
                assert client.body == self.model.flowing[number].data
                agree(client.head, Expected(200, expected.headers, expected.absent, None))
                continue
            if number != head:
                client.body += await client.connection.body_of(client.head)
            agree(Answer(client.head.status, client.head.headers, client.body), expected)
            client.connection.kill()
            del self.model.settled[number], self.clients[number]
        parked = len(self.model.parked) + len(self.model.flowing)
        await until(
            lambda: (
                metric("sluice_trickle_writers") == len(self.model.posts)
                and metric("sluice_trickle_readers") == parked
            )
        )
        for number in {*self.model.parked, *self.model.posts}:
            assert not self.clients[number].connection.reader._buffer  # type: ignore[attr-defined]

    async def _arrived(self, client: Client, size: int) -> bytes:
        """What is there of a body that has no end yet."""
        body = b""
        while len(client.body) + len(body) < size:
            body += await client.connection.next_chunk()
        return body


def agree(answer: Answer, expected: Expected) -> None:
    assert answer.status == expected.status, answer
    for name, value in expected.headers.items():
        assert answer.headers.get(name) == value, (name, answer, expected)
    for name in expected.absent:
        assert name not in answer.headers, (name, answer)
    if expected.body is not None:
        assert answer.body == expected.body, (answer, expected)


Relay.TestCase.settings = settings(
    max_examples=30,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # to shorten what failed takes minutes; what happened is printed anyway
    suppress_health_check=[HealthCheck.too_slow],
)
TestRelay = pytest.mark.timeout(120)(Relay.TestCase)  # 7 s where nothing else runs
