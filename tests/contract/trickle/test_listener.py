"""HTTP/1.1 on the wire: one connection, any number of requests, and every way in which it may end."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.common.trickle.exchange import Exchange
from services.common.trickle.listener import ListenerLimits, serve_http1
from services.common.trickle.registry import Registry
from services.common.trickle.server import TrickleApp, serve_trickle
from tests.contract.trickle.wire import Served, ask, connect, metric, put, serving, until


async def test_a_connection_serves_one_request_after_the_other(served: Served) -> None:
    served.open()
    async with connect(served) as connection:
        for index in range(3):
            connection.post(f"/c/{index}")
            connection.chunk(b"%d" % index)
            connection.end()
            assert (await connection.answer()).status == 200
            connection.request("GET", f"/c/{index}")
            assert (await connection.answer()).body == b"%d" % index
            connection.request("GET", "/c/x")
            assert (await connection.answer()).status == 400


async def test_requests_without_bodies_that_are_sent_ahead_are_answered_in_order(served: Served) -> None:
    channel = served.open().channel
    for content in (b"0", b"1"):
        with channel.begin_segment() as writer:
            writer.write(content)
    async with connect(served) as connection:
        get = b"GET /c/%d HTTP/1.1\r\nHost: a\r\n\r\n"
        connection.writer.write(b"\r\n" + get % 0 + get % 1 + get % 0)
        answers = [await connection.answer() for _ in range(3)]
        assert [answer.body for answer in answers] == [b"0", b"1", b"0"]


async def test_what_is_sent_ahead_behind_a_body_is_for_its_client_to_send_again(served: Served) -> None:
    channel = served.open().channel
    async with connect(served) as connection:
        post = b"POST /c/%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n%d\r\n0\r\n\r\n"
        connection.writer.write(post % (0, 0) + post % (1, 1))
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await connection.hung_up()
    assert channel.head == 1


async def test_a_head_may_arrive_byte_by_byte(served: Served) -> None:
    served.open()
    async with connect(served) as connection:
        for byte in b"GET /c/next HTTP/1.1\r\nHost: a\r\n\r\n":
            connection.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await connection.answer()).status == 200


async def test_a_client_that_says_close_is_hung_up_on_after_its_answer(served: Served) -> None:
    served.open()
    for path in ("/c/next", "/c/0"):
        if path == "/c/0":
            await put(served, path, b"x")
        async with connect(served) as connection:
            connection.request("GET", path, "Connection: close")
            answer = await connection.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert await connection.hung_up()


async def test_an_http_1_0_client_gets_a_body_that_ends_with_its_connection(served: Served) -> None:
    channel = served.open().channel
    with channel.begin_segment() as writer:
        writer.write(b"one")
        async with connect(served) as connection:
            connection.writer.write(b"GET /c/0 HTTP/1.0\r\n\r\n")
            head = await connection.head()
            assert head.headers["connection"] == "close"
            assert "transfer-encoding" not in head.headers
            assert await connection.reader.readexactly(3) == b"one"
            writer.write(b"two")
            assert await connection.reader.readexactly(3) == b"two"
            writer.end()
            assert await connection.reader.read() == b""


async def test_an_http_1_0_publisher_is_never_told_to_continue() -> None:
    async with serving(continue_interval_s=0.02) as served, connect(served) as connection:
        served.open()
        connection.writer.write(b"POST /c/0 HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        assert await connection.quiet()
        connection.writer.write(b"x")
        assert (await connection.answer()).status == 200


async def test_a_client_that_has_said_all_it_has_to_say_still_gets_its_answer(served: Served) -> None:
    served.open()
    async with connect(served) as connection:
        connection.request("POST", "/c/0", "Content-Length: 3")
        connection.writer.write(b"abc")
        connection.writer.write_eof()
        assert (await connection.answer()).status == 200
        assert await connection.hung_up()
    assert (await ask(served, "GET", "/c/0")).body == b"abc"


async def test_a_reader_that_says_it_is_done_is_taken_at_its_word(served: Served) -> None:
    channel = served.open().channel
    async with connect(served) as connection:
        connection.request("GET", "/c/0")
        assert await connection.quiet()
        connection.writer.write_eof()
        await until(lambda: channel._readers == 0)


async def test_an_early_answer_is_read_though_its_sender_goes_on_sending(served: Served) -> None:
    async with connect(served) as connection:
        connection.post("/no/0")
        for _ in range(50):
            connection.chunk(bytes(20_000))
        assert (await connection.answer()).status == 404
        assert await connection.hung_up()


async def test_a_body_that_nobody_wants_does_not_spoil_the_next_request(served: Served) -> None:
    served.open()
    async with connect(served) as connection:
        connection.request("GET", "/c/next", "Content-Length: 5")
        connection.writer.write(b"GET /")
        assert (await connection.answer()).status == 200
        connection.request("GET", "/c/next")
        assert (await connection.answer()).status == 200


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /c/0 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"POST /c/0 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n",
    ],
)
async def test_what_is_no_request_is_a_400_and_the_end(served: Served, raw: bytes) -> None:
    async with connect(served) as connection:
        connection.writer.write(raw)
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert await connection.hung_up()


async def test_a_proxys_absolute_target_is_understood(served: Served) -> None:
    served.open()
    async with connect(served) as connection:
        connection.writer.write(b"GET http://relay:8001/c/next?x=1 HTTP/1.1\r\nHost: relay:8001\r\n\r\n")
        assert (await connection.answer()).status == 200


async def broken(exchange: Exchange) -> None:
    if exchange.head.path == "/begun":
        exchange.begin(200, {})
        exchange.push(b"some of it")
    raise ZeroDivisionError


async def test_a_bug_ends_its_connection_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    app = TrickleApp(broken, lambda: None, ListenerLimits())
    async with serve_trickle(app, "127.0.0.1:0", 0.5) as port, AsyncExitStack() as stack:
        served = Served(Registry(), port)
        idle = await stack.enter_async_context(connect(served))
        answer = await ask(served, "GET", "/secret")
        assert (answer.status, answer.headers["connection"]) == (500, "close")
        begun = await stack.enter_async_context(connect(served))
        begun.request("GET", "/begun")
        assert await begun.hung_up()
        idle.request("GET", "/secret")
        assert (await idle.answer()).status == 500
    assert "secret" not in caplog.text


async def test_a_handler_that_never_ends_is_ended_with_the_server() -> None:
    ended = asyncio.Event()

    async def stuck(exchange: Exchange) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
            assert not exchange.answered

    async with AsyncExitStack() as stack:
        async with serve_http1(
            stuck, "127.0.0.1:0", limits=ListenerLimits(), grace_s=0.05, tls=None, stopping=lambda: None
        ) as port:
            connection = await stack.enter_async_context(connect(Served(Registry(), port)))
            connection.request("GET", "/")
            assert await connection.quiet()
        assert ended.is_set()
        assert await connection.hung_up()
    assert metric("sluice_trickle_connections") == 0


async def test_a_taken_port_is_an_error_of_the_system(served: Served) -> None:
    app = TrickleApp(broken, lambda: None, ListenerLimits())
    with pytest.raises(OSError, match="in use"):
        async with serve_trickle(app, f"127.0.0.1:{served.port}", 0.5):
            pass
