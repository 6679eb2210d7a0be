"""What NATS may do to the bus: stand still, fill its disk, come back without its store; views that parse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from prometheus_client import REGISTRY

from services.common import bus as bus_module
from services.common.bus import Bus, Entry, ParsedView, View, connect
from services.common.errors import UnavailableError
from services.common.lifecycle import background
from services.common.topology import EVENTS, PROBE, REPLICAS, SLOTS
from tests.support.disk import Disk, NotPermittedError, disks
from tests.support.nats import NatsServer, nats_server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "PROBE_EVERY_S", 0.2)
    monkeypatch.setattr(bus_module, "NOT_STORING_AFTER_S", 1.0)
    monkeypatch.setattr(bus_module, "REQUEST_TIMEOUT_S", 0.5)


@pytest.fixture
async def bus(nats: NatsServer, hasty: None) -> AsyncIterator[Bus]:
    async with connect(nats.url, "test") as connection:
        yield connection


async def until(true: Callable[[], bool], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.02)


def storing() -> float | None:
    return REGISTRY.get_sample_value("sluice_nats_storing")


# --- without its store


async def lost(nats: NatsServer) -> None:
    await nats.kill()
    nats.lose_store()
    await nats.start()


async def test_a_bucket_that_was_lost_gets_back_what_its_followers_had(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await asyncio.gather(*(bucket.create(f"a.{number}", b"held") for number in range(200)))
    view = View()
    async with background(follow=bucket.follow(view)), connect(nats.url, "other") as other:
        await until(lambda: len(view.entries) == 200)
        await lost(nats)
        elsewhere = await other.bucket(SLOTS, 1)  # somebody else makes it before its followers can

        async def whole() -> None:
            while await elsewhere.get("a.199") is None or await elsewhere.get("a.0") is None:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(whole(), 8)
        await until(lambda: len(view.entries) == 200)
        entry = await elsewhere.get("a.7")
        assert entry is not None
        await elsewhere.update("a.7", b"free", entry.revision)
        await until(lambda: view.entries["a.7"].value == b"free")


async def test_what_was_written_after_the_loss_is_not_overwritten(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await bucket.create("a", b"old")
    await bucket.create("b", b"old")
    view = View()
    view.entries = {"a": Entry(b"old", 1), "b": Entry(b"old", 2)}
    await lost(nats)
    async with connect(nats.url, "other") as other:
        elsewhere = await other.bucket(SLOTS, 1)
        await elsewhere.create("a", b"new")
        await elsewhere._restore(view)
        for key, value in (("a", b"new"), ("b", b"old")):
            entry = await elsewhere.get(key)
            assert entry is not None
            assert entry.value == value


async def test_keys_that_others_renew_are_not_made_immortal(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(REPLICAS, 1)
    await bucket.create("dead", b"", ttl_s=30)
    view = View()
    async with background(follow=bucket.follow(view)):
        await until(lambda: "dead" in view.entries)
        await lost(nats)
        await until(lambda: "dead" not in view.entries)
        assert await bucket.get("dead") is None


async def test_while_a_bucket_is_gone_its_keys_are_unknown_not_absent(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await bucket.create("a", b"1")
    await lost(nats)
    await until(lambda: bus.healthy_for_s > 0 and bus.generation.value == 1)
    with pytest.raises(UnavailableError) as refused:
        await bucket.get("a")
    assert refused.value.reason == "BUCKET_LOST"
    with pytest.raises(UnavailableError):
        await bucket.create("a", b"2")


async def test_who_follows_a_bucket_never_takes_a_key_for_absent_before_it_is_restored(
    nats: NatsServer, bus: Bus
) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    for number in range(50):
        await bucket.create(f"a.{number}", b"1")
    view = View()
    async with background(follow=bucket.follow(view)), connect(nats.url, "other") as other:
        await until(lambda: len(view.entries) == 50)
        await lost(nats)
        await other.bucket(SLOTS, 1)  # so that it is there, and empty
        async with asyncio.timeout(8):
            while True:
                with suppress(UnavailableError):
                    entry = await bucket.get("a.49")
                    break
                await asyncio.sleep(0.001)
        assert entry is not None


async def test_a_lost_stream_is_made_again_and_its_consumer_goes_on(nats: NatsServer, bus: Bus) -> None:
    await bus.ensure_stream(EVENTS, 1)
    seen: list[bytes] = []

    async def apply(batch: Sequence[Msg]) -> None:
        seen.extend(message.data for message in batch)

    async with background(consume=bus.consume(EVENTS, "test", apply, batch=10)):
        await bus.store("events.x", b"before", message_id="1")
        await until(lambda: seen == [b"before"])
        await lost(nats)

        async def stored() -> None:
            while True:
                with suppress(UnavailableError):
                    return await bus.store("events.x", b"after", message_id="2")
                await asyncio.sleep(0.05)

        await asyncio.wait_for(stored(), 8)
        await until(lambda: seen == [b"before", b"after"])


# --- what stores nothing


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
async def test_a_frozen_nats_is_noticed_and_its_return_too(nats: NatsServer, bus: Bus) -> None:
    await bus.ensure_stream(PROBE, 1)
    await until(lambda: storing() == 1)
    nats.freeze()
    await until(lambda: storing() == 0)
    assert bus.stores, "for a moment it may"
    await until(lambda: not bus.stores)
    nats.thaw()
    await until(lambda: bus.stores and storing() == 1)


@pytest.fixture
def disk() -> Iterator[Disk]:
    try:
        with disks("nats") as (_, made):
            yield made["nats"]
    except NotPermittedError as kernel:
        pytest.skip(f"the kernel mounts no disk, not even in namespaces of our own: {kernel}")


async def test_a_full_disk_is_noticed_by_a_publish_and_by_nothing_else(disk: Disk) -> None:
    async with nats_server(disk.outside) as nats, connect(nats.url, "test") as bus:
        await bus.ensure_stream(PROBE, 1)
        await until(lambda: storing() == 1)
        disk.fill()
        await until(lambda: not bus.stores and storing() == 0)
        assert bus.healthy_for_s > 0, "the link is sound"


# --- views that parse


def test_a_value_is_read_once_when_it_comes() -> None:
    parsed: list[bytes] = []

    def parse(value: bytes) -> int:
        parsed.append(value)
        return int(value)

    view = ParsedView(parse)
    view.replace({"a": Entry(b"1", 1), "b": Entry(b"2", 2)})
    view.put("c", Entry(b"3", 3))
    view.put("a", None)
    view.replace({"b": Entry(b"2", 2), "c": Entry(b"4", 4)})
    assert view.parsed == {"b": 2, "c": 4}
    assert parsed == [b"1", b"2", b"3", b"4"]


def test_what_cannot_be_read_is_left_out() -> None:
    view = ParsedView(int)
    view.replace({"a": Entry(b"1", 1), "b": Entry(b"two", 2)})
    view.put("a", Entry(b"one", 3))
    assert view.parsed == {}
    assert view.entries.keys() == {"a", "b"}
