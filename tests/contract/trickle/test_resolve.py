"""Who is asked for a channel that nobody opened, when, and what a client sees of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.common.errors import (
    DeniedError,
    ExhaustedError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnauthenticatedError,
)
from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import Registry
from services.common.trickle.resolve import Ask, Lookup, Purpose
from tests.contract.trickle.wire import Served, ask, connect, put, serving, until


class Owner:
    """Answers what a listener asks, and remembers it."""

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.registry: Registry | None = None
        self.refusal: SluiceError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = 0
        self.found: Channel | None = None

    async def resolve(self, ask: Ask) -> Channel:
        self.asked.append(ask)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.refusal is not None:
            raise self.refusal
        if self.found is not None:
            return self.found
        assert self.registry is not None
        return self.registry.open(ask.alias, read_alias=f"read-{ask.alias}", write_alias=ask.alias).channel


@asynccontextmanager
async def owned(base_path: str = "/") -> AsyncIterator[tuple[Served, Owner]]:
    owner = Owner()
    async with serving(resolve=owner.resolve, base_path=base_path) as served:
        owner.registry = served.registry
        yield served, owner


async def test_a_writer_of_an_unknown_alias_is_asked_for_once_and_then_known() -> None:
    async with owned() as (served, owner):
        for index in range(3):
            assert (await put(served, f"/key/{index}", b"x")).status == 200
        assert (await ask(served, "GET", "/read-key/2")).body == b"x"
    assert owner.asked == [Ask("key", Purpose.WRITE, None, "application/octet-stream")]


async def test_what_a_client_says_of_itself_is_passed_on() -> None:
    async with owned() as (served, owner):
        owner.refusal = NotFoundError("no")
        authorized = "Authorization: Bearer sk_1"
        await ask(served, "POST", "/a", "Expect-Content: text/x", authorized, "Content-Length: 0")
        await ask(served, "POST", "/b/0", "Content-Type: text/y", "Content-Length: 0")
        await ask(served, "GET", "/c/0", authorized)
        await ask(served, "HEAD", "/d/0")
        await ask(served, "GET", "/e/next")
    assert owner.asked == [
        Ask("a", Purpose.WRITE, "Bearer sk_1", "text/x"),
        Ask("b", Purpose.WRITE, None, "text/y"),
        Ask("c", Purpose.READ, "Bearer sk_1", "application/octet-stream"),
        Ask("d", Purpose.READ, None, "application/octet-stream"),
        Ask("e", Purpose.HEAD, None, "application/octet-stream"),
    ]


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (NotFoundError("no stream"), 404, None),
        (UnauthenticatedError("no key"), 401, ("www-authenticate", "Bearer")),
        (DeniedError("not yours"), 403, None),
        (PaymentRequiredError("no credit"), 402, None),
        (ExhaustedError("no slot", retry_after_s=7), 503, ("retry-after", "7")),
    ],
)
async def test_a_refusal_is_rendered_to_both_directions(
    error: SluiceError, status: int, header: tuple[str, str] | None
) -> None:
    async with owned() as (served, owner):
        owner.refusal = error
        for method in ("POST", "GET"):
            answer = await ask(served, method, "/x/0", "Content-Length: 0")
            assert (answer.status, answer.body) == (status, f"{error.message}\n".encode())
            assert (answer.headers.get("connection") == "close") == (method == "POST")
            if header is not None:
                assert answer.headers[header[0]] == header[1]


async def test_two_posts_at_once_ask_once_and_no_byte_of_either_is_lost() -> None:
    async with owned() as (served, owner), connect(served) as first, connect(served) as second:
        owner.gate.clear()
        for connection, path in ((first, "/key/0"), (second, "/key/1")):
            connection.post(path)
            connection.chunk(path.encode())
            connection.end()
        await until(lambda: len(owner.asked) == 1)
        assert await first.quiet()
        owner.gate.set()
        assert [(await each.answer()).status for each in (first, second)] == [200, 200]
        assert len(owner.asked) == 1
        assert (await ask(served, "GET", "/read-key/0")).body == b"/key/0"
        assert (await ask(served, "GET", "/read-key/1")).body == b"/key/1"


async def test_readers_who_ask_the_same_share_one_answer() -> None:
    async with owned() as (served, owner):
        owner.found = Channel()
        with owner.found.begin_segment() as writer:
            writer.write(b"x")
        owner.gate.clear()
        asking = [asyncio.ensure_future(ask(served, "GET", "/play/0")) for _ in range(5)]
        await until(lambda: len(owner.asked) == 1)
        await asyncio.sleep(0.05)
        owner.gate.set()
        assert [(await each).body for each in asking] == [b"x"] * 5
        assert len(owner.asked) == 1
        assert (await ask(served, "GET", "/play/0")).body == b"x"
        assert len(owner.asked) == 2  # it was not opened in the registry: it is asked for again


async def test_a_body_that_comes_while_the_owner_thinks_is_bounded_and_arrives() -> None:
    async with owned() as (served, owner), connect(served) as writer:
        owner.gate.clear()
        data = bytes(range(256)) * 4096 * 3  # more than is kept ahead
        writer.post("/key/0")
        writer.chunk(data)
        writer.end()
        await until(lambda: len(owner.asked) == 1)
        owner.gate.set()
        assert (await writer.answer()).status == 200
        assert (await ask(served, "GET", "/read-key/0")).body == data


async def test_a_question_ends_when_the_last_who_waits_for_it_leaves() -> None:
    async with owned() as (served, owner):
        owner.gate.clear()
        async with connect(served) as patient:
            async with connect(served) as hasty:
                for connection in (patient, hasty):
                    connection.request("GET", "/play/0")
                assert await patient.quiet()
            await asyncio.sleep(0.05)
            assert (len(owner.asked), owner.cancelled) == (1, 0)
        await until(lambda: owner.cancelled == 1)


async def test_an_owner_that_never_answers_is_a_504() -> None:
    owner = Owner()
    owner.gate.clear()
    lookup = Lookup(Registry(), owner.resolve, resolve_s=0.02)
    with pytest.raises(SluiceError) as caught:
        await lookup.find(Ask("a", Purpose.READ, None, ""))
    assert (caught.value.http_status, caught.value.reason) == (504, "RESOLVE_TIMEOUT")
    assert owner.cancelled == 1


async def test_questions_about_one_alias_take_turns() -> None:
    owner = Owner()
    owner.registry = Registry()
    owner.gate.clear()
    lookup = Lookup(owner.registry, owner.resolve)
    finding = [
        asyncio.ensure_future(lookup.find(Ask("a", purpose, None, "")))
        for purpose in (Purpose.WRITE, Purpose.HEAD)
    ]
    await asyncio.sleep(0.01)
    assert len(owner.asked) == 1
    owner.gate.set()
    write, head = [await each for each in finding]
    assert write is head
    assert len(owner.asked) == 1


async def test_a_reserved_name_is_never_asked_for() -> None:
    async with owned() as (served, owner):
        for method, path in (("POST", "/_x"), ("POST", "/_x/0"), ("GET", "/_x/0"), ("GET", "/_x/next")):
            assert (await ask(served, method, path, "Content-Length: 0")).status == 404
        assert (await ask(served, "DELETE", "/_x")).status == 400
        assert (await ask(served, "DELETE", "/_x/0")).status == 404
    assert owner.asked == []


async def test_deleting_asks_nobody_and_finds_what_was_opened() -> None:
    async with owned() as (served, owner):
        assert (await ask(served, "DELETE", "/key")).status == 400
        assert owner.asked == []
        await put(served, "/key/0", b"x")
        assert (await ask(served, "DELETE", "/key")).status == 200
        assert len(served.registry) == 0


async def test_an_unguessable_alias_may_begin_with_an_underscore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_urlsafe", lambda _: "_unguessable")
    async with owned() as (served, _):
        served.registry.open("a", read_alias="r")
        assert (await put(served, "/_unguessable/0", b"x")).status == 200


async def test_an_autocreating_listener_makes_channels_for_writers_only() -> None:
    async with serving(autocreate=ChannelLimits(), base_path="/ai/trickle/") as served:
        assert (await ask(served, "GET", "/ai/trickle/a/0")).status == 404
        assert (await ask(served, "GET", "/ai/trickle/a/next")).status == 404
        assert (await put(served, "/ai/trickle/a/0", b"x")).status == 200
        assert (await ask(served, "GET", "/ai/trickle/a/0")).body == b"x"
        assert (await ask(served, "POST", "/ai/trickle/_a/0", "Content-Length: 0")).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/ai/trickle/a", 405, "DELETE, POST"),
        ("PUT", "/ai/trickle/a", 405, "DELETE, POST"),
        ("PUT", "/ai/trickle/a/0", 405, "DELETE, GET, HEAD, POST"),
        ("OPTIONS", "/ai/trickle/a/next", 405, "DELETE, GET, HEAD, POST"),
        ("GET", "/ai/trickle/a/0/0", 404, None),
        ("GET", "/ai/trickle/", 405, "DELETE, POST"),
        ("GET", "/ai/trickl", 404, None),
        ("GET", "/", 404, None),
        ("OPTIONS", "*", 404, None),
    ],
)
async def test_wrong_methods_and_paths(method: str, path: str, status: int, allow: str | None) -> None:
    async with owned(base_path="/ai/trickle/") as (served, owner):
        answer = await ask(served, method, path)
        assert (answer.status, answer.headers.get("allow")) == (status, allow)
        assert owner.asked == []
