"""One ingest process's public HTTP, without sockets; the control plane is kept in dictionaries."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx

from protos.billing.v1 import billing_pb2
from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError, UnauthenticatedError
from services.common.trickle.registry import Registry
from services.ingest.app import public_app
from services.ingest.auth import Authenticator, Caller
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.faces.context import Core, assemble
from services.ingest.publishing import Publishing
from services.ingest.settings import IngestSettings
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes
from services.ingest.transports.trickle import PublicChannels

SEVEN = {"success", "error", "code", "status", "details", "requestId", "traceId"}
STREAM_KEYS = (
    "id stream_key output_stream_url created_at output_playback_id name author from_playground "
    "gateway_host is_smoke_test whip_url pipeline params"
)
KEYS = StreamKeys(b"a secret of this installation")


class Plane:
    """The control plane, kept in dictionaries; `error` is raised by the next call."""

    def __init__(self) -> None:
        self.created: list[sessions_pb2.Stream] = []
        self.updates: list[sessions_pb2.UpdateRequest] = []
        self.known: dict[str, sessions_pb2.Stream] = {}
        self.records: dict[str, sessions_pb2.Session] = {}
        self.stopped: list[tuple[str, str]] = []
        self.moved: list[tuple[str, str]] = []
        self.drained: list[tuple[str, bool]] = []
        self.line: dict[str, router_pb2.QueuePlace] = {}
        self.elsewhere: dict[str, bridge_pb2.BridgeReport] = {}
        self.error: Exception | None = None
        self.applies = "live"

    def _call(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    async def create_stream(self, stream: sessions_pb2.Stream) -> sessions_pb2.Stream:
        self._call()
        self.created.append(stream)
        made = sessions_pb2.Stream()
        made.CopyFrom(stream)
        made.revision, made.created_unix_ms = 1, 1_700_000_000_123
        self.known[made.id] = made
        return made

    async def stream(self, stream: str, tenant: str = "") -> sessions_pb2.Stream:
        self._call()
        found = self.known.get(stream)
        if found is None or (tenant and found.tenant != tenant):
            raise NotFoundError(f"there is no stream {stream}", reason="STREAM_NOT_FOUND")
        return found

    async def streams(self, tenant: str, limit: int) -> list[sessions_pb2.Stream]:
        self._call()
        return [stream for stream in self.known.values() if stream.tenant == tenant][:limit]

    async def update(self, request: sessions_pb2.UpdateRequest) -> sessions_pb2.UpdateResponse:
        self._call()
        self.updates.append(request)
        stream = await self.stream(request.stream, request.tenant)
        stream.params = json.dumps({**json.loads(stream.params), **json.loads(request.patch)})
        stream.revision += 1
        return sessions_pb2.UpdateResponse(stream=stream, revision=stream.revision, applies=self.applies)

    async def delete_stream(self, stream: str, tenant: str) -> None:
        self._call()
        del self.known[stream]

    async def session(self, session: str, tenant: str = "") -> sessions_pb2.Session:
        self._call()
        found = self.records.get(session)
        if found is None or (tenant and found.tenant != tenant):
            raise NotFoundError(f"there is no session {session}", reason="SESSION_NOT_FOUND")
        return found

    async def sessions(self, tenant: str, limit: int, *, ended: bool) -> list[sessions_pb2.Session]:
        return [
            record
            for record in self.records.values()
            if tenant in {"", record.tenant} and (ended or record.phase != sessions_pb2.PHASE_ENDED)
        ][:limit]

    async def stop_session(self, session: str, tenant: str) -> None:
        await self.session(session, tenant)
        self.stopped.append((session, tenant))

    async def move(self, session: str, tenant: str) -> sessions_pb2.Session:
        self._call()
        self.moved.append((session, tenant))
        return await self.session(session, tenant)

    async def drain_runner(self, runner: str, *, cancel: bool) -> int:
        self._call()
        self.drained.append((runner, cancel))
        return 2

    async def queue(self, session: str = "") -> dict[str, router_pb2.QueuePlace]:
        return self.line

    async def reports(self, records: Sequence[sessions_pb2.Session]) -> dict[str, bridge_pb2.BridgeReport]:
        asked = {record.id for record in records}
        return {session: report for session, report in self.elsewhere.items() if session in asked}

    async def capacity(self) -> list[router_pb2.PipelineCapacity]:
        return [router_pb2.PipelineCapacity(pipeline="effects", params_schema='{"a": 1}', slots=2, free=1)]

    async def runners(self) -> list[router_pb2.RunnerView]:
        slots = [
            router_pb2.SlotView(slot=n, state=router_pb2.SLOT_STATE_HELD, session=session)
            for n, session in enumerate(["ses_mine", "ses_theirs"])
        ]
        advert = events_pb2.RunnerAdvert(
            runner="r0",
            gpu_class="cpu",
            pipelines=[events_pb2.PipelineOffer(name="effects", warm=True)],
            labels={"codecs": "vp9+h264", "rack": "7"},
        )
        return [router_pb2.RunnerView(advert=advert, slots=slots, heartbeat_age_ms=-1)]

    async def balance(self, tenant: str) -> billing_pb2.BalanceResponse:
        return billing_pb2.BalanceResponse(balance_micro=10, reserved_micro=4, available_micro=6)

    async def usage(self, tenant: str, session: str, limit: int) -> list[billing_pb2.SessionUsage]:
        return [billing_pb2.SessionUsage(session=session or "ses_mine", delivered_ms=5000, cost_micro=5)]

    async def prices(self) -> billing_pb2.PricesResponse:
        price = billing_pb2.Price(pipeline="*", micro_per_second=1000)
        return billing_pb2.PricesResponse(currency="USD", prices=[price])


class Doorman:
    """Knows two keys."""

    async def who(self, key: str) -> Caller:
        if key not in {"mine", "theirs"}:
            raise UnauthenticatedError("the API key is not valid", reason="KEY_INVALID")
        return Caller({"mine": "acme", "theirs": "other"}[key], f"id-{key}")


class Disk:
    source = "here"

    async def put(self, window: object) -> None:
        """Billing is another test's."""


