from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from sluice.client import ApiError, SluiceClient, UnreachableError
from tests.support.platform import KEY, platform

Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking(speak: Speak) -> AsyncIterator[str]:
    """A server that says what a test wants; the block is given its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            served.release()

    served = asyncio.Semaphore(0)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await served.acquire()


def saying(answer: bytes) -> Speak:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    return speak


def http(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 188
        await asyncio.sleep(0.01)


async def test_the_calls_of_the_api() -> None:
    with platform() as at:
        async with SluiceClient(at.url + "/", KEY) as client:
            stream = await client.create_stream(pipeline="effects", params={"prompt": "neon"}, name="mine")
            assert at.stream.body == {
                "pipeline": "effects",
                "params": {"prompt": "neon"},
                "delivery": "live",
                "name": "mine",
            }
            assert await client.get_stream(stream.id) == stream
            assert await client.status(stream.id) is None
            changed = await client.update_stream(stream.id, {"prompt": "oil"}, apply_at_ms=40)
            assert changed.revision == 2
            assert at.patches[0][0] == {"params": {"prompt": "oil"}, "apply_at_ms": 40}
            assert (await client.prices())["currency"] == "EUR"
            assert (await client.pipelines())["data"][0]["pipeline"] == "effects"
            assert (await client.usage("ses_9"))["data"][0]["session"] == "ses_9"
            with pytest.raises(ApiError, match="no such session") as refused:
                await client.session("ses_9")
            assert (refused.value.status, refused.value.code) == (404, "SLUICE/NOT_FOUND")
            assert refused.value.reason == "NOT_FOUND"
            await client.delete_stream(stream.id)


async def test_an_answer_in_the_middle_of_the_body_is_heard() -> None:
    answer = http("402 Payment Required", b'{"code": "SLUICE/CREDIT_EXHAUSTED", "error": "used up"}')
    async with speaking(saying(answer)) as url, SluiceClient(url, KEY) as client, asyncio.timeout(5):
        with pytest.raises(ApiError, match="used up") as refused:
            await client.publish(url + "/ts/stk", endless())
    assert refused.value.status == 402


async def test_a_publisher_sends_no_key() -> None:
    heard = bytearray()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http("200 OK", b'{"session": "ses_1"}'))
        await writer.drain()

    async with speaking(speak) as url, SluiceClient(url, KEY) as client:
        assert await client.publish(url + "/ts/stk", endless()) == "ses_1"
        with pytest.raises(UnreachableError):
            await anext(client.watch("http://127.0.0.1:9/ts/pbk"))
    assert b"chunked" in heard
    assert KEY.encode() not in heard


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"SSH-2.0-x\r\n"])
async def test_a_publisher_whose_server_breaks_off_is_told(answer: bytes) -> None:
    async with speaking(saying(answer)) as url, SluiceClient(url, KEY) as client, asyncio.timeout(10):
        with pytest.raises(UnreachableError, match=r"publishing to 127\.0\.0\.1"):
            await client.publish(url + "/ts/secret", endless())


async def test_an_iterator_that_fails_ends_the_publishing() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x"
        raise LookupError

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with speaking(silent) as url, SluiceClient(url, KEY) as client, asyncio.timeout(5):
        with pytest.raises(LookupError):
            await client.publish(url, failing())


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}"])
async def test_another_server_is_not_taken_for_ours(body: bytes) -> None:
    async with speaking(saying(http("200 OK", body))) as url, SluiceClient(url, KEY) as client:
        with pytest.raises(ApiError, match="does not speak Sluice's API"):
            await client.create_stream()


async def test_an_error_without_our_body_has_its_status() -> None:
    async with speaking(saying(http("502 Bad Gateway", b"<html>"))) as url, SluiceClient(url, KEY) as client:
        with pytest.raises(ApiError, match="the server answered 502"):
            await client.runners()
