"""What ends when somebody dies, leaves or stalls: cases in which the reference servers were found failing."""

from __future__ import annotations

import asyncio
import gc
from contextlib import AsyncExitStack

import psutil
from prometheus_client import REGISTRY

from services.common.trickle.connection import trickle_session
from services.common.trickle.exchange import Exchange
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.publisher import Publisher
from services.common.trickle.segment import Segment
from tests.contract.trickle.wire import QUIET_S, Served, ask, connect, metric, put, serving, until


async def test_a_post_that_died_before_its_first_byte_can_be_sent_again(served: Served) -> None:
    served.open()
    async with connect(served) as first, connect(served) as reader:
        first.post("/c/0")
        reader.request("GET", "/c/0")
        assert await reader.quiet()
        first.kill()
        assert await reader.quiet()
        await put(served, "/c/0", b"again")
        assert (await reader.answer()).body == b"again"


async def test_a4_dropped_long_polls_leave_no_task_and_no_socket(served: Served) -> None:
    channel = served.open(limits=ChannelLimits(readers=300)).channel
    await ask(served, "GET", "/c/next")
    process = psutil.Process()
    await until(lambda: metric("sluice_trickle_readers") == 0)
    tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
    async with AsyncExitStack() as stack:
        for number in range(200):
            reader = await stack.enter_async_context(connect(served))
            reader.request("GET", "/c/0" if number % 2 else "/c/-1")
        await until(lambda: metric("sluice_trickle_readers") == 200)
        assert len(channel._parked) == 200
    await until(lambda: len(asyncio.all_tasks()) <= tasks and process.num_fds() <= descriptors)
    assert metric("sluice_trickle_readers") == 0
    assert not channel._parked


async def test_dropped_parked_posts_leave_nothing_either(served: Served) -> None:
    channel = served.open().channel
    tasks = len(asyncio.all_tasks())
    for _ in range(20):
        async with connect(served) as writer:
            writer.post("/c/0")
            await until(lambda: 0 in channel._ring.slots)
        await until(lambda: 0 not in channel._ring.slots)
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    assert channel.head == 0


async def test_a11_a_reader_of_a_reused_slot_ends(served: Served) -> None:
    served.open(limits=ChannelLimits(depth=1))
    async with connect(served) as stuck, connect(served) as reader, connect(served) as parked:
        stuck.post("/c/0")
        stuck.chunk(b"half")
        reader.request("GET", "/c/0")
        assert await reader.next_chunk_after_head() == b"half"
        for index in range(1, 4):
            await put(served, f"/c/{index}", b"x")
        assert await reader.next_chunk() == b""
        assert (await stuck.answer()).headers["connection"] == "close"
        parked.request("GET", "/c/4")
        assert await parked.quiet()
        assert (await ask(served, "DELETE", "/c")).status == 200
        assert (await parked.answer()).headers["lp-trickle-closed"] == "terminated"


async def test_a_repeated_post_takes_the_slot_and_ends_the_readers_of_the_first(served: Served) -> None:
    served.open()
    async with connect(served) as first, connect(served) as reader:
        first.post("/c/0")
        first.chunk(b"half")
        reader.request("GET", "/c/0")
        assert await reader.next_chunk_after_head() == b"half"
        await put(served, "/c/0", b"whole")
        assert await reader.next_chunk() == b""
        assert (await first.answer()).headers["connection"] == "close"
        assert await first.hung_up()
    assert (await ask(served, "GET", "/c/0")).body == b"whole"


