"""Ingest's calls to session-manager, router, billing and other bridges, each with its bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Final, cast

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.ingest.v1 import bridge_pb2, bridge_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from services.common.errors import SluiceError
from services.common.grpc_client import Channels, call, stream
from services.ingest import in_line
from services.ingest.settings import IngestSettings

LONGEST_WAIT_S: Final = 300.0  # of a start in the line for a runner: what the router allows
BRIDGES_WITHIN_S: Final = 1.0  # for what other ingest processes know: it is only shown
ASKED_AT_ONCE: Final = 32


class ControlPlane:
    """What the faces need to know and do; errors arrive as our own taxonomy."""

    def __init__(self, channels: Channels, settings: IngestSettings) -> None:
        self._channels = channels
        self._sessions = sessions_pb2_grpc.SessionsStub(channels.to(settings.session_manager_address))
        self._router = router_pb2_grpc.RouterStub(channels.to(settings.router_address))
        self._billing = billing_pb2_grpc.BillingStub(channels.to(settings.billing_address))
        self._timeout_s = settings.call_timeout_s

    async def create_stream(self, stream: sessions_pb2.Stream) -> sessions_pb2.Stream:
        request = sessions_pb2.CreateStreamRequest(stream=stream)
        return await call(
            self._sessions.CreateStream, request, sessions_pb2.Stream, timeout_s=self._timeout_s
        )

    async def stream(self, stream: str, tenant: str = "") -> sessions_pb2.Stream:
        request = sessions_pb2.GetStreamRequest(id=stream, tenant=tenant)
        return await call(self._sessions.GetStream, request, sessions_pb2.Stream, timeout_s=self._timeout_s)

    async def streams(self, tenant: str, limit: int) -> Sequence[sessions_pb2.Stream]:
        request = sessions_pb2.ListStreamsRequest(tenant=tenant, limit=limit)
        answer = await call(
            self._sessions.ListStreams, request, sessions_pb2.ListStreamsResponse, timeout_s=self._timeout_s
        )
        return answer.streams

    async def delete_stream(self, stream: str, tenant: str) -> None:
        request = sessions_pb2.DeleteStreamRequest(id=stream, tenant=tenant)
        await call(
            self._sessions.DeleteStream, request, sessions_pb2.DeleteStreamResponse, timeout_s=self._timeout_s
        )

    async def update(self, request: sessions_pb2.UpdateRequest) -> sessions_pb2.UpdateResponse:
        return await call(
            self._sessions.Update, request, sessions_pb2.UpdateResponse, timeout_s=self._timeout_s
        )

    async def start_session(
        self, stream: sessions_pb2.Stream, session: str, bridge: str, signalling: str
    ) -> sessions_pb2.Session:
        """Start it, after a wait in the line for a runner. Cancelled, the session-manager leaves the line."""
        request = sessions_pb2.StartSessionRequest(
            stream=stream.id, session=session, bridge=bridge, signalling=signalling
        )
        wait_s = stream.wishes.max_wait_ms / 1000 or LONGEST_WAIT_S
        try:
            answer = await call(
                self._sessions.StartSession,
                request,
                sessions_pb2.StartSessionResponse,
                timeout_s=self._timeout_s + wait_s,
            )
        except SluiceError as error:
            raise in_line.refused(error) from error
        return answer.session

    async def rejoin(self, stream: str, bridge: str, signalling: str) -> sessions_pb2.RejoinResponse:
        """Take a live session over, for its publisher is here. Raises NotFoundError, ConflictError."""
        request = sessions_pb2.RejoinRequest(stream=stream, bridge=bridge, signalling=signalling)
        return await call(
            self._sessions.Rejoin, request, sessions_pb2.RejoinResponse, timeout_s=self._timeout_s
        )

    async def move(self, session: str, tenant: str) -> sessions_pb2.Session:
        """Wish a session elsewhere; what became of it is in its record. `tenant` empty: whose it is."""
        request = sessions_pb2.MoveRequest(session=session, tenant=tenant)
        return await call(self._sessions.Move, request, sessions_pb2.Session, timeout_s=self._timeout_s)

    async def drain_runner(self, runner: str, *, cancel: bool) -> int:
        """Let a runner take nothing more, or again; how many sessions are left on it."""
        request = sessions_pb2.DrainRunnerRequest(runner=runner, cancel=cancel)
        answer = await call(
            self._sessions.DrainRunner, request, sessions_pb2.DrainRunnerResponse, timeout_s=self._timeout_s
        )
        return answer.sessions

    async def stop_session(self, session: str, tenant: str) -> None:
        request = sessions_pb2.StopRequest(session=session, tenant=tenant)
        await call(self._sessions.Stop, request, sessions_pb2.StopResponse, timeout_s=self._timeout_s)

    async def session(self, session: str, tenant: str = "") -> sessions_pb2.Session:
        request = sessions_pb2.GetRequest(session=session, tenant=tenant)
        return await call(self._sessions.Get, request, sessions_pb2.Session, timeout_s=self._timeout_s)

    async def sessions(self, tenant: str, limit: int, *, ended: bool) -> Sequence[sessions_pb2.Session]:
        request = sessions_pb2.ListRequest(tenant=tenant, ended=ended, limit=limit)
        answer = await call(
            self._sessions.List, request, sessions_pb2.ListResponse, timeout_s=self._timeout_s
        )
        return answer.sessions

    async def queue(self, session: str = "") -> Mapping[str, router_pb2.QueuePlace]:
        """Who waits for a runner, by session; of one session, or all."""
        answer = await call(
            self._router.Queue,
            router_pb2.QueueRequest(session=session),
            router_pb2.QueueResponse,
            timeout_s=self._timeout_s,
        )
        return {place.session: place for place in answer.places}

    async def reports(self, records: Sequence[sessions_pb2.Session]) -> Mapping[str, bridge_pb2.BridgeReport]:
        """What other ingest processes see of the sessions they have, as far as those answer in time."""
        found: dict[str, bridge_pb2.BridgeReport] = {}
        room = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(record: sessions_pb2.Session) -> None:
            bridge = bridge_pb2_grpc.BridgeStub(self._channels.to(record.bridge))
            request = bridge_pb2.ReportRequest(session=record.id)
            asking = stream(bridge.Report, request, bridge_pb2.BridgeReport)
            async with room, aclosing(cast("AsyncGenerator[bridge_pb2.BridgeReport]", asking)) as reports:
                with suppress(SluiceError, StopAsyncIteration):
                    found[record.id] = await anext(reports)

        with suppress(TimeoutError):
            async with asyncio.timeout(BRIDGES_WITHIN_S), asyncio.TaskGroup() as group:
                for record in records:
                    if record.bridge and record.phase != sessions_pb2.PHASE_ENDED:
                        group.create_task(ask(record))
        return found

    async def capacity(self) -> Sequence[router_pb2.PipelineCapacity]:
        answer = await call(
            self._router.Capacity,
            router_pb2.CapacityRequest(),
            router_pb2.CapacityResponse,
            timeout_s=self._timeout_s,
        )
        return answer.pipelines

    async def runners(self) -> Sequence[router_pb2.RunnerView]:
        answer = await call(
            self._router.Runners,
            router_pb2.RunnersRequest(),
            router_pb2.RunnersResponse,
            timeout_s=self._timeout_s,
        )
        return answer.runners

    async def balance(self, tenant: str) -> billing_pb2.BalanceResponse:
        request = billing_pb2.BalanceRequest(tenant=tenant)
        return await call(
            self._billing.Balance, request, billing_pb2.BalanceResponse, timeout_s=self._timeout_s
        )

    async def usage(self, tenant: str, session: str, limit: int) -> Sequence[billing_pb2.SessionUsage]:
        request = billing_pb2.UsageRequest(tenant=tenant, session=session, limit=limit)
        answer = await call(
            self._billing.Usage, request, billing_pb2.UsageResponse, timeout_s=self._timeout_s
        )
        return answer.sessions

    async def prices(self) -> billing_pb2.PricesResponse:
        return await call(
            self._billing.Prices,
            billing_pb2.PricesRequest(),
            billing_pb2.PricesResponse,
            timeout_s=self._timeout_s,
        )
