"""A session-manager that waits for nothing long, on a real NATS, among neighbours that are played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protos.sessions.v1 import sessions_pb2 as pb
from services.session_manager import life, mover, ownership
from tests.support.moving import started
from tests.support.nats import NatsServer, nats_server
from tests.support.session_manager import Neighbourhood, Replica, neighbourhood


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", 0.05)
    monkeypatch.setattr(life, "FOREIGN_END_S", 0.3)
    monkeypatch.setattr(mover, "RETRY_S", 0.1)
    monkeypatch.setattr(ownership, "LINK_SETTLE_S", 0.5)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def around(nats: NatsServer) -> AsyncIterator[Neighbourhood]:
    async with neighbourhood(nats.url) as found:
        yield found


@pytest.fixture
async def one(around: Neighbourhood) -> AsyncIterator[Replica]:
    async with around.replica("one") as replica:
        yield replica


@pytest.fixture
async def live(around: Neighbourhood, one: Replica) -> pb.Session:
    return await started(around, one)
