"""The calls that a session-manager makes, each with its bound; errors arrive as our own taxonomy.

Whatever can be about a session without a record names it by its id, so that what is left of it can be freed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2, bridge_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from services.common.errors import NotFoundError
from services.common.grpc_client import Channels, call, stream
from services.session_manager.machine import Latency, Place, Position, Session, Stream
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import dumps, latency_from_proto, patch_to_proto

MAX_WAIT_S: Final = 300.0  # for a slot; the router's own bound


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Router and billing by their settings, bridges and runners by the addresses in the records."""

    channels: Channels
    settings: SessionManagerSettings

    # --- billing

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

    # --- the router

    async def grant(
        self,
        session: Session,
        *,
        exclude: Sequence[str],
        wait_s: float,
        warm: bool = False,
        max_frame_us: int = 0,
        priority: int | None = None,
    ) -> Place:
        """A slot that the session's wishes fit, at a place that has no epoch of the session yet.

        `warm`: only where its pipeline is loaded. `max_frame_us`: only where a frame takes no longer; 0: any.
        `priority`: instead of what the stream wishes.
        """
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        wishes = session.wishes
        request = router_pb2.GrantRequest(
            requirements=router_pb2.Requirements(
                pipeline=session.pipeline,
                region=wishes.region,
                gpu_class=wishes.gpu_class,
                labels=wishes.labels,
                max_micro_per_second=wishes.max_micro_per_second,
                policy=wishes.policy.value,  # type: ignore[arg-type]  # the enum's values are the wire's
                warm=warm,
                max_frame_us=max_frame_us,
            ),
            session=session.id,
            wait_ms=round(min(wait_s, MAX_WAIT_S) * 1000),
            exclude=exclude,
            priority=wishes.priority if priority is None else priority,
        )
        timeout_s = min(wait_s, MAX_WAIT_S) + self.settings.call_timeout_s
        answer = await call(router.Grant, request, router_pb2.GrantResponse, timeout_s=timeout_s)
        grant = answer.grant
        return Place(grant.runner, grant.address, grant.slot, grant.slot_epoch, 0, grant.boot_id)

    async def release(self, session: str, runner: str = "") -> None:
        """Free what the session holds: everywhere, or on `runner`."""
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        await call(
            router.Release,
            router_pb2.ReleaseRequest(session=session, runner=runner),
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

    async def runners(self) -> Sequence[router_pb2.RunnerView]:
        router = router_pb2_grpc.RouterStub(self.channels.to(self.settings.router_address))
        answer = await call(
            router.Runners,
            router_pb2.RunnersRequest(),
            router_pb2.RunnersResponse,
            timeout_s=self.settings.call_timeout_s,
        )
        return answer.runners

    # --- bridges

    async def open_bridge(
        self,
        session: Session,
        place: Place,
        *,
        overdraft_s: float,
        processes_audio: bool = False,
        resume: Position | None = None,
        it_asked: bool = False,
    ) -> bridge_pb2.Channels:
        """Make the channels of the session's epoch at `place`. `it_asked`: so the bridge is there.

        Of its first epoch at this bridge: where the sound goes is decided here, once, and where its media
        goes on if it comes from another bridge. Again, it tells the bridge of newer credit; the channels stay
        as they are, and what goes through them.
        """
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.OpenRequest(
            session=session.id,
            epoch=place.epoch,
            paid_until_ms=session.paid_until_ms,
            overdraft_ms=round(overdraft_s * 1000),
            runner=place.runner,
            processes_audio=processes_audio,
            resume=position_to_proto(resume) if resume else None,
        )
        answer = await call(
            bridge.Open,
            request,
            bridge_pb2.OpenResponse,
            timeout_s=self.settings.call_timeout_s,
            wait_for_ready=it_asked,
        )
        return answer.channels

    async def promote(self, session: Session, epoch: int) -> None:
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.PromoteRequest(session=session.id, epoch=epoch)
        await call(
            bridge.Promote, request, bridge_pb2.PromoteResponse, timeout_s=self.settings.call_timeout_s
        )

    async def close_epoch(self, session: Session, epoch: int, reason: str) -> None:
        """Close the channels of one epoch: nothing is written through them any more."""
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.CloseRequest(session=session.id, epoch=epoch, reason=reason)
        await call(bridge.Close, request, bridge_pb2.CloseResponse, timeout_s=self.settings.call_timeout_s)

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

    async def leave_bridge(self, session: Session, *, timeout_s: float) -> Position:
        """Close it, for the session goes on at another one; how far it was. Raises NotFoundError."""
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        request = bridge_pb2.CloseRequest(session=session.id, reason="moved")
        answer = await call(bridge.Close, request, bridge_pb2.CloseResponse, timeout_s=timeout_s)
        if not answer.HasField("position"):  # it was started again, and knows nothing of it
            raise NotFoundError("the bridge does not know the session", reason="SESSION_NOT_HERE")
        return position(answer.position)

    def bridge_reports(self, session: Session) -> AsyncIterator[bridge_pb2.BridgeReport]:
        bridge = bridge_pb2_grpc.BridgeStub(self.channels.to(session.bridge))
        return stream(bridge.Report, bridge_pb2.ReportRequest(session=session.id), bridge_pb2.BridgeReport)

    # --- runners

    async def attach(
        self, session: Session, place: Place, of: Stream, channels: bridge_pb2.Channels, *, after_pts: int = 0
    ) -> None:
        """Start the session at `place`; above `after_pts`, if it goes on from another runner."""
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(place.address))
        request = runner_pb2.AttachRequest(
            session=session.id,
            session_epoch=place.epoch,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            channels=channels,
            pipeline=session.pipeline,
            params=dumps(of.params),
            revision=of.revision,
            delivery=session.delivery.value,  # type: ignore[arg-type]  # the enum's values are the wire's
            paid_until_ms=session.paid_until_ms,
            scheduled=[patch_to_proto(item) for item in of.scheduled],
            after_pts=after_pts,
        )
        await call(
            runner.Attach, request, runner_pb2.AttachResponse, timeout_s=self.settings.attach_timeout_s
        )

    async def rebind(
        self, session: str, place: Place, channels: bridge_pb2.Channels, *, timeout_s: float
    ) -> runner_pb2.RebindResponse:
        """Have the runner go on through other channels; its newest pictures in and out."""
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(place.address))
        request = runner_pb2.RebindRequest(
            session=session, slot_epoch=place.slot_epoch, channels=channels, session_epoch=place.epoch
        )
        return await call(runner.Rebind, request, runner_pb2.RebindResponse, timeout_s=timeout_s)

    async def update(self, session: str, place: Place, patch: runner_pb2.Patch) -> str:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(place.address))
        request = runner_pb2.UpdateRequest(session=session, slot_epoch=place.slot_epoch, patch=patch)
        answer = await call(
            runner.Update, request, runner_pb2.UpdateResponse, timeout_s=self.settings.call_timeout_s
        )
        return answer.applies

    async def detach(self, session: str, place: Place, reason: str) -> None:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(place.address))
        request = runner_pb2.DetachRequest(session=session, slot_epoch=place.slot_epoch, reason=reason)
        await call(runner.Detach, request, runner_pb2.DetachResponse, timeout_s=self.settings.call_timeout_s)

    def runner_reports(self, session: str, place: Place) -> AsyncIterator[runner_pb2.SlotReport]:
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(place.address))
        request = runner_pb2.WatchRequest(session=session, slot_epoch=place.slot_epoch)
        return stream(runner.Watch, request, runner_pb2.SlotReport)

    async def drain(self, address: str, *, cancel: bool) -> None:
        """Have a runner take no more sessions, or take them again."""
        runner = runner_pb2_grpc.RunnerStub(self.channels.to(address))
        request = runner_pb2.DrainRequest(cancel=cancel)
        await call(runner.Drain, request, runner_pb2.DrainResponse, timeout_s=self.settings.call_timeout_s)


def position(message: bridge_pb2.Position) -> Position:
    return Position(
        in_pts=message.in_pts,
        out_pts=message.out_pts,
        session_ms=message.session_ms,
        delivered_ms=message.delivered_ms,
        paused_ms=message.paused_ms,
    )


def position_to_proto(of: Position) -> bridge_pb2.Position:
    return bridge_pb2.Position(**asdict(of))
