"""One ingest process's parts in this process, on real HTTP, trickle, gRPC and NATS.

The session-manager and the runner are played, and the runner returns every picture as it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import aiohttp
import httpx

from protos.ingest.v1 import bridge_pb2
from protos.ingest.v1.bridge_pb2_grpc import BridgeStub, add_BridgeServicer_to_server
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from protos.sessions.v1.sessions_pb2_grpc import add_SessionsServicer_to_server
from services.common.bus import Bus, connect
from services.common.errors import (
    NotFoundError,
    SluiceError,
)
from services.common.grpc_client import Channels, call, channel, stream
from services.common.grpc_server import serve_grpc
from services.common.http_server import serve_http
from services.common.lifecycle import Bulkhead, background
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, Muxer
from services.common.topology import USAGE
from services.common.trickle.protocol import NEXT
from services.common.trickle.publisher import Publisher
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.common.trickle.subscriber import Subscriber
from services.ingest.app import public_app
from services.ingest.auth import Authenticator
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.outbox import Outbox, outbox
from services.ingest.bridge.server import BridgeServicer
from services.ingest.control_plane import ControlPlane
from services.ingest.faces.context import Core, assemble
from services.ingest.publishing import Publishing
from services.ingest.settings import IngestSettings
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes
from services.ingest.transports.rtmp.server import serve_rtmp
from services.ingest.transports.trickle import BASE_PATH, PublicChannels
from tests.support.fakes import Fake, serving
from tests.support.media import pictures, ts

if TYPE_CHECKING:
    from protos.ingest.v1.bridge_pb2_grpc import BridgeAsyncStub

T = TypeVar("T")
STREAM = "str_aaaaaaaa"
SECRET = "a secret of this installation"
KEYS = StreamKeys(SECRET.encode())


async def until(look: Callable[[], T | None], within_s: float = 6.0) -> T:
    async with asyncio.timeout(within_s):
        while True:
            found = look()
            if found:
                return found
            await asyncio.sleep(0.02)


class EchoRunner:
    """Returns every picture as it came, over HTTP, after `takes_s` each; says on `events` what it applied."""

    def __init__(self, channels: bridge_pb2.Channels, takes_s: float) -> None:
        self._channels = channels
        self._takes_s = takes_s
        self.seen = 0

    async def run(self) -> None:
        async with aiohttp.ClientSession() as http:
            reader = Subscriber(http, getattr(self._channels, "in"), start=0)
            async with reader, Publisher(http, self._channels.out) as writer:
                await self._say(http, b'{"type": "applied", "revision": 3, "pts": 90000}\n')
                demuxer, muxer = Demuxer(), Muxer()
                async for segment in reader:
                    async with writer.segment() as out:
                        await out.write(muxer.begin_segment())
                        async for data in segment:
                            await self._answer(demuxer.feed(data), muxer, out)
                        await self._answer(demuxer.end_segment(), muxer, out)
                await writer.close()

    async def _answer(self, units: Sequence[AccessUnit], muxer: Muxer, out: Any) -> None:
        for unit in units:
            if unit.codec is Codec.H264:
                self.seen += 1
                await asyncio.sleep(self._takes_s)
                await out.write(muxer.write(unit))

    async def _say(self, http: aiohttp.ClientSession, line: bytes) -> None:
        async with Publisher(http, self._channels.events, start=NEXT) as events:
            async with events.segment() as segment:
                await segment.write(line)
            await events.flush()


class PlayedSessions(Fake, sessions_pb2_grpc.SessionsServicer):
    """The session-manager: opens the bridge, attaches a runner, ends the session when it is drained."""

    def __init__(self, tasks: Bulkhead) -> None:
        super().__init__()
        self.record = sessions_pb2.Stream(id=STREAM, tenant="acme", pipeline="effects", params="{}")
        self.others: set[str] = set()  # streams that are like the record
        self.takes_s = 0.0
        self.resume: bridge_pb2.Position | None = None  # how far the session that is elsewhere has come
        self.room: asyncio.Event | None = None  # starts wait in the line until there is
        self.left_line = 0  # starts whose caller went away before there was a runner
        self.runner: EchoRunner | None = None
        self.reports: list[bridge_pb2.BridgeReport] = []
        self._tasks = tasks

    async def GetStream(self, request: sessions_pb2.GetStreamRequest, context: Any) -> sessions_pb2.Stream:
        await self._enter("GetStream", request)
        if request.id in self.others:
            other = sessions_pb2.Stream()
            other.CopyFrom(self.record)
            other.id = request.id
            return other
        if request.id != self.record.id:
            raise NotFoundError("there is no such stream", reason="STREAM_NOT_FOUND")
        return self.record

    async def Get(self, request: sessions_pb2.GetRequest, context: Any) -> sessions_pb2.Session:
        await self._enter("Get", request)
        return sessions_pb2.Session(
            id=request.session,
            stream=STREAM,
            tenant="acme",
            pipeline="effects",
            phase=sessions_pb2.PHASE_LIVE,
            micro_per_second=1000,
        )

    async def StartSession(
        self, request: sessions_pb2.StartSessionRequest, context: Any
    ) -> sessions_pb2.StartSessionResponse:
        await self._enter("StartSession", request)
        if self.room is not None:
            try:
                await self.room.wait()
            except asyncio.CancelledError:
                self.left_line += 1
                raise
        await self._open(request.session, request.bridge, epoch=1)
        session = sessions_pb2.Session(id=request.session)
        return sessions_pb2.StartSessionResponse(session=session)

    async def Rejoin(self, request: sessions_pb2.RejoinRequest, context: Any) -> sessions_pb2.RejoinResponse:
        await self._enter("Rejoin", request)
        assert self.resume is not None
        await self._open(self.record.session, request.bridge, epoch=2, resume=self.resume)
        session = sessions_pb2.Session(id=self.record.session)
        return sessions_pb2.RejoinResponse(session=session, resume=self.resume)

    async def _open(self, session: str, address: str, **facts: Any) -> None:
        async with channel(address) as bridge:
            opening = bridge_pb2.OpenRequest(session=session, paid_until_ms=60_000, runner="r0", **facts)
            opened = await call(BridgeStub(bridge).Open, opening, bridge_pb2.OpenResponse, timeout_s=5)
        self.runner = EchoRunner(opened.channels, self.takes_s)
        self._tasks.start(f"runner/{session}", self.runner.run())
        self._tasks.start(f"care/{session}", self._care(session, address))

    async def _care(self, session: str, address: str) -> None:
        async with channel(address) as bridge:
            stub = BridgeStub(bridge)
            request = bridge_pb2.ReportRequest(session=session)
            async for report in stream(stub.Report, request, bridge_pb2.BridgeReport):
                self.reports.append(report)
                if report.drained or report.publisher == bridge_pb2.PUBLISHER_GONE:
                    reason = "input_ended" if report.drained else "publisher_gone"
                    close = bridge_pb2.CloseRequest(session=session, reason=reason)
                    await call(stub.Close, close, bridge_pb2.CloseResponse, timeout_s=5)


class Ingest:
    """One ingest process's parts, in this process."""

    def __init__(
        self,
        hub: Hub,
        box: Outbox,
        bus: Bus,
        sessions: PlayedSessions,
        bridge: BridgeAsyncStub,
        url: str,
        trickle_url: str,
        rtmp_url: str,
        core: Core,
    ) -> None:
        self.core = core
        self.hub = hub
        self.box = box
        self.bus = bus
        self.sessions = sessions
        self.bridge = bridge
        self.trickle_url = trickle_url
        self.rtmp_url = rtmp_url
        self.http = httpx.AsyncClient(base_url=url, timeout=20)
        self.background = Bulkhead(broke)

    async def publish(self, body: AsyncIterator[bytes]) -> httpx.Response:
        return await self.http.post(f"/ts/{KEYS.publish(STREAM)}", content=body)

    async def watch(self) -> bytes:
        """Everything that a viewer gets, from before the first picture to the end."""
        answer = await self.http.get(f"/ts/{KEYS.playback(STREAM)}")
        assert answer.status_code == 200, answer.text
        return answer.content

    async def open(self, session: str, epoch: int = 1, **facts: Any) -> bridge_pb2.OpenResponse:
        request = bridge_pb2.OpenRequest(session=session, epoch=epoch, paid_until_ms=60_000, **facts)
        return await call(self.bridge.Open, request, bridge_pb2.OpenResponse, timeout_s=5)

    async def close(self, session: str, reason: str = "", epoch: int = 0) -> None:
        request = bridge_pb2.CloseRequest(session=session, reason=reason, epoch=epoch)
        await call(self.bridge.Close, request, bridge_pb2.CloseResponse, timeout_s=5)

    async def session(self) -> str:
        """The stream's session here, as soon as there is one."""
        found = await until(lambda: self.hub.of_stream(STREAM))
        return found.identity.session


