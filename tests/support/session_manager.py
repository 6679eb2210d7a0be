"""Session-managers in this process, on a real NATS, among neighbours that are played; and calls of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc.aio
from nats.aio.msg import Msg

from protos.billing.v1.billing_pb2_grpc import add_BillingServicer_to_server
from protos.events.v1 import events_pb2
from protos.inference.v1.runner_pb2_grpc import add_RunnerServicer_to_server
from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from protos.router.v1 import router_pb2
from protos.router.v1.router_pb2_grpc import add_RouterServicer_to_server
from protos.sessions.v1 import sessions_pb2 as pb
from protos.sessions.v1.sessions_pb2_grpc import SessionsStub, add_SessionsServicer_to_server
from services.common.bus import Bus, connect
from services.common.errors import NotFoundError, UnavailableError
from services.common.grpc_client import Channels, call, channel
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background
from services.common.topology import EVENTS, REPLICAS, SESSIONS, STREAMS
from services.session_manager.life import Lives
from services.session_manager.neighbours import Neighbours
from services.session_manager.ownership import Ownership
from services.session_manager.server import SessionsServicer
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from tests.support.fakes import FakeBilling, FakeBridge, FakeRouter, FakeRunner, OpenSession, serving
from tests.support.nats import cut_off

if TYPE_CHECKING:
    from protos.sessions.v1.sessions_pb2_grpc import SessionsAsyncStub

T = TypeVar("T")
STREAM: Final = "str_aaaaaaaaaa"
SESSION: Final = "ses_aaaaaaaaaa"
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "default": "neon"},
        "strength": {"type": "number", "default": 1.0, "maximum": 1},
        "seed": {"type": "integer"},
    },
    "additionalProperties": False,
}
OFFER: Final = router_pb2.PipelineCapacity(
    pipeline="effects", version="1.0", params_schema=json.dumps(SCHEMA), processes_audio=True
)
SHORT_TIMES: Final = {
    "slice_s": 2.0,
    "overdraft_s": 4.0,
    "grant_wait_s": 0.1,
    "call_timeout_s": 1.0,
    "attach_timeout_s": 0.5,
    "runner_lost_after_s": 0.4,
    "failover_within_s": 2.0,
    "bridge_lost_after_s": 0.8,
    "publisher_grace_s": 1.0,
    "replica_ttl_s": 2,
    "shutdown_grace_s": 0.05,
}


async def until(look: Callable[[], Awaitable[T | None]], within_s: float = 6.0) -> T:
    """Poll `look` until it returns something true."""
    async with asyncio.timeout(within_s):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.02)


class Wires(Channels):
    """Channels that can be cut: from then on nothing more goes out through them."""

    cut = False

    def to(self, address: str) -> grpc.aio.Channel:
        if self.cut:
            raise UnavailableError("the wire is cut", reason="CUT")
        return super().to(address)


class Replica:
    """One session-manager, and calls of it."""

    def __init__(
        self,
        stub: SessionsAsyncStub,
        store: Store,
        bus: Bus,
        wires: Wires,
        lives: Lives,
        stack: AsyncExitStack,
    ) -> None:
        self.stub = stub
        self.store = store
        self.bus = bus
        self.lives = lives
        self._wires = wires
        self._stack = stack

    async def kill(self) -> None:
        """End it as a power cut does: nothing more leaves it, and its liveness key lapses by itself."""
        self._wires.cut = True
        await cut_off(self.bus)
        await self._stack.aclose()

    async def create(self, **facts: Any) -> pb.Stream:
        wanted = {"id": STREAM, "tenant": "acme", "pipeline": "effects", **facts}
        request = pb.CreateStreamRequest(stream=pb.Stream(**wanted))
        return await call(self.stub.CreateStream, request, pb.Stream, timeout_s=5)

    async def start(self, bridge: str, session: str = SESSION, stream: str = STREAM) -> pb.Session:
        request = pb.StartSessionRequest(stream=stream, session=session, bridge=bridge)
        answer = await call(self.stub.StartSession, request, pb.StartSessionResponse, timeout_s=10)
        return answer.session

    async def update(self, patch: dict[str, object] | str, **facts: Any) -> pb.UpdateResponse:
        text = patch if isinstance(patch, str) else json.dumps(patch)
        request = pb.UpdateRequest(**{"stream": STREAM, "tenant": "acme", "patch": text, **facts})
        return await call(self.stub.Update, request, pb.UpdateResponse, timeout_s=5)

    async def stop(self, session: str = SESSION, **facts: Any) -> None:
        request = pb.StopRequest(session=session, **facts)
        await call(self.stub.Stop, request, pb.StopResponse, timeout_s=10)

    async def move(self, session: str = SESSION, **facts: Any) -> pb.Session:
        request = pb.MoveRequest(session=session, **facts)
        return await call(self.stub.Move, request, pb.Session, timeout_s=5)

    async def drain(self, runner: str, *, cancel: bool = False) -> int:
        """How many sessions are left there."""
        request = pb.DrainRunnerRequest(runner=runner, cancel=cancel)
        answer = await call(self.stub.DrainRunner, request, pb.DrainRunnerResponse, timeout_s=5)
        return answer.sessions

    async def rejoin(self, bridge: str, stream: str = STREAM) -> pb.RejoinResponse:
        request = pb.RejoinRequest(stream=stream, bridge=bridge)
        return await call(self.stub.Rejoin, request, pb.RejoinResponse, timeout_s=5)

    async def stream(self, stream: str = STREAM, tenant: str = "") -> pb.Stream:
        request = pb.GetStreamRequest(id=stream, tenant=tenant)
        return await call(self.stub.GetStream, request, pb.Stream, timeout_s=5)

    async def streams(self, tenant: str = "acme", limit: int = 0) -> list[pb.Stream]:
        request = pb.ListStreamsRequest(tenant=tenant, limit=limit)
        answer = await call(self.stub.ListStreams, request, pb.ListStreamsResponse, timeout_s=5)
        return list(answer.streams)

    async def session(self, session: str = SESSION, tenant: str = "") -> pb.Session:
        request = pb.GetRequest(session=session, tenant=tenant)
        return await call(self.stub.Get, request, pb.Session, timeout_s=5)

    async def delete(self, stream: str = STREAM) -> None:
        request = pb.DeleteStreamRequest(id=stream, tenant="acme")
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

    async def reaches(self, phase: pb.Phase.ValueType, session: str = SESSION) -> pb.Session:
        async def look() -> pb.Session | None:
            try:
                record = await self.session(session)
            except UnavailableError:
                return None
            return record if record.phase == phase else None

        return await until(look)


async def collected(replica: Replica, count: int) -> list[events_pb2.SessionEvent]:
    """The first `count` session events."""
    found: list[events_pb2.SessionEvent] = []

    async def take(messages: Sequence[Msg]) -> None:
        found.extend(events_pb2.SessionEvent.FromString(message.data) for message in messages)

    async def enough() -> bool:
        return len(found) >= count

    async with background(events=replica.bus.consume(EVENTS, "test", take, batch=100)):
        await until(enough)
    return found


class Neighbourhood:
    """The services around the session-managers, with nothing in them but what a test puts there."""

    def __init__(self, nats_url: str) -> None:
        self.nats_url = nats_url
        self.router = FakeRouter([OFFER])  # type: ignore[abstract]
        self.billing = FakeBilling()  # type: ignore[abstract]
        self.bridge = FakeBridge()
        self.runners = [FakeRunner(f"r{number}") for number in range(4)]  # type: ignore[abstract]

    @property
    def runner(self) -> FakeRunner:
        """The one that is granted first."""
        return self.runners[0]

    def publish(self, session: str = SESSION) -> OpenSession:
        """A publisher comes: the bridge has its session half open."""
        return self.bridge.expect(session)

    def held(self) -> list[object]:
        """Whatever a session still holds anywhere."""
        return [
            *self.router.held.items(),
            *self.billing.holding,
            *self.bridge.sessions,
            *(runner.session for runner in self.runners if runner.session),
        ]

    @asynccontextmanager
    async def replica(self, name: str, **settings: Any) -> AsyncIterator[Replica]:
        """A session-manager until the block ends, or until it is killed."""
        times = SessionManagerSettings(
            **{
                **SHORT_TIMES,
                "listen": "127.0.0.1:0",
                "router_address": self.router.address,
                "billing_address": self.billing.address,
                **settings,
            }
        )
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(self.nats_url, name))
            wires = Wires()
            channels = await stack.enter_async_context(wires)
            await bus.ensure_stream(EVENTS, 1)
            store = Store(await bus.bucket(STREAMS, 1), await bus.bucket(SESSIONS, 1))
            replicas = await bus.bucket(REPLICAS, 1)
            neighbours = Neighbours(channels, times)
            lives = Lives(replica=name, store=store, neighbours=neighbours, bus=bus, settings=times)
            await stack.enter_async_context(lives)
            ownership = Ownership(
                replica=name, replicas=replicas, store=store, lives=lives, bus=bus, settings=times
            )
            servicer = SessionsServicer(store=store, lives=lives, neighbours=neighbours, settings=times)
            loops = background(
                streams=store.streams.follow(store.streams_view),
                sessions=store.sessions.follow(store.sessions_view),
                replicas=replicas.follow(ownership.view),
                liveness=ownership.live(),
                adoption=ownership.adopt_orphans(),
                events=lives.telling.publish(),
            )
            await stack.enter_async_context(loops)
            server = serve_grpc(partial(add_SessionsServicer_to_server, servicer), times.listen, 0.05)
            port = await stack.enter_async_context(server)
            open_channel = await stack.enter_async_context(channel(f"127.0.0.1:{port}"))
            await store.sessions_view.ready.wait()
            yield Replica(SessionsStub(open_channel), store, bus, wires, lives, stack)


@asynccontextmanager
async def neighbourhood(nats_url: str) -> AsyncIterator[Neighbourhood]:
    around = Neighbourhood(nats_url)
    async with AsyncExitStack() as stack:
        for served in (
            serving(around.router, partial(add_RouterServicer_to_server, around.router)),
            serving(around.billing, partial(add_BillingServicer_to_server, around.billing)),
            serving(around.bridge, partial(add_BridgeServicer_to_server, around.bridge)),
            *(serving(one, partial(add_RunnerServicer_to_server, one)) for one in around.runners),
        ):
            await stack.enter_async_context(served)
        around.router.runners = {runner.name: runner.address for runner in around.runners}
        yield around
