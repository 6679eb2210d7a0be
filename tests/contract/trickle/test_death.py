"""A publisher or a reader that dies, in every way that a server can come to know of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.common.trickle.channel import Channel
from services.common.trickle.connection import trickle_session
from services.common.trickle.listener import ListenerLimits
from services.common.trickle.subscriber import Subscriber
from tests.contract.trickle.wire import Connection, Served, ask, connect, metric, put, serving, until

VANISHED = ListenerLimits(peer_timeout_s=2.0)  # a probe each second is the least that TCP knows


def dropped(reason: str) -> float:
    return metric("sluice_trickle_dropped_total", reason=reason)


async def half_written(served: Served, writer: Connection, reader: Connection) -> Channel:
    """A segment that one writes and one reads, somewhere in its middle."""
    channel = served.open().channel
    writer.post("/c/0")
    writer.chunk(b"half")
    reader.request("GET", "/c/0")
    assert await reader.next_chunk_after_head() == b"half"
    return channel


def in_a_chunk(writer: Connection) -> None:
    writer.writer.write(b"100\r\nnot two hundred and fifty-six bytes")
    writer.writer.close()


def reset(writer: Connection) -> None:
    writer.kill()


def finished(writer: Connection) -> None:
    writer.writer.close()


def malformed(writer: Connection) -> None:
    writer.writer.write(b"zz\r\n")


def unending(writer: Connection) -> None:
    writer.writer.write(b"4\r\nhalfand more\r\n")


@pytest.mark.parametrize(
    "die", [reset, finished, in_a_chunk, malformed, unending], ids=lambda die: die.__name__
)
async def test_a1_a_body_that_breaks_ends_for_readers_at_once_and_is_cut(
    served: Served, die: Callable[[Connection], None]
) -> None:
    broken = dropped("broken")
    async with connect(served) as writer, connect(served) as reader:
        channel = await half_written(served, writer, reader)
        segment = await channel.segment(0)
        die(writer)
        async with asyncio.timeout(1.0):
            while await reader.next_chunk():
                pass
        assert segment.cut
        assert dropped("broken") == broken + 1
        reader.request("GET", "/c/1")  # the reader's connection is as good as before
        await put(served, "/c/1", b"next")
        assert (await reader.answer()).body == b"next"


async def test_broken_framing_is_told_to_its_sender(served: Served) -> None:
    async with connect(served) as writer, connect(served) as reader:
        await half_written(served, writer, reader)
        malformed(writer)
        answer = await writer.answer()
        assert (answer.status, answer.body) == (400, b"Malformed body\n")
        assert answer.headers["connection"] == "close"
        assert await writer.hung_up()


async def test_a1_a_publisher_whose_host_vanishes_ends_its_segment() -> None:
    broken = dropped("broken")
    async with serving(limits=VANISHED) as served, connect(served) as writer, connect(served) as reader:
        channel = await half_written(served, writer, reader)
        writer.vanish()
        loop = asyncio.get_running_loop()
        vanished_at = loop.time()
        async with asyncio.timeout(6.0):
            size = int(await reader.reader.readuntil(b"\r\n"), 16)
        assert size == 0
        assert loop.time() - vanished_at > 1.0  # it was the kernel that noticed, and not we
        assert (await channel.segment(0)).cut
        assert dropped("broken") == broken + 1


async def test_a4_readers_whose_hosts_vanish_are_let_go_parked_or_flowing() -> None:
    async with serving(limits=VANISHED) as served, connect(served) as parked, connect(served) as flowing:
        channel = served.open().channel
        with channel.begin_segment() as writer:
            writer.write(b"x")
            flowing.request("GET", "/c/0")
            parked.request("GET", "/c/1")
            assert await flowing.next_chunk_after_head() == b"x"
            await until(lambda: channel._readers == 2)
            for reader in (parked, flowing):
                reader.vanish()
            writer.write(b"never acknowledged")
            await until(lambda: channel._readers == 0, seconds=8.0)


async def test_a_cut_segment_ends_in_order_and_our_reader_is_told_with_the_next_one(served: Served) -> None:
    channel = served.open().channel
    async with trickle_session() as session, connect(served) as writer:
        writer.post("/c/0")
        writer.chunk(b"half")
        await channel.segment(0)
        async with (
            Subscriber(session, f"{served.url}/c", start=0) as ours,
            session.get(f"{served.url}/c/0") as theirs,
        ):
            received = await anext(ours)
            writer.kill()
            assert await theirs.read() == b"half"  # aiohttp, as the Python clients use it: no error
            assert b"".join([data async for data in received]) == b"half"
            for index in (1, 2):
                await put(served, f"/c/{index}", b"whole")
            following = [await anext(ours), await anext(ours)]
            assert [(segment.index, segment.lost) for segment in following] == [(1, 1), (2, 0)]
            assert not any(segment.restarted for segment in following)
    assert (await ask(served, "GET", "/c/0")).body == b"half"
    assert (await ask(served, "GET", "/c/1")).headers["lp-trickle-cut"] == "0"
    assert "lp-trickle-cut" not in (await ask(served, "GET", "/c/2")).headers


async def test_the_last_segment_of_a_channel_is_told_to_be_cut_with_the_end() -> None:
    async with serving(linger_s=60.0) as served, connect(served) as writer, connect(served) as reader:
        await half_written(served, writer, reader)
        served.registry.close("c")
        assert await reader.next_chunk() == b""
        answer = await ask(served, "GET", "/c/1")
        assert (answer.headers["lp-trickle-closed"], answer.headers["lp-trickle-cut"]) == ("terminated", "0")