def broke(key: str, error: Exception) -> None:
    if not isinstance(error, SluiceError):
        raise AssertionError(f"{key} broke") from error


@asynccontextmanager
async def ingesting(nats_url: str, directory: Path, **facts: Any) -> AsyncIterator[Ingest]:
    """`facts` are settings of ingest."""
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(Bulkhead(broke))
        sessions = PlayedSessions(tasks)  # type: ignore[abstract]  # only what is called
        add = partial(add_SessionsServicer_to_server, sessions)
        await stack.enter_async_context(serving(sessions, add))
        settings = IngestSettings(
            stream_secret=SECRET,
            session_manager_address=sessions.address,
            **{
                "window_s": 0.5,
                "viewer_wait_s": 5,
                "rtmp_listen": "127.0.0.1:0",
                "webrtc_listen": "127.0.0.1:0",
                **facts,
            },
        )
        bus = await stack.enter_async_context(connect(nats_url, "ingest"))
        channels = await stack.enter_async_context(Channels())
        box = await stack.enter_async_context(outbox(str(directory / "outbox.sqlite3"), bus))
        await bus.ensure_stream(USAGE, 1)
        registry = Registry()
        await stack.enter_async_context(background(deliver=box.deliver(), confirm=box.confirm()))
        trickle = await stack.enter_async_context(serve_trickle(trickle_app(registry), "127.0.0.1:0", 0.1))
        pushes = await stack.enter_async_context(Pushes(settings))
        hub = await stack.enter_async_context(Hub(registry, box, settings))
        servicer = BridgeServicer(hub, f"http://127.0.0.1:{trickle}/")
        server = serve_grpc(partial(add_BridgeServicer_to_server, servicer), "127.0.0.1:0", 0.1)
        port = await stack.enter_async_context(server)
        plane = ControlPlane(channels, settings)
        authenticator = Authenticator(channels, bus, settings)
        publishing = Publishing(
            hub=hub,
            plane=plane,
            keys=KEYS,
            bridge_address=f"127.0.0.1:{port}",
            pushes=pushes,
            settings=settings,
        )
        public_registry = Registry(changefeed=True)
        public_channels = PublicChannels(
            registry=public_registry,
            hub=hub,
            plane=plane,
            keys=KEYS,
            publishing=publishing,
            authenticator=authenticator,
            settings=settings,
        )
        core = assemble(
            settings=settings,
            authenticator=authenticator,
            plane=plane,
            hub=hub,
            keys=KEYS,
            publishing=publishing,
            pushes=pushes,
            channels=public_channels,
        )
        app = trickle_app(public_registry, base_path=BASE_PATH, resolve=public_channels.resolve)
        for part in (core.hls, core.conversations, core.recordings, core.peers, core.offers):
            await stack.enter_async_context(part)
        await stack.enter_async_context(public_channels)
        public_trickle = await stack.enter_async_context(serve_trickle(app, "127.0.0.1:0", 0.1))
        public = await stack.enter_async_context(serve_http(public_app(core), "127.0.0.1:0", 0.1))
        rtmp = await stack.enter_async_context(serve_rtmp(publishing, settings))
        bridge = await stack.enter_async_context(channel(f"127.0.0.1:{port}"))
        ingest = Ingest(
            hub,
            box,
            bus,
            sessions,
            BridgeStub(bridge),
            f"http://127.0.0.1:{public}",
            f"http://127.0.0.1:{public_trickle}{BASE_PATH}",
            f"rtmp://127.0.0.1:{rtmp}/live",
            core,
        )
        await stack.enter_async_context(ingest.http)
        await stack.enter_async_context(ingest.background)
        try:
            yield ingest
        finally:
            hub.close_all("the test is over")


async def paced(units: Sequence[AccessUnit], *, times_faster: float = 5.0) -> AsyncIterator[bytes]:
    """A transport stream of `units`, with its sound, as fast as asked."""
    data = ts(units, audio=Codec.AAC if any(unit.codec is Codec.AAC for unit in units) else None)
    size = 188 * 7
    duration_s = len([unit for unit in units if unit.codec is Codec.H264]) / 25 / times_faster
    for place in range(0, len(data), size):
        yield data[place : place + size]
        await asyncio.sleep(duration_s * size / len(data))


async def endless() -> AsyncIterator[bytes]:
    """A publisher that stays."""
    yield ts(pictures(25))
    await asyncio.Event().wait()
