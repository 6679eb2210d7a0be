"""More starts than slots: as many as there is room for are accepted, the others refused or served in turn.

Real router, real ledger, real session-managers; the runners and the ingest process are played.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import ExhaustedError, SluiceError
from services.common.lifecycle import background
from services.common.topology import WAITERS
from services.common.views import View
from services.session_manager.machine import Phase
from tests.support.control_plane import ControlPlane, Manager, control_plane, stream
from tests.support.nats import nats_server

SLOTS = 10
STARTS = 100
ROUNDS = 10  # of each of five tests: fifty in all
# Who finds no slot is refused at once, and no call of theirs is too slow for a busy machine.
AT_ONCE = {"grant_wait_s": 0, "call_timeout_s": 30, "attach_timeout_s": 30}
CREDIT_MICRO = 10**12
SLICE_MICRO = 30_000  # what the first 30 s of a session hold


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with (
        nats_server(tmp_path / "nats") as nats,
        control_plane(nats.url, tmp_path, runners=SLOTS) as found,
    ):
        yield found


def names(of: str, count: int) -> list[str]:
    return [f"ses_{of}{number:07d}" for number in range(count)]


def publish(plane: ControlPlane, sessions: list[str]) -> None:
    for session in sessions:
        plane.bridge.expect(session)


async def attempt(
    plane: ControlPlane, manager: Manager, number: int, session: str
) -> pb.Session | SluiceError:
    try:
        return await manager.start(f"str_{number:010d}", session, plane.bridge.address, timeout_s=60)
    except SluiceError as error:
        return error


async def nothing_held(plane: ControlPlane, manager: Manager) -> None:
    """Wait until no session holds anything anywhere. The time-out's traceback says what was left."""
    async with asyncio.timeout(10):
        while True:
            slots, busy = await plane.held(), plane.busy()
            open_records = [one.id for one in manager.store.list_sessions() if not one.settled]
            balance = await plane.ledger.balance()
            left = (slots, busy, open_records, list(plane.bridge.sessions), balance.reserved_micro)
            if left == ({}, {}, [], [], 0):
                break
            await asyncio.sleep(0.05)
    assert balance.balance_micro == CREDIT_MICRO, "nobody was charged"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("part", range(5))
async def test_a_hundred_starts_for_ten_slots_are_ten_sessions_and_ninety_clean_refusals(
    plane: ControlPlane, part: int
) -> None:
    async with plane.manager("one", **AT_ONCE) as one, plane.manager("two", **AT_ONCE) as two:
        for number in range(STARTS):
            await one.store.create_stream(stream(number))
        for turn in range(ROUNDS):
            sessions = names(f"{part}{turn}0", STARTS)
            publish(plane, sessions)
            outcomes = await asyncio.gather(
                *(
                    attempt(plane, (one, two)[number % 2], number, session)
                    for number, session in enumerate(sessions)
                )
            )
            accepted = [each for each in outcomes if isinstance(each, pb.Session)]
            refused = [each for each in outcomes if isinstance(each, SluiceError)]
            assert len(accepted) == SLOTS
            assert {(type(each), each.reason) for each in refused} == {(ExhaustedError, "NO_CAPACITY")}
            assert await plane.held() == plane.busy() == {each.runner: each.id for each in accepted}
            assert len({each.runner for each in accepted}) == SLOTS
            balance = await plane.ledger.balance()
            assert (balance.balance_micro, balance.reserved_micro) == (CREDIT_MICRO, SLOTS * SLICE_MICRO)
            await asyncio.gather(*(one.stop(each.id) for each in accepted))
            await nothing_held(plane, one)
        reasons = [each.end_reason for each in one.store.list_sessions()]
        assert (reasons.count("no_capacity"), reasons.count("stopped")) == (
            ROUNDS * (STARTS - SLOTS),
            ROUNDS * SLOTS,
        )
        assert not any(each.session for each in one.store.list_streams("acme"))


async def waiting(view: View, count: int) -> None:
    async with asyncio.timeout(10):
        while len(view.entries) != count:
            await asyncio.sleep(0.01)


async def test_who_waits_is_served_by_priority_and_then_by_arrival(plane: ControlPlane) -> None:
    priorities = [0, 0, 5, 0, -5, 5]
    order = [2, 5, 0, 1, 3, 4]
    waiters = await plane.bus.bucket(WAITERS, 1)
    view = View()
    async with plane.manager("one") as one, background(follow=waiters.follow(view)):
        holders, comers = names("hold", SLOTS), names("wait", len(priorities))
        publish(plane, [*holders, *comers])
        for number in range(SLOTS):
            await one.store.create_stream(stream(number))
            await one.start(f"str_{number:010d}", holders[number], plane.bridge.address)
        starts: list[asyncio.Task[pb.Session | SluiceError]] = []
        for place, priority in enumerate(priorities):
            number = SLOTS + place
            await one.store.create_stream(stream(number, priority=priority, max_wait_ms=20_000))
            starts.append(asyncio.create_task(attempt(plane, one, number, comers[place])))
            await waiting(view, place + 1)
        served: list[int] = []
        for holder in holders[: len(order)]:
            await one.stop(holder)
            async with asyncio.timeout(5):
                while not (new := [n for n, each in enumerate(starts) if each.done() and n not in served]):
                    await asyncio.sleep(0.01)
            served += new
        assert served == order
        sessions = [each.result() for each in starts]
        assert all(isinstance(each, pb.Session) for each in sessions)
        await waiting(view, 0)
        await asyncio.gather(*(one.stop(session) for session in (*holders[len(order) :], *comers)))
        await nothing_held(plane, one)


async def test_who_leaves_the_queue_holds_nothing_and_nobody_up(plane: ControlPlane) -> None:
    waiters = await plane.bus.bucket(WAITERS, 1)
    view = View()
    async with plane.manager("one") as one, background(follow=waiters.follow(view)):
        holders, comers = names("hold", SLOTS), names("wait", 3)
        publish(plane, [*holders, *comers])
        for number in range(SLOTS):
            await one.store.create_stream(stream(number))
            await one.start(f"str_{number:010d}", holders[number], plane.bridge.address)
        starts: list[asyncio.Task[pb.Session | SluiceError]] = []
        for place, session in enumerate(comers):
            await one.store.create_stream(stream(SLOTS + place, max_wait_ms=20_000))
            starts.append(asyncio.create_task(attempt(plane, one, SLOTS + place, session)))
            await waiting(view, place + 1)
        starts[0].cancel()
        with suppress(asyncio.CancelledError):
            await starts[0]
        await waiting(view, 2)
        await one.stop(holders[0])
        served = await asyncio.wait_for(starts[1], 5)
        assert isinstance(served, pb.Session)
        await one.stop(comers[2])  # it waits still
        refused = await asyncio.wait_for(starts[2], 5)
        assert isinstance(refused, SluiceError)
        await waiting(view, 0)
        left = await one.session(comers[0])
        assert Phase(left.phase) is Phase.ENDED
        await asyncio.gather(*(one.stop(session) for session in (*holders[1:], comers[1])))
        await nothing_held(plane, one)
