"""The picture of the fleet: what each slot is taken for, as time passes and words arrive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from protos.events.v1.events_pb2 import (
    RUNNER_STATE_DRAINING,
    RUNNER_STATE_READY,
    RUNNER_STATE_STARTING,
    RUNNER_STATE_UNSPECIFIED,
    Heartbeat,
    PipelineOffer,
    RunnerAdvert,
    RunnerFault,
    RunnerState,
    Slot,
    SlotClaim,
)
from services.common.bus import Entry
from services.common.errors import UnavailableError
from services.common.lifecycle import background
from services.router.fleet import Fleet
from services.router.placement import Place, Refusal, Requirements, RunnerId, SessionId, SlotState, Wish
from services.router.runner import Runner
from services.router.settings import RouterSettings

ADVERT = RunnerAdvert(runner="a", boot_id="b1", slots=2, pipelines=[PipelineOffer(name="depth", warm=True)])
HELD = Slot(session="s", epoch=3)
FREE = Slot(epoch=3)
CLAIMS = [SlotClaim(slot=0, session="s", slot_epoch=3)]
A = RunnerId("a")
DEPTH = Wish(Requirements("depth"))


def beat(
    state: RunnerState.ValueType = RUNNER_STATE_READY,
    claims: list[SlotClaim] | None = None,
    boot_id: str = "b1",
) -> Heartbeat:
    return Heartbeat(runner="a", boot_id=boot_id, state=state, claims=claims or [])


@pytest.mark.parametrize(
    ("value", "last", "heard", "settled", "state"),
    [
        (None, beat(), True, True, SlotState.READY),
        (None, beat(), True, False, SlotState.READY),
        (FREE, beat(), True, True, SlotState.READY),
        (FREE, beat(claims=[SlotClaim(slot=1)]), True, True, SlotState.READY),
        # held: either word is enough
        (HELD, beat(), True, True, SlotState.HELD),
        (FREE, beat(claims=CLAIMS), True, True, SlotState.HELD),
        (None, beat(claims=CLAIMS), True, True, SlotState.HELD),
        # not ready yet, or no more
        (None, beat(RUNNER_STATE_STARTING), True, True, SlotState.STARTING),
        (None, beat(RUNNER_STATE_UNSPECIFIED), True, True, SlotState.STARTING),
        (None, beat(RUNNER_STATE_DRAINING), True, True, SlotState.DRAINING),
        (HELD, beat(RUNNER_STATE_DRAINING, CLAIMS), True, True, SlotState.DRAINING),
        # another process than the advert's
        (None, beat(boot_id="b2"), True, True, SlotState.STARTING),
        (HELD, beat(boot_id="b2"), True, True, SlotState.STARTING),
        # silence is evidence only over a settled link, and never readiness
        (None, beat(), False, True, SlotState.LOST),
        (HELD, beat(claims=CLAIMS), False, True, SlotState.LOST),
        (None, None, False, True, SlotState.LOST),
        (None, beat(), False, False, SlotState.STARTING),
        (HELD, beat(claims=CLAIMS), False, False, SlotState.HELD),
        (None, beat(RUNNER_STATE_DRAINING), False, False, SlotState.DRAINING),
        (None, None, False, False, SlotState.STARTING),
    ],
)
def test_the_state_of_a_slot(
    value: Slot | None, last: Heartbeat | None, heard: bool, settled: bool, state: SlotState
) -> None:
    runner = Runner(A, heard=heard)
    runner.advertise(ADVERT)
    runner.put(0, value)
    if last is not None:
        runner.hear(last)
    assert runner.picture(settled).slots[0].state is state


class World:
    """A fleet whose link to NATS came up when the loop's time was 0, unless a test says otherwise."""

    def __init__(self) -> None:
        self.link_up_since_s: float | None = 0.0
        self.revision = 0
        self.fleet = Fleet(RouterSettings(), self._healthy_for_s, Random(1))
        self.fleet._listening_since_s = 0.0
        self.fleet.adverts.replace({})
        self.fleet.slots.replace({})

    def _healthy_for_s(self) -> float:
        now_s = asyncio.get_running_loop().time()
        return 0.0 if self.link_up_since_s is None else now_s - self.link_up_since_s

    def entry(self, value: bytes) -> Entry:
        self.revision += 1
        return Entry(value, self.revision)

    def advertise(self, advert: RunnerAdvert = ADVERT) -> None:
        self.fleet.adverts.put(advert.runner, self.entry(advert.SerializeToString()))

    def slot(self, key: str, value: Slot) -> None:
        self.fleet.slots.put(key, self.entry(value.SerializeToString()))

    def hear(self, heartbeat: Heartbeat) -> None:
        self.fleet.hear(RunnerId(heartbeat.runner), heartbeat.SerializeToString())

    @property
    def states(self) -> list[str]:
        return [slot.state.value for runner in self.fleet.runners() for slot in runner.slots]

    def chosen(self, wish: Wish = DEPTH) -> set[tuple[str, int]] | Refusal:
        """The places that a hundred draws chose, or the refusal."""
        places: set[tuple[str, int]] = set()
        for _ in range(100):
            choice = self.fleet.choose(wish, {})
            if choice is None:
                return self.fleet.why_none(wish)
            places.add((choice.runner, choice.slot))
        return places


