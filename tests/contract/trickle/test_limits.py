"""What a channel and a listener hold at most; each refusal has a status, a text and a counter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from services.common.trickle.listener import ListenerLimits
from services.common.trickle.protocol import ChannelLimits
from tests.contract.trickle.wire import Served, ask, connect, metric, put, serving, until


@contextmanager
def refused(reason: str, times: int = 1) -> Iterator[None]:
    """The block must be refused so many times for `reason`."""
    before = metric("sluice_trickle_refused_total", reason=reason)
    yield
    assert metric("sluice_trickle_refused_total", reason=reason) == before + times


async def test_a_body_over_the_cap_is_a_413_and_the_segment_ends_for_readers(served: Served) -> None:
    served.open(limits=ChannelLimits(segment_bytes=10, channel_bytes=20))
    too_large = metric("sluice_trickle_dropped_total", reason="too_large")
    with refused("segment_too_large"):
        async with connect(served) as writer, connect(served) as reader:
            reader.request("GET", "/c/0")
            writer.post("/c/0")
            writer.chunk(b"0123456789")
            assert await reader.next_chunk_after_head() == b"0123456789"
            writer.chunk(b"more")
            assert await reader.next_chunk() == b""
            answer = await writer.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            assert await writer.hung_up()
    assert metric("sluice_trickle_dropped_total", reason="too_large") == too_large + 1


async def test_a_length_over_the_cap_is_a_413_at_the_byte_that_does_not_fit(served: Served) -> None:
    served.open(limits=ChannelLimits(segment_bytes=10, channel_bytes=20))
    async with connect(served) as writer:
        writer.request("POST", "/c/0", "Content-Length: 11")
        writer.writer.write(b"01234567890")
        assert (await writer.answer()).status == 413


async def test_a_channel_keeps_so_many_bytes_and_so_many_segments(served: Served) -> None:
    channel = served.open(limits=ChannelLimits(depth=9, segment_bytes=10, channel_bytes=30)).channel
    for index in range(9):
        await put(served, f"/c/{index}", b"0123456789")
    assert sorted(channel._segments) == [6, 7, 8]
    many = served.open("many", limits=ChannelLimits(depth=3)).channel
    for index in range(9):
        assert (await ask(served, "POST", f"/many/{index}", "Content-Length: 0")).status == 200
    assert sorted(many._segments) == [6, 7, 8]


async def test_a_channel_has_so_many_open_writers(served: Served) -> None:
    served.open(limits=ChannelLimits(writers=3))
    async with AsyncExitStack() as stack:
        for index in range(3):
            writer = await stack.enter_async_context(connect(served))
            writer.post(f"/c/{index}")
            assert await writer.quiet()
        with refused("too_many_writers"):
            answer = await ask(served, "POST", "/c/3", "Content-Length: 0")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["connection"] == "close"
    async with asyncio.timeout(2.0):
        while (await ask(served, "POST", "/c/3", "Content-Length: 0")).status != 200:
            await asyncio.sleep(0.01)


async def test_a_channel_has_so_many_readers_and_each_that_leaves_makes_room(served: Served) -> None:
    channel = served.open(limits=ChannelLimits(readers=1)).channel
    async with connect(served) as reader:
        reader.request("GET", "/c/0")
        assert await reader.quiet()
        with refused("too_many_readers", 2):
            for method in ("GET", "HEAD"):
                answer = await ask(served, method, "/c/0")
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    await until(lambda: channel._readers == 0)
    await put(served, "/c/0", b"x")
    assert (await ask(served, "GET", "/c/0")).status == 200


async def test_a_registry_has_so_many_channels() -> None:
    async with serving(autocreate=ChannelLimits(), max_channels=2) as served:
        for name in ("a", "b"):
            assert (await put(served, f"/{name}/0", b"x")).status == 200
        with refused("too_many_channels"):
            answer = await put(served, "/c/0", b"x")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        await ask(served, "DELETE", "/a")
        assert (await put(served, "/c/0", b"x")).status == 200


async def test_a_listener_has_so_many_requests_at_once() -> None:
    async with serving(limits=ListenerLimits(requests=2)) as served:
        served.open()
        async with connect(served) as writer, connect(served) as reader:
            writer.post("/c/0")
            reader.request("GET", "/c/0")
            assert await reader.quiet()
            with refused("too_many_requests", 2):
                for method, path in (("GET", "/c/next"), ("POST", "/c/1")):
                    answer = await ask(served, method, path, "Content-Length: 0")
                    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            writer.end()
            assert (await writer.answer()).status == 200
            assert (await reader.answer()).status == 200
        assert (await ask(served, "GET", "/c/next")).status == 200


async def test_a_listener_has_so_many_connections() -> None:
    async with serving(limits=ListenerLimits(connections=2)) as served:
        served.open()
        async with connect(served) as first, connect(served) as second:
            for connection in (first, second):
                connection.request("GET", "/c/next")
                assert (await connection.answer()).status == 200
            with refused("too_many_connections"):
                async with connect(served) as third:
                    answer = await third.answer()
                    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                    assert await third.hung_up()
        await until(lambda: metric("sluice_trickle_connections") == 0)
        assert (await ask(served, "GET", "/c/next")).status == 200


@pytest.mark.parametrize("ending", ["\r\n\r\n", ""])
async def test_a_head_has_so_many_bytes(ending: str) -> None:
    async with serving(limits=ListenerLimits(header_bytes=1000)) as served:
        served.open()
        async with connect(served) as connection:
            with refused("headers_too_large"):
                connection.writer.write(f"GET /c/0 HTTP/1.1\r\nHost: a\r\nX: {'x' * 1000}{ending}".encode())
                assert (await connection.answer()).status == 431
                assert await connection.hung_up()
        assert (await ask(served, "GET", "/c/next", f"X: {'x' * 900}")).status == 200


async def test_requests_are_not_hoarded_for_a_client_that_only_asks() -> None:
    async with serving(limits=ListenerLimits(header_bytes=1000)) as served:
        channel = served.open().channel
        async with connect(served) as connection:
            connection.request("GET", "/c/0")
            assert await connection.quiet()
            for _ in range(100):
                connection.request("GET", "/c/0")
            assert await connection.hung_up()
        await until(lambda: channel._readers == 0)


async def test_every_refusal_is_counted_by_its_reason(served: Served) -> None:
    served.open()
    for reason, method, path in (
        ("channel_not_found", "GET", "/no/0"),
        ("invalid_index", "GET", "/c/x"),
        ("invalid_name", "GET", "/%00/0"),
        ("malformed", "GET", "/%ff/0"),
    ):
        with refused(reason):
            await ask(served, method, path)
    with refused("malformed"):
        async with connect(served) as connection:
            connection.writer.write(b"NONSENSE\r\n\r\n")
            assert (await connection.answer()).status == 400
