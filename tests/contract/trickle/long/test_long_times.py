"""Minutes and hours, in bent time: the real server and real clients on real sockets, and nobody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.common.lifecycle import background
from services.common.trickle.connection import trickle_session
from services.common.trickle.http1 import CONTINUE
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from tests.contract.trickle.peers import PythonPublisher, PythonSubscriber, go_publisher, go_subscriber
from tests.contract.trickle.wire import Answer, Connection, Served, connect, metric, put, serving

# Rounds of the loop without any news from a socket before time leaps: what is under way must have arrived.
pytestmark = pytest.mark.looptime(noop_cycles=1000)


def now() -> float:
    return asyncio.get_running_loop().time()


async def final(writer: Connection) -> Answer:
    """The answer after all that only says to continue."""
    while (answer := await writer.answer(within_s=1000)).status == 100:
        pass
    return answer


@asynccontextmanager
async def swept() -> AsyncIterator[Served]:
    """A server as it runs: with the sweep beside it, and channels that go after 300 s."""
    async with serving(linger_s=5.0) as served, background(sweep=served.registry.sweep()):
        yield served


async def test_a_parked_post_is_told_to_continue_every_10_seconds() -> None:
    async with serving() as served, connect(served) as writer:
        served.open()
        began = now()
        writer.post("/c/0")
        for number in range(1, 61):
            assert await writer.reader.readexactly(len(CONTINUE)) == CONTINUE
            assert now() - began == pytest.approx(10 * number, abs=0.5)
        writer.chunk(b"x")
        writer.end()
        assert (await writer.answer()).status == 200


@pytest.mark.parametrize("silence_s", [31, 301, 3601])
async def test_a5_what_an_idle_publisher_sends_at_last_is_delivered(silence_s: float) -> None:
    async with swept() as served:
        served.open()
        async with go_publisher(served) as publisher, go_subscriber(served, start=0) as subscriber:
            assert await (await publisher.next()).write(b"first") == ""
            assert await subscriber.read() == (0, b"first")
            await asyncio.sleep(silence_s)
            assert await (await publisher.next()).write(b"at last") == ""
            assert await subscriber.read() == (1, b"at last")
            assert publisher.continued == int(silence_s // 10)
            assert subscriber.polls >= 2 + int(silence_s // 20)


async def test_a5_our_own_clients_sit_out_a_silence_too() -> None:
    async with swept() as served, trickle_session() as session:
        served.open()
        async with (
            Publisher(session, f"{served.url}/c") as publisher,
            Subscriber(session, f"{served.url}/c", start=0) as subscriber,
        ):
            receiving = asyncio.ensure_future(anext(subscriber))
            await asyncio.sleep(3601)
            async with publisher.segment() as segment:
                await segment.write(b"at last")
            received = await receiving
            assert (received.index, received.lost) == (0, 0)
            assert b"".join([data async for data in received]) == b"at last"


async def test_a3_a_segment_of_ten_minutes_keeps_its_channel() -> None:
    async with swept() as served, connect(served) as writer, connect(served) as reader:
        channel = served.open().channel
        writer.post("/c/0")
        reader.request("GET", "/c/0")
        for number in range(30):
            await asyncio.sleep(20)
            writer.chunk(b"%02d" % number)
            chunk = await (reader.next_chunk() if number else reader.next_chunk_after_head())
            assert chunk == b"%02d" % number
        writer.end()
        assert (await final(writer)).status == 200
        assert not channel.closed


async def test_w5_a_channel_goes_300_s_after_the_last_sign_of_a_writer() -> None:
    async with swept() as served, connect(served) as reader:
        parked, left = served.open("parked").channel, served.open("left").channel
        reader.request("GET", "/left/1")  # readers keep nothing alive
        await put(served, "/left/0", b"x")
        began = now()
        async with connect(served) as writer:
            writer.post("/parked/0")
            answer = await reader.answer(within_s=400)
            assert answer.headers["lp-trickle-closed"] == "terminated"
            assert 300 < now() - began < 315
            assert left.closed
            await asyncio.sleep(1000)
            assert not parked.closed
        await asyncio.sleep(315)
        assert parked.closed


async def test_a_segment_that_stops_in_its_middle_does_not_keep_its_channel() -> None:
    async with swept() as served, connect(served) as writer:
        channel = served.open().channel
        writer.post("/c/0")
        writer.chunk(b"x")
        answer = await final(writer)
        assert (channel.closed, answer.headers["lp-trickle-closed"]) == (True, "terminated")


async def test_python_clients_budgets_of_30_s_are_met_by_segments_and_lost_in_silence() -> None:
    async with serving() as served, trickle_session() as session:
        channel = served.open().channel
        subscriber = PythonSubscriber(session, f"{served.url}/c", budget_s=30.0)
        reading = asyncio.ensure_future(subscriber.next())
        await asyncio.sleep(100)  # the fourth attempt is parked
        with channel.begin_segment() as writer:
            writer.write(b"x")
        response = await reading
        assert response is not None
        assert await response.read() == b"x"
        began = now()
        assert await subscriber.next() is None
        assert now() - began == pytest.approx(5 * 30.5, abs=5.0)  # aiohttp rounds up to seconds
        assert channel._readers == 0


async def test_a_python_publisher_that_times_out_loses_no_more_than_its_own_segment() -> None:
    async with serving() as served, trickle_session() as session:
        channel = served.open().channel
        publisher = PythonPublisher(session, f"{served.url}/c", budget_s=300.0)
        await publisher.write(b"0")
        await asyncio.sleep(200)
        assert metric("sluice_trickle_connections") == 1  # connected ahead, without so much as a head
        await publisher.write(b"1")
        await asyncio.sleep(301)
        assert [each.done() for each in publisher.tasks] == [True] * 3
        assert isinstance(publisher.tasks[2].exception(), TimeoutError)
        assert (channel.head, list(channel._ring.slots)) == (2, [0, 1])
        await put(served, "/c/2", b"2")
        assert channel.head == 3


async def test_idle_connections_and_unfinished_heads_are_let_go() -> None:
    async with serving() as served:
        served.open()
        async with connect(served) as silent, connect(served) as unfinished, connect(served) as idle:
            unfinished.writer.write(b"GET /c/0 HTTP/1.1\r\n")
            idle.request("GET", "/c/next")
            assert (await idle.answer()).status == 200
            await asyncio.sleep(20)
            unfinished.writer.write(b"Host: a\r\n")  # each byte buys no more time
            await asyncio.sleep(9)
            assert metric("sluice_trickle_connections") == 3
            await asyncio.sleep(2)
            assert metric("sluice_trickle_connections") == 2
            await asyncio.sleep(560)
            idle.request("GET", "/c/next")
            assert (await idle.answer()).status == 200
            await asyncio.sleep(10)
            assert metric("sluice_trickle_connections") == 1
            assert await silent.hung_up()
            await asyncio.sleep(600)
            assert metric("sluice_trickle_connections") == 0


async def test_a_reader_that_takes_nothing_for_30_s_is_dropped() -> None:
    slow = metric("sluice_trickle_dropped_total", reason="slow")
    async with serving() as served, connect(served) as stalled:
        channel = served.open(limits=ChannelLimits()).channel
        with channel.begin_segment() as writer:
            stalled.reader._transport.pause_reading()  # type: ignore[attr-defined]
            stalled.request("GET", "/c/0")
            writer.write(bytes(7 * 2**20))
            await asyncio.sleep(29)
            assert channel._readers == 1
            await asyncio.sleep(2)
            assert channel._readers == 0
    assert metric("sluice_trickle_dropped_total", reason="slow") == slow + 1