@pytest.fixture
async def world() -> World:
    return World()


@pytest.mark.looptime
async def test_a_runner_is_ready_while_it_is_heard_and_lost_three_seconds_after(world: World) -> None:
    world.advertise()
    assert world.states == ["starting", "starting"]
    await asyncio.sleep(10)
    assert world.states == ["lost", "lost"]
    world.hear(beat())
    assert world.states == ["ready", "ready"]
    await asyncio.sleep(2.9)
    assert world.states == ["ready", "ready"]
    world.hear(beat())
    await asyncio.sleep(2.9)
    assert world.states == ["ready", "ready"]
    await asyncio.sleep(0.2)
    assert world.states == ["lost", "lost"]


@pytest.mark.looptime
async def test_while_our_own_link_is_down_nobody_is_lost_and_nobody_is_granted(world: World) -> None:
    world.advertise()
    world.slot("a.0", HELD)
    await asyncio.sleep(10)
    world.hear(beat(claims=CLAIMS))
    world.link_up_since_s = None
    await asyncio.sleep(60)
    assert world.states == ["held", "starting"]
    world.link_up_since_s = asyncio.get_running_loop().time()
    await asyncio.sleep(2.9)
    assert world.states == ["held", "starting"]
    await asyncio.sleep(0.2)
    assert world.states == ["lost", "lost"]


async def test_after_the_router_itself_stood_still_nobody_is_lost(world: World) -> None:
    """In real time, for a loop of virtual time never stands still."""
    world.fleet._stale_after_s = world.fleet._link_settle_s = 1.5
    world.advertise()
    world.hear(beat())
    async with background(time=world.fleet.keep_time()):
        await asyncio.sleep(0.3)
        assert world.states == ["ready", "ready"]
        time.sleep(2.0)
        await asyncio.sleep(0.3)
        assert world.states == ["starting", "starting"]
        assert not world.fleet.known
        world.hear(beat())
        assert world.states == ["ready", "ready"]


@pytest.mark.looptime
async def test_a_restarted_runner_is_ready_when_advert_and_heartbeat_are_of_one_process(world: World) -> None:
    world.advertise()
    world.hear(beat(boot_id="b2"))
    assert world.states == ["starting", "starting"]
    world.advertise(RunnerAdvert(runner="a", boot_id="b2", slots=1))
    assert world.states == ["ready"]


@pytest.mark.looptime
async def test_the_view_never_goes_back_behind_what_was_written_here(world: World) -> None:
    world.advertise()
    world.hear(beat())
    stale = world.entry(FREE.SerializeToString())
    world.slot("a.0", HELD)
    world.fleet.slots.put("a.0", stale)
    assert world.states == ["held", "ready"]
    assert world.fleet.held_by(SessionId("s")) == ("a.0",)


@pytest.mark.looptime
async def test_a_resynchronised_view_replaces_what_was_missed(world: World) -> None:
    world.advertise()
    world.hear(beat())
    world.slot("a.0", HELD)
    world.fleet.slots.replace({"a.1": world.entry(Slot(session="t", epoch=1).SerializeToString())})
    assert world.states == ["ready", "held"]
    assert world.fleet.held_by(SessionId("s")) == ()
    assert world.fleet.held_by(SessionId("t")) == ("a.1",)
    world.fleet.adverts.replace({})
    assert world.states == []


