"""The same over TLS, where a connection cannot be half closed."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from aiohttp import ClientSession, TCPConnector

from services.common.errors import PaymentRequiredError
from services.common.trickle.publisher import PublishedSegment, Publisher
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.common.trickle.subscriber import Subscriber


@pytest.fixture
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's, around a certificate that was made a moment ago."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def keep_writing(segment: PublishedSegment) -> None:
    async with asyncio.timeout(2.0):
        while True:
            await segment.write(b"more")
            await asyncio.sleep(0.01)


async def test_segments_flow_and_ends_are_clean_over_tls(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    ours, theirs = contexts
    registry = Registry(linger_s=60.0)
    registry.open("c", read_alias="c", write_alias="c")
    async with (
        serve_trickle(trickle_app(registry), "127.0.0.1:0", 1.0, ours) as port,
        ClientSession(connector=TCPConnector(ssl=theirs)) as session,
    ):
        url = f"https://localhost:{port}/c"
        async with Subscriber(session, url, start=0) as subscriber, Publisher(session, url) as publisher:
            for number in range(3):
                async with publisher.segment() as segment:
                    await segment.write(b"%d" % number * 100_000)
                received = await anext(subscriber)
                assert b"".join([data async for data in received]) == b"%d" % number * 100_000
            async with publisher.segment() as segment:
                await segment.write(b"half")
                received = await anext(subscriber)
                registry.close("c", PaymentRequiredError("no credit"))
                with pytest.raises(PaymentRequiredError):
                    await keep_writing(segment)
            assert b"".join([data async for data in received]) == b"half"
            with pytest.raises(StopAsyncIteration):
                await anext(subscriber)
