"""Drift is repaired: what records, slots and runners say differently of a session, on a real NATS.

Real router, real session-managers with their reconcilers; the runners are played, and lie.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from protos.events.v1.events_pb2 import Slot, SlotClaim
from services.common.errors import UnavailableError
from services.session_manager import ownership, reconcile
from services.session_manager.drift import Kind
from services.session_manager.machine import Phase, Session
from tests.support.control_plane import ControlPlane, Manager, PlayedRunner, control_plane, stream
from tests.support.nats import NatsServer, nats_server

STREAM = "str_0000000000"
SESSION = "ses_aaaaaaaaaa"
OTHER = "ses_bbbbbbbbbb"
OLD_UNIX_MS = 1
QUICK = {"call_timeout_s": 0.5, "attach_timeout_s": 0.5}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "EVERY_S", 0.3)
    monkeypatch.setattr(reconcile, "LINK_SETTLE_S", 0.5)
    monkeypatch.setattr(reconcile, "UNRECORDED_PATIENCE_S", 1.0)
    monkeypatch.setattr(ownership, "LINK_SETTLE_S", 0.5)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def plane(nats: NatsServer, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(nats.url, tmp_path, runners=3) as found:
        yield found


@pytest.fixture
async def one(plane: ControlPlane) -> AsyncIterator[Manager]:
    async with plane.manager("one", **QUICK) as manager:
        yield manager


async def until(look: Callable[[], Awaitable[bool]], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not await look():
            await asyncio.sleep(0.05)


def repaired(kind: Kind) -> float:
    return REGISTRY.get_sample_value("sluice_drift_total", {"kind": kind.value}) or 0.0


async def start(plane: ControlPlane, one: Manager) -> PlayedRunner:
    """A live session, old enough to be looked at; returns its runner."""
    await one.store.create_stream(stream(0))
    plane.bridge.expect(SESSION)
    session = await one.start(STREAM, SESSION, plane.bridge.address)
    plane.bridge.sessions[SESSION].see(frames_in=10, output_age_ms=0)

    async def live() -> bool:
        return Phase((await one.session(SESSION)).phase) is Phase.LIVE

    await until(live)

    def aged(was: Session) -> Session:
        return was.with_(created_unix_ms=OLD_UNIX_MS)

    await one.store.change_session(SESSION, aged)
    return plane.runners[session.runner]


async def put_slot(plane: ControlPlane, runner: str, slot: Slot) -> None:
    await plane.slots.change(f"{runner}.0", lambda _: slot.SerializeToString())


async def slot(plane: ControlPlane, runner: str) -> Slot:
    entry = await plane.slots.get(f"{runner}.0")
    return Slot.FromString(entry.value) if entry else Slot()


async def test_a_sound_session_is_left_alone(plane: ControlPlane, one: Manager) -> None:
    before = {kind: repaired(kind) for kind in Kind}
    runner = await start(plane, one)
    await asyncio.sleep(2.0)
    assert {kind: repaired(kind) for kind in Kind} == before
    assert runner.session == SESSION
    assert (await one.session(SESSION)).move_wanted == ""
    await one.stop(SESSION)
    await asyncio.sleep(1.5)
    assert {kind: repaired(kind) for kind in Kind} == before
    assert await plane.held() == {}


async def test_a_slot_of_a_session_that_never_was_is_freed(plane: ControlPlane, one: Manager) -> None:
    before = repaired(Kind.SLOT_OF_NOBODY)
    await put_slot(plane, "r0", Slot(session=OTHER, epoch=7, granted_unix_ms=OLD_UNIX_MS))

    async def freed() -> bool:
        return (await slot(plane, "r0")).session == ""

    await until(freed)
    assert (await slot(plane, "r0")).epoch == 7, "no epoch is given twice"
    assert repaired(Kind.SLOT_OF_NOBODY) == before + 1


async def test_a_slot_that_was_granted_a_moment_ago_is_let_be(plane: ControlPlane, one: Manager) -> None:
    now_unix_ms = time.time_ns() // 1_000_000 + 60_000
    await put_slot(plane, "r0", Slot(session=OTHER, epoch=7, granted_unix_ms=now_unix_ms))
    await asyncio.sleep(2.5)
    assert (await slot(plane, "r0")).session == OTHER


async def test_a_second_slot_of_a_session_and_its_runner_are_freed(plane: ControlPlane, one: Manager) -> None:
    runner = await start(plane, one)
    left = next(each for each in plane.runners.values() if each is not runner)
    await put_slot(plane, left.name, Slot(session=SESSION, epoch=3, granted_unix_ms=OLD_UNIX_MS))
    assert left.presence is not None
    await left.presence.claim(0, SESSION, 3)

    async def freed() -> bool:
        detached = [request for name, request in left.calls if name == "Detach"]
        return (await slot(plane, left.name)).session == "" and bool(detached)

    await until(freed)
    assert await plane.held() == {runner.name: SESSION}
    assert runner.session == SESSION


async def test_a_runner_that_works_for_a_session_that_ended_is_told(
    plane: ControlPlane, one: Manager
) -> None:
    runner = await start(plane, one)
    await one.stop(SESSION)
    assert runner.presence is not None
    runner.presence.claims[0] = SlotClaim(slot=0, session=SESSION, slot_epoch=1)  # it came back to life
    calls = len(runner.calls)

    async def told() -> bool:
        return any(name == "Detach" for name, _ in runner.calls[calls:])

    await until(told)


async def test_a_slot_that_was_lost_under_a_live_session_is_held_again(
    plane: ControlPlane, one: Manager
) -> None:
    runner = await start(plane, one)
    was = await slot(plane, runner.name)
    await put_slot(plane, runner.name, Slot(epoch=was.epoch))

    async def held() -> bool:
        return (await slot(plane, runner.name)).session == SESSION

    await until(held)
    assert (await slot(plane, runner.name)).epoch == was.epoch
    assert runner.session == SESSION


async def test_a_session_whose_slot_is_another_s_moves(plane: ControlPlane, one: Manager) -> None:
    runner = await start(plane, one)
    was = await slot(plane, runner.name)
    taken = Slot(session=OTHER, epoch=was.epoch + 1, granted_unix_ms=time.time_ns() // 1_000_000 + 60_000)
    await put_slot(plane, runner.name, taken)

    async def moved() -> bool:
        record = await one.session(SESSION)
        return record.runner != runner.name and Phase(record.phase) is Phase.LIVE

    await until(moved)
    record = await one.session(SESSION)
    assert [move.why for move in record.moves] == [Kind.SLOT_LOST.value]
    assert (await slot(plane, runner.name)).session == OTHER
    assert (await slot(plane, record.runner)).session == SESSION


async def test_a_session_that_its_runner_does_not_claim_moves(plane: ControlPlane, one: Manager) -> None:
    runner = await start(plane, one)
    record = await one.session(SESSION)
    assert runner.presence is not None
    runner.presence.advert.boot_id = record.boot_id
    await runner.presence.free(0)

    async def moved() -> bool:
        record = await one.session(SESSION)
        return record.runner != runner.name and Phase(record.phase) is Phase.LIVE

    await until(moved)
    assert [move.why for move in (await one.session(SESSION)).moves] == [Kind.RUNNER_FORGOT.value]


async def test_a_stream_whose_session_is_gone_is_idle_again(plane: ControlPlane, one: Manager) -> None:
    await one.store.create_stream(stream(0))
    await one.store.change_stream(STREAM, lambda was: was.claimed_by(OTHER))  # type: ignore[arg-type]

    async def idle() -> bool:
        return (await one.store.stream(STREAM)).session == ""

    await until(idle)


async def test_of_several_replicas_one_repairs_and_when_it_is_dead_another(
    plane: ControlPlane, one: Manager
) -> None:
    before = repaired(Kind.SLOT_OF_NOBODY)
    async with plane.manager("two", **QUICK) as two:
        for number in range(8):
            session = f"ses_{number:010d}"
            value = Slot(session=session, epoch=1, granted_unix_ms=OLD_UNIX_MS).SerializeToString()
            await plane.slots.create(f"gone.{number}", value)
        await until_free(plane, 8)
        assert repaired(Kind.SLOT_OF_NOBODY) == before + 8
        await two.kill()
    value = Slot(session=OTHER, epoch=1, granted_unix_ms=OLD_UNIX_MS).SerializeToString()
    await plane.slots.create("gone.8", value)
    await until_free(plane, 9)


async def until_free(plane: ControlPlane, count: int) -> None:
    async def free() -> bool:
        entries = [await plane.slots.get(f"gone.{number}") for number in range(count)]
        return not any(entry and Slot.FromString(entry.value).session for entry in entries)

    await until(free, 10)


async def test_a_nats_that_lost_its_store_costs_no_session_and_gets_everything_back(
    nats: NatsServer, plane: ControlPlane, one: Manager
) -> None:
    runner = await start(plane, one)
    await nats.kill()
    nats.lose_store()
    await nats.start()

    async def back() -> bool:
        try:
            record = await one.session(SESSION)
            return (
                record.runner == runner.name
                and (await slot(plane, runner.name)).session == SESSION
                and (await one.store.stream(STREAM)).session == SESSION
            )
        except UnavailableError:
            return False

    await until(back, 10)
    await asyncio.sleep(2.0)
    assert runner.session == SESSION
    assert [name for name, _ in runner.calls if name == "Detach"] == []
    assert Phase((await one.session(SESSION)).phase) is Phase.LIVE
    await one.stop(SESSION)
    assert await plane.held() == plane.busy() == {}
