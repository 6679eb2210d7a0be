"""A pipeline's snapshot at the bridge: what is read back is what was written, or nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from aiohttp import ClientSession
from hypothesis import given
from hypothesis import strategies as st

from services.common.lifecycle import background
from services.common.trickle.channel import Channel
from services.common.trickle.connection import trickle_session
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference import state as module
from services.inference.address import Address
from services.inference.state import StateWriter, read_back, sealed, unsealed
from tests.support.inference import until


@dataclass(frozen=True)
class Kept:
    """A channel at a bridge."""

    channel: Channel
    write_url: str
    read_url: str


@dataclass(frozen=True)
class Place:
    http: ClientSession
    registry: Registry
    port: int

    def keep(self, name: str) -> Kept:
        opened = self.registry.open(name)
        base = f"http://127.0.0.1:{self.port}"
        return Kept(opened.channel, base + opened.write_path, base + opened.read_path)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    registry = Registry()
    async with serve_trickle(trickle_app(registry), "127.0.0.1:0", 1.0) as port, trickle_session() as http:
        yield Place(http, registry, port)


@given(st.binary(max_size=300))
def test_what_was_sealed_comes_back(snapshot: bytes) -> None:
    assert unsealed(sealed(snapshot)) == snapshot


@given(st.binary(min_size=1, max_size=300), st.integers(min_value=1))
def test_a_part_of_it_is_nothing(snapshot: bytes, missing: int) -> None:
    whole = sealed(snapshot)
    assert unsealed(whole[: -min(missing, len(whole))]) is None


@given(st.binary(max_size=300))
def test_other_bytes_are_nothing(data: bytes) -> None:
    assert unsealed(data) is None


async def test_the_newest_is_read_back(place: Place) -> None:
    kept = place.keep("state")
    writer = StateWriter(Address(kept.write_url))
    async with background(run=writer.run(place.http)):
        for number, snapshot in enumerate((b"one", b"two", bytes(1 << 20)), 1):
            writer.put(snapshot)
            await until(lambda number=number: kept.channel.head == number)  # type: ignore[misc]
            assert await read_back(place.http, kept.read_url) == snapshot


async def test_another_bridge_gets_the_newest_again(place: Place) -> None:
    old, new = place.keep("old"), place.keep("new")
    address = Address(old.write_url)
    writer = StateWriter(address)
    async with background(run=writer.run(place.http)):
        writer.put(b"one")
        await until(lambda: old.channel.head == 1)
        address.move(new.write_url)
        await until(lambda: new.channel.head == 1)
    assert await read_back(place.http, new.read_url) == b"one"


async def test_a_closed_channel_is_read_and_an_empty_or_absent_one_gives_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 0.3)
    kept = place.keep("state")
    assert await read_back(place.http, kept.read_url) is None
    with kept.channel.begin_segment() as segment:
        segment.write(sealed(b"one"))
    place.registry.close("state")
    assert await read_back(place.http, kept.read_url) == b"one"
    assert await read_back(place.http, f"http://127.0.0.1:{place.port}/nothing") is None
    assert await read_back(place.http, "http://127.0.0.1:9/nobody") is None


async def test_a_snapshot_that_is_still_being_written_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WITHIN_S", 0.3)
    kept = place.keep("state")
    kept.channel.begin_segment().write(sealed(b"one")[:5])
    assert await read_back(place.http, kept.read_url) is None
