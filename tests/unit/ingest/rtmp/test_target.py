"""Targets of a push: what can work is taken apart, what reaches inside is refused, and keys are not shown."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError, UnavailableError
from services.ingest.transports.rtmp.target import (
    Resolver,
    Target,
    is_public,
    parse_target,
    validate_target,
)


@pytest.mark.parametrize(
    ("url", "target", "shown"),
    [
        (
            "rtmp://a.rtmp.example.com/live2/abcd-1234",
            Target(False, "a.rtmp.example.com", 1935, "live2", "abcd-1234"),
            "rtmp://a.rtmp.example.com/live2",
        ),
        (
            "rtmps://live.example.com:443/rtmp/FB-1?s_bl=1&s_sc=x/y",
            Target(True, "live.example.com", 443, "rtmp", "FB-1?s_bl=1&s_sc=x/y"),
            "rtmps://live.example.com/rtmp",
        ),
        (
            "rtmp://example.com:1936/app/instance/key",
            Target(False, "example.com", 1936, "app/instance", "key"),
            "rtmp://example.com:1936/app/instance",
        ),
        (
            "rtmp://[2600::1]/app/key",
            Target(False, "2600::1", 1935, "app", "key"),
            "rtmp://[2600::1]/app",
        ),
    ],
)
def test_an_address_is_taken_apart_as_servers_expect_it(url: str, target: Target, shown: str) -> None:
    assert parse_target(url, private=False) == target
    assert target.url == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://example.com/live/key",
        "example.com/live/key",
        "rtmp://example.com",
        "rtmp://example.com/",
        "rtmp://example.com/key",
        "rtmp:///live/key",
        "rtmp://example.com:99999/live/key",
        "rtmp://example.com:x/live/key",
        "rtmp://[::1/live/key",
        "rtmp://.example.com/live/key",
        "rtmp://exa_mple..com/live/key",
        "rtmps://ex\u00e4mple.com/live/key",
        f"rtmps://{'x' * 64}.com/live/key",
        "rtmp://user:word@example.com/live/key",
        "rtmp://example.com/live/key with spaces",
        "rtmp://example.com/live/key\r\n",
        "rtmp://example.com/live/" + "x" * 2000,
    ],
)
def test_an_address_that_can_never_work_is_refused_by_its_field_and_not_shown(url: str) -> None:
    with pytest.raises(InvalidError) as refusal:
        validate_target(url, private=True)
    assert refusal.value.details["field"] == "output_rtmp_url"
    assert "key" not in refusal.value.message.replace("a stream key belongs", "")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "x.localhost",
        "10.1.2.3",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fd00::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::a9fe:a9fe]",
        "[2001:0:1::1]",
        "224.0.0.1",
        "[ff02::1]",
    ],
)
def test_a_host_of_ours_is_refused_unless_that_is_allowed(host: str) -> None:
    with pytest.raises(InvalidError):
        validate_target(f"rtmp://{host}/live/key", private=False)
    validate_target(f"rtmp://{host}/live/key", private=True)


@pytest.mark.parametrize("address", ["8.8.8.8", "2600::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.text(max_size=200))
def test_any_text_is_refused_or_taken_apart_and_nothing_worse(text: str) -> None:
    for url in (text, f"rtmp://{text}", f"rtmp://host/{text}", f"rtmps://{text}/app/name"):
        try:
            target = parse_target(url, private=False)
        except InvalidError:
            continue
        assert target.host
        assert target.name


def test_what_a_server_says_is_shown_without_the_key() -> None:
    target = parse_target("rtmp://example.com/live/secret-1?token=secret-2", private=False)
    said = target.redact(
        "NetStream.Publish.BadName: secret-1 (secret-2)\r\nrefused secret-1?token=secret-2" + "!" * 999
    )
    assert "secret-1" not in said
    assert "\n" not in said
    assert len(said) <= 200
    assert "delivery is live" in parse_target("rtmp://h/live/k1", private=True).redact("delivery is live")


def answering(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        if not addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


TARGET = parse_target("rtmp://example.com/live/key", private=False)


async def test_only_addresses_that_were_checked_are_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "127.0.0.1", "8.8.8.8", "10.0.0.1", "8.8.8.8")
    assert await Resolver().resolve(TARGET, private=False) == ["8.8.8.8"]
    assert await Resolver().resolve(TARGET, private=True) == ["127.0.0.1", "8.8.8.8", "10.0.0.1"]


async def test_a_name_that_points_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "127.0.0.1")
    with pytest.raises(UnavailableError, match="public internet"):
        await Resolver().resolve(TARGET, private=False)


async def test_a_name_that_nobody_knows_is_said_to_be_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch)
    with pytest.raises(UnavailableError, match="not known"):
        await Resolver().resolve(TARGET, private=False)


async def test_a_name_server_that_hangs_costs_one_thread_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def hang(*_: Any, **__: Any) -> list[Any]:
        answered.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("services.ingest.transports.rtmp.target.RESOLVE_S", 0.05)
    resolver = Resolver()
    with pytest.raises(UnavailableError, match="does not answer"):
        await resolver.resolve(TARGET, private=False)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="still"):
            await resolver.resolve(TARGET, private=False)
    assert [thread.daemon for thread in resolving()] == [True]
    answered.set()
    async with asyncio.timeout(5):
        while resolving():
            await asyncio.sleep(0.01)


def resolving() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rtmp-push-resolve"]