async def test_a7_a_reader_that_is_behind_gets_the_last_segment_whole_and_then_the_end() -> None:
    async with serving(linger_s=60.0) as served, trickle_session() as session, connect(served) as reader:
        channel = served.open().channel
        async with Publisher(session, f"{served.url}/c") as publisher:
            for data in (b"first", b"last" * 10_000):
                async with publisher.segment() as segment:
                    await segment.write(data)
            await publisher.close()
        assert (publisher.failed, channel.closed) == (0, True)
        answers = []
        for index in range(3):
            reader.request("GET", f"/c/{index}")
            answers.append(await reader.answer())
        assert [answer.body for answer in answers] == [b"first", b"last" * 10_000, b""]
        assert answers[2].headers["lp-trickle-closed"] == "terminated"
        assert "lp-trickle-cut" not in answers[2].headers


async def test_a14_a_message_of_a_megabyte_and_one_in_single_bytes(served: Served) -> None:
    served.open()
    large, split = bytes(range(256)) * 4096, bytes(range(256)) * 40
    async with connect(served) as reader:
        reader.request("GET", "/c/0")
        await put(served, "/c/0", large)
        assert (await reader.answer()).body == large
        reader.request("GET", "/c/1")
        await put(served, "/c/1", *(bytes([byte]) for byte in split))
        assert (await reader.answer()).body == split


async def test_a_reader_that_never_reads_is_dropped_and_slows_nobody() -> None:
    slow = metric("sluice_trickle_dropped_total", reason="slow")
    async with serving(reader_stall_s=0.4) as served, connect(served) as reader, connect(served) as stalled:
        served.open()
        data = bytes(7 * 2**20)
        stalled.request("GET", "/c/0")
        reader.request("GET", "/c/0")
        await asyncio.sleep(QUIET_S)
        descriptors = psutil.Process().num_fds()
        await put(served, "/c/0", data)
        assert (await reader.answer()).body == data
        await until(lambda: metric("sluice_trickle_dropped_total", reason="slow") == slow + 1)
        await until(lambda: metric("sluice_trickle_readers") == 0)
        await until(lambda: psutil.Process().num_fds() < descriptors)


def alive(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_what_the_ring_forgets_is_freed_at_once(served: Served) -> None:
    """Without the collector of circles: it runs seldom, and a segment is megabytes."""
    served.open(limits=ChannelLimits(depth=3))
    gc.collect()
    exchanges, segments = alive(Exchange), alive(Segment)  # of tests whose tracebacks are still kept
    gc.disable()
    try:
        async with connect(served) as writer, connect(served) as reader:
            for index in range(20):
                reader.request("GET", f"/c/{index}")
                writer.post(f"/c/{index}")
                writer.chunk(bytes(5000))
                assert (await reader.head()).status == 200
                writer.end()
                assert (await writer.answer()).status == 200
                assert sum([len(chunk) async for chunk in reader.chunks()]) == 5000
                reader.request("GET", "/c/0" if index > 4 else "/c/x")
                assert (await reader.answer()).status in {400, 470}
        await until(lambda: metric("sluice_trickle_connections") == 0)
        assert (alive(Exchange) - exchanges, alive(Segment) - segments) == (0, 3)
    finally:
        gc.enable()


async def test_what_is_counted_names_no_channel(served: Served) -> None:
    before = {
        direction: metric("sluice_trickle_bytes_total", direction=direction) for direction in ("in", "out")
    }
    lagged = metric("sluice_trickle_dropped_total", reason="lagged")
    channels = metric("sluice_trickle_channels")
    served.open("secret-name")
    assert metric("sluice_trickle_channels") == channels + 1
    for index in range(8):
        await put(served, f"/secret-name/{index}", b"12345")
    await ask(served, "GET", "/secret-name/7")
    await ask(served, "GET", "/secret-name/1")
    assert metric("sluice_trickle_bytes_total", direction="in") == before["in"] + 40
    assert metric("sluice_trickle_bytes_total", direction="out") == before["out"] + 5
    assert metric("sluice_trickle_dropped_total", reason="lagged") == lagged + 2
    labels = {
        str(sample.labels)
        for family in REGISTRY.collect()
        for sample in family.samples
        if family.name.startswith("sluice_trickle")
    }
    assert not any("secret" in label for label in labels)
