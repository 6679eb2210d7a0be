"""Ingest's calls to session-manager, router and billing, each with its bound."""

from __future__ import annotations

from collections.abc import Sequence

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from services.common.grpc_client import Channels, call
from services.ingest.settings import IngestSettings


class ControlPlane:
    """What the faces need to know and do; errors arrive as our own taxonomy."""

    def __init__(self, channels: Channels, settings: IngestSettings) -> None:
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
        self, stream: str, session: str, bridge: str, signalling: str
    ) -> sessions_pb2.Session:
        request = sessions_pb2.StartSessionRequest(
            stream=stream, session=session, bridge=bridge, signalling=signalling
        )
        answer = await call(
            self._sessions.StartSession,
            request,
            sessions_pb2.StartSessionResponse,
            timeout_s=self._timeout_s,
        )
        return answer.session

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
