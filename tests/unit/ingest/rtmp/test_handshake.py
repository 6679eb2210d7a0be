"""The handshakes: both sides meet however the bytes are cut, and a client's digest is answered with ours."""

from __future__ import annotations

import hashlib
import hmac
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.transports.rtmp.handshake import (
    CLIENT_KEY,
    DIGEST,
    SCHEMES,
    SERVER_KEY,
    SIZE,
    VERSION,
    ClientHandshake,
    ServerHandshake,
    digest_at,
    digest_of,
)

# The whole of Adobe's key for servers, as rtmpdump and libav have it.
WHOLE_KEY = SERVER_KEY + bytes.fromhex("f0eec24a8068bee82e00d0d1029e7e576eec5d2d29806fab93b8e636cfeb31ae")


@given(st.integers(1, 2 * SIZE + 1), st.integers(1, 2 * SIZE + 1), st.binary(max_size=40))
def test_client_and_server_meet_however_it_is_cut(step: int, other: int, behind: bytes) -> None:
    client, server = ClientHandshake(), ServerHandshake()
    answer = b"".join(server.feed(client.hello[at : at + step]) for at in range(0, len(client.hello), step))
    assert not server.done
    echo = b"".join(client.feed(answer[at : at + other]) for at in range(0, len(answer), other))
    assert client.done
    assert client.rest == b""
    last, at = echo + behind, 0
    while not server.done:
        assert server.feed(last[at : at + step]) == b""
        at += step
    assert server.rest + last[at:] == behind


def test_what_comes_behind_the_handshake_is_kept() -> None:
    client, server = ClientHandshake(), ServerHandshake()
    echo = client.feed(server.feed(client.hello) + b"from the server")
    assert client.rest == b"from the server"
    assert server.feed(echo + b"from the client") == b""
    assert server.rest == b"from the client"


def test_a_plain_client_gets_its_own_bytes_back() -> None:
    client = ClientHandshake()
    answer = ServerHandshake().feed(client.hello)
    assert len(answer) == 2 * SIZE + 1
    assert answer[5:9] == bytes(4), "a version of zero: no digest is to be looked for"
    assert answer[SIZE + 1 :] == client.hello[1:]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_client_with_a_digest_gets_a_server_that_it_can_verify(scheme: int) -> None:
    hello = bytearray(bytes(4) + b"\x0a\x00\x2d\x02" + secrets.token_bytes(SIZE - 8))
    at = digest_at(bytes(hello), scheme)
    hello[at : at + DIGEST] = digest_of(bytes(hello), at, CLIENT_KEY)
    answer = ServerHandshake().feed(VERSION + bytes(hello))
    own, echo = answer[1 : SIZE + 1], answer[SIZE + 1 :]
    assert own[4] >= 3
    found = digest_at(own, scheme)
    assert own[found : found + DIGEST] == digest_of(own, found, SERVER_KEY)
    key = hmac.digest(WHOLE_KEY, bytes(hello[at : at + DIGEST]), hashlib.sha256)
    assert echo[-DIGEST:] == hmac.digest(key, echo[:-DIGEST], hashlib.sha256)


def test_a_client_with_a_version_but_no_digest_is_answered_plainly() -> None:
    hello = bytes(4) + b"\x0a\x00\x2d\x02" + bytes(SIZE - 8)
    answer = ServerHandshake().feed(VERSION + hello)
    assert answer[SIZE + 1 :] == hello


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"\x06" + bytes(SIZE)])
def test_what_is_not_rtmp_is_refused_at_its_first_byte(data: bytes) -> None:
    with pytest.raises(InvalidError) as refusal:
        ServerHandshake().feed(data[:1])
    assert refusal.value.reason == "NOT_RTMP"
    with pytest.raises(InvalidError):
        ClientHandshake().feed(data[:1])
