"""The `Router` service: requests are checked and turned into calls of the line, the slots and the fleet."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from protos.router.v1 import router_pb2 as router
from protos.router.v1.router_pb2_grpc import RouterServicer as Servicer
from services.common.errors import InvalidError
from services.router.fleet import Fleet
from services.router.line import Line, Wanted
from services.router.placement import Policy, Requirements, RunnerId, SessionId, SlotState, Wish
from services.router.runner import RunnerPicture
from services.router.slots import Slots
from services.router.waiting import PRIORITY_MAX, Queue, Standing
from services.router.wall import now_unix_us

MAX_WAIT_MS: Final = 300_000
WATCH_EVERY_S: Final = 0.1
VIEWS_AT_ONCE: Final = 200
SESSION: Final = re.compile(r"[-_a-zA-Z0-9]{1,128}")  # it becomes part of a key
STATES: Final = {
    SlotState.STARTING: router.SLOT_STATE_STARTING,
    SlotState.READY: router.SLOT_STATE_READY,
    SlotState.HELD: router.SLOT_STATE_HELD,
    SlotState.DRAINING: router.SLOT_STATE_DRAINING,
    SlotState.LOST: router.SLOT_STATE_LOST,
}
POLICIES: Final = {
    router.POLICY_UNSPECIFIED: Policy.BALANCED,
    router.POLICY_BALANCED: Policy.BALANCED,
    router.POLICY_CHEAPEST: Policy.CHEAPEST,
    router.POLICY_FASTEST: Policy.FASTEST,
}
Context = grpc.aio.ServicerContext[Any, Any]


class RouterServicer(Servicer):
    """Holds no state of its own."""

    def __init__(self, fleet: Fleet, line: Line, slots: Slots, queue: Queue) -> None:
        self._fleet = fleet
        self._line = line
        self._slots = slots
        self._queue = queue

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
                micro_per_second=granted.micro_per_second,
            )
        )

    async def Release(self, request: router.ReleaseRequest, context: Context) -> router.ReleaseResponse:
        if not request.session:
            raise InvalidError("a session is needed", field="session")
        runner = RunnerId(request.runner) if request.runner else None
        return router.ReleaseResponse(released=await self._slots.release(SessionId(request.session), runner))

    async def Runners(self, request: router.RunnersRequest, context: Context) -> router.RunnersResponse:
        await self._fleet.until_known()
        return await self._runners()

    async def Capacity(self, request: router.CapacityRequest, context: Context) -> router.CapacityResponse:
        await self._fleet.until_known()
        return router.CapacityResponse(
            pipelines=[
                router.PipelineCapacity(
                    pipeline=line.offer.name,
                    version=line.offer.version,
                    description=line.offer.description,
                    params_schema=line.offer.params_schema,
                    processes_audio=line.offer.processes_audio,
                    slots=line.slots,
                    free=line.free,
                    waiting=self._queue.waiting(line.offer.name),
                    min_micro_per_second=line.min_micro_per_second,
                )
                for line in self._fleet.capacity()
            ]
        )

    async def Queue(self, request: router.QueueRequest, context: Context) -> router.QueueResponse:
        return router.QueueResponse(
            places=[
                self._place(standing)
                for standing in self._queue.standings()
                if request.pipeline in {"", standing.waiter.wish.requirements.pipeline}
                and request.session in {"", standing.waiter.session}
            ]
        )

    async def Watch(
        self, request: router.WatchRequest, context: Context
    ) -> AsyncIterator[router.RunnersResponse]:
        await self._fleet.until_known()
        version = -1
        while True:
            version, _ = await self._fleet.changed.newer_than(version)
            yield await self._runners()
            await asyncio.sleep(WATCH_EVERY_S)

    async def _runners(self) -> router.RunnersResponse:
        views: list[router.RunnerView] = []
        for picture in self._fleet.runners():
            views.append(self._view(picture))
            if len(views) % VIEWS_AT_ONCE == 0:
                await asyncio.sleep(0)  # grants do not wait until ten thousand are listed
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
            claims=picture.claims,
            penalty=picture.penalty,
        )

    def _place(self, standing: Standing) -> router.QueuePlace:
        waiter = standing.waiter
        pipeline = waiter.wish.requirements.pipeline
        expected_s = self._line.expected_wait_s(pipeline, standing.position)
        return router.QueuePlace(
            session=waiter.session,
            pipeline=pipeline,
            priority=waiter.priority,
            position=standing.position,
            waited_ms=max(0, now_unix_us() - waiter.arrived_unix_us) // 1000,
            expected_wait_ms=-1 if expected_s is None else round(expected_s * 1000),
        )


def wanted_from_proto(request: router.GrantRequest) -> Wanted:
    """Raises InvalidError naming the field."""
    needs = request.requirements
    if not SESSION.fullmatch(request.session):
        raise InvalidError("a session is needed, of letters, digits, - and _", field="session")
    if not needs.pipeline:
        raise InvalidError("a pipeline is needed", field="requirements.pipeline")
    if needs.max_micro_per_second < 0:
        raise InvalidError("a price is not negative", field="requirements.max_micro_per_second")
    if needs.max_frame_us < 0:
        raise InvalidError("a frame time is not negative", field="requirements.max_frame_us")
    if needs.policy not in POLICIES:
        raise InvalidError("there is no such policy", field="requirements.policy")
    if abs(request.priority) > PRIORITY_MAX:
        raise InvalidError(f"priority is not within ±{PRIORITY_MAX}", field="priority")
    requirements = Requirements(
        pipeline=needs.pipeline,
        region=needs.region,
        gpu_class=needs.gpu_class,
        labels=frozenset(needs.labels.items()),
        max_micro_per_second=needs.max_micro_per_second,
        policy=POLICIES[needs.policy],
        warm=needs.warm,
        max_frame_us=needs.max_frame_us,
    )
    wish = Wish(requirements, frozenset(map(RunnerId, request.exclude)))
    return Wanted(SessionId(request.session), wish, request.priority)
