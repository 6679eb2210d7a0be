"""The line of grants that wait for a slot in this process, served by arrival.

The rule it keeps: whoever came first is offered a change of the fleet first; later ones pass only with slots
that the earlier ones cannot use. A slot taken for somebody who left meanwhile is given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from protos.events.v1.events_pb2 import RunnerAdvert
from services.common.errors import ExhaustedError, NotFoundError, SluiceError, UnavailableError
from services.common.telemetry import report_bug
from services.router.fleet import KNOWN_WITHIN_S, Fleet, fleet_unknown
from services.router.placement import (
    Candidate,
    Refusal,
    Requirements,
    RunnerId,
    SessionId,
    SlotState,
    choose,
)
from services.router.settings import RouterSettings
from services.router.slots import Granted, Slots

log = structlog.get_logger()

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
GRANTS: Final = Counter("sluice_alloc_requests_total", "Finished grants by result.", ["result"])
SECONDS: Final = Histogram(
    "sluice_alloc_duration_seconds",
    "How long a grant took that gave a slot, the wait for one included.",
    buckets=BUCKETS,
)
WAITING: Final = Gauge("sluice_alloc_queue_depth", "Grants that wait for a slot.")
WAIT: Final = Histogram(
    "sluice_alloc_queue_wait_seconds",
    "How long a grant waited that found no free slot, whatever came of it.",
    buckets=BUCKETS,
)

MAX_CONFLICTS: Final = 20  # of one grant; a drawn slot is lost to another router once in hundreds
RETRY_AFTER_MAX_S: Final = 30


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session's wish. `exclude`: runners that refused or failed it."""

    session: SessionId
    requirements: Requirements
    exclude: frozenset[RunnerId] = frozenset()


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: Wanted
    until_s: float
    answer: asyncio.Future[Granted]
    refusal: Refusal = Refusal.NOTHING_FREE
    conflicts: int = 0


