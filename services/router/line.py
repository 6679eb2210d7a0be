"""Grants: who asks is given a slot at once or stands in the line of all routers until one comes free.

The rules it keeps: whoever comes first in the order of service is offered a slot first, and a later one
passes only with a slot that is left when each before it had its choice, or that was left in vain to one whose
router does not take it; nobody who holds a slot loses it to another; a slot taken for somebody who left
meanwhile is given back.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter as Tally
from collections.abc import Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.common.errors import ExhaustedError, NotFoundError, SluiceError, UnavailableError
from services.common.latest import Latest
from services.common.telemetry import report_bug
from services.router.fleet import KNOWN_WITHIN_S, Fleet, fleet_unknown
from services.router.placement import Place, RunnerId, SessionId, Wish
from services.router.settings import RouterSettings
from services.router.slots import Granted, Slots
from services.router.waiting import Queue, Waiter

log = structlog.get_logger()

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 100, 300)
GRANTS: Final = Counter("sluice_alloc_requests_total", "Finished grants by result.", ["result"])
GRANTED: Final = GRANTS.labels("granted")
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
# A slot to the waiter of another router: three heartbeats. What that has not heard of by then it may never.
LEFT_FOR_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session's wish; of those who wait the higher priority is served first."""

    session: SessionId
    wish: Wish
    priority: int = 0


@dataclass(slots=True, eq=False)
class _Call:
    waiter: Waiter
    until_s: float
    answer: asyncio.Future[Granted]
    conflicts: int = 0


