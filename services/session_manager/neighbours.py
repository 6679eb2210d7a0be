"""The calls that a session-manager makes, each with its bound; errors arrive as our own taxonomy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2, bridge_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from services.common.grpc_client import Channels, call, stream
from services.session_manager.machine import Latency, Session, Stream
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import dumps, latency_from_proto, patch_to_proto


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Router and billing by their settings, bridges and runners by the addresses in the records."""

    channels: Channels
    settings: SessionManagerSettings

    async def reserve(self, session: Session, until_ms: int) -> billing_pb2.ReserveSliceResponse:
        billing = billing_pb2_grpc.BillingStub(self.channels.to(self.settings.billing_address))
        request = billing_pb2.ReserveSliceRequest(
            session=session.id,
            tenant=session.tenant,
            stream=session.stream,
            pipeline=session.pipeline,
            until_ms=until_ms,
        )
        return await call(
            billing.ReserveSlice,
            request,
            billing_pb2.ReserveSliceResponse,
            timeout_s=self.settings.call_timeout_s,
        )

    async def settle(self, session: Session) -> None:
        billing = billing_pb2_grpc.BillingStub(self.channels.to(self.settings.billing_address))
        await call(
            billing.Settle,
            billing_pb2.SettleRequest(session=session.id),
            billing_pb2.SettleResponse,
            timeout_s=self.settings.call_timeout_s,
        )

    async def grant(self, session: Session, exclude: Sequence[str]) -> router_pb2.Grant:
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        request = router_pb2.GrantRequest(
            requirements=router_pb2.Requirements(pipeline=session.pipeline),
            session=session.id,
            wait_ms=round(self.settings.grant_wait_s * 1000),
            exclude=exclude,
        )
        timeout_s = self.settings.grant_wait_s + self.settings.call_timeout_s
        answer = await call(router.Grant, request, router_pb2.GrantResponse, timeout_s=timeout_s)
        return answer.grant

    async def release(self, session: Session) -> None:
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        await call(
            router.Release,
            router_pb2.ReleaseRequest(session=session.id),
            router_pb2.ReleaseResponse,
            timeout_s=self.settings.call_timeout_s,
        )

    async def capacity(self) -> Sequence[router_pb2.PipelineCapacity]:
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        answer = await call(
            router.Capacity,
            router_pb2.CapacityRequest(),
            router_pb2.CapacityResponse,
            timeout_s=self.settings.call_timeout_s,
        )
        return answer.pipelines

    async def open_bridge(
        self, session: Session, *, overdraft_s: float, processes_audio: bool
    ) -> bridge_pb2.Channels:
        """Make the channels of the session's epoch. Where the sound goes is decided here, once."""
        return await self._open(session, overdraft_s=overdraft_s, processes_audio=processes_audio)

    async def extend_credit(self, session: Session, *, overdraft_s: float) -> None:
        """Tell the bridge of newer credit; the channels stay as they are, and what goes through them."""
        await self._open(session, overdraft_s=overdraft_s, processes_audio=False)  # unsaid, on the wire

    async def _open(
        self, session: Session, *, overdraft_s: float, processes_audio: bool
    ) -> bridge_pb2.Channels:
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.OpenRequest(
            session=session.id,
            epoch=session.epoch,
            paid_until_ms=session.paid_until_ms,
            overdraft_ms=round(overdraft_s * 1000),
            runner=session.runner,
            processes_audio=processes_audio,
        )
        answer = await call(
            bridge.Open, request, bridge_pb2.OpenResponse, timeout_s=self.settings.call_timeout_s
        )
        return answer.channels

    async def close_bridge(self, session: Session) -> Latency:
        """Close it; what the bridge knew of its latency."""
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.CloseRequest(
            session=session.id, reason=session.end_reason, message=session.end_message
        )
        answer = await call(
            bridge.Close, request, bridge_pb2.CloseResponse, timeout_s=self.settings.call_timeout_s
        )
        return latency_from_proto(answer.latency)

    def bridge_reports(self, session: Session) -> AsyncIterator[bridge_pb2.BridgeReport]:
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        return stream(bridge.Report, bridge_pb2.ReportRequest(session=session.id), bridge_pb2.BridgeReport)

    async def attach(self, session: Session, of: Stream, channels: bridge_pb2.Channels) -> None:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(session.runner_address))
        request = runner_pb2.AttachRequest(
            session=session.id,
            session_epoch=session.epoch,
            slot=session.slot,
            slot_epoch=session.slot_epoch,
            channels=channels,
            pipeline=session.pipeline,
            params=dumps(of.params),
            revision=of.revision,
            delivery=session.delivery.value,  # type: ignore[arg-type]  # the enum's values are the wire's
            paid_until_ms=session.paid_until_ms,
            scheduled=[patch_to_proto(item) for item in of.scheduled],
        )
        await call(
            runner.Attach, request, runner_pb2.AttachResponse, timeout_s=self.settings.attach_timeout_s
        )

    async def update(self, session: Session, patch: runner_pb2.Patch) -> str:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(session.runner_address))
        request = runner_pb2.UpdateRequest(session=session.id, slot_epoch=session.slot_epoch, patch=patch)
        answer = await call(
            runner.Update, request, runner_pb2.UpdateResponse, timeout_s=self.settings.call_timeout_s
        )
        return answer.applies

    async def detach(self, session: Session) -> None:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(session.runner_address))
        request = runner_pb2.DetachRequest(
            session=session.id, slot_epoch=session.slot_epoch, reason=session.end_reason
        )
        await call(runner.Detach, request, runner_pb2.DetachResponse, timeout_s=self.settings.call_timeout_s)

    def runner_reports(self, session: Session) -> AsyncIterator[runner_pb2.SlotReport]:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(session.runner_address))
        request = runner_pb2.WatchRequest(session=session.id, slot_epoch=session.slot_epoch)
        return stream(runner.Watch, request, runner_pb2.SlotReport)
