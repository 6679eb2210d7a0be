"""Moves in the middle of which something else is away or changes: neighbours, the stream, the owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ConflictError, UnavailableError
from services.session_manager.machine import Place, Session
from tests.support.moving import SlotReport, fill, gives_up, held, moved, stall, started
from tests.support.session_manager import SESSION, Neighbourhood, Replica, until

AWAY = UnavailableError("away", reason="AWAY")


# --- neighbours


async def test_a_router_that_is_away_for_long_ends_no_session(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.router.fail("Grant", AWAY, times=10_000)
    await gives_up(around)
    await asyncio.sleep(3.0)  # failover_within_s is 2 here
    assert (await one.session()).phase == pb.PHASE_MIGRATING
    around.router._faults.clear()
    assert (await moved(one, "r1")).phase == pb.PHASE_LIVE
    await held(around, "r1")


async def test_a_candidate_that_viewers_get_is_not_let_go_by_a_bridge_that_cannot_be_asked(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    """The promotion was not answered, and nobody wants it any more; but it was done."""
    around.bridge.shows = False
    around.bridge.hang("Promote")
    await one.drain("r0")

    async def promoted() -> bool:
        return "Promote" in [name for name, _ in around.bridge.calls]

    await until(promoted)
    await one.drain("r0", cancel=True)

    async def hand_over() -> None:
        around.bridge.sessions[SESSION].hand_over()

    around.bridge.before("Close", hand_over)
    around.bridge.fail("Close", AWAY)
    record = await moved(one, "r1")
    assert (record.epoch, [move.epoch for move in record.moves]) == (2, [2])
    await held(around, "r1")


async def test_a_failure_has_all_its_time_to_find_room_also_after_an_earlier_one_that_passed(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    fill(around)
    await one.move()
    await gives_up(around)
    await asyncio.sleep(0.5)
    around.runner.say(SlotReport.STATE_RUNNING)
    await asyncio.sleep(2.5)  # failover_within_s is 2 here
    await gives_up(around)
    stall(around, 300)
    await asyncio.sleep(0.7)
    del around.router.held["r2"]
    assert (await moved(one, "r2")).phase == pb.PHASE_LIVE


async def test_an_heir_needs_no_router_for_a_move_that_has_arrived(around: Neighbourhood) -> None:
    async with around.replica("one") as one, around.replica("two") as two:
        await started(around, one)
        around.bridge.hang("Promote")  # it is done, and the answer never comes
        await one.move()

        async def shown() -> bool:
            return around.bridge.sessions[SESSION].epoch == 2

        await until(shown)
        await one.kill()
        around.bridge.release("Promote")
        around.router.fail("Grant", AWAY, times=10_000)
        record = await moved(two, "r1")
        assert [move.epoch for move in record.moves] == [2]


async def test_a_restarted_runner_that_does_not_get_its_session_again_is_told_so(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    """Else it would work for channels that are closed, and look as if it had the session."""
    fill(around)
    around.bridge.fail("Promote", ConflictError("not that one", reason="NO_CANDIDATE"))
    around.runner.restart()
    stall(around, 1000)

    async def attached() -> bool:
        return [name for name, _ in around.runner.calls].count("Attach") == 2

    await until(attached)

    async def let_go() -> bool:
        return around.runner.session == ""

    await until(let_go)
    record = await one.session()
    assert (record.phase, record.runner) == (pb.PHASE_MIGRATING, "r0")
    assert around.router.held["r0"] == SESSION, "its slot is kept"
    del around.router.held["r2"]
    await moved(one, "r2")


async def test_an_heir_does_not_free_the_slot_that_it_was_granted_in_place_of_one_that_was_freed(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner died when a runner had refused and its slot was free again; the record still named it."""
    freed = Place("r1", around.runners[1].address, slot_epoch=16, why="asked")
    await one.store.change_session(SESSION, lambda was: was.heading(freed).with_(owner="dead"))
    change = one.store.change_session

    async def slowly(session: str, step: Callable[[Session], Session]) -> Session:
        await asyncio.sleep(0.1)  # NATS takes its time
        return await change(session, step)

    monkeypatch.setattr(one.store, "change_session", slowly)
    await moved(one, "r1")
    await asyncio.sleep(0.2)
    released = around.router.requests("Release", router_pb2.ReleaseRequest)
    assert [request.runner for request in released] == ["r0"]
    await held(around, "r1")


# --- the stream


async def test_a_scheduled_change_that_takes_effect_while_a_runner_is_attached_ends_nothing(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    await one.update({"prompt": "sketch"}, apply_at_pts=100_000)

    async def takes_effect() -> None:
        around.bridge.sessions[SESSION].see(applied_revision=2, applied_pts=100_000)

        async def folded() -> bool:
            return not (await one.stream()).scheduled

        await until(folded)

    around.runners[1].before("Attach", takes_effect)
    await one.move()
    record = await moved(one, "r1")
    assert record.phase == pb.PHASE_LIVE
    attached = around.runners[1].attached
    assert attached is not None
    assert [item.revision for item in attached.scheduled] == [2]
    assert around.runners[1].patches == [], "it has it already"


# --- the owner


def counted(around: Neighbourhood, step: str) -> int:
    """Calls of `step` so far, of whoever serves it."""
    everybody = [around.router, around.bridge, *around.runners]
    return sum(name == step for neighbour in everybody for name, _ in neighbour.calls)


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["Grant", "Open", "Attach", "Promote", "Detach"])
@pytest.mark.parametrize("why", ["asked", "failed"])
async def test_a_move_whose_owner_dies_in_the_middle_is_finished_by_its_heir(
    around: Neighbourhood, step: str, why: str, *, answered: bool
) -> None:
    """It dies in the call: before it did anything, or when all is done but the answer."""
    at = {"Grant": around.router, "Attach": around.runners[1], "Detach": around.runner}
    neighbour = at.get(step, around.bridge)
    async with around.replica("one") as one, around.replica("two") as two:
        await started(around, one)
        before = counted(around, step)
        if answered:
            neighbour.hang(step)
        else:
            neighbour.before(step, asyncio.Event().wait)
        await (one.move() if why == "asked" else gives_up(around))

        async def reached() -> bool:
            return counted(around, step) > before

        await until(reached)
        await asyncio.sleep(0.05)
        await one.kill()
        if answered:
            neighbour.release(step)

        async def inherited() -> pb.Session | None:
            record = await two.session()
            return record if record.owner == "two" else None

        await until(inherited)
        record = await moved(two, "r1")
        assert [move.epoch for move in record.moves] == [record.epoch]
        assert around.runners[1].session == SESSION
        assert around.router.held["r1"] == SESSION
        if step != "Detach":  # what the old runner still has then is the reconciler's
            await held(around, "r1")
        assert sum(runner.overlaps for runner in around.runners) == 0
        await two.stop()
        await two.ended()
        assert around.router.held == {}
