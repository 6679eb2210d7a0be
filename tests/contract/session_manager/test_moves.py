"""A session that somebody wishes elsewhere: by hand, by draining its runner, because that is slow."""

from __future__ import annotations

import asyncio

import pytest

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ConflictError, InvalidError, NotFoundError
from services.session_manager import failover, mover
from tests.support.moving import SlotReport, fill, held, moved, stall, started
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, until
from tests.support.spans import recording

OTHER, THIRD = "ses_bbbbbbbbbb", "ses_cccccccccc"


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
    fill(around)
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
    fill(around)
    await one.move()
    await asyncio.sleep(1.0)
    record = await one.session()
    assert (record.phase, record.runner, record.move_wanted) == (pb.PHASE_LIVE, "r0", "asked")
    del around.router.held["r2"]
    await moved(one, "r2")


async def test_a_wish_for_which_there_is_no_room_for_long_is_given_up_and_a_drains_stays(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "WISHED_FOR_S", 0.5)
    monkeypatch.setattr(mover, "PLANNED_WAIT_S", 0.1)
    fill(around)
    await one.move()

    async def given_up() -> bool:
        return not (await one.session()).move_wanted

    await until(given_up)
    await one.drain("r0")
    await asyncio.sleep(1.5)
    record = await one.session()
    assert (record.phase, record.runner, record.move_wanted) == (pb.PHASE_LIVE, "r0", "drain")
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
    fill(around)
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


def slow(around: Neighbourhood, *, infer_ms: float) -> None:
    """What is seen of a session whose pictures take its runner so long."""
    around.runner.report.set(SlotReport(state=SlotReport.STATE_RUNNING, infer_ms=infer_ms))
    around.bridge.sessions[SESSION].see(health="degraded_inference", health_cause="slow")


async def test_a_slow_session_goes_once_to_a_warm_runner_that_is_clearly_quicker(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "SLOW_S", 0.3)
    around.router.cold = {"r1"}
    around.router.frame_us = {"r1": 9_000, "r2": 71_000, "r3": 70_000}
    slow(around, infer_ms=100.0)
    record = await moved(one, "r3")
    assert (record.moves[0].why, record.failures) == ("slow", 0)
    await held(around, "r3")
    around.router.frame_us = {"r0": 1_000}
    around.runners[3].report.set(SlotReport(state=SlotReport.STATE_RUNNING, infer_ms=90.0))
    await asyncio.sleep(1.0)
    assert (await one.session()).runner == "r3", "it did not help, so it is not done again"


async def test_a_slow_session_stays_where_nobody_is_clearly_quicker_until_somebody_is(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "SLOW_S", 0.3)
    monkeypatch.setattr(mover, "QUICKER_AGAIN_S", 0.3)
    around.router.frame_us = {"r1": 36_000, "r2": 50_000, "r3": 60_000}
    slow(around, infer_ms=50.0)
    await until(lambda: _asked_again(around))
    record = await one.session()
    assert (record.phase, record.runner, list(record.moves)) == (pb.PHASE_DEGRADED, "r0", [])
    assert set(around.router.held) == {"r0"}
    around.router.frame_us["r2"] = 35_000
    await moved(one, "r2")


async def _asked_again(around: Neighbourhood) -> bool:
    """Whether somebody quicker was asked for twice and not found."""
    asked = [request.requirements.max_frame_us for name, request in around.router.calls if name == "Grant"]
    return asked.count(35_000) >= 2


async def test_a_slow_session_of_which_no_picture_was_measured_stays(
    around: Neighbourhood, one: Replica, live: pb.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failover, "SLOW_S", 0.1)
    around.router.frame_us = {"r1": 1_000}
    slow(around, infer_ms=0.0)
    await asyncio.sleep(1.0)
    assert (await one.session()).runner == "r0", "nobody is known to be quicker"


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
