from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from services.ingest.faces import ts as face
from services.ingest.transports.hls import packager
from tests.support.ingest import Ingest, ingesting
from tests.support.nats import nats_server


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Sockets are driven by the loop that services run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ingest]:
    """An edge whose patience is short."""
    monkeypatch.setattr(face, "DRAIN_S", 0.1)
    monkeypatch.setattr(packager, "QUIET_TARGETS", 1)
    async with (
        nats_server(tmp_path / "nats") as nats,
        ingesting(
            nats.url,
            tmp_path,
            first_picture_s=2,
            silent_after_s=0.5,
            publisher_grace_s=3,
            viewer_stall_s=1,
            viewer_wait_s=5,
            hls_target_s=1,
            rtmp_push_private=True,
            hls_idle_s=1,
        ) as found,
    ):
        yield found
