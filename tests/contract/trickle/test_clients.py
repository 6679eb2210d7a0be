"""Our publisher and subscriber, against our server and against ones that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import psutil
import pytest
import pytest_asyncio
from aiohttp import ClientSession, web

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    TooLargeError,
    UnavailableError,
)
from services.common.trickle.connection import Patience, trickle_session
from services.common.trickle.protocol import NEXT, RANDOM_ACCESS, ChannelClosedError, ChannelLimits
from services.common.trickle.publisher import PublishedSegment, Publisher
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from tests.contract.trickle.wire import Served, ask, metric, put

HASTY = Patience(connect_s=0.5, answer_s=0.5, poll_s=0.1, failures=4, first_delay_s=0.02, last_delay_s=0.1)


@pytest_asyncio.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with trickle_session() as session:
        yield session


@asynccontextmanager
async def misbehaving(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Serve any request by `handler`; yields a channel's URL."""
    runner = web.ServerRunner(web.Server(handler, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/c"
    finally:
        await runner.cleanup()


async def whole(segment: ReceivedSegment) -> bytes:
    return b"".join([chunk async for chunk in segment])


async def everything(session: ClientSession, url: str, start: int) -> list[tuple[int, int, bytes]]:
    async with Subscriber(session, url, start=start) as subscriber:
        return [(segment.index, segment.lost, await whole(segment)) async for segment in subscriber]


async def publish(publisher: Publisher, *chunks: bytes) -> None:
    async with publisher.segment() as segment:
        for chunk in chunks:
            await segment.write(chunk)


async def keep_writing(segment: PublishedSegment) -> None:
    """Write until something says that it makes no sense, which is to be soon."""
    async with asyncio.timeout(1.0):
        while True:
            await segment.write(bytes(60))
            await asyncio.sleep(0.01)


async def flood(segment: PublishedSegment) -> None:
    while True:
        await segment.write(bytes(2**20))


async def test_what_is_published_is_received_and_the_end_is_clean(
    served: Served, session: ClientSession
) -> None:
    channel = served.open().channel
    async with asyncio.TaskGroup() as group:
        received = group.create_task(everything(session, f"{served.url}/c", 0))
        async with Publisher(session, f"{served.url}/c") as publisher:
            for number in range(10):
                await publish(publisher, b"%d" % number, b"!" * 5000)
                await asyncio.sleep(0.01)
            await publisher.close()
    assert received.result() == [(number, 0, b"%d" % number + b"!" * 5000) for number in range(10)]
    assert (publisher.failed, channel.head, channel.closed) == (0, 10, True)
    with pytest.raises(ChannelClosedError):
        await publish(publisher, b"late")


async def test_the_next_post_is_parked_while_one_flows(served: Served, session: ClientSession) -> None:
    ring = served.open().channel._ring
    async with Publisher(session, f"{served.url}/c") as publisher:
        await publish(publisher, b"x")
        await asyncio.sleep(0.05)
        assert {index: slot.size for index, slot in ring.slots.items()} == {0: 1, 1: 0}
    await asyncio.sleep(0.05)
    assert 1 not in ring.slots


async def test_a_chunk_arrives_within_milliseconds(served: Served, session: ClientSession) -> None:
    served.open()
    latencies_ms: list[float] = []

    async def read() -> None:
        async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
            async for segment in subscriber:
                buffer = b""
                async for run in segment:
                    buffer += run
                    while buffer:
                        chunk, buffer = buffer[:4000], buffer[4000:]
                        latencies_ms.append((time.perf_counter() - float(chunk[:24])) * 1000)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        async with Publisher(session, f"{served.url}/c") as publisher:
            for _ in range(4):
                async with publisher.segment() as segment:
                    for _ in range(15):
                        await segment.write(f"{time.perf_counter():<24.9f}".encode().ljust(4000))
                        await asyncio.sleep(0.01)
            await publisher.close()
    assert len(latencies_ms) == 60
    assert statistics.median(latencies_ms) < 33  # a frame's time; a segment here is 150 ms


async def test_a6_64_events_back_to_back_have_64_indices(served: Served, session: ClientSession) -> None:
    served.open(limits=ChannelLimits(depth=64))
    async with Publisher(session, f"{served.url}/c") as publisher:
        for number in range(64):
            await publish(publisher, b"%d" % number)
        reading = asyncio.ensure_future(everything(session, f"{served.url}/c", 0))
        await asyncio.sleep(0.2)
        await publisher.close()
        assert await reading == [(number, 0, b"%d" % number) for number in range(64)]


async def test_a15_a_subscriber_that_fell_behind_learns_how_many_it_lost(
    served: Served, session: ClientSession
) -> None:
    channel = served.open().channel
    lagged = metric("sluice_trickle_dropped_total", reason="lagged")
    async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
        await put(served, "/c/0", b"0")
        first = await anext(subscriber)
        assert (first.index, first.lost, await whole(first)) == (0, 0, b"0")
        await put(served, "/c/1", b"1")
        await anext(subscriber)
        await put(served, "/c/2", b"2")
        await asyncio.sleep(0.05)  # 2 is taken by the preconnected GET
        for index in range(3, 14):
            await put(served, f"/c/{index}", b"x")
        seen = [await anext(subscriber) for _ in range(3)]
    assert channel.head == 14
    assert [(segment.index, segment.lost) for segment in seen] == [(2, 0), (9, 6), (10, 0)]
    assert metric("sluice_trickle_dropped_total", reason="lagged") == lagged + 6


async def test_a12_a_subscriber_follows_a_publisher_that_starts_again(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
        for index in range(4):
            await put(served, f"/c/{index}", b"old")
            await anext(subscriber)
        await asyncio.sleep(0.05)  # 4 is asked for ahead of time
        for index in range(2):
            await put(served, f"/c/{index}", b"new")
        seen = [await anext(subscriber) for _ in range(2)]
        assert [(segment.index, segment.restarted, segment.generation) for segment in seen] == [
            (0, True, 2),
            (1, False, 2),
        ]
        assert [segment.lost for segment in seen] == [0, 0]


async def test_a12_a_subscriber_that_was_away_for_a_restart_reads_the_new_publisher_from_where_it_can(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
        await put(served, "/c/0", b"old")
        await anext(subscriber)
        await put(served, "/c/1", b"old")
        await asyncio.sleep(0.05)  # 1 is taken ahead of time
        for index in range(8):
            await put(served, f"/c/{index}", b"new")
        old = await anext(subscriber)
        assert (old.index, old.restarted, await whole(old)) == (1, False, b"old")
        new = await anext(subscriber)
        assert (new.index, new.restarted, new.lost) == (3, True, 3)


async def test_a_subscriber_jumps_to_where_a_decoder_can_start(
    served: Served, session: ClientSession
) -> None:
    channel = served.open().channel
    for number in range(12):
        with channel.begin_segment(random_access=number in {3, 7}) as writer:
            writer.write(b"x")
    for start, lost in ((RANDOM_ACCESS, 0), (1, 6)):
        async with Subscriber(session, f"{served.url}/c", start=start) as subscriber:
            segment = await anext(subscriber)
            assert (segment.index, segment.lost) == (7, lost)


async def test_a_start_in_the_future_waits_for_it(served: Served, session: ClientSession) -> None:
    served.open()
    async with Subscriber(session, f"{served.url}/c", start=4) as subscriber:
        waiting = asyncio.ensure_future(anext(subscriber))
        for index in range(5):
            await put(served, f"/c/{index}", b"%d" % index)
        segment = await waiting
        assert (segment.index, segment.lost) == (4, 0)


async def test_an_empty_segment_is_received_as_one(served: Served, session: ClientSession) -> None:
    served.open()
    async with Publisher(session, f"{served.url}/c") as publisher:
        await publish(publisher)
        await publish(publisher, b"x")
        async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
            assert await whole(await anext(subscriber)) == b""
            assert await whole(await anext(subscriber)) == b"x"


async def test_a_channel_closed_inside_a_segment_ends_both_sides(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with (
        Publisher(session, f"{served.url}/c") as publisher,
        Subscriber(session, f"{served.url}/c", start=0) as subscriber,
    ):
        async with publisher.segment() as segment:
            await segment.write(b"half")
            received = await anext(subscriber)
            assert await anext(received) == b"half"
            served.registry.close("c")
            assert await whole(received) == b""
            with pytest.raises(ChannelClosedError):
                await keep_writing(segment)
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)
        with pytest.raises(ChannelClosedError):
            await publish(publisher, b"x")
        await publisher.close()


async def test_a1_a_publisher_cancelled_inside_a_segment_and_the_next_one_goes_on(
    served: Served, session: ClientSession
) -> None:
    served.open()
    begun = asyncio.Event()

    async def dies() -> None:
        async with Publisher(session, f"{served.url}/c") as publisher, publisher.segment() as segment:
            await segment.write(b"half")
            begun.set()
            await asyncio.Event().wait()

    async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
        publishing = asyncio.ensure_future(dies())
        await begun.wait()
        first = await anext(subscriber)
        publishing.cancel()
        async with asyncio.timeout(1.0):
            assert await whole(first) == b"half"
        async with Publisher(session, f"{served.url}/c", start=NEXT) as publisher:
            await publish(publisher, b"whole")
            second = await anext(subscriber)
            assert (second.index, second.restarted, await whole(second)) == (1, True, b"whole")
            assert second.lost == 1  # the one that was cut


async def test_a_block_that_fails_cuts_its_segment_and_the_next_one_goes_on(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with (
        Publisher(session, f"{served.url}/c") as publisher,
        Subscriber(session, f"{served.url}/c", start=0) as subscriber,
    ):
        with contextlib.suppress(ZeroDivisionError):
            async with publisher.segment() as segment:
                await segment.write(b"half")
                first = await anext(subscriber)
                raise ZeroDivisionError
        async with asyncio.timeout(1.0):
            assert await whole(first) == b"half"
        await publish(publisher, b"whole")
        assert await whole(await anext(subscriber)) == b"whole"


async def test_closing_confirms_what_was_written_then_deletes_then_ends_the_parked_post(
    session: ClientSession,
) -> None:
    steps: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        size = len(await request.content.read())
        await asyncio.sleep(0.1 if size else 0)
        steps.append(f"{request.method} {request.path} {size}")
        return web.Response()

    async with misbehaving(handler) as url, Publisher(session, url) as publisher:
        await publish(publisher, b"one")
        await publisher.flush()
        assert steps == ["POST /c/0 3"]
        await publish(publisher, b"last")
        await publisher.close()
    assert steps == ["POST /c/0 3", "POST /c/1 4", "DELETE /c 0", "POST /c/2 0"]


async def test_a_segment_that_the_server_ended_is_a_conflict_and_the_next_one_goes_on(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with Publisher(session, f"{served.url}/c") as publisher:
        async with publisher.segment() as segment:
            await segment.write(b"x")
            await asyncio.sleep(0.05)
            await ask(served, "DELETE", "/c/0")
            with pytest.raises(ConflictError):
                await keep_writing(segment)
        await publish(publisher, b"y")
        await asyncio.sleep(0.05)
    assert (await ask(served, "GET", "/c/1")).body == b"y"


async def test_a_parked_post_that_the_server_ended_is_skipped(served: Served, session: ClientSession) -> None:
    served.open()
    async with Publisher(session, f"{served.url}/c") as publisher:
        await asyncio.sleep(0.05)
        await ask(served, "DELETE", "/c/0")
        await asyncio.sleep(0.05)
        async with publisher.segment() as segment:
            assert segment.index == 1
            await segment.write(b"x")


async def test_a_segment_over_the_servers_cap_is_told_to_its_writer(
    served: Served, session: ClientSession
) -> None:
    served.open(limits=ChannelLimits(segment_bytes=100, channel_bytes=100))
    async with Publisher(session, f"{served.url}/c") as publisher, publisher.segment() as segment:
        with pytest.raises(TooLargeError):
            await keep_writing(segment)


async def test_both_sides_wait_for_a_server_that_comes_up_late(session: ClientSession) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    url = f"http://127.0.0.1:{port}/c"
    patience = Patience(failures=20, first_delay_s=0.02, last_delay_s=0.05)
    async with (
        Publisher(session, url, patience=patience) as publisher,
        Subscriber(session, url, start=0, patience=patience) as subscriber,
    ):
        receiving = asyncio.ensure_future(anext(subscriber))
        publishing = asyncio.ensure_future(publish(publisher, b"patient"))
        await asyncio.sleep(0.1)
        registry = Registry()
        registry.open("c", read_alias="c", write_alias="c")
        async with serve_trickle(trickle_app(registry), f"127.0.0.1:{port}", 1.0):
            await publishing
            assert await whole(await receiving) == b"patient"


async def test_a_server_that_never_comes_is_unavailable(session: ClientSession) -> None:
    url = "http://127.0.0.1:9/c"
    async with Publisher(session, url, patience=HASTY) as publisher:
        with pytest.raises(UnavailableError):
            await publish(publisher, b"x")
        with pytest.raises(UnavailableError):
            await publisher.close()
    async with Subscriber(session, url, patience=HASTY) as subscriber:
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await anext(subscriber)


async def test_a_post_is_not_repeated_once_a_byte_went_out(session: ClientSession) -> None:
    posts: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        posts.append(request.path)
        await request.content.readany()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with (
        misbehaving(handler) as url,
        Publisher(session, url, patience=HASTY) as publisher,
        publisher.segment() as segment,
    ):
        with pytest.raises(UnavailableError):
            await keep_writing(segment)
    assert posts.count("/c/0") == 1


async def test_a_parked_post_that_is_dropped_is_repeated(session: ClientSession) -> None:
    posts: list[str] = []
    bodies: list[bytes] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        posts.append(request.path)
        if len(posts) < 3:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        bodies.append(await request.content.read())
        return web.Response()

    async with misbehaving(handler) as url, Publisher(session, url, patience=HASTY) as publisher:
        await asyncio.sleep(0.3)
        await publish(publisher, b"whole")
        await asyncio.sleep(0.05)
        assert posts[:3] == ["/c/0"] * 3
        assert bodies == [b"whole"]


async def test_posts_carry_the_headers_and_the_content_type(session: ClientSession) -> None:
    seen: list[tuple[str | None, str | None]] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        seen.append((request.headers.get("traceparent"), request.headers.get("Content-Type")))
        await request.content.read()
        return web.Response()

    async with (
        misbehaving(handler) as url,
        Publisher(
            session, url, content_type="application/json", headers={"traceparent": "00-1"}
        ) as publisher,
    ):
        for _ in range(2):
            await publish(publisher, b"{}")
        await asyncio.sleep(0.05)
    assert seen == [("00-1", "application/json")] * 3


async def test_the_fourth_segment_in_flight_is_refused_after_a_bounded_wait(
    served: Served, session: ClientSession
) -> None:
    served.open()
    async with Publisher(session, f"{served.url}/c", patience=HASTY) as publisher, AsyncExitStack() as stack:
        for _ in range(3):
            segment = await stack.enter_async_context(publisher.segment())
            await segment.write(b"x")
        with pytest.raises(ExhaustedError) as caught:
            await publish(publisher, b"x")
        assert caught.value.reason == "TOO_MANY_IN_FLIGHT"


async def test_a_server_that_stops_reading_is_unavailable_in_a_bounded_time(session: ClientSession) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    patience = Patience(write_s=0.2)
    async with (
        misbehaving(handler) as url,
        Publisher(session, url, patience=patience) as publisher,
        publisher.segment() as segment,
    ):
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(3.0):
                await flood(segment)


async def test_a_segment_that_is_never_answered_counts_as_failed(session: ClientSession) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        await request.content.read()
        await asyncio.sleep(60)
        return web.Response()

    async with misbehaving(handler) as url, Publisher(session, url, patience=HASTY) as publisher:
        await publish(publisher, b"x")
        await asyncio.sleep(0.7)
        assert publisher.failed == 1


async def test_a_segment_whose_connection_broke_is_counted_as_lost(session: ClientSession) -> None:
    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        index = request.path.removeprefix("/c/")
        if int(index) > 1:
            return web.Response(headers={"Lp-Trickle-Closed": "terminated"})
        response = web.StreamResponse(headers={"Lp-Trickle-Seq": index})
        await response.prepare(request)
        await response.write(b"data")
        if index == "0":
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.close()
        return response

    async with misbehaving(handler) as url, Subscriber(session, url, start=0, patience=HASTY) as subscriber:
        first = await anext(subscriber)
        assert (await whole(first), first.cut) == (b"data", True)
        second = await anext(subscriber)
        assert (second.index, second.lost, await whole(second), second.cut) == (1, 1, b"data", False)
        with pytest.raises(StopAsyncIteration):
            await anext(subscriber)


async def test_a_busy_server_is_asked_again_and_a_refusal_is_final(session: ClientSession) -> None:
    statuses = [503, 503, 200, 400]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=statuses.pop(0), headers={"Lp-Trickle-Seq": "7"}, text="x")

    async with misbehaving(handler) as url, Subscriber(session, url, start=7, patience=HASTY) as subscriber:
        assert await whole(await anext(subscriber)) == b"x"
        with pytest.raises(InvalidError):
            await anext(subscriber)


async def test_a_470_without_our_header_goes_to_the_head(session: ClientSession) -> None:
    asked: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        if request.path == "/c/9":
            return web.Response(headers={"Lp-Trickle-Seq": "9"}, text="x")
        return web.Response(status=470, headers={"Lp-Trickle-Latest": "9"}, text="Entry not found")

    async with misbehaving(handler) as url, Subscriber(session, url, start=3) as subscriber:
        segment = await anext(subscriber)
        assert (segment.index, segment.lost) == (9, 6)
    assert asked[:2] == ["/c/3", "/c/9"]


async def test_a_head_is_asked_for_again_and_a_server_without_one_is_refused(session: ClientSession) -> None:
    statuses = [503, 200]

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=statuses.pop(0))

    async with misbehaving(handler) as url:
        with pytest.raises(InvalidError):
            async with Publisher(session, url, start=NEXT, patience=HASTY):
                pass
    assert statuses == []


async def test_a_server_that_does_not_say_where_a_decoder_can_start_is_read_from_the_current_segment(
    session: ClientSession,
) -> None:
    asked: list[str] = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response(headers={"Lp-Trickle-Latest": "4", "Lp-Trickle-Seq": "3"}, text="x")

    async with misbehaving(handler) as url, Subscriber(session, url, start=RANDOM_ACCESS) as subscriber:
        assert (await anext(subscriber)).index == 3
    assert asked[:2] == ["/c/next", "/c/-2"]


async def test_a5_a_long_silence_is_polled_through(served: Served, session: ClientSession) -> None:
    served.open()
    async with (
        Publisher(session, f"{served.url}/c") as publisher,
        Subscriber(session, f"{served.url}/c", start=0, patience=HASTY) as subscriber,
    ):
        receiving = asyncio.ensure_future(anext(subscriber))
        await asyncio.sleep(0.75)
        await publish(publisher, b"at last")
        assert await whole(await receiving) == b"at last"


async def test_a_reader_that_gave_up_waiting_misses_nothing(served: Served, session: ClientSession) -> None:
    served.open()
    async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(subscriber)
        await put(served, "/c/0", b"x")
        assert await whole(await anext(subscriber)) == b"x"


async def test_a_segment_that_is_left_or_never_begun_is_let_go(
    served: Served, session: ClientSession
) -> None:
    channel = served.open().channel
    with (
        channel.begin_segment() as first,
        channel.begin_segment() as second,
        channel.begin_segment() as third,
    ):
        async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
            for writer in (first, second, third):
                writer.write(b"x")
            assert await anext(await anext(subscriber)) == b"x"
            assert (await anext(subscriber)).index == 1
            await asyncio.sleep(0.05)
            assert channel._readers == 2  # 1, and 2 ahead of time
        async with asyncio.timeout(1.0):
            while channel._readers:
                await asyncio.sleep(0.01)


async def test_cancelling_anywhere_leaves_no_socket(served: Served) -> None:
    served.open(limits=ChannelLimits(depth=100))
    process = psutil.Process()

    async def follow(session: ClientSession) -> None:
        async with Subscriber(session, f"{served.url}/c", start=0) as subscriber:
            async for segment in subscriber:
                async for _ in segment:
                    pass

    async def write(session: ClientSession) -> None:
        async with Publisher(session, f"{served.url}/c", start=NEXT) as publisher:
            while True:
                await publish(publisher, b"x", b"y")

    await ask(served, "GET", "/c/next")
    descriptors = process.num_fds()
    for delay_ms in range(0, 40, 3):
        async with trickle_session() as session:
            tasks = [asyncio.ensure_future(work(session)) for work in (follow, write)]
            await asyncio.sleep(delay_ms / 1000)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
    async with asyncio.timeout(2.0):
        while process.num_fds() > descriptors:
            await asyncio.sleep(0.01)