@pytest.mark.looptime
async def test_a_slot_that_is_being_taken_here_is_offered_to_nobody_else(world: World) -> None:
    world.advertise()
    world.hear(beat())
    assert world.chosen() == {("a", 0), ("a", 1)}
    world.fleet.claim(Place(A, 0))
    assert world.states == ["held", "ready"]
    assert world.chosen() == {("a", 1)}
    world.fleet.claim(Place(A, 1))
    assert world.chosen() is Refusal.NOTHING_FREE
    world.fleet.unclaim(Place(A, 1))
    world.fleet.unclaim(Place(A, 0))
    assert world.states == ["ready", "ready"]


@pytest.mark.looptime
async def test_a_session_has_its_own_slot_again_while_that_fits_and_is_heard(world: World) -> None:
    world.advertise()
    world.slot("a.1", HELD)
    world.slot("gone.0", HELD)
    assert world.fleet.own(SessionId("s"), DEPTH) is None
    world.hear(beat())
    assert world.fleet.own(SessionId("s"), DEPTH) == Place(A, 1)
    dear_and_cold = Requirements("depth", max_micro_per_second=1, warm=True)
    assert world.fleet.own(SessionId("s"), Wish(dear_and_cold)) == Place(A, 1)  # it has it already
    for unfit in (
        Wish(Requirements("depth"), frozenset({A})),
        Wish(Requirements("canny")),
        Wish(Requirements("depth", region="eu")),
    ):
        assert world.fleet.own(SessionId("s"), unfit) is None
    world.hear(beat(RUNNER_STATE_DRAINING))
    assert world.fleet.own(SessionId("s"), DEPTH) is None
    assert world.fleet.held_by(SessionId("s")) == ("a.1", "gone.0")


@pytest.mark.looptime
async def test_the_fleet_is_known_after_two_seconds_of_listening_and_again_after_a_reconnection(
    world: World,
) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        time = group.create_task(world.fleet.keep_time())
        await world.fleet.until_known()
        assert 2.0 <= loop.time() <= 2.3
        await world.fleet.until_known()
        assert loop.time() <= 2.3
        world.link_up_since_s = None
        with pytest.raises(UnavailableError) as refused:
            await world.fleet.until_known()
        assert refused.value.reason == "FLEET_UNKNOWN"
        assert not world.fleet.linked
        world.link_up_since_s = loop.time()
        await world.fleet.until_known()
        time.cancel()


@pytest.mark.looptime
async def test_changes_by_time_alone_are_told(world: World) -> None:
    world.advertise()
    world.hear(beat())
    await asyncio.sleep(3.5)
    world.hear(beat())
    assert world.states == ["ready", "ready"]
    async with asyncio.TaskGroup() as group:
        time = group.create_task(world.fleet.keep_time())
        await asyncio.sleep(0.1)
        version = world.fleet.changed.version
        for _ in range(5):
            world.hear(beat())
            await asyncio.sleep(1)
        assert world.fleet.changed.version == version  # the same word again is no news
        await asyncio.wait_for(world.fleet.changed.newer_than(version), 2.3)
        assert world.states == ["lost", "lost"]
        time.cancel()


@pytest.mark.looptime
@pytest.mark.parametrize(
    "nonsense",
    [
        lambda world: world.fleet.hear(A, b"\xff\xff"),
        lambda world: world.fleet.hear(A, Heartbeat(runner="b").SerializeToString()),
        lambda world: world.fleet.adverts.put("a", world.entry(b"\xff\xff")),
        lambda world: world.fleet.adverts.put("a", world.entry(RunnerAdvert(runner="b").SerializeToString())),
        lambda world: world.fleet.slots.put("nonsense", world.entry(b"")),
        lambda world: world.fleet.slots.put("a.99999999999", world.entry(b"")),
        lambda world: world.fleet.hear_fault(A, b"\xff\xff"),
        lambda world: world.fleet.hear_fault(A, RunnerFault(runner="b").SerializeToString()),
    ],
)
async def test_what_makes_no_sense_is_refused(world: World, nonsense: Callable[[World], None]) -> None:
    nonsense(world)
    assert world.states == []
    assert world.fleet.age_s(A) is None


