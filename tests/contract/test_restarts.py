"""Router, session-managers, billing and NATS die in any order under load: no live session notices it.

Who starts meanwhile gets a session or a clean refusal, and whatever was begun is ended by the same id.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import pytest

from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    ExhaustedError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.lifecycle import background
from services.common.topology import SESSIONS, STREAMS
from services.session_manager.machine import Phase
from services.session_manager.store import Store
from tests.support.control_plane import (
    Calls,
    ControlPlane,
    Manager,
    Part,
    calls,
    control_plane,
    running,
    stream,
)
from tests.support.nats import NatsServer, nats_server

RUNNERS = 6
LASTING = [f"ses_last{number:06d}" for number in range(3)]
COMERS = 5
TROUBLES = 8
CLEAN = (UnavailableError, DeadlineExceededError, ExhaustedError, ConflictError, NotFoundError)

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:unclosed <StreamWriter:ResourceWarning"),
]


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def plane(nats: NatsServer, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with control_plane(nats.url, tmp_path, runners=RUNNERS) as found:
        yield found


async def store_of(plane: ControlPlane, stack: AsyncExitStack) -> Store:
    """The records as somebody sees them who looks on."""
    store = Store(await plane.bus.bucket(STREAMS, 1), await plane.bus.bucket(SESSIONS, 1))
    await stack.enter_async_context(background(follow=store.sessions.follow(store.sessions_view)))
    return store


@asynccontextmanager
async def named(plane: ControlPlane, name: str, port: int) -> AsyncIterator[Manager]:
    """A session-manager that comes back under the same name and address, as a pod of a StatefulSet."""
    async with plane.manager(name, listen=f"127.0.0.1:{port}") as manager:
        yield manager


async def come_and_go(
    plane: ControlPlane, calls_of: list[Calls], number: int, told: Counter[str], over: asyncio.Event
) -> None:
    """Start a session, let it run for a moment, stop it until that is known, until it is `over`."""
    random = Random(number)
    for turn in count():
        if over.is_set():
            return
        session = f"ses_{number:02d}{turn:08d}"
        plane.bridge.expect(session)
        try:
            await random.choice(calls_of).start(
                f"str_{number:010d}", session, plane.bridge.address, timeout_s=8
            )
            plane.bridge.sessions[session].see(frames_in=10, output_age_ms=0)
            told["started"] += 1
            await asyncio.sleep(random.uniform(0.1, 0.5))
        except CLEAN as error:
            told[error.reason] += 1
        await stop_surely(calls_of, session, random)


async def stop_surely(calls_of: list[Calls], session: str, random: Random) -> None:
    while True:
        try:
            return await random.choice(calls_of).stop(session)
        except NotFoundError:
            return None
        except SluiceError:
            await asyncio.sleep(0.1)


async def trouble(
    plane: ControlPlane, nats: NatsServer, managers: list[Part[Manager]], random: Random
) -> str:
    what = random.choice(["router", "billing", "session-manager", "nats killed", "nats frozen"])
    away_s = random.uniform(0.1, 1.5)
    if what == "nats killed":
        await nats.kill()
        await asyncio.sleep(away_s)
        await nats.start()
    elif what == "nats frozen":
        nats.freeze()
        await asyncio.sleep(away_s * 3)
        nats.thaw()
    else:
        part = {"router": plane.router, "billing": plane.billing}.get(what) or random.choice(managers)
        await part.kill()
        await asyncio.sleep(away_s)
        await part.start()
    return what


@pytest.mark.parametrize("seed", [1, 2])
async def test_restarts_in_any_order_cost_no_live_session_and_leave_nothing_behind(
    plane: ControlPlane, nats: NatsServer, seed: int
) -> None:
    random, told = Random(seed), Counter[str]()
    managers = [
        Part(partial(named, plane, f"manager-{number}"), lambda manager: manager.port) for number in range(2)
    ]
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(*managers))
        calls_of = [await stack.enter_async_context(calls(part.address)) for part in managers]
        one, two = calls_of
        streams = await store_of(plane, stack)
        for number in range(COMERS + len(LASTING)):
            await streams.create_stream(stream(number))
        for number, session in enumerate(LASTING, start=COMERS):
            plane.bridge.expect(session)
            await one.start(f"str_{number:010d}", session, plane.bridge.address)
            plane.bridge.sessions[session].see(frames_in=10, output_age_ms=0)
        places = {session: (await one.session(session)).runner for session in LASTING}
        over = asyncio.Event()
        async with asyncio.TaskGroup() as load:
            for number in range(COMERS):
                load.create_task(come_and_go(plane, calls_of, number, told, over))
            for _ in range(TROUBLES):
                told[await trouble(plane, nats, managers, random)] += 1
                await asyncio.sleep(random.uniform(0.2, 1.0))
            over.set()
        await settled(plane, streams)
        for session in LASTING:
            record = await two.session(session)
            assert Phase(record.phase) is Phase.LIVE, (told, record)
            assert (record.runner, list(record.moves)) == (places[session], [])
            runner = plane.runners[record.runner]
            assert runner.session == session
        assert told["started"] > COMERS, told
        balance = await plane.ledger.balance()
        assert balance.balance_micro == 10**12, "nothing was delivered, so nothing was paid"
        for session in LASTING:
            await two.stop(session)


async def settled(plane: ControlPlane, store: Store) -> None:
    """Wait until nobody but the lasting sessions holds anything."""
    async with asyncio.timeout(40):
        while True:
            with suppress(SluiceError):
                slots, busy = await plane.held(), plane.busy()
                unsettled = {one.id for one in store.list_sessions() if not one.settled}
                at_bridge = {*plane.bridge.sessions}
                known = {one.id for one in store.list_sessions()}
                at_bridge = {session for session in at_bridge if session in known}
                everyone = {*slots.values(), *busy.values()}
                if unsettled == everyone == at_bridge == {*LASTING}:
                    return
            await asyncio.sleep(0.2)
