"""The `Router` service: requests are checked and turned into calls of the line, the slots and the fleet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import grpc.aio

from protos.events.v1.events_pb2 import PipelineOffer
from protos.router.v1 import router_pb2 as router
from protos.router.v1.router_pb2_grpc import RouterServicer as Servicer
from services.common.errors import InvalidError
from services.router.fleet import Fleet, RunnerPicture
from services.router.line import Line, Wanted
from services.router.placement import Requirements, RunnerId, SessionId, SlotState
from services.router.slots import Slots

MAX_WAIT_MS: Final = 30_000
WATCH_EVERY_S: Final = 0.1
STATES: Final = {
    SlotState.STARTING: router.SLOT_STATE_STARTING,
    SlotState.READY: router.SLOT_STATE_READY,
    SlotState.HELD: router.SLOT_STATE_HELD,
    SlotState.DRAINING: router.SLOT_STATE_DRAINING,
    SlotState.LOST: router.SLOT_STATE_LOST,
}
Context = grpc.aio.ServicerContext[Any, Any]


class RouterServicer(Servicer):
    """Holds no state of its own."""

    def __init__(self, fleet: Fleet, line: Line, slots: Slots) -> None:
        self._fleet = fleet
        self._line = line
        self._slots = slots

    async def Grant(self, request: router.GrantRequest, context: Context) -> router.GrantResponse:
        if not 0 <= request.wait_ms <= MAX_WAIT_MS:
            raise InvalidError(f"wait_ms is not within 0..{MAX_WAIT_MS}", field="wait_ms")
        granted = await self._line.grant(wanted_from_proto(request), request.wait_ms / 1000)
        return router.GrantResponse(
            grant=router.Grant(
                runner=granted.runner,
                slot=granted.slot,
                slot_epoch=granted.epoch,
                address=granted.address,
                boot_id=granted.boot_id,
            )
        )

    async def Release(self, request: router.ReleaseRequest, context: Context) -> router.ReleaseResponse:
        if not request.session:
            raise InvalidError("a session is needed", field="session")
        return router.ReleaseResponse(released=await self._slots.release(SessionId(request.session)))

    async def Runners(self, request: router.RunnersRequest, context: Context) -> router.RunnersResponse:
        await self._fleet.until_known()
        return self._runners()

    async def Capacity(self, request: router.CapacityRequest, context: Context) -> router.CapacityResponse:
        await self._fleet.until_known()
        return router.CapacityResponse(pipelines=capacity(self._fleet.runners()))

    async def Watch(
        self, request: router.WatchRequest, context: Context
    ) -> AsyncIterator[router.RunnersResponse]:
        await self._fleet.until_known()
        version = -1
        while True:
            version, _ = await self._fleet.changed.newer_than(version)
            yield self._runners()
            await asyncio.sleep(WATCH_EVERY_S)

    def _runners(self) -> router.RunnersResponse:
        views = [self._view(picture) for picture in self._fleet.runners()]
        return router.RunnersResponse(runners=sorted(views, key=lambda view: view.advert.runner))

    def _view(self, picture: RunnerPicture) -> router.RunnerView:
        age_s = self._fleet.age_s(RunnerId(picture.advert.runner))
        return router.RunnerView(
            advert=picture.advert,
            slots=[
                router.SlotView(
                    slot=slot.slot, state=STATES[slot.state], session=slot.session, epoch=slot.epoch
                )
                for slot in picture.slots
            ],
            heartbeat_age_ms=-1 if age_s is None else round(age_s * 1000),
        )


def wanted_from_proto(request: router.GrantRequest) -> Wanted:
    """Raises InvalidError naming the field."""
    if not request.session:
        raise InvalidError("a session is needed", field="session")
    if not request.requirements.pipeline:
        raise InvalidError("a pipeline is needed", field="requirements.pipeline")
    requirements = Requirements(
        pipeline=request.requirements.pipeline,
        region=request.requirements.region,
        gpu_class=request.requirements.gpu_class,
        labels=frozenset(request.requirements.labels.items()),
    )
    return Wanted(SessionId(request.session), requirements, frozenset(map(RunnerId, request.exclude)))


def capacity(runners: Iterable[RunnerPicture]) -> list[router.PipelineCapacity]:
    """What can be had, a pipeline a line, by name; the newest version that is heard describes it."""
    newest: dict[str, PipelineOffer] = {}
    slots: dict[str, list[SlotState]] = {}
    for runner in runners:
        if not runner.heard:
            continue
        for offer in runner.advert.pipelines:
            known = newest.get(offer.name)
            if known is None or _version(offer) > _version(known):
                newest[offer.name] = offer
            slots.setdefault(offer.name, []).extend(slot.state for slot in runner.slots)
    return [
        router.PipelineCapacity(
            pipeline=name,
            version=offer.version,
            description=offer.description,
            params_schema=offer.params_schema,
            processes_audio=offer.processes_audio,
            slots=len(slots[name]),
            free=slots[name].count(SlotState.READY),
        )
        for name, offer in sorted(newest.items())
    ]


def _version(offer: PipelineOffer) -> tuple[list[int], str]:
    """Orders 1.10 after 1.9; equal numbers by text."""
    return [int(number) for number in re.findall(r"\d+", offer.version)], offer.version
