"""The reference's clients against our server: what they rely on, and what they do when something is wrong."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from aiohttp import ClientSession

from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import ChannelLimits
from tests.contract.trickle.peers import (
    EOS,
    NOT_FOUND,
    GoneError,
    PythonPublisher,
    PythonSubscriber,
    go_publisher,
    go_subscriber,
)
from tests.contract.trickle.wire import QUIET_S, Served, ask, connect, put, serving


async def test_go_to_go_every_segment_arrives_and_the_end_is_clean() -> None:
    async with serving(linger_s=60.0) as served, AsyncExitStack() as stack:
        served.open()
        subscriber = await stack.enter_async_context(go_subscriber(served))
        publisher = await stack.enter_async_context(go_publisher(served))
        reading = asyncio.ensure_future(subscriber.everything())
        await asyncio.sleep(QUIET_S)
        for number in range(6):
            handle = await publisher.next()
            assert await handle.write(b"%d" % number, b"!" * 5000) == ""
        assert await publisher.close() == EOS
        seen, end = await reading
    assert seen == [(number, b"%d" % number + b"!" * 5000) for number in range(6)]
    assert end == EOS


async def test_go_parks_two_posts_and_uses_their_connections_again(served: Served) -> None:
    ring = served.open().channel._ring
    async with go_publisher(served) as publisher:
        for _ in range(4):
            handle = await publisher.next()
            await asyncio.sleep(QUIET_S)
            assert sorted(index for index, slot in ring.slots.items() if not slot.begun) == [
                handle.index,
                handle.index + 1,
            ]
            await handle.write(b"x")
        assert len({id(each) for each in publisher.idle}) <= 2


async def test_go_gives_a_segment_up_by_deleting_it(served: Served) -> None:
    served.open()
    async with go_publisher(served) as publisher, go_subscriber(served, start=0) as subscriber:
        handle = await publisher.next()
        handle.connection.chunk(b"half")
        await asyncio.sleep(QUIET_S)
        await handle.give_up()
        assert await subscriber.read() == (0, b"half")
        assert await (await publisher.next()).write(b"whole") == ""
        assert await subscriber.read() == (1, b"whole")


async def test_go_sends_a_segment_again_while_nothing_newer_began(served: Served) -> None:
    served.open()
    async with go_publisher(served) as publisher, go_subscriber(served, start=0) as subscriber:
        handle = await publisher.next()
        await asyncio.sleep(QUIET_S)
        handle.connection.kill()
        handle.used = True
        assert await handle.write(b"again") == ""
        assert await subscriber.read() == (0, b"again")


async def test_go_is_told_what_became_of_its_channel(served: Served) -> None:
    async with go_publisher(served, "/no") as publisher, go_subscriber(served, "/no") as subscriber:
        assert await (await publisher.next()).write(b"x") == NOT_FOUND
        with pytest.raises(GoneError, match=NOT_FOUND):
            await subscriber.read()
    served.open()
    async with go_publisher(served) as publisher:
        handle = await publisher.next()
        served.registry.close("c")
        assert await handle.write(b"x") in {EOS, NOT_FOUND}


async def test_a12_go_finds_the_new_publisher_by_latest_alone(served: Served) -> None:
    served.open()
    for index in range(9):
        await put(served, f"/c/{index}", b"old")
    async with go_subscriber(served) as subscriber:
        await asyncio.sleep(QUIET_S)
        async with go_publisher(served) as publisher:
            with pytest.raises(GoneError, match="470"):
                await subscriber.read()
            assert subscriber.index == 0
            assert await (await publisher.next()).write(b"new 0") == ""
            assert await (await publisher.next()).write(b"new 1") == ""
            assert [await subscriber.read() for _ in range(2)] == [(0, b"new 0"), (1, b"new 1")]


async def test_go_jumps_over_what_it_lost_and_can_count_it(served: Served) -> None:
    served.open()
    async with go_subscriber(served, start=0) as subscriber:
        await put(served, "/c/0", b"0")
        assert await subscriber.read() == (0, b"0")
        await put(served, "/c/1", b"1")
        await asyncio.sleep(QUIET_S)
        for index in range(2, 9):
            await put(served, f"/c/{index}", b"x")
        assert await subscriber.read() == (1, b"1")
        with pytest.raises(GoneError, match="470"):
            await subscriber.read()
        reading = asyncio.ensure_future(subscriber.read())
        await asyncio.sleep(QUIET_S)
        await put(served, "/c/9", b"9")
        assert await reading == (9, b"9")  # 2 to 8: seven are lost to a client that goes to Latest


async def test_a_client_that_expects_to_be_told_to_continue_is_and_one_that_is_refused_is_not(
    served: Served,
) -> None:
    served.open()
    async with connect(served) as writer:
        writer.post("/c/0", "Expect: 100-continue")
        assert (await writer.answer()).status == 100
        writer.chunk(b"x")
        writer.end()
        assert (await writer.answer()).status == 200
        writer.post("/no/0", "Expect: 100-continue")
        assert (await writer.answer()).status == 404


async def test_a_post_of_no_length_is_an_empty_segment(served: Served) -> None:
    served.open()
    async with go_subscriber(served, start=0) as subscriber:
        answer = await ask(served, "POST", "/c/0", "Content-Length: 0")
        assert (answer.status, answer.headers["lp-trickle-seq"]) == (200, "0")
        assert answer.headers["connection"] == "close"
        assert await subscriber.read() == (0, b"")
        await put(served, "/c/1", b"x")
        assert await subscriber.read() == (1, b"x")


async def test_python_to_python_on_a_connection_for_each_request() -> None:
    async with serving(linger_s=60.0) as served, trickle_session() as session:
        served.open()
        reading = asyncio.ensure_future(PythonSubscriber(session, f"{served.url}/c").everything())
        publisher = PythonPublisher(session, f"{served.url}/c")
        for number in range(4):
            await publisher.write(b"%d" % number, b"!" * 5000)
            await asyncio.sleep(QUIET_S)
        assert await publisher.close(delete=True) == [200] * 5
        seen = await reading
    # The parked POST ends with nothing in it: one more, empty segment before the end.
    assert seen == [b"%d" % number + b"!" * 5000 for number in range(4)] + [b""]


async def test_python_begins_with_the_segment_that_is_being_written(served: Served) -> None:
    channel = served.open().channel
    async with trickle_session() as session:
        for number in range(3):
            with channel.begin_segment() as writer:
                writer.write(b"%d" % number)
        with channel.begin_segment() as writer:
            writer.write(b"run")
            response = await PythonSubscriber(session, f"{served.url}/c").next()
            assert response is not None
            assert response.headers["Lp-Trickle-Seq"] == "3"
            writer.write(b"ning")
        assert await response.read() == b"running"


async def test_python_jumps_to_latest_on_a_470(served: Served) -> None:
    channel = served.open(limits=ChannelLimits(depth=2)).channel
    async with trickle_session() as session:
        subscriber = PythonSubscriber(session, f"{served.url}/c", start=0)
        for _ in range(6):
            with channel.begin_segment() as writer:
                writer.write(b"x")
        reading = asyncio.ensure_future(subscriber.next())
        await asyncio.sleep(QUIET_S)
        with channel.begin_segment() as writer:
            writer.write(b"the next")
        response = await reading
        assert response is not None
        assert (response.headers["Lp-Trickle-Seq"], await response.read()) == ("6", b"the next")
        assert subscriber.jumps == 1


async def sdk(session: ClientSession, served: Served, text: bytes) -> None:
    publisher = PythonPublisher(session, f"{served.url}/c", start=-1)
    await publisher.write(text)
    await publisher.close(delete=False)


async def test_a12_the_sdk_goes_on_at_the_head_with_a_reset(served: Served) -> None:
    channel = served.open().channel
    async with trickle_session() as session:
        await sdk(session, served, b"first")
        assert (channel.head, channel.generation) == (2, 1)  # its parked POST ended empty
        await sdk(session, served, b"second")
        assert (channel.head, channel.generation) == (4, 2)
    assert (await ask(served, "GET", "/c/2")).body == b"second"
