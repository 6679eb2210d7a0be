"""gRPC `Runner`: what others may ask of this runner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2
from services.common.errors import InvalidError
from services.common.json_objects import json_object
from services.common.telemetry import carrier
from services.inference.assignment import Assignment, Channels, Report
from services.inference.params import Fold, Patch
from services.inference.presence import Presence
from services.inference.slots import Slots

REPORT_EVERY_S: Final = 1.0
Context = grpc.aio.ServicerContext[Any, Any]


class RunnerServicer(runner_pb2_grpc.RunnerServicer):
    """Thin: what a call means is in `slots`."""

    def __init__(self, slots: Slots, presence: Presence) -> None:
        self._slots = slots
        self._presence = presence

    async def Attach(self, request: runner_pb2.AttachRequest, context: Context) -> runner_pb2.AttachResponse:
        self._slots.attach(assignment(request))
        return runner_pb2.AttachResponse()

    async def Update(self, request: runner_pb2.UpdateRequest, context: Context) -> runner_pb2.UpdateResponse:
        applies = await self._slots.update(request.session, request.slot_epoch, patch(request.patch))
        return runner_pb2.UpdateResponse(applies=applies)

    async def Detach(self, request: runner_pb2.DetachRequest, context: Context) -> runner_pb2.DetachResponse:
        await self._slots.detach(request.session, request.slot_epoch, request.reason)
        return runner_pb2.DetachResponse()

    async def Describe(
        self, request: runner_pb2.DescribeRequest, context: Context
    ) -> runner_pb2.DescribeResponse:
        return runner_pb2.DescribeResponse(advert=self._presence.advert(), state=self._presence.heartbeat())

    async def Watch(
        self, request: runner_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[runner_pb2.SlotReport]:
        session = self._slots.find(request.session, request.slot_epoch)
        async for report in session.reports(REPORT_EVERY_S):
            yield slot_report(report)

    async def Rebind(self, request: runner_pb2.RebindRequest, context: Context) -> runner_pb2.RebindResponse:
        report = self._slots.rebind(
            request.session,
            request.slot_epoch,
            channels=channels(request.channels),
            session_epoch=request.session_epoch,
        )
        return runner_pb2.RebindResponse(in_pts=report.in_pts, out_pts=report.out_pts)

    async def Drain(self, request: runner_pb2.DrainRequest, context: Context) -> runner_pb2.DrainResponse:
        self._slots.drain(cancel=request.cancel)
        return runner_pb2.DrainResponse(claims=self._presence.claims())

    async def RunJob(
        self, request: runner_pb2.RunJobRequest, context: Context
    ) -> AsyncIterator[runner_pb2.JobEvent]:
        await _unimplemented(context)
        yield runner_pb2.JobEvent()  # what makes this a generator


async def _unimplemented(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in this version")
    raise AssertionError("abort returned")


def assignment(request: runner_pb2.AttachRequest) -> Assignment:
    """What an attach says. Raises InvalidError that names the field."""
    for field in ("session", "pipeline"):
        if not getattr(request, field):
            raise InvalidError(f"{field} is empty", field=field)
    if request.delivery not in {runner_pb2.DELIVERY_LIVE, runner_pb2.DELIVERY_COMPLETE}:
        raise InvalidError("no such delivery", field="delivery")
    return Assignment(
        session=request.session,
        session_epoch=request.session_epoch,
        slot=request.slot,
        slot_epoch=request.slot_epoch,
        channels=channels(request.channels),
        pipeline=request.pipeline,
        fold=Fold.starting(
            request.revision,
            json_object(request.params, "params"),
            [patch(one) for one in request.scheduled],
        ),
        live=request.delivery == runner_pb2.DELIVERY_LIVE,
        headers=carrier(),
        after_pts=request.after_pts,
    )


def channels(message: bridge_pb2.Channels) -> Channels:
    """Raises InvalidError that names the field."""
    for field in ("in", "out", "control", "events", "data", "state", "restore"):
        url = getattr(message, field)
        if not url.startswith(("http://", "https://")) and (url or field not in {"state", "restore"}):
            raise InvalidError(f"channels.{field} is no HTTP URL", field=f"channels.{field}")
    return Channels(
        in_=getattr(message, "in"),
        out=message.out,
        control=message.control,
        events=message.events,
        data=message.data,
        state=message.state,
        restore=message.restore,
    )


def patch(message: runner_pb2.Patch) -> Patch:
    return Patch(message.revision, json_object(message.patch, "patch"), message.apply_at_pts)


def slot_report(report: Report) -> runner_pb2.SlotReport:
    return runner_pb2.SlotReport(
        state=runner_pb2.SlotReport.State.ValueType(report.state.value),
        reason=report.reason,
        message=report.message,
        frames_decoded=report.decoded,
        frames_inferred=report.inferred,
        frames_dropped=report.dropped,
        infer_ms=report.infer_ms,
        interrupted=report.interrupted,
        suspected=report.suspected,
        in_pts=report.in_pts,
        out_pts=report.out_pts,
    )
