"""A channel that its owner closes for a reason: its writer hears the reason, its readers an ordinary end."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import ClientSession

from services.common.errors import DeniedError, PaymentRequiredError
from services.common.trickle.connection import trickle_session
from services.common.trickle.publisher import PublishedSegment, Publisher
from services.common.trickle.subscriber import Subscriber
from tests.contract.trickle.wire import Answer, Connection, Served, ask, connect, serving

NO_CREDIT = PaymentRequiredError("the credit is used up")


def refused(answer: Answer, status: int = 402, text: bytes = b"the credit is used up\n") -> bool:
    assert "lp-trickle-closed" not in answer.headers  # the reference's publishers take that for a plain end
    assert answer.headers["connection"] == "close"
    return (answer.status, answer.body) == (status, text)


async def test_a_writer_hears_why_wherever_it_is_and_a_reader_sees_an_end() -> None:
    async with serving(linger_s=60.0) as served:
        served.open()
        async with (
            connect(served) as flowing,
            connect(served) as parked,
            connect(served) as reading,
            connect(served) as waiting,
        ):
            flowing.post("/c/0")
            flowing.chunk(b"half")
            parked.post("/c/1")
            reading.request("GET", "/c/0")
            assert await reading.next_chunk_after_head() == b"half"
            waiting.request("GET", "/c/1")
            assert await waiting.quiet()
            served.registry.close("c", NO_CREDIT)
            assert refused(await flowing.answer())
            assert refused(await parked.answer())
            assert await reading.next_chunk() == b""
            assert (await waiting.answer()).headers["lp-trickle-closed"] == "terminated"
        for later in ("/c/1", "/c/-1", "/c"):
            assert refused(await ask(served, "POST", later, "Content-Length: 0"))
        assert (await ask(served, "GET", "/c/0")).body == b"half"
        for path in ("/c/1", "/c/next"):
            assert (await ask(served, "GET", path)).headers["lp-trickle-closed"] == "terminated"
        assert (await ask(served, "DELETE", "/c")).status == 402


async def test_the_reason_is_forgotten_with_the_channel(served: Served) -> None:
    served.open()
    served.registry.close("c", NO_CREDIT)
    assert (await ask(served, "POST", "/c/0", "Content-Length: 0")).status == 404


async def test_the_head_of_a_channel_that_only_its_writer_knows_says_why() -> None:
    async with serving(linger_s=60.0) as served:
        opened = served.registry.open("c")
        served.registry.close("c", NO_CREDIT)
        assert (await ask(served, "GET", f"{opened.write_path}/next")).status == 402
        assert (await ask(served, "GET", f"{opened.read_path}/next")).status == 200


async def test_a_channel_that_its_owner_closes_by_itself_says_why_too(served: Served) -> None:
    channel = served.open().channel
    async with connect(served) as parked:
        parked.post("/c/0")
        assert await parked.quiet()
        channel.close(DeniedError("this key was revoked"))
        assert refused(await parked.answer(), 403, b"this key was revoked\n")
    answer = await ask(served, "POST", "/c/0", "Content-Length: 0")
    assert refused(answer, 403, b"this key was revoked\n")


async def answers_within(connection: Connection, seconds: float) -> Answer:
    async with asyncio.timeout(seconds):
        return await connection.answer()


async def test_a_publisher_inside_a_body_is_told_at_once_that_its_channel_closed(served: Served) -> None:
    served.open()
    async with connect(served) as writer:
        writer.post("/c/0")
        writer.chunk(b"half")
        assert await writer.quiet()
        served.registry.close("c")
        answer = await answers_within(writer, 0.5)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert answer.headers["lp-trickle-closed"] == "terminated"
        writer.chunk(b"more of what nobody wants")
        assert await writer.hung_up()


async def test_our_publisher_raises_what_the_server_said() -> None:
    async with serving(linger_s=60.0) as served, trickle_session() as session:
        channel = served.open().channel
        async with Publisher(session, f"{served.url}/c") as publisher:
            async with publisher.segment() as segment:
                await segment.write(b"x")
                await channel.segment(0)
                served.registry.close("c", NO_CREDIT)
                with pytest.raises(PaymentRequiredError):
                    await keep_writing(segment)
            with pytest.raises(PaymentRequiredError):
                await one(publisher)
        assert await indices(session, f"{served.url}/c") == [0]


async def keep_writing(segment: PublishedSegment) -> None:
    async with asyncio.timeout(2.0):
        while True:
            await segment.write(b"x")
            await asyncio.sleep(0.01)


async def one(publisher: Publisher) -> None:
    async with publisher.segment() as segment:
        await segment.write(b"x")


async def indices(session: ClientSession, url: str) -> list[int]:
    async with Subscriber(session, url, start=0) as subscriber:
        return [segment.index async for segment in subscriber]
