"""The proxy passes every byte, until it is told to be trouble."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.harness.proxy import NONE, Fault, Proxy, proxies


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that answers with what it is sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        def answer(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(65_536):
                        connection.sendall(data)
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@contextmanager
def client(proxy: Proxy) -> Iterator[socket.socket]:
    host, _, port = proxy.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        yield connection


def roundtrip(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    answer = b""
    while len(answer) < len(data):
        answer += connection.recv(65_536)
    return answer


def test_bytes_pass_as_they_are(echo: str) -> None:
    with proxies() as made, client(made.to(echo)) as connection:
        data = bytes(range(256)) * 2000
        assert roundtrip(connection, data) == data


def test_the_end_of_one_side_is_passed_on(echo: str) -> None:
    with proxies() as made, client(made.to(echo)) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(100):
            answer += data
        assert answer == b"last words"


def test_a_delay_delays_each_direction(echo: str) -> None:
    with proxies() as made:
        proxy = made.to(echo)
        proxy.fault = Fault(delay_s=0.2)
        with client(proxy) as connection:
            began_s = time.monotonic()
            assert roundtrip(connection, b"x") == b"x"
            assert time.monotonic() - began_s >= 0.4


def test_silence_keeps_bytes_back_until_it_ends(echo: str) -> None:
    with proxies() as made:
        proxy = made.to(echo)
        with client(proxy) as connection:
            assert roundtrip(connection, b"before") == b"before"
            proxy.fault = Fault(silent=True)
            connection.sendall(b"after")
            connection.settimeout(0.3)
            with pytest.raises(TimeoutError):
                connection.recv(10)
            proxy.fault = NONE
            connection.settimeout(10)
            assert connection.recv(10) == b"after"


def test_a_half_open_connection_is_silent_and_a_new_one_is_not(echo: str) -> None:
    with proxies() as made:
        proxy = made.to(echo)
        with client(proxy) as old, client(proxy) as new_before:
            assert roundtrip(old, b"x") == roundtrip(new_before, b"x") == b"x"
            proxy.half_open()
            old.settimeout(0.3)
            with pytest.raises(TimeoutError):
                roundtrip(old, b"lost")
            with client(proxy) as new:
                assert roundtrip(new, b"heard") == b"heard"


def test_a_reset_breaks_the_connection(echo: str) -> None:
    with proxies() as made:
        proxy = made.to(echo)
        with client(proxy) as connection:
            assert roundtrip(connection, b"x") == b"x"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                roundtrip(connection, b"y" * 100_000)