@pytest.mark.looptime
async def test_who_is_silent_for_ten_minutes_over_a_sound_link_is_gone(world: World) -> None:
    world.advertise()
    world.hear(beat())
    world.slot("left.0", FREE)
    await asyncio.sleep(300)
    world.hear(beat())
    await asyncio.sleep(301)
    assert world.fleet.gone() == ["left"]
    world.link_up_since_s = asyncio.get_running_loop().time()
    await asyncio.sleep(599)
    assert world.fleet.gone() == []
    await asyncio.sleep(2)
    assert set(world.fleet.gone()) == {"a", "left"}
    world.advertise()  # it came back and has not beaten yet
    assert world.fleet.gone() == ["left"]


@pytest.mark.looptime
async def test_heartbeats_of_the_long_silent_are_forgotten(world: World) -> None:
    world.hear(beat())
    await asyncio.sleep(599)
    assert world.states == []
    world.fleet.forget_silent()
    assert world.fleet.age_s(A) == pytest.approx(599)
    await asyncio.sleep(2)
    world.fleet.forget_silent()
    assert world.fleet.age_s(A) is None


def advert(name: str, **fields: Any) -> RunnerAdvert:
    offers = [PipelineOffer(name="depth", warm=True)]
    return RunnerAdvert(runner=name, boot_id="b1", slots=1, pipelines=offers, **fields)


def two(world: World) -> None:
    for name in ("a", "b"):
        world.advertise(advert(name))
        world.hear(Heartbeat(runner=name, boot_id="b1", state=RUNNER_STATE_READY))


def fail(world: World, runner: str, session: str, boot_id: str = "b1") -> None:
    fault = RunnerFault(runner=runner, boot_id=boot_id, session=session, reason="stalled")
    world.fleet.hear_fault(RunnerId(runner), fault.SerializeToString())


@pytest.mark.looptime
async def test_a_runner_that_failed_two_sessions_is_avoided_for_a_while(world: World) -> None:
    two(world)
    for session in ("s", "t"):
        fail(world, "a", session)
    assert world.chosen() == {("b", 0)}
    world.slot("b.0", HELD)
    assert world.chosen() is Refusal.QUARANTINED
    await asyncio.sleep(2)
    world.hear(beat())
    assert world.chosen() is Refusal.QUARANTINED
    await asyncio.sleep(28)
    for name in ("a", "b"):
        world.hear(Heartbeat(runner=name, boot_id="b1", state=RUNNER_STATE_READY))
    assert world.chosen() == {("a", 0)}


@pytest.mark.looptime
async def test_the_end_of_a_quarantine_is_told(world: World) -> None:
    await asyncio.sleep(4)  # the link has settled, and is no news any more
    two(world)
    world.slot("b.0", HELD)
    for session in ("s", "t"):
        fail(world, "a", session)
    async with asyncio.TaskGroup() as group:
        time = group.create_task(world.fleet.keep_time())
        await asyncio.sleep(1)
        assert world.chosen() is Refusal.QUARANTINED
        version, began_s = world.fleet.changed.version, asyncio.get_running_loop().time()
        while world.fleet.changed.version == version:
            for name in ("a", "b"):
                world.hear(Heartbeat(runner=name, boot_id="b1", state=RUNNER_STATE_READY))
            await asyncio.sleep(0.5)
        assert 5 < asyncio.get_running_loop().time() - began_s < 30
        assert world.chosen() == {("a", 0)}
        time.cancel()


@pytest.mark.looptime
async def test_the_last_one_that_fits_is_never_avoided(world: World) -> None:
    two(world)
    for session in ("s", "t", "u"):
        fail(world, "a", session)
        fail(world, "b", session)
    assert world.chosen() == {("a", 0), ("b", 0)}
    world.advertise(advert("healthy", region="eu"))
    world.hear(Heartbeat(runner="healthy", boot_id="b1", state=RUNNER_STATE_READY))
    assert world.chosen() == {("healthy", 0)}
    not_there = Wish(Requirements("depth"), frozenset({RunnerId("healthy")}))
    assert world.chosen(not_there) == {("a", 0), ("b", 0)}


