"""Streams and sessions against a real NATS: a session is started whole or not at all, and ends once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import REGISTRY

from protos.billing.v1 import billing_pb2
from protos.billing.v1.billing_pb2_grpc import add_BillingServicer_to_server
from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from protos.inference.v1.runner_pb2_grpc import add_RunnerServicer_to_server
from protos.ingest.v1 import bridge_pb2
from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from protos.router.v1 import router_pb2
from protos.router.v1.router_pb2_grpc import add_RouterServicer_to_server
from protos.sessions.v1 import sessions_pb2 as pb
from protos.sessions.v1.sessions_pb2_grpc import SessionsStub, add_SessionsServicer_to_server
from services.common.bus import Bus, connect
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    RateLimitedError,
    SluiceError,
    UnavailableError,
)
from services.common.grpc_client import Channels, call, channel, stream
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background
from services.common.topology import EVENTS, REPLICAS, SESSIONS, STREAMS
from services.session_manager import life, ownership
from services.session_manager.life import Lives
from services.session_manager.machine import Phase, Session, SessionId, StreamId
from services.session_manager.neighbours import Neighbours
from services.session_manager.ownership import Ownership
from services.session_manager.server import SessionsServicer
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from tests.support.fakes import FakeBilling, FakeBridge, FakeRouter, FakeRunner, OpenSession, serving
from tests.support.nats import NatsServer, nats_server

if TYPE_CHECKING:
    from protos.sessions.v1.sessions_pb2_grpc import SessionsAsyncStub

SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "default": "neon"},
        "strength": {"type": "number", "default": 1.0, "maximum": 1},
        "seed": {"type": "integer"},
    },
    "additionalProperties": False,
}
OFFER = router_pb2.PipelineCapacity(
    pipeline="effects", version="1.0", params_schema=json.dumps(SCHEMA), processes_audio=True
)
STREAM = "str_aaaaaaaaaa"
SESSION, OTHER = "ses_aaaaaaaaaa", "ses_bbbbbbbbbb"
FAILED = runner_pb2.SlotReport.STATE_FAILED
TIMES = {
    "slice_s": 2.0,
    "overdraft_s": 4.0,
    "grant_wait_s": 0.1,
    "call_timeout_s": 1.0,
    "attach_timeout_s": 0.5,
    "runner_lost_after_s": 0.4,
    "bridge_lost_after_s": 0.8,
    "first_output_within_s": 5.0,
    "replica_ttl_s": 2,
    "shutdown_grace_s": 0.05,
}


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life, "RETRY_S", 0.05)
    monkeypatch.setattr(life, "FOREIGN_END_S", 0.3)
    monkeypatch.setattr(ownership, "LINK_SETTLE_S", 0.5)


class Replica:
    """One session-manager, and calls of it. `kill` ends it as a power cut does."""

    def __init__(self, stub: SessionsAsyncStub, store: Store, lives: Lives, stack: AsyncExitStack) -> None:
        self.stub = stub
        self.store = store
        self.lives = lives
        self.kill = stack.aclose

    async def create(self, **facts: Any) -> pb.Stream:
        wanted = {"id": STREAM, "tenant": "acme", "pipeline": "effects", **facts}
        request = pb.CreateStreamRequest(stream=pb.Stream(**wanted))
        return await call(self.stub.CreateStream, request, pb.Stream, timeout_s=5)

    async def start(self, session: str, bridge: str, of: str = STREAM) -> pb.Session:
        request = pb.StartSessionRequest(stream=of, session=session, bridge=bridge)
        answer = await call(self.stub.StartSession, request, pb.StartSessionResponse, timeout_s=10)
        return answer.session

    async def update(self, patch: dict[str, object] | str, **facts: Any) -> pb.UpdateResponse:
        text = patch if isinstance(patch, str) else json.dumps(patch)
        request = pb.UpdateRequest(**{"stream": STREAM, "tenant": "acme", "patch": text, **facts})
        return await call(self.stub.Update, request, pb.UpdateResponse, timeout_s=5)

    async def stop(self, session: str = SESSION, **facts: Any) -> None:
        request = pb.StopRequest(session=session, **facts)
        await call(self.stub.Stop, request, pb.StopResponse, timeout_s=10)

    async def stream(self, of: str = STREAM, tenant: str = "") -> pb.Stream:
        request = pb.GetStreamRequest(id=of, tenant=tenant)
        return await call(self.stub.GetStream, request, pb.Stream, timeout_s=5)

    async def session(self, session: str = SESSION, tenant: str = "") -> pb.Session:
        request = pb.GetRequest(session=session, tenant=tenant)
        return await call(self.stub.Get, request, pb.Session, timeout_s=5)

    async def delete(self, of: str = STREAM) -> None:
        request = pb.DeleteStreamRequest(id=of, tenant="acme")
        await call(self.stub.DeleteStream, request, pb.DeleteStreamResponse, timeout_s=5)

    async def ended(self, session: str = SESSION, within_s: float = 6.0) -> pb.Session:
        """The record, as soon as it has ended and holds nothing."""

        async def look() -> pb.Session | None:
            try:
                record = await self.session(session)
            except (NotFoundError, UnavailableError):
                return None
            return record if record.settled else None

        return await until(look, within_s)

    async def phase(self, phase: pb.Phase.ValueType, session: str = SESSION) -> None:
        async def look() -> bool:
            return (await self.session(session)).phase == phase

        await until(look)


async def until[T](look: Callable[[], Awaitable[T | None]], within_s: float = 6.0) -> T:
    async with asyncio.timeout(within_s):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.02)
