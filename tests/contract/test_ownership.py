"""Session-managers that die or leave: each of their sessions has one heir soon, and none is buried alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.bus import View
from services.common.lifecycle import background
from services.common.topology import REPLICAS
from services.session_manager import ownership
from services.session_manager.machine import Phase
from services.session_manager.ownership import heir
from tests.support.control_plane import ControlPlane, Manager, control_plane, stream
from tests.support.nats import NatsServer, nats_server

SESSIONS = [f"ses_{number:010d}" for number in range(12)]
ADOPTED_WITHIN_S = 5.0


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def plane(nats: NatsServer, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(nats.url, tmp_path, runners=len(SESSIONS)) as found:
        yield found


async def start_all(plane: ControlPlane, manager: Manager) -> None:
    for number, session in enumerate(SESSIONS):
        await manager.store.create_stream(stream(number))
        plane.bridge.expect(session)
        await manager.start(f"str_{number:010d}", session, plane.bridge.address)
        plane.bridge.sessions[session].see(frames_in=10, output_age_ms=0)


async def adopted(*survivors: Manager) -> float:
    """Wait until every session is in the care of a survivor; how long that took."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(15):
        while not all(any(session in one.lives for one in survivors) for session in SESSIONS):
            await asyncio.sleep(0.02)
    return loop.time() - began_s


async def test_the_sessions_of_a_dead_replica_have_an_heir_each_within_five_seconds(
    plane: ControlPlane,
) -> None:
    async with plane.manager("one") as one, plane.manager("two") as two, plane.manager("three") as three:
        await start_all(plane, one)
        await asyncio.sleep(3.0)  # the survivors' own links have to be sound for so long
        await one.kill()
        took_s = await adopted(two, three)
        assert took_s < ADOPTED_WITHIN_S
        for session in SESSIONS:
            record = await two.store.session(session)
            assert record.owner == heir(session, ["two", "three"])
            assert (session in two.lives) == (record.owner == "two")
            assert (session in three.lives) == (record.owner == "three")
            assert record.phase is Phase.LIVE
        assert plane.busy().keys() == plane.runners.keys(), "no runner was touched"


async def test_the_sessions_of_a_replica_that_leaves_are_adopted_at_once(plane: ControlPlane) -> None:
    replicas = await plane.bus.bucket(REPLICAS, 1)
    async with plane.manager("one") as one, plane.manager("two") as two:
        await start_all(plane, one)
        await asyncio.sleep(3.0)
        await one.kill()
        await replicas.delete("one")  # the last that an orderly end does
        assert await adopted(two) < 2.0


async def test_nobody_is_taken_for_dead_over_a_link_that_is_sick_itself(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.05)
    async with plane.manager("one") as one, plane.manager("two") as two:
        await start_all(plane, one)
        await asyncio.sleep(3.0)
        two.bus.went_down()  # it hears nothing, so it believes that nobody lives
        for _ in range(10):
            two.ownership.view.put("one", None)
            await asyncio.sleep(0.05)
        assert not any(session in two.lives for session in SESSIONS)
        two.bus.came_back()
        await asyncio.sleep(1.0)
        assert not any(session in two.lives for session in SESSIONS), "it has not listened for long enough"
        assert all(session in one.lives for session in SESSIONS)


@pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning")
@pytest.mark.parametrize("still_s", [2.3, 4.0])
async def test_nobody_is_dead_because_nats_stood_still(
    nats: NatsServer, plane: ControlPlane, still_s: float
) -> None:
    async with plane.manager("one") as one, plane.manager("two") as two:
        await start_all(plane, one)
        await asyncio.sleep(3.0)
        nats.freeze()
        await asyncio.sleep(still_s)
        nats.thaw()
        for _ in range(80):
            assert not any(session in two.lives for session in SESSIONS)
            await asyncio.sleep(0.05)
        assert all(session in one.lives for session in SESSIONS)


async def test_one_lost_answer_does_not_cost_a_replica_its_life(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = await plane.bus.bucket(REPLICAS, 1)
    view = View()
    async with plane.manager("one") as one, background(follow=replicas.follow(view)):
        bucket = one.ownership._replicas
        renew = bucket.renew
        lost = [True, False, False, True]

        async def unanswered(key: str, value: bytes, revision: int, ttl_s: int) -> int:
            stored = await renew(key, value, revision, ttl_s)
            if lost and lost.pop():
                await asyncio.sleep(60)
            return stored

        monkeypatch.setattr(bucket, "renew", unanswered)
        await asyncio.wait_for(view.ready.wait(), 5)
        for _ in range(100):
            assert "one" in view.entries
            await asyncio.sleep(0.06)
        assert lost == []


async def test_a_replica_that_comes_back_under_its_name_is_not_taken_for_dead(plane: ControlPlane) -> None:
    replicas = await plane.bus.bucket(REPLICAS, 1)
    view = View()
    gone = 0
    async with background(follow=replicas.follow(view)):
        async with plane.manager("one", replica_ttl_s=5):
            await asyncio.sleep(2.0)  # its key is renewed after 1.7 s
        await asyncio.sleep(3.5)  # and lapses in a second
        async with plane.manager("one", replica_ttl_s=5):
            for _ in range(50):
                gone += "one" not in view.entries
                await asyncio.sleep(0.05)
    assert gone == 0


def test_heirs_are_many_and_the_same_for_everybody() -> None:
    living = [f"session-manager-{number}" for number in range(4)]
    heirs = {session: heir(session, living) for session in (f"ses_{n:010d}" for n in range(400))}
    assert heirs == {session: heir(session, reversed(living)) for session in heirs}
    shares = [list(heirs.values()).count(name) for name in living]
    assert min(shares) > 60
    fewer = living[1:]
    moved = [session for session, name in heirs.items() if heir(session, fewer) != name]
    assert all(heirs[session] == living[0] for session in moved), "who lives keeps what it would have had"
