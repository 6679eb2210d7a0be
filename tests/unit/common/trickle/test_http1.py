"""HTTP/1.1 as bytes: what is understood, and that nothing ambiguous is."""

from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.trickle.http1 import FRAMING_BYTES, Body, parse_head, path_segments, render_head

HOST = b"\r\nHost: test"


def chunked() -> Body:
    return parse_head(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked").body


def decoded(body: Body, *pieces: bytes) -> bytes:
    taken: list[bytes] = []
    for piece in pieces:
        body.feed(piece, taken.append)
    return b"".join(taken)


def framed(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def test_a_head_is_a_request_line_and_headers() -> None:
    head = parse_head(b"POST /c/0?x=1 HTTP/1.1\r\nHOST: test\r\nLp-Trickle-Reset:  1 \r\nA: b\r\na: c\r\nE:")
    assert (head.method, head.path, head.minor) == ("POST", "/c/0", 1)
    assert head.headers == {"host": "test", "lp-trickle-reset": "1", "a": "b, c", "e": ""}
    assert head.keeps_alive
    assert head.body.done


@pytest.mark.parametrize(
    ("line", "done"),
    [(b"Content-Length: 0", True), (b"Content-Length: 5", False), (b"Transfer-Encoding: Chunked", False)],
)
def test_a_body_has_a_length_or_comes_in_chunks(line: bytes, done: bool) -> None:
    assert parse_head(b"POST / HTTP/1.1" + HOST + b"\r\n" + line).body.done == done


def test_a_connection_ends_where_the_client_says_so_and_always_in_http_1_0() -> None:
    assert not parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close").keeps_alive
    assert not parse_head(b"GET / HTTP/1.0\r\nConnection: keep-alive").keeps_alive


def test_a_proxys_absolute_target_has_a_path_too() -> None:
    assert parse_head(b"GET http://host:1/c/0?q HTTP/1.1" + HOST).path == "/c/0"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"GET /",
        b"GET / HTTP/2.0\r\nHost: a",
        b"GET /\x00 HTTP/1.1\r\nHost: a",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded",
        b"GET / HTTP/1.1\r\nHost: a\r\nName : x",
        b"GET / HTTP/1.1\r\nHost: a\r\nName",
        b"GET / HTTP/1.1\r\nHost: a\r\nName: a\nb: c",
        b"GET / HTTP/1.1\r\nHost: a\r\nName: a\rb",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked",
    ],
)
def test_what_two_readers_could_take_differently_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_head(raw)
    assert caught.value.reason == "MALFORMED"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_head_or_invalid(raw: bytes) -> None:
    with contextlib.suppress(InvalidError):
        parse_head(raw)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0)))
def test_chunks_are_put_together_however_they_arrive(chunks: list[bytes], cuts: list[int]) -> None:
    body = chunked()
    assert decoded(body, *split(framed(*chunks), cuts)) == b"".join(chunks)
    assert (body.done, body.overrun) == (True, False)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0)))
def test_what_follows_a_body_is_not_read_as_one(chunks: list[bytes], cuts: list[int]) -> None:
    body = chunked()
    following = b"POST /other HTTP/1.1\r\nHost: b\r\nContent-Length: 4\r\n\r\nbody"
    assert decoded(body, *split(framed(*chunks) + following, cuts)) == b"".join(chunks)
    assert (body.done, body.overrun) == (True, True)


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_arbitrary_bytes_are_chunks_or_invalid(pieces: list[bytes]) -> None:
    body = chunked()
    with contextlib.suppress(InvalidError):
        for piece in pieces:
            if not body.done:
                decoded(body, piece)


def test_extensions_and_trailers_are_skipped() -> None:
    body = chunked()
    assert decoded(body, b"3;a=b\r\nabc\r\n000\r\nHost: x\r\n", b"\r\n") == b"abc"
    assert (body.done, body.overrun) == (True, False)


def test_an_offer_of_another_protocol_is_not_taken_up() -> None:
    head = parse_head(b"GET /c/0 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c")
    assert (head.path, head.body.done) == ("/c/0", True)


@pytest.mark.parametrize(
    "wire",
    [
        b"z\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b" 1\r\n",
        b"\r\n",
        b"1\n",
        b"1\r\naX",
        b"1\r\na\rX",
        b"1\r\nab\r\n",
        b"1;" + b"x" * 2 * FRAMING_BYTES,
        b"0\r\nx: " + b"x" * 2 * FRAMING_BYTES,
        b"1\r\na\r\n0\r\n" + b"x: y\r\n" * FRAMING_BYTES,
    ],
)
def test_framing_that_is_broken_or_endless_is_noticed(wire: bytes) -> None:
    body = chunked()
    with pytest.raises(InvalidError):
        decoded(body, *(bytes([byte]) for byte in wire))
    assert not body.done


def test_what_came_before_a_broken_chunk_is_given() -> None:
    taken: list[bytes] = []
    with pytest.raises(InvalidError):
        chunked().feed(b"3\r\nabc\r\nzz\r\n", taken.append)
    assert taken == [b"abc"]


def test_a_sized_body_is_as_long_as_was_said() -> None:
    body = parse_head(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5").body
    assert decoded(body, b"abc", b"de") == b"abcde"
    assert (body.done, body.overrun) == (True, False)


def test_a_path_is_split_before_it_is_decoded() -> None:
    assert path_segments("/ai/trickle/a%2Fb/0", "/ai/trickle/") == ["a/b", "0"]
    assert path_segments("/other/0", "/ai/trickle/") == []
    with pytest.raises(InvalidError):
        path_segments("/%ff/0", "/")


def test_an_answers_head() -> None:
    assert render_head(470, {"A": "1"}) == b"HTTP/1.1 470 Entry not found\r\nA: 1\r\n\r\n"
    assert render_head(200, {}) == b"HTTP/1.1 200 OK\r\n\r\n"