@pytest.mark.looptime
async def test_a_runner_started_anew_is_trusted_more(world: World) -> None:
    two(world)
    for session in ("s", "t"):
        fail(world, "a", session)
    world.advertise(RunnerAdvert(runner="a", boot_id="b2", slots=1, pipelines=ADVERT.pipelines))
    world.hear(beat(boot_id="b2"))
    assert world.chosen() == {("b", 0)}  # it is better still
    world.slot("b.0", HELD)
    assert world.chosen() == {("a", 0)}
    (penalty,) = [runner.penalty for runner in world.fleet.runners() if runner.advert.runner == "a"]
    assert 0 < penalty < 0.5
    fail(world, "a", "u", boot_id="b1")  # news of the old process, late
    (after,) = [runner.penalty for runner in world.fleet.runners() if runner.advert.runner == "a"]
    assert penalty < after < 0.5


@pytest.mark.looptime
async def test_a_heartbeat_that_only_says_how_fast_is_no_news_and_counts_all_the_same(world: World) -> None:
    two(world)
    assert world.chosen() == {("a", 0), ("b", 0)}
    version = world.fleet.changed.version
    slow = Heartbeat(runner="a", boot_id="b1", state=RUNNER_STATE_READY, frame_us=250_000)
    world.hear(slow)
    assert world.fleet.changed.version == version
    assert world.chosen() == {("b", 0)}


@pytest.mark.looptime
async def test_a_slot_that_is_claimed_and_then_written_and_heard_of_changes_its_row_once(
    world: World,
) -> None:
    two(world)
    assert world.chosen() == {("a", 0), ("b", 0)}
    before = world.fleet._table.changes
    steps: list[Callable[[], None]] = [
        lambda: world.fleet.claim(Place(A, 0)),
        lambda: world.slot("a.0", HELD),
        lambda: world.fleet.unclaim(Place(A, 0)),
        lambda: world.hear(Heartbeat(runner="a", boot_id="b1", state=RUNNER_STATE_READY)),
    ]
    for step in steps:
        step()
        assert world.chosen() == {("b", 0)}
    assert world.fleet._table.changes == before + 1
    world.slot("a.0", FREE)
    assert world.chosen() == {("a", 0), ("b", 0)}


@pytest.mark.looptime
async def test_a_row_that_another_runner_had_shows_nothing_of_it(world: World) -> None:
    two(world)
    world.fleet.adverts.put("a", None)
    assert world.chosen() == {("b", 0)}
    world.advertise(advert("c"))
    world.hear(Heartbeat(runner="c", boot_id="b1", state=RUNNER_STATE_READY))
    assert world.chosen() == {("b", 0), ("c", 0)}
    world.fleet.adverts.put("c", None)
    world.advertise(advert("a"))
    assert world.chosen() == {("a", 0), ("b", 0)}


@pytest.mark.looptime
async def test_what_is_free_of_a_pipeline_is_what_those_who_are_heard_say(world: World) -> None:
    two(world)
    world.advertise(advert("silent", micro_per_second=1))
    (line,) = world.fleet.capacity()
    assert (line.offer.name, line.slots, line.free) == ("depth", 2, 2)
    world.slot("a.0", HELD)
    (line,) = world.fleet.capacity()
    assert (line.slots, line.free) == (2, 1)
    await asyncio.sleep(4)
    assert world.fleet.capacity() == []


@pytest.mark.looptime
async def test_slots_that_come_free_are_counted_and_those_taken_in_vain_are_not(world: World) -> None:
    two(world)
    world.fleet.claim(Place(A, 0))
    world.fleet.unclaim(Place(A, 0))
    assert world.fleet.freed_per_s("depth") == 0
    for _ in range(10):
        world.slot("a.0", HELD)
        await asyncio.sleep(30)
        world.slot("a.0", FREE)
    assert world.fleet.freed_per_s("depth") == pytest.approx(1 / 30, rel=0.3)
    assert world.fleet.freed_per_s("canny") == 0