class House:
    def __init__(self, hub: Hub, plane: Plane, client: httpx.AsyncClient, core: Core) -> None:
        self.core = core
        self.hub = hub
        self.plane = plane
        self.client = client

    async def call(self, method: str, path: str, expect: int = 200, **kwargs: Any) -> Any:
        answer = await self.client.request(method, path, **kwargs)
        assert answer.status_code == expect, (answer.status_code, answer.text)
        return answer.json()

    async def stream(self, **body: Any) -> Any:
        return await self.call("POST", "/v1/streams", 201, json=body)

    def live(self, stream: str, session: str = "ses_mine") -> BridgeSession:
        """The stream's media passes here."""
        found = self.hub.create(Identity(session, stream, "acme", "effects", complete=False, traceparent=""))
        found.open(bridge_pb2.OpenRequest(session=session, epoch=1, paid_until_ms=60_000))
        return found

    def record(self, stream: str, phase: int, session: str = "ses_mine", **facts: Any) -> None:
        self.plane.records[session] = sessions_pb2.Session(
            id=session,
            stream=stream,
            tenant="acme",
            pipeline="effects",
            phase=sessions_pb2.Phase.ValueType(phase),
            runner="r0",
            created_unix_ms=1_700_000_000_000,
            **facts,
        )
        self.plane.known[stream].last_session = session


@asynccontextmanager
async def housing(plane: Plane | None = None, **facts: Any) -> AsyncIterator[House]:
    """`facts` are settings of ingest."""
    settings = IngestSettings(
        **{
            "stream_secret": "x" * 16,
            "viewer_wait_s": 0.05,
            "first_picture_s": 0.5,
            "max_viewers": 1,
            **facts,
        }
    )
    plane = plane or Plane()
    async with Hub(Registry(), cast("Outbox", Disk()), settings) as hub:
        known = {
            "settings": settings,
            "authenticator": cast("Authenticator", Doorman()),
            "plane": cast("ControlPlane", plane),
            "hub": hub,
            "keys": KEYS,
        }
        pushes = Pushes(settings)
        publishing = Publishing(
            hub=hub,
            plane=cast("ControlPlane", plane),
            keys=KEYS,
            bridge_address="here:7000",
            pushes=pushes,
            settings=settings,
        )
        channels = PublicChannels(registry=Registry(), publishing=publishing, **known)  # type: ignore[arg-type]
        core = assemble(publishing=publishing, pushes=pushes, channels=channels, **known)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(public_app(core), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport,
            base_url="http://gateway.test:8000",
            headers={"Authorization": "Bearer mine"},
        ) as client:
            yield House(hub, plane, client, core)


def seven(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()
    assert set(found) == SEVEN
    assert found["success"] is False
    assert found["status"] == answer.status_code
    assert isinstance(found["error"], str)
    assert found["requestId"]
    return found
