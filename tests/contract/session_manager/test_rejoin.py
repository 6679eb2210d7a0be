"""A publisher that comes back through another ingest process, or the same one started again."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial

import pytest

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ConflictError, NotFoundError, UnavailableError
from services.common.session_time import furthest
from tests.support.fakes import FakeBridge, serving
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, until

SILENT, SENDING = bridge_pb2.PUBLISHER_SILENT, bridge_pb2.PUBLISHER_SENDING
REACHED = bridge_pb2.Position(
    in_pts=90_000, out_pts=81_000, session_ms=1_000, delivered_ms=900, paused_ms=100
)


@pytest.fixture
async def one(around: Neighbourhood) -> AsyncIterator[Replica]:
    async with around.replica("one", publisher_grace_s=20) as replica:
        yield replica


@pytest.fixture
async def elsewhere() -> AsyncIterator[FakeBridge]:
    """Another ingest process, where the publisher is now."""
    bridge = FakeBridge()
    async with serving(bridge, partial(add_BridgeServicer_to_server, bridge)):
        bridge.expect(SESSION)
        yield bridge


@pytest.fixture
async def live(around: Neighbourhood, one: Replica) -> pb.Session:
    await one.create()
    around.publish()
    await one.start(around.bridge.address)
    around.bridge.sessions[SESSION].see(frames_in=10, output_age_ms=0, position=REACHED)
    return await one.reaches(pb.PHASE_LIVE)


async def test_a_session_goes_on_at_another_bridge_with_its_runner(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    answer = await one.rejoin(elsewhere.address)
    assert (answer.session.id, answer.session.epoch, answer.session.runner) == (SESSION, 2, "r0")
    assert answer.session.bridge == elsewhere.address
    assert answer.resume == REACHED
    closed = around.bridge.gone[SESSION].closed
    assert closed is not None
    assert closed.reason == "moved"
    (opened,) = elsewhere.sessions[SESSION].opened
    assert (opened.epoch, opened.resume, opened.processes_audio) == (2, REACHED, True)
    (rebound,) = around.runner.rebound
    assert (rebound.session_epoch, rebound.slot_epoch) == (2, 1)
    assert rebound.channels.out.endswith("out-2")
    assert around.router.held == {"r0": SESSION}

    elsewhere.sessions[SESSION].see(output_age_ms=0)
    await one.reaches(pb.PHASE_LIVE)
    elsewhere.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_GONE)
    assert (await one.ended()).end_reason == "publisher_gone"
    assert around.runner.session == ""


async def test_a_bridge_that_was_just_restarted_is_waited_for(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    returning = asyncio.ensure_future(one.rejoin(address))
    await asyncio.sleep(0.5)
    assert not returning.done(), "nobody listens there, as it looks while gRPC does not try again"
    bridge = FakeBridge()
    bridge.expect(SESSION)
    async with serving(bridge, partial(add_BridgeServicer_to_server, bridge), address):
        assert (await returning).session.bridge == address
        (opened,) = bridge.sessions[SESSION].opened
        assert opened.epoch == 2


async def test_a_repeated_return_changes_nothing(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    first = await one.rejoin(elsewhere.address)
    again = await one.rejoin(elsewhere.address)
    assert again.session.epoch == first.session.epoch == 2
    assert len(around.runner.rebound) == 1


async def test_a_session_whose_bridge_died_goes_on_from_what_its_runner_knows(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.runner.report.set(
        runner_pb2.SlotReport(state=runner_pb2.SlotReport.STATE_RUNNING, in_pts=7000, out_pts=6000)
    )
    await around.bridge.die()
    await one.reaches(pb.PHASE_PAUSED)
    answer = await one.rejoin(elsewhere.address)
    assert answer.session.bridge_lost_unix_ms == 0
    (opened,) = elsewhere.sessions[SESSION].opened
    assert (opened.resume.in_pts, opened.resume.out_pts) == (7000, 6000)
    assert opened.resume.session_ms > 0
    assert (answer.resume.in_pts, answer.resume.out_pts) == (9000, 8000), "as the runner said last"
    elsewhere.sessions[SESSION].see(output_age_ms=0)
    await one.reaches(pb.PHASE_LIVE)


async def test_a_session_of_which_nobody_is_left_goes_on_ahead_of_all_that_viewers_can_have_seen(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    await around.bridge.die()
    await around.runner.die()
    await one.rejoin(elsewhere.address)
    resume = elsewhere.sessions[SESSION].opened[0].resume
    assert resume.in_pts == resume.out_pts == furthest(resume.session_ms)


async def test_an_old_ingest_process_that_was_started_again_does_not_know_how_far_the_session_was(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.runner.report.set(
        runner_pb2.SlotReport(state=runner_pb2.SlotReport.STATE_RUNNING, in_pts=7000, out_pts=6000)
    )
    around.bridge.forget(SESSION)
    answer = await one.rejoin(elsewhere.address)
    (opened,) = elsewhere.sessions[SESSION].opened
    assert (opened.resume.in_pts, opened.resume.out_pts) == (7000, 6000)
    assert answer.resume.session_ms > 0


async def test_an_ingest_process_that_was_started_again_gets_the_session_back(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.forget(SESSION)
    await one.reaches(pb.PHASE_PAUSED)
    around.bridge.expect(SESSION)
    answer = await one.rejoin(around.bridge.address)
    assert answer.session.epoch == 2
    assert [request.epoch for request in around.bridge.sessions[SESSION].opened][:1] == [2]
    around.bridge.sessions[SESSION].see(output_age_ms=0)
    await one.reaches(pb.PHASE_LIVE)


async def test_a_publisher_that_is_connected_where_it_was_is_not_replaced(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    with pytest.raises(ConflictError) as refusal:
        await one.rejoin(elsewhere.address)
    assert refusal.value.reason == "STREAM_BUSY"
    assert (await one.session()).bridge == around.bridge.address


async def test_there_is_nothing_to_return_to_when_the_session_has_ended(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    await one.stop()
    await one.ended()
    with pytest.raises(NotFoundError) as refusal:
        await one.rejoin(elsewhere.address)
    assert refusal.value.reason == "SESSION_NOT_FOUND"


@pytest.mark.parametrize(
    "refusal",
    [
        ConflictError("a container's", reason="REBIND_UNSUPPORTED"),
        NotFoundError("forgotten", reason="UNKNOWN_SESSION"),
    ],
    ids=lambda error: error.reason,
)
async def test_a_runner_that_cannot_be_bound_is_attached_anew(
    around: Neighbourhood,
    one: Replica,
    live: pb.Session,
    elsewhere: FakeBridge,
    refusal: ConflictError | NotFoundError,
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    around.runner.fail("Rebind", refusal)
    await one.rejoin(elsewhere.address)
    attached = around.runner.attached
    assert attached is not None
    assert (attached.session_epoch, attached.slot_epoch, attached.after_pts) == (2, 1, 81_000)
    await asyncio.sleep(0.5)
    record = await one.session()
    assert (record.runner, record.move_wanted) == ("r0", "")
    assert around.router.held == {"r0": SESSION}


async def test_a_runner_that_is_dead_at_the_return_is_replaced(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    await around.runner.die()
    await one.rejoin(elsewhere.address)

    async def replaced() -> bool:
        record = await one.session()
        return record.runner == "r1" and not record.HasField("next")

    await until(replaced)
    assert around.runners[1].session == SESSION
    assert elsewhere.sessions[SESSION].epoch == 3


async def test_a_return_in_the_middle_of_a_move_calls_it_off_and_frees_the_candidate(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.bridge.shows = False
    await one.move()

    async def under_way() -> bool:
        return around.runners[1].session == SESSION

    await until(under_way)
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    around.runners[1].draining = True
    around.router.runners = {"r0": around.runner.address}  # else it would be made elsewhere
    answer = await one.rejoin(elsewhere.address)
    assert (answer.session.epoch, answer.session.runner) == (3, "r0")

    async def freed() -> bool:
        return around.runners[1].session == "" and around.router.held == {"r0": SESSION}

    await until(freed)


async def test_a_move_that_is_wished_meanwhile_waits_for_the_return(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    runners = around.router.runners
    around.router.runners = {"r0": around.runner.address}
    await one.move()
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    gate = asyncio.Event()
    elsewhere.before("Open", gate.wait)
    returning = asyncio.ensure_future(one.rejoin(elsewhere.address))

    async def opening() -> bool:
        return any(name == "Open" for name, _ in elsewhere.calls)

    await until(opening)
    around.router.runners = runners
    await asyncio.sleep(0.7)
    gate.set()
    assert (await returning).session.epoch == 2

    async def moved() -> bool:
        return (await one.session()).runner == "r1"

    await until(moved)
    assert [(request.epoch, request.HasField("resume")) for request in elsewhere.sessions[SESSION].opened][
        :2
    ] == [(2, True), (3, False)]


async def test_a_router_that_is_away_is_not_asked_for_a_return(
    around: Neighbourhood, one: Replica, live: pb.Session, elsewhere: FakeBridge
) -> None:
    around.bridge.sessions[SESSION].see(publisher=SILENT)
    around.router.fail("Grant", UnavailableError("away"), times=100)
    assert (await one.rejoin(elsewhere.address)).session.runner == "r0"
    assert (await one.stream(STREAM)).session == SESSION


async def test_credit_does_not_open_the_new_bridge_before_it_is_told_where_time_goes_on(
    around: Neighbourhood, elsewhere: FakeBridge
) -> None:
    """It was being reserved when the publisher came back, and is told to whatever bridge there is then."""
    async with around.replica("one", publisher_grace_s=20) as one:
        await one.create()
        around.publish()
        await one.start(around.bridge.address)
        rejoining: list[asyncio.Task[pb.RejoinResponse]] = []
        goes_on = asyncio.Event()

        async def comes_back() -> None:
            around.bridge.before("Close", goes_on.wait)  # the record names the new bridge by then
            rejoining.append(asyncio.ensure_future(one.rejoin(elsewhere.address)))

            async def recorded() -> bool:
                return (await one.session()).bridge == elsewhere.address

            await until(recorded)

        around.billing.before("ReserveSlice", comes_back)
        around.bridge.sessions[SESSION].see(
            publisher=SILENT, frames_in=10, output_age_ms=0, session_ms=1500, position=REACHED
        )

        async def came_back() -> bool:
            return bool(rejoining)

        await until(came_back)
        await asyncio.sleep(0.3)
        goes_on.set()
        await rejoining[0]
        first = elsewhere.sessions[SESSION].opened[0]
        assert first.resume == REACHED


async def test_credit_opens_no_bridge_that_was_started_again_since_it_last_reported(
    around: Neighbourhood,
) -> None:
    async with around.replica("one", publisher_grace_s=20, bridge_lost_after_s=20) as one:
        await one.create()
        around.publish()
        await one.start(around.bridge.address)
        around.bridge.sessions[SESSION].see(frames_in=10, output_age_ms=0, position=REACHED)
        await one.reaches(pb.PHASE_LIVE)
        around.bridge.fail("Report", UnavailableError("just started", reason="AWAY"), times=10_000)
        around.bridge.forget(SESSION)
        came_back = around.publish()  # the publisher was quicker than we
        await asyncio.sleep(2.0)  # half of the credit is used up after 1
        assert came_back.opened == []


async def test_a_publisher_that_comes_back_does_not_wait_for_a_runner_that_stands_still(
    around: Neighbourhood, elsewhere: FakeBridge
) -> None:
    """What hosted its ingest process may have hosted its runner too."""
    async with around.replica("one", publisher_grace_s=20, call_timeout_s=6) as one:
        await one.create()
        around.publish()
        await one.start(around.bridge.address)
        around.bridge.sessions[SESSION].see(publisher=SILENT, frames_in=10, output_age_ms=0, position=REACHED)
        around.runner.before("Rebind", asyncio.Event().wait)
        around.runner.hang("Watch")
        answer = await one.rejoin(elsewhere.address)
        assert answer.resume == REACHED

        async def elsewhere_too() -> bool:
            return (await one.session()).runner == "r1"

        await until(elsewhere_too)
