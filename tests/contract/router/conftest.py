"""Two routers on a real NATS, with runners that beat ten times as often as real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from services.common.bus import Bus, connect
from services.router import fleet
from tests.support.nats import NatsServer, nats_server
from tests.support.router import RouterClient, router_client


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who hears them more often has listened for long enough sooner."""
    monkeypatch.setattr(fleet, "LISTEN_S", 0.3)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def bus(nats: NatsServer) -> AsyncIterator[Bus]:
    """The runners' connection."""
    async with connect(nats.url, "runners") as connection:
        yield connection


@pytest.fixture
async def one(nats: NatsServer) -> AsyncIterator[RouterClient]:
    async with router_client(nats.url, random=Random(1)) as client:
        yield client


@pytest.fixture
async def two(nats: NatsServer) -> AsyncIterator[RouterClient]:
    async with router_client(nats.url, random=Random(2)) as client:
        yield client
