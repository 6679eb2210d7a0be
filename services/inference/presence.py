"""How others know of this runner: its advert in the bucket `runners`, and a heartbeat each second."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from importlib.metadata import version
from typing import Final

import structlog

from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import SluiceError
from services.common.topology import RUNNERS, heartbeat
from services.inference.hosting import Host, Offer
from services.inference.settings import InferenceSettings
from services.inference.slots import Slots

log = structlog.get_logger()

HEARTBEAT_S: Final = 1.0
BEATS_APART_S: Final = 0.1  # however much changes
DIGITS: Final = 2  # of what a frame takes: beats of a runner that goes on as before are equal
RETRY_S: Final = 0.5
LEAVE_WITHIN_S: Final = 1.0


class Presence:
    """What this runner says of itself. The boot id is new with every process."""

    def __init__(
        self,
        settings: InferenceSettings,
        host: Host,
        slots: Slots,
        name: str,
        found: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """`found`: labels that nobody has to set; what an operator says goes before them."""
        self.address = settings.address or settings.listen
        self._settings = settings
        self._host = host
        self._found = found
        self._slots = slots
        self._name = name
        self._boot_id = uuid.uuid4().hex
        self._took_us = 0
        self._known: tuple[
            Offer, ...
        ] = ()  # the last that an engine told: an engine that restarts still has them

    def advert(self) -> events_pb2.RunnerAdvert:
        settings = self._settings
        self._known = self._host.offers.value or self._known
        offers = [
            events_pb2.PipelineOffer(
                name=offer.name,
                version=offer.version,
                description=offer.description,
                params_schema=json.dumps(offer.params_schema),
                processes_audio=offer.processes_audio,
                warm=True,
            )
            for offer in self._known
        ]
        return events_pb2.RunnerAdvert(
            runner=self._name,
            boot_id=self._boot_id,
            address=self.address,
            slots=settings.slots,
            pipelines=offers,
            region=settings.region,
            gpu_class=settings.gpu_class,
            labels={**self._found(), **settings.labels},
            micro_per_second=settings.micro_per_second,
            version=version("sluice"),
        )

    def heartbeat(self) -> events_pb2.Heartbeat:
        if self._slots.draining:
            state = events_pb2.RUNNER_STATE_DRAINING
        elif self._host.ready:
            state = events_pb2.RUNNER_STATE_READY
        else:
            state = events_pb2.RUNNER_STATE_STARTING
        return events_pb2.Heartbeat(
            runner=self._name,
            boot_id=self._boot_id,
            state=state,
            claims=self.claims(),
            frame_us=self._frame_us(),
        )

    def claims(self) -> list[events_pb2.SlotClaim]:
        """The slots that are taken, by whom."""
        return [
            events_pb2.SlotClaim(
                slot=of.slot, session=of.session, session_epoch=of.session_epoch, slot_epoch=of.slot_epoch
            )
            for of in (session.assignment for session in self._slots.living)
        ]

    def _frame_us(self) -> int:
        """The mean over the sessions that live; without one what it was."""
        taken_ms = [session.report.value.infer_ms for session in self._slots.living]
        measured_ms = [one for one in taken_ms if one > 0]
        if measured_ms:
            self._took_us = rounded(1000 * sum(measured_ms) / len(measured_ms))
        return self._took_us

    async def beat(self, bus: Bus) -> None:
        """A loop for `background`."""
        while True:
            slots, offers = self._slots.changed.version, self._host.offers.version
            await bus.publish(heartbeat(self._name), self.heartbeat().SerializeToString())
            await asyncio.sleep(BEATS_APART_S)
            with suppress(TimeoutError):  # sooner when something changed: routers wait for that
                async with asyncio.timeout(HEARTBEAT_S - BEATS_APART_S):
                    await first(self._slots.changed.newer_than(slots), self._host.offers.newer_than(offers))

    async def advertise(self, bus: Bus) -> None:
        """Write the advert when there are offers, and again when there is news: a loop for `background`."""
        while not self._host.ready:
            await self._host.offers.newer_than(self._host.offers.version)
        while True:
            generation = bus.generation.version
            try:
                bucket = await bus.bucket(RUNNERS, self._settings.nats_replicas)
                advert = self.advert().SerializeToString()
                await bucket.change(self._name, lambda _, value=advert: value)  # type: ignore[misc]
            except SluiceError as error:
                log.warning("the advert waits", error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            await self._news(bus, generation)

    async def _news(self, bus: Bus, generation: int) -> None:
        """Wait until NATS came back, or something else is offered: a pipeline may load no more."""
        await first(bus.generation.newer_than(generation), self._other_offers())

    async def _other_offers(self) -> None:
        offers = self._host.offers
        while offers.value in ((), self._known):
            await offers.newer_than(offers.version)

    async def leave(self, bus: Bus) -> None:
        """Take the advert back, if NATS can be reached: without it nobody asks this runner any more."""
        try:
            async with asyncio.timeout(LEAVE_WITHIN_S):
                bucket = await bus.bucket(RUNNERS, self._settings.nats_replicas)
                await bucket.delete(self._name)
                await bus.publish(heartbeat(self._name), self.heartbeat().SerializeToString())
        except (SluiceError, TimeoutError) as error:
            log.warning("the advert stays", error=repr(error))


async def first(*waits: Coroutine[object, object, object]) -> None:
    """Wait for one of them."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()


def rounded(value: float) -> int:
    """`value` to `DIGITS` significant digits; what is above 0 stays so."""
    unit: int = 10 ** max(len(str(int(value))) - DIGITS, 0)
    return max(round(value / unit) * unit, int(value > 0))
