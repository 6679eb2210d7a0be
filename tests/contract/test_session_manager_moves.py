"""A session that goes to another runner: when its runner fails it, when somebody wishes it, and half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ConflictError, InvalidError, NotFoundError
from services.common.lifecycle import background
from services.common.topology import EVENTS, RUNNER_FAULTS
from services.session_manager import failover, life, mover, ownership
from tests.support.nats import nats_server
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, neighbourhood, until
from tests.support.spans import recording

OTHER, THIRD = "ses_bbbbbbbbbb", "ses_cccccccccc"
SlotReport = runner_pb2.SlotReport
FAILED = SlotReport.STATE_FAILED


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", 0.05)
    monkeypatch.setattr(life, "FOREIGN_END_S", 0.3)
    monkeypatch.setattr(mover, "RETRY_S", 0.1)
    monkeypatch.setattr(ownership, "LINK_SETTLE_S", 0.5)


@pytest.fixture
async def around(tmp_path: Path) -> AsyncIterator[Neighbourhood]:
    async with nats_server(tmp_path) as nats, neighbourhood(nats.url) as found:
        yield found


@pytest.fixture
async def one(around: Neighbourhood) -> AsyncIterator[Replica]:
    async with around.replica("one") as replica:
        yield replica


async def started(
    around: Neighbourhood, one: Replica, session: str = SESSION, stream: str = STREAM
) -> pb.Session:
    """A session whose pictures come back."""
    await one.create(id=stream)
    around.publish(session)
    await one.start(around.bridge.address, session, stream)
    around.bridge.sessions[session].see(
        frames_in=10, output_age_ms=0, position=bridge_pb2.Position(in_pts=9000, out_pts=6000)
    )
    return await one.reaches(pb.PHASE_LIVE, session)


@pytest.fixture
async def live(around: Neighbourhood, one: Replica) -> pb.Session:
    return await started(around, one)


def stall(around: Neighbourhood, ms: int, session: str = SESSION, **facts: Any) -> None:
    """What the bridge sees of a runner that shows nothing any more."""
    around.bridge.sessions[session].see(stalled_ms=ms, output_age_ms=ms, **facts)


async def moved(one: Replica, to: str, session: str = SESSION) -> pb.Session:
    async def look() -> pb.Session | None:
        record = await one.session(session)
        at_rest = record.phase != pb.PHASE_MIGRATING and not record.HasField("next")
        return record if record.runner == to and at_rest else None

    return await until(look)


async def held(around: Neighbourhood, *runners: str) -> None:
    """Wait until exactly these are held, and nothing is attached elsewhere."""

    async def look() -> bool:
        attached = {runner.name for runner in around.runners if runner.session}
        return set(around.router.held) == set(runners) and attached <= set(runners)

    await until(look)


# --- a runner that fails it


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


async def gives_up(around: Neighbourhood) -> None:
    around.runner.say(FAILED, "engine_crashed", "at frame 7")


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
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
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
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
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
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
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


async def test_a_slow_session_goes_to_a_warm_runner_once(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "SLOW_S", 0.3)
    seen = around.bridge.sessions[SESSION]
    seen.see(health="degraded_inference", health_cause="slow")
    record = await moved(one, "r1")
    assert (record.moves[0].why, record.failures) == ("slow", 0)
    await asyncio.sleep(1.0)
    assert (await one.session()).runner == "r1", "it did not help, so it is not done again"


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


async def test_a_move_is_a_span_of_the_sessions_trace(
    around: Neighbourhood, one: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = recording(monkeypatch)
    live = await started(around, one)
    await one.move()
    await moved(one, "r1")

    async def ended() -> bool:
        return bool(spans.named("session.move"))

    await until(ended)
    assert spans.attributes("session.move") == [
        {"session.id": SESSION, "session.why": "asked", "session.result": "moved"}
    ]
    (move,) = spans.named("session.move")
    children = {
        span.name for span in spans.every() if span.parent and span.parent.span_id == move.context.span_id
    }
    assert {"session.grant", "session.open", "session.attach", "session.promote"} <= children
    assert f"{move.context.trace_id:032x}" == live.traceparent.split("-")[1]


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


# --- wishes


async def test_a_session_is_moved_by_hand(around: Neighbourhood, one: Replica, live: pb.Session) -> None:
    asked = await one.move()
    assert asked.move_wanted == "asked"
    record = await moved(one, "r1")
    assert (record.moves[0].why, record.failures, record.move_wanted) == ("asked", 0, "")
    await held(around, "r1")
    detached = around.runner.requests("Detach", runner_pb2.DetachRequest)
    assert [request.reason for request in detached] == ["moved"]


async def test_a_move_is_refused_where_there_is_nothing_to_move(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    with pytest.raises(NotFoundError):
        await one.move(tenant="other")
    with pytest.raises(InvalidError):
        await one.move(why="engine_crashed")
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
    await one.move()
    with pytest.raises(ConflictError) as refusal:
        await one.move()
    assert refusal.value.reason == "MOVES_ALREADY"
    await one.stop()
    with pytest.raises(ConflictError):
        await one.move()


async def test_a_planned_move_without_room_is_made_when_there_is_some_and_the_session_lives_meanwhile(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
    await one.move()
    await asyncio.sleep(1.0)
    record = await one.session()
    assert (record.phase, record.runner, record.move_wanted) == (pb.PHASE_LIVE, "r0", "asked")
    del around.router.held["r2"]
    await moved(one, "r2")


async def test_a_drained_runner_is_left_by_all_its_sessions(around: Neighbourhood, one: Replica) -> None:
    sessions = {SESSION: STREAM, OTHER: "str_bbbbbbbbbb", THIRD: "str_cccccccccc"}
    for number, (session, stream) in enumerate(sessions.items()):
        await started(around, one, session, stream)
        assert (await one.session(session)).runner == f"r{number}"
    assert await one.drain("r0") == 1
    assert around.runner.draining
    await moved(one, "r3")
    assert await one.drain("r0") == 0
    assert await one.drain("r1") == 1
    around.router.runners.pop("r0")
    await asyncio.sleep(0.5)
    assert (await one.session(OTHER)).runner == "r1", "there is no room"
    await one.stop(THIRD)
    await moved(one, "r2", OTHER)
    with pytest.raises(NotFoundError) as refusal:
        await one.drain("r9")
    assert refusal.value.reason == "RUNNER_NOT_FOUND"


async def test_a_drain_that_is_cancelled_leaves_the_sessions_where_they_are(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"
    assert await one.drain("r0") == 1
    assert (await one.session()).move_wanted == "drain"
    assert await one.drain("r0", cancel=True) == 1
    assert not around.runner.draining
    assert (await one.session()).move_wanted == ""
    around.router.held = {"r0": SESSION}
    await asyncio.sleep(0.5)
    assert (await one.session()).runner == "r0"
    assert set(around.router.held) == {"r0"}


async def test_an_update_during_a_move_reaches_both_runners(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.shows = False
    await one.move()

    async def under_way() -> bool:
        return around.runners[1].session == SESSION

    await until(under_way)
    await one.update({"prompt": "sketch"})
    assert [patch.revision for patch in around.runner.patches] == [2]
    assert [patch.revision for patch in around.runners[1].patches] == [2]
    around.bridge.sessions[SESSION].hand_over()
    await moved(one, "r1")


async def test_an_update_between_two_runners_reaches_the_next_one(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    await around.runner.die()
    updating = asyncio.ensure_future(one.update({"prompt": "sketch"}))
    await asyncio.sleep(0.1)
    stall(around, 1000)
    await moved(one, "r1")
    await updating
    attached = around.runners[1].attached
    assert attached is not None
    known = [attached.revision, *(patch.revision for patch in around.runners[1].patches)]
    assert max(known) == 2


# --- half done


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
