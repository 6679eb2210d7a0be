"""The line of all routers against a real NATS: who is served next, who passes, and who is forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import pytest

import tests.support.runner
from protos.events.v1.events_pb2 import PipelineOffer, Slot, Waiter
from protos.router.v1 import router_pb2 as router
from services.common.bus import Bus, Entry, View
from services.common.errors import ExhaustedError, InvalidError
from services.common.lifecycle import background
from services.common.topology import SLOTS, WAITERS
from services.router import line, slots
from services.router.placement import Requirements, Wish
from services.router.settings import RouterSettings
from services.router.waiting import TTL_S
from tests.support.nats import NatsServer
from tests.support.router import RouterClient, router_client
from tests.support.runner import FakeRunner

fake_runner = partial(tests.support.runner.fake_runner, every_s=0.1)


async def until(true: Callable[[], Awaitable[bool]], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not await true():
            await asyncio.sleep(0.02)


class Hall:
    """Sessions that wait at several routers, and the order in which they were served."""

    def __init__(self, tasks: asyncio.TaskGroup, watcher: RouterClient) -> None:
        self.served: list[str] = []
        self.grants: dict[str, router.Grant] = {}
        self._tasks = tasks
        self._watcher = watcher

    async def wait(self, client: RouterClient, session: str, **wish: object) -> asyncio.Task[None]:
        """Let a session wait; returns when all routers can see that it does."""
        task = self._tasks.create_task(self._wait(client, session, **wish))
        await until(lambda: self._seen(session))
        return task

    async def _wait(self, client: RouterClient, session: str, **wish: object) -> None:
        self.grants[session] = await client.grant(session, wait_ms=20_000, **wish)  # type: ignore[arg-type]
        self.served.append(session)

    async def _seen(self, session: str) -> bool:
        return session in [place.session for place in await self._watcher.queue()]

    async def until_served(self, *sessions: str) -> None:
        await until(lambda: self._served(sessions))

    async def _served(self, sessions: tuple[str, ...]) -> bool:
        return set(sessions) <= set(self.served)


async def test_those_who_wait_at_several_routers_are_served_by_priority_and_then_by_arrival(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        hall = Hall(tasks, two)
        await hall.wait(one, "first")
        await hall.wait(two, "second")
        await hall.wait(one, "third")
        await hall.wait(two, "urgent", priority=5)
        await hall.wait(one, "idle", priority=-5)
        order = ["urgent", "first", "second", "third", "idle"]
        assert [place.session for place in await one.queue()] == order
        assert [place.position for place in await two.queue()] == [1, 2, 3, 4, 5]
        holder = "holder"
        for session in order:
            await two.release(holder)
            await hall.until_served(session)
            holder = session
        assert hall.served == order
        await until(lambda: _nobody_waits(two))


async def _nobody_waits(client: RouterClient) -> bool:
    return not await client.queue()


async def test_a_later_one_passes_only_with_a_slot_that_no_earlier_one_could_use(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with (
        fake_runner(bus, "eu", region="eu"),
        fake_runner(bus, "us", region="us"),
        asyncio.TaskGroup() as tasks,
    ):
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("in-eu", region="eu")
        await one.grant("in-us", region="us")
        hall = Hall(tasks, two)
        await hall.wait(one, "needs-eu", region="eu")
        await hall.wait(two, "takes-any")
        await hall.wait(two, "late", region="eu")
        await two.release("in-us")
        await hall.until_served("takes-any")
        assert hall.grants["takes-any"].runner == "us"
        await two.release("in-eu")
        await hall.until_served("needs-eu")
        assert hall.served == ["takes-any", "needs-eu"]
        await one.release("needs-eu")
        await hall.until_served("late")


async def test_who_will_not_wait_takes_nothing_from_those_who_do(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    """Ten times a slot comes free for one who waits, while others ask without patience at both routers."""
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        hall = Hall(tasks, one)
        passed = 0
        for number in range(10):
            await hall.wait(two, f"w{number}")
            await one.release("holder" if number == 0 else f"w{number - 1}")
            answers = await asyncio.gather(
                *(client.grant(f"hasty-{number}-{n}") for n in range(3) for client in (one, two)),
                return_exceptions=True,
            )
            passed += sum(isinstance(answer, router.Grant) for answer in answers)
            await hall.until_served(f"w{number}")
        assert passed == 0


async def test_the_queue_says_who_waits_for_what_and_for_how_long(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    offers = [PipelineOffer(name="depth"), PipelineOffer(name="canny")]
    async with fake_runner(bus, "a", pipelines=offers), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        for number in range(3):  # so that it is known how often slots come free
            await one.grant(f"earlier-{number}", "depth", wait_ms=2_000)
            await one.release(f"earlier-{number}")
        await one.grant("holder", "depth", wait_ms=2_000)
        hall = Hall(tasks, two)
        waiting = [
            await hall.wait(one, "d1", pipeline="depth"),
            await hall.wait(one, "c1", pipeline="canny", priority=1),
            await hall.wait(two, "d2", pipeline="depth"),
        ]
        places = {place.session: place for place in await two.queue()}
        assert [(name, place.position) for name, place in places.items()] == [("c1", 1), ("d1", 1), ("d2", 2)]
        assert all(0 <= place.waited_ms < 5_000 for place in places.values())
        assert 0 < places["d1"].expected_wait_ms < places["d2"].expected_wait_ms
        assert [place.session for place in await one.queue(pipeline="depth")] == ["d1", "d2"]
        assert [place.position for place in await one.queue(session="d2")] == [2]
        capacity = await two.capacity()
        assert {name: line.waiting for name, line in capacity.items()} == {"depth": 2, "canny": 1}
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("hasty", "depth")
        assert refused.value.details["position"] == "3"
        assert int(refused.value.details["expected_wait_ms"]) > places["d2"].expected_wait_ms
        for task in waiting:
            task.cancel()


async def test_a_caller_that_goes_away_leaves_the_queue_at_once(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        hall = Hall(tasks, two)
        leaving = await hall.wait(one, "leaves")
        await hall.wait(two, "stays")
        leaving.cancel()
        gone_s = time.monotonic()
        await until(lambda: _waits_only(two, "stays"))
        assert time.monotonic() - gone_s < 0.5 * TTL_S
        await two.release("holder")
        await hall.until_served("stays")


async def _waits_only(client: RouterClient, session: str) -> bool:
    return [place.session for place in await client.queue()] == [session]


async def test_the_waiters_of_a_dead_router_are_forgotten(bus: Bus, one: RouterClient) -> None:
    bucket = await bus.bucket(WAITERS, 1)
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await one.runners()
        await one.grant("holder")
        hall = Hall(tasks, one)
        await hall.wait(one, "dead", priority=1)
        # The same, of a router that renews no more: its key is copied, with the digits of an older arrival.
        (key,) = await _keys(bus)
        entry = await bucket.get(key)
        assert entry is not None
        ghost = Waiter.FromString(entry.value)
        ghost.session, ghost.router = "ghost", "router-dead"
        await bucket.create("000.0000000000000001.ghost", ghost.SerializeToString(), ttl_s=2)
        await until(lambda: _first_is(one, "ghost"))
        await one.release("holder")
        await asyncio.sleep(0.5)
        assert hall.served == []  # it comes first, as far as anybody knows
        lapses_s = time.monotonic()
        await hall.until_served("dead")
        assert time.monotonic() - lapses_s < 3


async def test_a_slot_that_a_waiters_own_router_does_not_take_goes_to_the_next_one(
    bus: Bus, one: RouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "LEFT_FOR_S", 1.5)
    bucket = await bus.bucket(WAITERS, 1)
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await one.runners()
        await one.grant("holder")
        ghost = Waiter(
            session="ghost",
            router="router-deaf",
            wish=Wish(Requirements("passthrough")).text(),
            until_unix_ms=4_000_000_000_000,
        )
        await bucket.create("000.0000000000000001.ghost", ghost.SerializeToString(), ttl_s=60)
        hall = Hall(tasks, one)
        await hall.wait(one, "next")
        await one.release("holder")
        freed_s = time.monotonic()
        await hall.until_served("next")
        assert 1.4 < time.monotonic() - freed_s < 5
        assert [place.session for place in await one.queue()] == ["ghost"]
        # It has not lost its turn: of the next slot it has the first choice again.
        await hall.wait(one, "later")
        await one.release("next")
        await asyncio.sleep(0.7)
        assert hall.served == ["next"]
        await hall.until_served("later")


async def _first_is(client: RouterClient, session: str) -> bool:
    places = await client.queue()
    return bool(places) and places[0].session == session


async def _keys(bus: Bus) -> list[str]:
    """The keys of the bucket `waiters`."""
    view = View()
    async with background(follow=(await bus.bucket(WAITERS, 1)).follow(view)):
        await view.ready.wait()
        return list(view.entries)


async def test_waiters_are_shown_for_as_long_as_they_wait(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        hall = Hall(tasks, two)
        await hall.wait(one, "patient")
        until_s = time.monotonic() + TTL_S + 2
        while time.monotonic() < until_s:
            assert [place.session for place in await two.queue()] == ["patient"]
            await asyncio.sleep(0.2)
        await two.release("holder")
        await hall.until_served("patient")
        await until(lambda: _nobody_waits(two))


async def test_a_session_that_asks_again_elsewhere_keeps_its_place(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        hall = Hall(tasks, two)
        await hall.wait(one, "first")
        await hall.wait(one, "second")
        again = tasks.create_task(two.grant("first", wait_ms=20_000))  # its caller went to another router
        await asyncio.sleep(0.3)
        assert [place.session for place in await one.queue()] == ["first", "second"]
        await one.release("holder")
        grant = await again
        await hall.until_served("first")  # the older call is told the same
        assert hall.grants["first"] == grant
        assert hall.served == ["first"]
        await one.release("first")
        await hall.until_served("second")


async def test_a_grant_that_need_not_wait_writes_nothing_into_the_queue(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a", slots=3):
        await one.runners()
        for number in range(3):
            await one.grant(f"s{number}", wait_ms=30_000)
        with pytest.raises(ExhaustedError):
            await one.grant("refused")
        info = await bus._jetstream.stream_info("KV_waiters")
        assert info.state.last_seq == 0


async def test_who_waits_when_nats_goes_is_served_when_it_is_back(
    nats: NatsServer, bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), asyncio.TaskGroup() as tasks:
        await asyncio.gather(one.runners(), two.runners())
        held = await one.grant("holder")
        hall = Hall(tasks, two)
        await hall.wait(one, "first")
        await hall.wait(two, "second")
        await nats.kill()
        await asyncio.sleep(0.5)
        await nats.start()
        assert await two.grant("holder", wait_ms=10_000) == held
        await until(lambda: _all_wait(two, ["first", "second"]))
        await two.release("holder")
        await hall.until_served("first")
        await two.release("first")
        await hall.until_served("second")


async def _all_wait(client: RouterClient, sessions: list[str]) -> bool:
    return [place.session for place in await client.queue()] == sessions


async def test_a_move_holds_two_slots_until_the_old_one_is_released(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), fake_runner(bus, "b"):
        await asyncio.gather(one.runners(), two.runners())
        old = await one.grant("s")
        new = await two.grant("s", exclude=[old.runner], wait_ms=2_000)
        assert {old.runner, new.runner} == {"a", "b"}
        assert await one.grant("s", exclude=[old.runner]) == new  # asked again
        assert await two.release("s", old.runner) == 1
        assert await two.release("s", old.runner) == 0
        assert await one.release("s", "nowhere") == 0
        bucket = await bus.bucket(SLOTS, 1)
        kept = await bucket.get(f"{new.runner}.0")
        assert kept is not None
        assert Slot.FromString(kept.value).session == "s"
        assert await one.release("s") == 1


async def test_releases_of_nothing_that_come_together_share_a_reading_of_the_slots(
    bus: Bus, one: RouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = 0
    read_all = slots.Slots._read_all

    async def counted(self: slots.Slots) -> Mapping[str, Entry]:
        nonlocal readings
        readings += 1
        return await read_all(self)

    monkeypatch.setattr(slots.Slots, "_read_all", counted)
    async with fake_runner(bus, "a"):
        await one.runners()
        assert not any(await asyncio.gather(*(one.release(f"nobody{number}") for number in range(50))))
    assert 1 <= readings < 15


async def test_what_is_listed_as_free_is_true_within_a_second(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a", slots=4) as runner:
        await asyncio.gather(one.runners(), two.runners())
        for number in range(4):
            grant = await one.grant(f"s{number}")
            await runner.claim(grant.slot, f"s{number}", grant.slot_epoch)
        await until(partial(_free_is, two, 0), 1.0)
        for number in range(4):
            await _end(one, runner, f"s{number}")
            await until(partial(_free_is, two, number + 1), 1.0)
        runner.kill()
        await until(partial(_free_is, two, 0), 4.5)  # three seconds of silence, and one


async def _end(client: RouterClient, runner: FakeRunner, session: str) -> None:
    (slot,) = [number for number, claim in runner.claims.items() if claim.session == session]
    await runner.free(slot)
    assert await client.release(session) == 1


async def _free_is(client: RouterClient, free: int) -> bool:
    capacity = await client.capacity()
    return (capacity["passthrough"].free if capacity else 0) == free


async def test_price_policy_and_warmth_are_honoured(bus: Bus, one: RouterClient) -> None:
    cold = [PipelineOffer(name="passthrough", version="1.0")]
    async with (
        fake_runner(bus, "cheap", slots=20, micro_per_second=100) as cheap,
        fake_runner(bus, "fast", slots=20, micro_per_second=900) as fast,
        fake_runner(bus, "cold", slots=20, micro_per_second=10, pipelines=cold),
    ):
        cheap.frame_us, fast.frame_us = 60_000, 8_000
        await one.runners()
        await until(partial(_state_is, one, "cold.0", "READY"))
        await asyncio.sleep(0.3)
        assert (await one.grant("s1", policy=router.POLICY_FASTEST)).runner == "fast"
        grant = await one.grant("s2", policy=router.POLICY_CHEAPEST, warm=True)
        assert (grant.runner, grant.micro_per_second) == ("cheap", 100)
        assert (await one.grant("s3", policy=router.POLICY_CHEAPEST)).runner == "cold"
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("s4", max_micro_per_second=9)
        assert refused.value.details["why"] == "price"
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("s4", max_micro_per_second=50, warm=True)
        assert refused.value.details["why"] == "cold"
        assert (await one.grant("s4", max_frame_us=8_000)).runner == "fast"
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("s5", max_frame_us=7_999)
        assert refused.value.details["why"] == "slow"
        with pytest.raises(InvalidError):
            await one.grant("s5", max_frame_us=-1)
        capacity = await one.capacity()
        assert capacity["passthrough"].min_micro_per_second == 10


async def _state_is(client: RouterClient, key: str, state: str) -> bool:
    return (await client.states()).get(key) == state


async def test_runners_that_failed_sessions_are_shown_and_avoided(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "bad", slots=9) as bad, fake_runner(bus, "good", slots=9):
        await asyncio.gather(one.runners(), two.runners())
        await bad.claim(8, "t", 3)
        for session in ("s", "t", "u"):
            await bad.fail(session)
        await until(partial(_quarantined, one, "bad"))
        await until(partial(_quarantined, two, "bad"))
        view = (await two.runners())["bad"]
        assert [(claim.slot, claim.session, claim.slot_epoch) for claim in view.claims] == [(8, "t", 3)]
        for number in range(4):
            assert (await (one, two)[number % 2].grant(f"n{number}")).runner == "good"


async def _quarantined(client: RouterClient, runner: str) -> bool:
    return (await client.runners())[runner].penalty >= 0.5


async def test_nobody_who_holds_a_slot_loses_it_to_a_higher_priority(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a"):
        await one.runners()
        held = await one.grant("low", priority=-100)
        with pytest.raises(ExhaustedError):
            await one.grant("high", priority=100, wait_ms=500)
        assert await one.grant("low", priority=-100) == held


async def test_a_router_restarted_under_load_gives_no_slot_twice(nats: NatsServer, bus: Bus) -> None:
    """Two routers, one of which is started anew four times, while sessions come and go."""
    settings = RouterSettings(listen="127.0.0.1:0", shutdown_grace_s=0.1)
    async with fake_runner(bus, "a", slots=3), fake_runner(bus, "b", slots=3):
        holders: dict[tuple[str, int], str] = {}
        granted = doubles = 0
        done = asyncio.Event()

        async def live(client: RouterClient, name: str) -> None:
            nonlocal granted, doubles
            for number in range(1_000):
                if done.is_set():
                    return
                session = f"{name}-{number}"
                try:
                    grant = await client.grant(session, wait_ms=1_000)
                except ExhaustedError:
                    continue
                place = (grant.runner, grant.slot)
                doubles += place in holders
                holders[place] = session
                granted += 1
                await asyncio.sleep(0.005)
                del holders[place]
                await client.release(session, grant.runner)

        async with router_client(nats.url) as steady, asyncio.TaskGroup() as tasks:
            await steady.runners()
            for number in range(6):
                tasks.create_task(live(steady, f"steady{number}"))
            for number in range(4):
                async with router_client(nats.url, settings) as other, asyncio.TaskGroup() as short:
                    await other.runners()
                    for caller in range(3):
                        short.create_task(_a_few(other, f"other{number}-{caller}", holders))
            done.set()
        assert doubles == 0
        assert granted > 50
        await until(partial(_free_slots, bus, 6))


async def _a_few(client: RouterClient, name: str, holders: dict[tuple[str, int], str]) -> None:
    for number in range(5):
        session = f"{name}-{number}"
        grant = await client.grant(session, wait_ms=5_000)
        assert (grant.runner, grant.slot) not in holders
        holders[grant.runner, grant.slot] = session
        await asyncio.sleep(0.005)
        del holders[grant.runner, grant.slot]
        await client.release(session, grant.runner)


async def _free_slots(bus: Bus, count: int) -> bool:
    bucket = await bus.bucket(SLOTS, 1)
    entries = [await bucket.get(f"{runner}.{slot}") for runner in "ab" for slot in range(3)]
    free = sum(entry is None or not Slot.FromString(entry.value).session for entry in entries)
    return free == count
