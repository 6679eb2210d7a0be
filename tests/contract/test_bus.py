"""The bus against a real nats-server: compare-and-set, time to live, and what a dead broker does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from random import Random

import pytest
from nats.aio.msg import Msg

from services.common import bus as bus_module
from services.common.bus import Bus, Entry, View, connect
from services.common.errors import ConflictError, InvalidError, UnavailableError
from services.common.lifecycle import background
from services.common.topology import EVENTS, REPLICAS, SLOTS
from tests.support.nats import NatsServer, nats_server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    async with connect(nats.url, "test") as connection:
        yield connection


async def until(true: Callable[[], bool], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.02)


async def test_a_lost_race_is_a_conflict_and_changes_nothing(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    first = await bucket.create("a", b"1")
    with pytest.raises(ConflictError) as refused:
        await bucket.create("a", b"2")
    assert refused.value.reason == "CAS_CONFLICT"
    second = await bucket.update("a", b"2", first)
    with pytest.raises(ConflictError):
        await bucket.update("a", b"3", first)
    with pytest.raises(ConflictError):
        await bucket.delete("a", first)
    entry = await bucket.get("a")
    assert entry is not None
    assert (entry.value, entry.revision) == (b"2", second)


async def test_a_deleted_key_is_gone_and_can_be_created_again(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    revision = await bucket.create("a", b"1")
    await bucket.delete("a", revision)
    assert await bucket.get("a") is None
    await bucket.create("a", b"2")
    await bucket.delete("a")
    assert await bucket.get("a") is None
    assert await bucket.get("never") is None


async def test_a_key_that_can_never_be_is_invalid(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    with pytest.raises(InvalidError):
        await bucket.create("no spaces", b"")
    with pytest.raises(InvalidError):
        await bucket.get("*")


async def test_twenty_writers_at_once_lose_no_change(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    for _ in range(5):
        await asyncio.gather(*(bucket.change("n", _one_more) for _ in range(20)))
    entry = await bucket.get("n")
    assert entry is not None
    assert entry.value == b"100"


def _one_more(value: bytes | None) -> bytes:
    return str(int(value or b"0") + 1).encode()


async def test_a_change_may_leave_things_as_they_are_or_refuse(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    revision = await bucket.create("a", b"1")
    assert await bucket.change("a", lambda _: None) == (b"1", revision)

    def refuse(_: bytes | None) -> bytes:
        raise ConflictError("not in this state")

    with pytest.raises(ConflictError):
        await bucket.change("a", refuse)


async def test_a_view_shows_what_is_there_and_what_comes_and_goes(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await bucket.create("old", b"1")
    view = View()
    async with background(follow=bucket.follow(view)):
        await asyncio.wait_for(view.ready.wait(), 5)
        assert {key: entry.value for key, entry in view.entries.items()} == {"old": b"1"}
        version = view.changed.version
        revision = await bucket.create("new", b"2")
        await asyncio.wait_for(view.changed.newer_than(version), 5)
        assert view.entries["new"].revision == revision
        await bucket.delete("old")
        await until(lambda: "old" not in view.entries)


async def test_an_empty_view_is_ready_too(bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    view = View()
    async with background(follow=bucket.follow(view)):
        await asyncio.wait_for(view.ready.wait(), 5)
        assert view.entries == {}


async def test_a_view_survives_the_death_of_its_server(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await bucket.create("before", b"1")
    await bucket.create("between", b"1")
    view = View()
    async with background(follow=bucket.follow(view)), connect(nats.url, "other") as other:
        await asyncio.wait_for(view.ready.wait(), 5)
        await nats.kill()
        await until(lambda: bus.healthy_for_s == 0)
        await nats.start()
        started_s = time.monotonic()
        await until(lambda: other.healthy_for_s > 0 and bus.healthy_for_s > 0)
        elsewhere = await other.bucket(SLOTS, 1)
        await elsewhere.change("after", lambda _: b"2")
        await elsewhere.delete("between")
        await until(lambda: view.entries.keys() == {"before", "after"})
        assert time.monotonic() - started_s < 5.0
        assert bus.generation.value == 1


class Counting(View):
    """A view that knows how often it was filled from the beginning."""

    filled = 0

    def replace(self, entries: dict[str, Entry]) -> None:
        self.filled += 1
        super().replace(entries)


async def test_a_view_whose_watcher_went_silent_is_made_anew(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "PROVE_EVERY_S", 0.2)
    monkeypatch.setattr(bus_module, "PROVEN_WITHIN_S", 0.3)
    bucket = await bus.bucket(SLOTS, 1)
    await bucket.create("key", b"1")
    view = Counting()
    async with background(follow=bucket.follow(view)):
        await asyncio.wait_for(view.ready.wait(), 5)
        stream = bus._client.jetstream()
        (consumer,) = await stream.consumers_info("KV_slots")
        await stream.delete_consumer("KV_slots", consumer.name)
        await bucket.change("key", lambda _: b"2")
        await until(lambda: view.entries["key"].value == b"2")
        assert view.filled == 2


async def test_a_view_that_heard_everything_is_not_made_anew(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "PROVE_EVERY_S", 0.1)
    bucket = await bus.bucket(SLOTS, 1)
    revision = await bucket.create("gone", b"1")
    await bucket.delete("gone", revision)
    view = Counting()
    async with background(follow=bucket.follow(view)):
        await asyncio.wait_for(view.ready.wait(), 5)
        for number in range(30):
            await bucket.change("key", lambda _, number=number: b"%d" % number)  # type: ignore[misc]
            await asyncio.sleep(0.1)
        assert view.filled == 1


async def test_a_follower_can_be_cancelled_at_any_moment(bus: Bus) -> None:
    """Also when news arrives at that moment, which `wait_for` of Python 3.11 takes for a reason to go on."""
    bucket = await bus.bucket(SLOTS, 1)
    revision = await bucket.create("a", b"")
    random = Random(7)
    for _ in range(60):
        view = View()
        following = asyncio.create_task(bucket.follow(view))
        await asyncio.wait_for(view.ready.wait(), 5)
        updating = asyncio.create_task(bucket.update("a", b"", revision))
        await asyncio.sleep(random.uniform(0, 0.002))
        following.cancel()
        await asyncio.wait({following}, timeout=1)
        assert following.cancelled()
        revision = await updating


async def test_while_the_server_is_down_writers_are_told(nats: NatsServer, bus: Bus) -> None:
    bucket = await bus.bucket(SLOTS, 1)
    await bus.ensure_stream(EVENTS, 1)
    revision = await bucket.create("a", b"1")
    await nats.kill()
    await until(lambda: bus.healthy_for_s == 0)
    for doing in (
        bus.store("events.x", b"", message_id="1"),
        bucket.get("a"),
        bucket.create("b", b""),
        bucket.update("a", b"2", revision),
        bucket.renew("a", b"2", revision, 1),
        bucket.delete("a"),
    ):
        with pytest.raises(UnavailableError) as refused:
            await doing
        assert refused.value.reason == "NATS_UNREACHABLE"
    await bus.publish("core", b"nobody minds")
    await nats.start()
    await until(lambda: bus.healthy_for_s > 0)
    await bucket.update("a", b"2", revision)


async def test_a_connection_can_be_closed_while_its_server_is_gone(nats: NatsServer) -> None:
    async with connect(nats.url, "test") as bus:
        await nats.kill()
        await until(lambda: bus.healthy_for_s == 0)
        await bus.publish("core", b"never sent")
    assert bus.healthy_for_s == 0


async def test_where_there_is_no_server_connect_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(UnavailableError) as refused:
        async with connect("nats://127.0.0.1:1", "test"):
            pass
    assert refused.value.reason == "NATS_UNREACHABLE"


async def test_a_renewed_key_lives_and_then_expires_before_everybody_s_eyes(bus: Bus) -> None:
    bucket = await bus.bucket(REPLICAS, 1)
    view = View()
    async with background(follow=bucket.follow(view)):
        revision = await bucket.create("a", b"0", ttl_s=1)
        for number in range(1, 5):
            await asyncio.sleep(0.5)
            revision = await bucket.renew("a", str(number).encode(), revision, ttl_s=1)
        await until(lambda: view.entries["a"].value == b"4")
        with pytest.raises(ConflictError):
            await bucket.renew("a", b"5", revision - 1, ttl_s=1)
        await until(lambda: "a" not in view.entries, 2.5)
        assert await bucket.get("a") is None
        await bucket.create("a", b"again", ttl_s=1)  # though the marker of the expired one is there
        await until(lambda: "a" in view.entries)
        await until(lambda: "a" not in view.entries, 2.5)
        await bucket.create("a", b"for ever")
        assert (await bucket.change("a", lambda value: (value or b"") + b"!"))[0] == b"for ever!"


async def test_core_messages_reach_who_listens(bus: Bus) -> None:
    heard: list[bytes] = []

    async def listen() -> None:
        async for message in bus.subscribe("core.*"):
            heard.append(message.data)  # noqa: PERF401 - it is looked at before the iteration ends

    async with background(listen=listen()):
        await asyncio.sleep(0.1)
        await bus.publish("core.a", b"1")
        await until(lambda: heard == [b"1"])


async def test_a_batch_that_was_not_applied_is_handed_again(bus: Bus) -> None:
    await bus.ensure_stream(EVENTS, 1)
    for number in range(3):
        await bus.store("events.x", str(number).encode(), message_id=str(number))
    await bus.store("events.x", b"the same id again", message_id="2")
    applied: list[bytes] = []
    refusals = iter([True])

    async def apply(batch: Sequence[Msg]) -> None:
        if next(refusals, False):
            raise UnavailableError("the database is away")
        applied.extend(message.data for message in batch)

    async with background(consume=bus.consume(EVENTS, "test", apply, batch=10)):
        await until(lambda: len(applied) >= 3)
        await asyncio.sleep(0.1)
    assert sorted(applied) == [b"0", b"1", b"2"]
