"""The one stream that a gateway may run here: started in a free slot of this runner, steered, ended.

The rule it keeps: a stream holds its slot as any session does, so that the platform cannot give it twice; and
no failure of a stream outlives it.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from services.common.errors import ConflictError, InvalidError, NotFoundError
from services.common.param_schema import with_defaults
from services.common.telemetry import carrier
from services.common.trickle.protocol import CURRENT
from services.inference.assignment import Assignment, Channels
from services.inference.bypass import Bypass
from services.inference.hosting import Host, Offer
from services.inference.params import Fold, Patch
from services.inference.session import Session, Voices
from services.inference.slots import Slots
from services.inference.worker_api import requests
from services.inference.worker_api.dialect import StreamState
from services.inference.worker_api.requests import Start
from services.inference.worker_api.voices import GatewayControl, GatewayEvents, GatewayRemarks, now_ms

log = structlog.get_logger()

FINISH_WITHIN_S: Final = 3.0  # for what is under way when a stream is stopped; a slow pipeline loses the rest
EPOCH: Final = 1  # nobody but us speaks of these sessions

MakeSession = Callable[[Assignment, Voices, Bypass], Session]


class InUseError(ConflictError):
    """There is no slot for another stream now."""


class Stream:
    """One that was started; it may have ended since."""

    def __init__(
        self, request: Start, session: Session, events: GatewayEvents, schema: Mapping[str, Any]
    ) -> None:
        self.request = request
        self.session = session
        self.events = events
        self.schema = schema
        self.revision = EPOCH

    @property
    def running(self) -> bool:
        return not self.session.report.value.state.terminal


class Worker:
    """`pipeline` is what every stream runs; empty: what its request names, else the first that is offered."""

    def __init__(self, host: Host, slots: Slots, make: MakeSession, pipeline: str = "") -> None:
        self.stream: Stream | None = None  # the newest
        self._host = host
        self._slots = slots
        self._make = make
        self._pipeline = pipeline

    @property
    def running(self) -> Stream | None:
        return self.stream if self.stream is not None and self.stream.running else None

    @property
    def state(self) -> str:
        """Where it is, in the words of the API."""
        if self.running is not None:
            return "OK"
        return "IDLE" if self._host.ready and not self._slots.draining else "LOADING"

    @property
    def model(self) -> str:
        """What runs, or would."""
        if self.running is not None:
            return self.running.session.assignment.pipeline
        offers = self._host.offers.value
        return self._pipeline or (offers[0].name if offers else "")

    def start(self, request: Start) -> None:
        """Start a stream. Raises InUseError, ConflictError NOT_READY or DRAINING, InvalidError."""
        if not self._host.ready:
            raise ConflictError(
                "Pipeline is still initializing. Please wait for IDLE status.", reason="NOT_READY"
            )
        offer = self._choose(request)
        params = with_defaults(
            requests.for_pipeline(request.params, offer.params_schema), offer.params_schema
        )
        place = self._slots.free()
        if self.running is not None or place is None:
            raise InUseError("Pipeline is still in use", reason="SLOT_OCCUPIED")
        slot, slot_epoch = place
        urls = request.urls
        state = StreamState(offer.name, now_ms(), {**request.params, **params})
        events = GatewayEvents(urls, state)
        voices = Voices(events, GatewayRemarks(urls.data), GatewayControl(urls.control, self.update, events))
        of = Assignment(
            session=f"worker-{uuid.uuid4().hex}",
            session_epoch=EPOCH,
            slot=slot,
            slot_epoch=slot_epoch,
            channels=Channels(
                urls.subscribe, urls.publish, urls.control, urls.events, urls.data, start=CURRENT
            ),
            pipeline=offer.name,
            fold=Fold(EPOCH, params),
            live=True,
            headers=carrier(),
        )
        made: list[Session] = []

        def make(of: Assignment) -> Session:
            made.append(self._make(of, voices, Bypass()))
            return made[0]

        self._slots.attach(of, make)
        self.stream = Stream(request, made[0], events, offer.params_schema)
        log.info("stream started by a gateway", pipeline=offer.name, slot=slot)

    async def update(self, body: object) -> None:
        """Change parameters of the stream that runs. Raises InvalidError, NotFoundError without one."""
        checked = requests.parameters(body)
        stream = self.running
        if stream is None:
            raise NotFoundError("No active stream to update")
        params = requests.for_pipeline(checked, stream.schema)
        if params:
            of = stream.session.assignment
            stream.revision += 1
            try:
                await self._slots.update(of.session, of.slot_epoch, Patch(stream.revision, params))
            except InvalidError:  # raised before anything was waited for, so no newer one is under way
                stream.revision -= 1
                raise
        stream.events.state.update({**stream.events.state.params, **checked}, now_ms())
        stream.events.emit("params_updated", params=checked)

    async def stop(self) -> None:
        """End the stream: what is under way goes out whole, if it does so in time.

        Raises NotFoundError without one, DeadlineExceededError.
        """
        stream = self.running
        if stream is None:
            raise NotFoundError("No active stream to stop")
        session = stream.session
        session.finish()
        try:
            async with asyncio.timeout(FINISH_WITHIN_S):
                async for _ in session.reports(FINISH_WITHIN_S):
                    pass
        except TimeoutError:
            log.warning("a stream does not finish and is cut", session=session.assignment.session)
        await self._slots.detach(session.assignment.session, session.assignment.slot_epoch, "stopped")

    def _choose(self, request: Start) -> Offer:
        offers = self._host.offers.value
        asked = request.params.get("pipeline")
        name = self._pipeline or request.model_id or (asked if isinstance(asked, str) else "")
        for offer in offers:
            if name in {offer.name, ""}:
                return offer
        there = ", ".join(sorted(offer.name for offer in offers))
        raise InvalidError(f"there is no pipeline {name!r}: there are {there}", field="model_id")
