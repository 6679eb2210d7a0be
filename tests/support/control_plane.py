"""Router, billing and session-managers as they are, on a real NATS, in this process; the rest is played.

A played runner is heard on NATS and answers calls, and each can be told to lie.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from protos.events.v1.events_pb2 import PipelineOffer, Slot
from protos.inference.v1 import runner_pb2
from protos.inference.v1.runner_pb2_grpc import add_RunnerServicer_to_server
from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from protos.sessions.v1 import sessions_pb2 as pb
from protos.sessions.v1.sessions_pb2_grpc import SessionsStub, add_SessionsServicer_to_server
from services.billing.__main__ import serve as serve_billing
from services.billing.settings import BillingSettings
from services.billing.store import open_store
from services.common.bus import Bucket, Bus, connect
from services.common.grpc_client import Channels, call, channel
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background
from services.common.topology import EVENTS, REPLICAS, SESSIONS, SLOTS, STREAMS
from services.router.__main__ import serve as serve_router
from services.router.settings import RouterSettings
from services.session_manager.life import Lives
from services.session_manager.machine import Stream, StreamId, Wishes
from services.session_manager.neighbours import Neighbours
from services.session_manager.ownership import Ownership
from services.session_manager.reconcile import Reconciler
from services.session_manager.server import SessionsServicer
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from tests.support.billing import BillingClient, billing_client
from tests.support.fakes import FakeBridge, FakeRunner, serving
from tests.support.runner import FakeRunner as Presence
from tests.support.runner import fake_runner

if TYPE_CHECKING:
    from protos.sessions.v1.sessions_pb2_grpc import SessionsAsyncStub

T = TypeVar("T")
PIPELINE: Final = "effects"
SCHEMA: Final = json.dumps({"type": "object", "properties": {}})


class PlayedRunner(FakeRunner):
    """A runner with one slot that says on NATS what it has."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.presence: Presence | None = None

    async def Attach(self, request: runner_pb2.AttachRequest, context: Any) -> runner_pb2.AttachResponse:
        answer = await super().Attach(request, context)
        assert self.presence is not None
        await self.presence.claim(0, request.session, request.slot_epoch)
        return answer

    async def Detach(self, request: runner_pb2.DetachRequest, context: Any) -> runner_pb2.DetachResponse:
        answer = await super().Detach(request, context)
        assert self.presence is not None
        if 0 in self.presence.claims and not self.session:
            await self.presence.free(0)
        return answer


class Part(Generic[T]):
    """A service in a task of its own, on a port that it keeps, which a test may kill and start again."""

    def __init__(
        self, make: Callable[[int], AbstractAsyncContextManager[T]], port_of: Callable[[T], int]
    ) -> None:
        self._make = make
        self._port_of = port_of
        self._port = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> T:
        assert self._task is None, "it runs"
        up: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(up))
        service = await up
        self._port = self._port_of(service)
        return service

    async def _run(self, up: asyncio.Future[T]) -> None:
        try:
            async with self._make(self._port) as service:
                up.set_result(service)
                await asyncio.Event().wait()
        except Exception as error:
            if up.done():
                raise
            up.set_exception(error)

    async def kill(self) -> None:
        assert self._task is not None, "it does not run"
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=2.0)
        self._task = None


@asynccontextmanager
async def running(*parts: Part[Any]) -> AsyncIterator[None]:
    """Start them, and end whatever of them runs when the block ends."""
    try:
        for part in parts:
            await part.start()
        yield
    finally:
        for part in reversed(parts):
            if part._task is not None:
                await part.kill()


class Calls:
    """Calls of one session-manager."""

    def __init__(self, stub: SessionsAsyncStub) -> None:
        self.stub = stub

    async def start(self, stream: str, session: str, bridge: str, timeout_s: float = 20) -> pb.Session:
        request = pb.StartSessionRequest(stream=stream, session=session, bridge=bridge)
        answer = await call(self.stub.StartSession, request, pb.StartSessionResponse, timeout_s=timeout_s)
        return answer.session

    async def stop(self, session: str) -> None:
        await call(self.stub.Stop, pb.StopRequest(session=session), pb.StopResponse, timeout_s=10)

    async def session(self, session: str) -> pb.Session:
        return await call(self.stub.Get, pb.GetRequest(session=session), pb.Session, timeout_s=5)


@asynccontextmanager
async def calls(address: str) -> AsyncIterator[Calls]:
    async with channel(address) as open_channel:
        yield Calls(SessionsStub(open_channel))


class Manager(Calls):
    """One session-manager, with what is in it."""

    def __init__(
        self,
        stub: SessionsAsyncStub,
        bus: Bus,
        store: Store,
        lives: Lives,
        ownership: Ownership,
        stack: AsyncExitStack,
        port: int,
    ) -> None:
        super().__init__(stub)
        self.port = port
        self.bus = bus
        self.store = store
        self.lives = lives
        self.ownership = ownership
        self._stack = stack

    async def kill(self) -> None:
        await self._stack.aclose()