class Line:
    """Owned by one event loop; `tasks` is the block that ends what it starts."""

    def __init__(
        self, fleet: Fleet, slots: Slots, queue: Queue, tasks: asyncio.TaskGroup, settings: RouterSettings
    ) -> None:
        self._fleet = fleet
        self._slots = slots
        self._queue = queue
        self._tasks = tasks
        self._max_waiters = settings.max_waiters
        self._calls: dict[Waiter, _Call] = {}
        self._by_session: dict[SessionId, list[_Call]] = {}
        self._claiming: set[SessionId] = set()
        self._knew = False
        self._left: dict[Waiter, float] = {}  # of other routers, to whom a slot is left, and since when
        self._again: asyncio.TimerHandle | None = None

    async def follow(self, changed: Latest[None]) -> None:
        """Offer every change to those who wait: a loop for `background`, for the fleet and for the queue."""
        version = 0
        while True:
            version, _ = await changed.newer_than(version)
            self._offer()

    async def grant(self, wanted: Wanted, wait_s: float) -> Granted:
        """A slot for the session, within `wait_s`.

        Raises ExhaustedError, NotFoundError for a pipeline that nobody has, UnavailableError.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if len(self._calls) >= self._max_waiters:
            wait_s = 0.0
        until_s = now_s + wait_s
        waiter = self._queue.join(wanted.session, wanted.wish, wanted.priority, wait_s)
        call = self._calls[waiter] = _Call(waiter, until_s, loop.create_future())
        self._by_session.setdefault(wanted.session, []).append(call)
        at_the_latest_s = until_s if self._known else max(until_s, now_s + KNOWN_WITHIN_S)
        timer = loop.call_at(at_the_latest_s, self._expire, call)
        try:
            self._offer()
            self._settle(call)
            if self._idle(call):  # nothing is free: it waits
                with WAITING.track_inprogress(), WAIT.time():
                    if wait_s > 0:
                        self._start(self._queue.show(waiter), "show waiter")
                    granted = await call.answer
            else:
                granted = await call.answer
        except asyncio.CancelledError:
            self._abandon(call)
            GRANTS.labels("cancelled").inc()
            raise
        except SluiceError as error:
            GRANTS.labels(error.reason.lower()).inc()
            raise
        finally:
            timer.cancel()
            self._leave(call)
        GRANTED.inc()
        SECONDS.observe(loop.time() - now_s)
        return granted

    def _leave(self, call: _Call) -> None:
        del self._calls[call.waiter]
        if not self._calls:
            self._left = {}
        calls = self._by_session[call.waiter.session]
        calls.remove(call)
        if not calls:
            del self._by_session[call.waiter.session]
        if self._queue.leave(call.waiter):
            self._start(self._queue.withdraw(call.waiter), "withdraw waiter")

    def _start(self, work: Coroutine[object, object, None], name: str) -> None:
        self._tasks.create_task(work, name=name)

    @property
    def _known(self) -> bool:
        """Whether a refusal would be just: the fleet is known, and who came before."""
        return self._fleet.known and self._queue.view.ready.is_set()

    # --- offers

    def _offer(self) -> None:
        """Try for everybody, the first first."""
        if not self._calls or not self._fleet.linked:
            self._left = {}
            return  # without a link nothing could be written; on its return everybody is offered again
        known = self._known
        self._offer_own()
        if self._queue.own_standing and self._queue.view.ready.is_set():
            self._offer_free(known)
        else:
            self._left = {}
        if known and not self._knew:
            for call in self._calls.values():
                self._settle(call)
        self._knew = known

    def _offer_free(self, known: bool) -> None:
        reserved: Tally[RunnerId] = Tally()
        unknown: set[Wish] = set()
        left: dict[Waiter, float] = {}

        def offer(waiter: Waiter) -> bool:
            call = self._calls.get(waiter)
            if call is not None and not self._may_choose(call, known):
                return True
            place = self._fleet.choose(waiter.wish, reserved)
            if place is None:
                if not self._fleet.offers(waiter.wish.requirements.pipeline):
                    unknown.add(waiter.wish)
                return False
            if call is None:  # its own router gives it a slot: this one, or one as good
                if self._leaves_one(waiter, left):
                    reserved[place.runner] += 1
            else:
                self._claim(call, place)
            return True

        self._queue.serve(offer)
        self._left = left
        self._offer_again()
        if known and unknown:
            self._refuse(unknown)

    def _leaves_one(self, waiter: Waiter, left: dict[Waiter, float]) -> bool:
        """Whether a slot is left to a waiter of another router, which it may see later than this one."""
        now_s = asyncio.get_running_loop().time()
        since_s = left[waiter] = self._left.get(waiter, now_s)
        return now_s < since_s + LEFT_FOR_S

    def _offer_again(self) -> None:
        """Offer once more when the first of those to whom a slot is left has had it for long enough."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        due_s = [since_s + LEFT_FOR_S for since_s in self._left.values() if now_s < since_s + LEFT_FOR_S]
        if due_s:
            self._again = loop.call_at(min(due_s), self._offer)

    def _offer_own(self) -> None:
        """Give sessions what they hold already; it takes nothing from anybody."""
        for session in self._by_session.keys() & self._fleet.holders():
            for call in self._by_session[session]:
                if self._idle(call):
                    own = self._fleet.own(session, call.waiter.wish)
                    if own is not None:
                        self._claim(call, own)

    def _may_choose(self, call: _Call, known: bool) -> bool:
        """Not while another call for its session claims, nor while what it holds may yet be in order."""
        return self._idle(call) and (known or not self._fleet.held_by(call.waiter.session))

    def _idle(self, call: _Call) -> bool:
        """Whether nothing is being done for it now."""
        return not call.answer.done() and call.waiter.session not in self._claiming

    def _claim(self, call: _Call, place: Place) -> None:
        session = call.waiter.session
        self._claiming.add(session)
        self._fleet.claim(place)  # now, for the task begins after others have chosen
        for same in self._by_session[session]:
            self._queue.step_out(same.waiter)
        self._start(self._take(call, place), f"claim {session}")

    async def _take(self, call: _Call, place: Place) -> None:
        session = call.waiter.session
        try:
            try:
                granted = await self._slots.take(place.runner, place.slot, session)
            finally:
                self._fleet.unclaim(place)
            if granted is None:
                self._lost(call)
            elif call.answer.done():
                await self._give_back(granted)
            else:
                call.answer.set_result(granted)
                log.info("slot granted", session=session, runner=granted.runner, slot=granted.slot)
        except Exception as error:  # noqa: BLE001 - it is the caller's, who may have left
            if not call.answer.done():
                call.answer.set_exception(error)
            elif isinstance(error, SluiceError):
                log.warning("slot of a cancelled grant unknown", session=session, reason=error.reason)
            else:
                report_bug("claim", error, session=session)
        finally:
            self._claiming.discard(session)
            waiting = [same for same in self._by_session.get(session, ()) if not same.answer.done()]
            for same in waiting:
                self._queue.stand(same.waiter)
            self._offer()
            for same in waiting:
                self._settle(same)

    def _lost(self, call: _Call) -> None:
        """Another router was faster: it is offered the next slot, in its old place."""
        call.conflicts += 1
        if call.conflicts >= MAX_CONFLICTS and not call.answer.done():
            call.answer.set_exception(UnavailableError("too much contention", reason="CONTENTION"))

    def _abandon(self, call: _Call) -> None:
        """The caller left. A claim under way gives back what it gets; an answer is given back here."""
        answer = call.answer
        answer.cancel()
        if not answer.cancelled() and answer.exception() is None:
            self._start(self._return(answer.result()), "give back")

    async def _return(self, granted: Granted) -> None:
        try:
            await self._give_back(granted)
        except SluiceError as error:
            log.warning("slot of a cancelled grant kept", session=granted.session, reason=error.reason)

    async def _give_back(self, granted: Granted) -> None:
        await self._slots.give_back(granted)
        log.info("slot given back", session=granted.session, runner=granted.runner, slot=granted.slot)

    # --- refusals

    def _refuse(self, unknown: Collection[Wish]) -> None:
        """Refuse at once who asks for what no runner offers, if any is heard."""
        offered = self._fleet.offered()
        for call in self._calls.values() if offered else ():
            wish = call.waiter.wish
            if wish in unknown and self._idle(call):
                call.answer.set_exception(_unknown(wish.requirements.pipeline, offered))

    def _settle(self, call: _Call) -> None:
        """Refuse who has no time left."""
        if self._known and asyncio.get_running_loop().time() >= call.until_s:
            self._expire(call)

    def _expire(self, call: _Call) -> None:
        if self._idle(call):  # else the end of the claim decides
            call.answer.set_exception(self._exhausted(call.waiter) if self._known else fleet_unknown())

    def _exhausted(self, waiter: Waiter) -> ExhaustedError:
        pipeline = waiter.wish.requirements.pipeline
        total, free = self._fleet.slots_of(pipeline)
        position = self._queue.position(waiter)
        expected_s = self.expected_wait_s(pipeline, position)
        # Those further back come later; nobody who is told when comes much later than that.
        retry_after_s = 1 + position if expected_s is None else math.ceil(expected_s)
        return ExhaustedError(
            f"no slot for the pipeline {pipeline!r} is free",
            reason="NO_CAPACITY",
            retry_after_s=max(1, min(retry_after_s, RETRY_AFTER_MAX_S)),
            free=free,
            total=total,
            position=position,
            expected_wait_ms=-1 if expected_s is None else round(expected_s * 1000),
            why=self._fleet.why_none(waiter.wish).value,
        )

    def expected_wait_s(self, pipeline: str, position: int) -> float | None:
        """How long the one at `position` waits if slots come free as they did lately; None: none did."""
        freed_per_s = self._fleet.freed_per_s(pipeline)
        return position / freed_per_s if freed_per_s > 0 else None


def _unknown(pipeline: str, offered: Iterable[str]) -> NotFoundError:
    return NotFoundError(
        f"no runner offers the pipeline {pipeline!r}",
        reason="UNKNOWN_PIPELINE",
        pipeline=pipeline,
        available=",".join(offered),
    )