class Line:
    """Owned by one event loop; `claims` is the block that ends what it starts."""

    def __init__(
        self, fleet: Fleet, slots: Slots, claims: asyncio.TaskGroup, settings: RouterSettings, random: Random
    ) -> None:
        self._fleet = fleet
        self._slots = slots
        self._claims = claims
        self._among = settings.choose_among
        self._max_waiters = settings.max_waiters
        self._random = random
        self._waiters: dict[_Waiter, None] = {}  # in order of arrival
        self._claiming: set[SessionId] = set()

    async def follow(self) -> None:
        """Offer every change of the fleet to those who wait: a loop for `background`."""
        version = 0
        while True:
            version, _ = await self._fleet.changed.newer_than(version)
            self._offer()

    async def grant(self, wanted: Wanted, wait_s: float) -> Granted:
        """A slot for the session, within `wait_s`.

        Raises ExhaustedError, NotFoundError for a pipeline that nobody has, UnavailableError.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        until_s = now_s + (wait_s if len(self._waiters) < self._max_waiters else 0)
        waiter = _Waiter(wanted, until_s, loop.create_future())
        at_the_latest_s = until_s if self._fleet.known else max(until_s, now_s + KNOWN_WITHIN_S)
        self._waiters[waiter] = None
        timer = loop.call_at(at_the_latest_s, self._expire, waiter)
        try:
            self._offer()
            if self._idle(waiter):  # nothing is free: it waits
                with WAITING.track_inprogress(), WAIT.time():
                    granted = await waiter.answer
            else:
                granted = await waiter.answer
        except asyncio.CancelledError:
            self._abandon(waiter)
            GRANTS.labels("cancelled").inc()
            raise
        except SluiceError as error:
            GRANTS.labels(error.reason.lower()).inc()
            raise
        finally:
            timer.cancel()
            del self._waiters[waiter]
        GRANTS.labels("granted").inc()
        SECONDS.observe(loop.time() - now_s)
        return granted

    def _offer(self) -> None:
        """Try for everybody, the first first; equal wishes are refused alike without looking again."""
        waiting = [waiter for waiter in self._waiters if self._idle(waiter)]
        if not waiting or not self._fleet.linked:
            return  # without a link nothing could be written; on its return everybody is offered again
        refused: dict[tuple[Requirements, frozenset[RunnerId]], Refusal] = {}
        known = self._fleet.known
        for waiter in waiting:
            wanted = waiter.wanted
            if wanted.session in self._claiming:
                continue  # by another call for the same session
            holds = self._fleet.held_by(wanted.session)
            own = self._own(wanted) if holds else None
            if holds and own is None and not known:
                continue  # it may turn out that what it holds is in order
            wish = (wanted.requirements, wanted.exclude)
            choice = own or refused.get(wish) or self._choose(wanted)
            if isinstance(choice, Candidate):
                self._claiming.add(wanted.session)
                self._claims.create_task(self._claim(waiter, choice), name=f"claim {wanted.session}")
            else:
                refused[wish] = waiter.refusal = choice
                if known:
                    self._refuse(waiter)

    def _idle(self, waiter: _Waiter) -> bool:
        """Whether nothing is being done for it now."""
        return not waiter.answer.done() and waiter.wanted.session not in self._claiming

    def _own(self, wanted: Wanted) -> Candidate | None:
        """The slot that the session holds already, if it fits."""
        for candidate in self._fleet.holdings(wanted.session):
            if (
                candidate.state is SlotState.HELD
                and candidate.runner not in wanted.exclude
                and wanted.requirements.pipeline in candidate.offered
                and wanted.requirements.match(candidate)
            ):
                return candidate
        return None

    def _choose(self, wanted: Wanted) -> Candidate | Refusal:
        return choose(
            self._fleet.candidates(),
            wanted.requirements,
            exclude=wanted.exclude,
            among=self._among,
            random=self._random,
        )

    async def _claim(self, waiter: _Waiter, candidate: Candidate) -> None:
        session = waiter.wanted.session
        try:
            with self._fleet.claimed_here(candidate):
                granted = await self._slots.take(candidate.runner, candidate.slot, session)
            if granted is None:
                self._lost(waiter)
            elif waiter.answer.done():
                await self._give_back(granted)
            else:
                waiter.answer.set_result(granted)
                log.info("slot granted", session=session, runner=granted.runner, slot=granted.slot)
        except Exception as error:  # noqa: BLE001 - it is the caller's, who may have left
            if not waiter.answer.done():
                waiter.answer.set_exception(error)
            elif isinstance(error, SluiceError):
                log.warning("slot of a cancelled grant unknown", session=session, reason=error.reason)
            else:
                report_bug("claim", error, session=session)
        finally:
            self._claiming.discard(session)
            self._offer()

    def _lost(self, waiter: _Waiter) -> None:
        """Another router was faster: it is offered the next slot, in its old place."""
        waiter.conflicts += 1
        if waiter.conflicts >= MAX_CONFLICTS and not waiter.answer.done():
            waiter.answer.set_exception(UnavailableError("too much contention", reason="CONTENTION"))

    def _abandon(self, waiter: _Waiter) -> None:
        """The caller left. A claim under way gives back what it gets; an answer is given back here."""
        answer = waiter.answer
        answer.cancel()
        if not answer.cancelled() and answer.exception() is None:
            self._claims.create_task(self._return(answer.result()), name="give back")

    async def _return(self, granted: Granted) -> None:
        try:
            await self._give_back(granted)
        except SluiceError as error:
            log.warning("slot of a cancelled grant kept", session=granted.session, reason=error.reason)

    async def _give_back(self, granted: Granted) -> None:
        await self._slots.give_back(granted)
        log.info("slot given back", session=granted.session, runner=granted.runner, slot=granted.slot)

    # --- refusals

    def _refuse(self, waiter: _Waiter) -> None:
        """Refuse who has no time left, and at once who asks for what no runner offers."""
        if waiter.refusal is Refusal.UNKNOWN_PIPELINE:
            heard = [runner.advert for runner in self._fleet.runners() if runner.heard]
            if heard:
                waiter.answer.set_exception(_unknown(waiter.wanted.requirements.pipeline, heard))
                return
        if asyncio.get_running_loop().time() >= waiter.until_s:
            self._expire(waiter)

    def _expire(self, waiter: _Waiter) -> None:
        if self._idle(waiter):  # else the end of the claim decides
            waiter.answer.set_exception(self._exhausted(waiter) if self._fleet.known else fleet_unknown())

    def _exhausted(self, waiter: _Waiter) -> ExhaustedError:
        pipeline = waiter.wanted.requirements.pipeline
        states = [slot.state for slot in self._fleet.candidates() if pipeline in slot.offered]
        position = 1 + list(self._waiters).index(waiter)
        return ExhaustedError(
            f"no slot for the pipeline {pipeline!r} is free",
            reason="NO_CAPACITY",
            retry_after_s=min(1 + position, RETRY_AFTER_MAX_S),  # those further back come later
            free=states.count(SlotState.READY),
            total=len(states) - states.count(SlotState.LOST),
            position=position,
            why=waiter.refusal.value,
        )


def _unknown(pipeline: str, adverts: Iterable[RunnerAdvert]) -> NotFoundError:
    available = sorted({offer.name for advert in adverts for offer in advert.pipelines})
    return NotFoundError(
        f"no runner offers the pipeline {pipeline!r}",
        reason="UNKNOWN_PIPELINE",
        pipeline=pipeline,
        available=",".join(available),
    )
