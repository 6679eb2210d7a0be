"""What a session held is freed, whatever is away when it ends, and whatever breaks meanwhile."""

from __future__ import annotations

import asyncio

from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import UnavailableError
from services.session_manager.machine import Phase, Session, SessionId, StreamId
from services.session_manager.telling import now_unix_ms
from tests.support.moving import started
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, until

AWAY = UnavailableError("away", reason="AWAY")


async def test_an_ingest_process_that_cannot_be_reached_is_told_of_the_end_when_it_can(
    around: Neighbourhood, one: Replica
) -> None:
    """Its publisher would send into nothing for ever, and nobody could publish the stream there."""
    await started(around, one)
    around.bridge.fail("Close", AWAY, times=3)
    await one.stop()
    assert not (await one.session()).settled
    assert (await one.ended()).end_reason == "stopped"
    assert around.held() == []
    closed = around.bridge.gone[SESSION].closed
    assert closed is not None
    assert closed.reason == "stopped"


async def test_an_ingest_process_that_is_dead_is_not_asked_for_ever(
    around: Neighbourhood, one: Replica
) -> None:
    await started(around, one)
    await around.bridge.die()
    await one.stop()
    assert not (await one.session()).settled, "publisher_grace_s is 1 here"
    assert (await one.ended()).end_reason == "stopped"
    assert around.router.held == {}
    assert not around.billing.holding


async def test_a_dead_ingest_process_is_given_up_by_an_heir_whose_wall_clock_is_behind(
    around: Neighbourhood, one: Replica
) -> None:
    await around.bridge.die()
    ended = Session(
        id=SessionId(SESSION),
        stream=StreamId(STREAM),
        tenant="acme",
        pipeline="effects",
        owner="dead",
        bridge=around.bridge.address,
        created_unix_ms=1,
        phase=Phase.ENDED,
        end_reason="stopped",
        ended_unix_ms=now_unix_ms() + 3_600_000,
    )
    await one.store.create_session(ended)
    assert (await one.ended(within_s=8)).owner == "one"


async def test_a_session_that_is_stopped_in_the_last_step_of_its_start_is_freed(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    around.runner.before("Attach", lambda: one.update({"prompt": "sketch"}))  # so that there is a last step
    around.runner.before("Update", one.stop)
    around.billing.fail("Settle", AWAY)  # it is freed beside, a moment later
    await one.start(around.bridge.address)
    assert (await one.ended()).end_reason == "stopped"
    assert around.held() == []


async def test_two_bugs_in_one_session_end_it_and_nothing_else(around: Neighbourhood, one: Replica) -> None:
    await started(around, one)
    around.bridge.hang("Close")  # the first end is still being seen to when the second bug comes
    for _ in range(2):
        one.lives._failed(SESSION, ValueError("a bug"))

    async def ended() -> bool:
        return (await one.session()).phase == pb.PHASE_ENDED

    await until(ended)
    around.bridge.release("Close")
    assert (await one.ended()).end_reason == "internal_error"
    assert around.held() == []


async def test_an_owner_that_has_a_session_again_may_do_what_it_still_does_from_before(
    around: Neighbourhood, one: Replica
) -> None:
    done: list[int] = []
    goes_on = asyncio.Event()

    async def leave(number: int) -> None:
        await goes_on.wait()
        done.append(number)

    for number in range(2):
        one.lives.aside(f"leave/r0/{SESSION}", leave(number))
    goes_on.set()

    async def both() -> bool:
        return done == [0, 1]

    await until(both)