class ControlPlane:
    """What `control_plane` yields."""

    def __init__(
        self,
        nats_url: str,
        bus: Bus,
        slots: Bucket,
        ledger: BillingClient,
        bridge: FakeBridge,
        runners: Mapping[str, PlayedRunner],
        router: Part[int],
        billing: Part[int],
    ) -> None:
        self.nats_url = nats_url
        self.bus = bus
        self.slots = slots
        self.ledger = ledger
        self.bridge = bridge
        self.runners = runners
        self.router = router
        self.billing = billing

    @asynccontextmanager
    async def manager(self, name: str, **settings: Any) -> AsyncIterator[Manager]:
        """A session-manager until the block ends, or until it is killed."""
        common = {
            "listen": "127.0.0.1:0",
            "shutdown_grace_s": 0.05,
            "router_address": self.router.address,
            "billing_address": self.billing.address,
        }
        times = SessionManagerSettings(**{**common, **settings})
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(self.nats_url, name))
            channels = await stack.enter_async_context(Channels())
            await bus.ensure_stream(EVENTS, 1)
            store = Store(await bus.bucket(STREAMS, 1), await bus.bucket(SESSIONS, 1))
            replicas, slots = await bus.bucket(REPLICAS, 1), await bus.bucket(SLOTS, 1)
            neighbours = Neighbours(channels, times)
            lives = Lives(replica=name, store=store, neighbours=neighbours, bus=bus, settings=times)
            await stack.enter_async_context(lives)
            ownership = Ownership(
                replica=name, replicas=replicas, store=store, lives=lives, bus=bus, settings=times
            )
            reconciler = Reconciler(
                replica=name,
                store=store,
                slots=slots,
                replicas=ownership.view,
                neighbours=neighbours,
                bus=bus,
                settings=times,
            )
            servicer = SessionsServicer(store=store, lives=lives, neighbours=neighbours, settings=times)
            await stack.enter_async_context(
                background(
                    streams=store.streams.follow(store.streams_view),
                    sessions=store.sessions.follow(store.sessions_view),
                    replicas=replicas.follow(ownership.view),
                    slots=slots.follow(reconciler.slots_view),
                    liveness=ownership.live(),
                    adoption=ownership.adopt_orphans(),
                    reconciliation=reconciler.run(),
                    events=lives.telling.publish(),
                )
            )
            server = serve_grpc(partial(add_SessionsServicer_to_server, servicer), times.listen, 0.05)
            port = await stack.enter_async_context(server)
            open_channel = await stack.enter_async_context(channel(f"127.0.0.1:{port}"))
            await store.sessions_view.ready.wait()
            yield Manager(SessionsStub(open_channel), bus, store, lives, ownership, stack, port)

    async def held(self) -> dict[str, str]:
        """Which slots are held for whom, as the bucket has it."""
        found: dict[str, str] = {}
        for name in self.runners:
            entry = await self.slots.get(f"{name}.0")
            session = Slot.FromString(entry.value).session if entry else ""
            if session:
                found[name] = session
        return found

    def busy(self) -> dict[str, str]:
        """Which runners work for whom, as they know it themselves."""
        return {name: runner.session for name, runner in self.runners.items() if runner.session}


def stream(number: int, tenant: str = "acme", **wishes: Any) -> Stream:
    return Stream(
        id=StreamId(f"str_{number:010d}"),
        tenant=tenant,
        name="",
        pipeline=PIPELINE,
        params={},
        params_schema=json.loads(SCHEMA),
        created_unix_ms=1,
        wishes=Wishes(**wishes),
    )


@asynccontextmanager
async def control_plane(nats_url: str, directory: Path, *, runners: int) -> AsyncIterator[ControlPlane]:
    """A router, a ledger with a tenant `acme` that has credit, a bridge and `runners` runners of one slot."""
    offer = PipelineOffer(name=PIPELINE, version="1.0", warm=True, params_schema=SCHEMA)
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(nats_url, "played"))
        names = [f"r{number}" for number in range(runners)]
        played = {name: PlayedRunner(name) for name in names}  # type: ignore[abstract]
        for name, runner in played.items():
            await stack.enter_async_context(serving(runner, partial(add_RunnerServicer_to_server, runner)))
            presence = await stack.enter_async_context(fake_runner(bus, name, pipelines=[offer]))
            presence.advert.address = runner.address
            await presence.announce()
            runner.presence = presence
        bridge = FakeBridge()
        await stack.enter_async_context(serving(bridge, partial(add_BridgeServicer_to_server, bridge)))
        router = Part(partial(_router, nats_url), int)
        ledger = Part(partial(_billing, nats_url, f"sqlite:///{directory}/billing.sqlite3"), int)
        await stack.enter_async_context(running(router, ledger))
        client = await stack.enter_async_context(billing_client(ledger.address))
        await client.create_tenant("acme", 10**12)
        slots = await bus.bucket(SLOTS, 1)
        yield ControlPlane(nats_url, bus, slots, client, bridge, played, router, ledger)


@asynccontextmanager
async def _router(nats_url: str, port: int) -> AsyncIterator[int]:
    settings = RouterSettings(listen=f"127.0.0.1:{port}", shutdown_grace_s=0.05)
    async with (
        connect(nats_url, "router") as bus,
        serve_router(bus, settings, SystemRandom()) as bound,
    ):
        yield bound


@asynccontextmanager
async def _billing(nats_url: str, database_url: str, port: int) -> AsyncIterator[int]:
    settings = BillingSettings(listen=f"127.0.0.1:{port}", shutdown_grace_s=0.05, database_url=database_url)
    async with (
        open_store(settings.database_url, settings.price_list, settings.lapse_margin_ms) as store,
        connect(nats_url, "billing") as bus,
        serve_billing(store, bus, settings) as bound,
    ):
        yield bound
