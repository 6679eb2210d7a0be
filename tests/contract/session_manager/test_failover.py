"""A session whose runner fails it goes to another one, as long as there is one that it does not break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ConflictError
from services.common.lifecycle import background
from services.common.topology import EVENTS, RUNNER_FAULTS
from services.session_manager import failover, mover
from tests.support.moving import FAILED, SlotReport, fill, gives_up, held, moved, stall
from tests.support.session_manager import SESSION, Neighbourhood, Replica, until


async def is_killed(around: Neighbourhood) -> None:
    await around.runner.die()
    stall(around, 600, output_broken=True)


async def dies_quietly(around: Neighbourhood) -> None:
    await around.runner.die()
    stall(around, 1000)


async def freezes(around: Neighbourhood) -> None:
    around.runner.hang("Watch")
    around.runner.hang("Detach")
    stall(around, 3000)


async def forgets(around: Neighbourhood) -> None:
    around.router.held.pop("r0")  # its new process is heard, and another session is quicker
    around.router.held["r0"] = "ses_quicker0000"
    around.runner.restart()
    stall(around, 1000)


async def lets_go(around: Neighbourhood) -> None:
    around.runner.say(SlotReport.STATE_DETACHED)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (is_killed, "runner_lost"),
        (dies_quietly, "runner_lost"),
        (freezes, "stalled"),
        (forgets, "runner_lost"),
        (gives_up, "engine_crashed"),
        (lets_go, "runner_lost"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_a_session_whose_runner_fails_it_goes_on_with_another_one(
    around: Neighbourhood,
    one: Replica,
    live: pb.Session,
    how: Callable[[Neighbourhood], Awaitable[None]],
    why: str,
) -> None:
    await how(around)
    record = await moved(one, "r1")
    assert (record.phase, record.epoch, record.failures) == (pb.PHASE_LIVE, 2, 1)
    (move,) = record.moves
    assert (getattr(move, "from"), move.to, move.why, move.epoch) == ("r0", "r1", why, 2)
    assert move.freeze_ms == 40
    attached = around.runners[1].attached
    assert attached is not None
    assert (attached.session_epoch, attached.after_pts) == (2, 6000)
    assert attached.channels.out.endswith("out-2")

    async def free() -> bool:
        return around.router.held.get("r0") != SESSION

    await until(free)
    assert around.router.held["r1"] == SESSION
    around.bridge.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_SILENT)
    await one.reaches(pb.PHASE_PAUSED)
    await one.stop()
    await one.ended()


async def test_routers_are_told_of_a_runner_that_failed_and_everybody_of_the_move(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    faults: list[events_pb2.RunnerFault] = []
    events: list[events_pb2.SessionEvent] = []

    async def listen() -> None:
        async for message in one.bus.subscribe(RUNNER_FAULTS):
            faults.append(events_pb2.RunnerFault.FromString(message.data))  # noqa: PERF401

        raise AssertionError("the subscription ended")

    async def take(messages: Any) -> None:
        events.extend(events_pb2.SessionEvent.FromString(message.data) for message in messages)

    async with background(faults=listen(), events=one.bus.consume(EVENTS, "test", take, batch=100)):
        await asyncio.sleep(0.2)
        around.runner.say(FAILED, "engine_hung")
        await moved(one, "r1")

        async def told() -> bool:
            return bool(faults) and any(event.type == "moved" for event in events)

        await until(told)
    assert [(fault.runner, fault.boot_id, fault.session, fault.reason) for fault in faults] == [
        ("r0", "boot", SESSION, "engine_hung")
    ]
    assert [event.type for event in events] == ["starting", "live", "migrating", "moved"]
    details = dict(events[-1].details)
    assert (events[-1].reason, details["left"], details["to"], details["freeze_ms"]) == (
        "engine_hung",
        "r0",
        "r1",
        "40",
    )


@pytest.mark.parametrize("reason", ["params_refused", "input_undecodable", "pipeline_failed"])
async def test_what_every_runner_would_say_of_the_session_ends_it(
    around: Neighbourhood, one: Replica, live: pb.Session, reason: str
) -> None:
    around.runner.say(FAILED, reason, "in words")
    ended = await one.ended()
    assert (ended.end_reason, ended.end_message) == (reason, "in words")
    assert around.held() == []
    assert around.runners[1].calls == []


async def test_output_that_arrives_keeps_a_session_whose_runner_does_not_answer(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    await around.runner.die()
    await asyncio.sleep(1.5)
    record = await one.session()
    assert (record.phase, record.runner) == (pb.PHASE_LIVE, "r0")
    assert set(around.router.held) == {"r0"}


async def test_a_publisher_that_is_silent_is_no_runners_fault(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_SILENT, output_age_ms=9000)
    await one.reaches(pb.PHASE_PAUSED)
    await asyncio.sleep(1.0)
    assert set(around.router.held) == {"r0"}


async def test_a_candidate_is_made_ready_as_soon_as_the_runner_breaks_off_and_shown_when_it_stalls(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    await around.runner.die()
    around.bridge.sessions[SESSION].see(output_broken=True)

    async def ready() -> bool:
        return around.runners[1].session == SESSION

    await until(ready)
    assert [name for name, _ in around.bridge.calls if name == "Promote"] == []
    stall(around, 500, output_broken=True)
    await moved(one, "r1")
    await held(around, "r1")


async def test_a_candidate_is_let_go_when_the_output_arrives_again(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.runner.hang("Watch")
    around.bridge.sessions[SESSION].see(output_broken=True)

    async def ready() -> bool:
        return around.runners[1].session == SESSION

    await until(ready)
    assert (await one.session()).phase == pb.PHASE_MIGRATING
    around.bridge.sessions[SESSION].see(output_broken=False)
    assert (await one.reaches(pb.PHASE_LIVE)).runner == "r0"
    await held(around, "r0")
    record = await one.session()
    assert not record.HasField("next")
    assert record.failures == 0
    assert around.bridge.sessions[SESSION].over == {2}


async def test_a_runner_that_refuses_is_left_out_and_the_next_one_asked(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.runners[1].fail("Attach", ConflictError("not now", reason="NOT_READY"))
    await gives_up(around)
    record = await moved(one, "r2")
    assert record.failures == 1, "a refusal breaks nobody"
    assert record.epoch == 3
    await held(around, "r2")


async def test_a_second_runner_that_dies_on_the_way_is_left_out_too(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.shows = False
    await gives_up(around)

    async def asked() -> bool:
        return around.bridge.sessions[SESSION].candidate == 2 and around.runners[1].session == SESSION

    await until(asked)
    around.runners[1].say(FAILED, "engine_crashed")
    around.bridge.shows = True
    record = await moved(one, "r2")
    assert record.failures == 2
    assert 2 in around.bridge.sessions[SESSION].over
    await held(around, "r2")


async def test_without_capacity_the_session_waits_and_takes_what_comes_free(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    fill(around)
    await gives_up(around)

    async def waits() -> bool:
        return SESSION in around.router.waiting

    await until(waits)
    assert (await one.session()).phase == pb.PHASE_MIGRATING
    del around.router.held["r3"]
    record = await moved(one, "r3")
    assert record.phase == pb.PHASE_LIVE


async def test_without_capacity_for_too_long_the_session_ends_and_says_so(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    fill(around)
    await gives_up(around)
    stall(around, 300)
    ended = await one.ended()
    assert ended.end_reason == "no_capacity"
    assert "engine_crashed" in ended.end_message
    assert SESSION not in around.router.held.values()
    assert around.runner.session == ""


async def test_a_runner_that_was_started_again_may_have_the_session_again(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    fill(around)
    around.runner.restart()
    stall(around, 1000)

    async def back() -> pb.Session | None:
        record = await one.session()
        return record if record.moves and record.phase == pb.PHASE_LIVE else None

    record = await until(back)
    assert (record.runner, record.epoch, record.slot_epoch) == ("r0", 2, 1)
    attached = around.runner.attached
    assert attached is not None
    assert attached.session_epoch == 2
    await asyncio.sleep(0.3)
    assert around.runner.session == SESSION, "it was not detached from where it is"
    assert around.router.held["r0"] == SESSION


async def test_a_runner_that_is_to_have_its_session_again_is_not_taken_for_the_one_that_had_it(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    fill(around)
    around.runner.restart()
    stall(around, 0, output_broken=True)

    async def prepared() -> bool:
        attached = around.runner.attached
        return attached is not None and attached.session_epoch == 2

    await until(prepared)
    await asyncio.sleep(1.0)  # the same slot is asked again, and answers
    assert (await one.session()).next.epoch == 2
    stall(around, 600, output_broken=True)
    assert (await moved(one, "r0")).epoch == 2


async def test_an_engine_that_died_is_left_for_a_warm_runner_that_is_free(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.router.cold = {"r1", "r3"}
    around.runner.report.set(
        SlotReport(state=SlotReport.STATE_RUNNING, interrupted=True, message="SIGSEGV", suspected=True)
    )
    record = await moved(one, "r2")
    assert (record.moves[0].why, record.failures) == ("engine_crashed", 1)
    await held(around, "r2")


async def test_an_engine_that_died_restarts_in_place_where_no_warm_runner_is_free(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.router.cold = {"r1", "r2", "r3"}
    around.runner.report.set(SlotReport(state=SlotReport.STATE_STARTING, interrupted=True))
    await asyncio.sleep(1.0)
    around.runner.say(SlotReport.STATE_RUNNING)
    await asyncio.sleep(0.3)
    record = await one.session()
    assert (record.phase, record.runner, record.failures) == (pb.PHASE_LIVE, "r0", 0)
    assert set(around.router.held) == {"r0"}


async def test_a_session_that_breaks_every_runner_is_stopped(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "BREAKER", 3)
    monkeypatch.setattr(mover, "BREAKER", 3)
    for number in range(3):
        around.runners[number].say(FAILED, "engine_crashed", "SIGSEGV")
        if number < 2:
            await moved(one, f"r{number + 1}")
    ended = await one.ended()
    assert (ended.end_reason, len(ended.moves)) == ("breaks_runners", 2)
    assert "SIGSEGV" in ended.end_message
    assert around.held() == []


async def test_a_session_that_broke_all_the_runners_there_are_is_told_so_and_not_that_there_is_no_room(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    await gives_up(around)
    await moved(one, "r1")
    for runner in around.runners:  # the router grants none of those that failed
        around.router.held[runner.name] = "ses_other00000"
    around.runners[1].say(FAILED, "engine_crashed", "SIGSEGV")
    stall(around, 300)
    ended = await one.ended()
    assert ended.end_reason == "breaks_runners"
    assert ended.end_message.startswith("2 in a row; engine_crashed: SIGSEGV")


async def test_a_runner_that_shows_the_session_for_a_while_clears_it(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.session_manager.watch.PROVEN_S", 0.5)
    await gives_up(around)
    assert (await moved(one, "r1")).failures == 1

    async def cleared() -> bool:
        return (await one.session()).failures == 0

    await until(cleared)


async def test_a_session_whose_runner_died_before_its_first_picture_goes_to_another_one(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    await one.start(around.bridge.address)
    await around.runner.die()
    record = await moved(one, "r1")
    assert record.moves[0].why == "runner_lost"
    await held(around, "r1")
