"""Moves one session to another runner, make-before-break: when its runner fails it, or somebody wishes it.

The rule it keeps: what is about to be done is in the record before it is done, and every step may be done
again, so that whoever adopts the session goes on with a move or undoes it. The order:

    record MIGRATING -> grant -> record `next` -> open -> attach -> promote -> (the bridge shows it)
    -> record the new place -> detach the old runner -> release its slot
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog
from prometheus_client import Counter, Histogram

from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    ExhaustedError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.latest import Latest
from services.common.telemetry import span
from services.session_manager.candidate import Candidate, Fate, Outcome, closed
from services.session_manager.draining import DRAIN
from services.session_manager.failover import (
    BREAKER,
    FAILURES,
    FORCED,
    PLANNED,
    RUNNERS_OWN,
    SLOW,
    Step,
    Verdict,
    quicker_us,
    wished,
)
from services.session_manager.machine import Move, Phase, Place, Reason, Session
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import Record, alive
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import Telling, now_unix_ms
from services.session_manager.waiting import Aside, race, tolerant
from services.session_manager.watch import End, Watch

log = structlog.get_logger()

MOVES: Final = Counter("sluice_moves_total", "Moves to another runner by why and result.", ["why", "result"])
FREEZE: Final = Histogram(
    "sluice_move_freeze_seconds",
    "Between the last picture of the old runner and the first of the new one.",
    ["kind"],
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 10, 30),
)
WHYS: Final = PLANNED | FORCED | FAILURES
MOVED: Final = "moved"
CALLED_OFF: Final = "called_off"
NO_ROOM: Final = "no_room"
GIVEN_UP: Final = "given_up"
ENDED: Final = "ended"
RETRY_S: Final = 0.5
SETTLED_S: Final = 1.0  # a bridge and a runner were heard by then, or not
LOOK_S: Final = 0.05
PLANNED_LOOK_S: Final = 0.25  # many may wait for room at a time
WARM_AGAIN_S: Final = 2.0  # when there was no warm runner, while an engine restarts
QUICKER_AGAIN_S: Final = 10.0  # when there was no quicker runner: fleets do not change in a moment
PLANNED_WAIT_S: Final = 20.0  # in the queue, before it is joined anew
WISHED_FOR_S: Final = 600.0  # then a wish for which there was no room is given up; a drain's stays
PRIORITY: Final = 100  # who has a session to lose is served before who begins one
LEAVE_ATTEMPTS: Final = 5  # then it is the reconciler's


class Mover:
    """Of one session. `aside` runs what need not be waited for: the farewell to the old runner."""

    def __init__(
        self,
        record: Record,
        watch: Watch,
        *,
        store: Store,
        neighbours: Neighbours,
        settings: SessionManagerSettings,
        telling: Telling,
        aside: Aside,
    ) -> None:
        self._record = record
        self._watch = watch
        self._store = store
        self._neighbours = neighbours
        self._settings = settings
        self._telling = telling
        self._aside = aside
        self._now = asyncio.get_running_loop().time
        self._adopted = True  # what is half done is gone on with, whoever began it
        self._left: set[str] = set()  # runners that are being told that it left
        self._failing_since_s: float | None = None
        self._accused_epoch = 0  # whose runner was told of already
        self._parted: set[int] = set()  # epochs that were let go
        self._wanted, self._wanted_since_s = "", 0.0  # a wish without room, and since when

    async def run(self) -> End:
        """Move the session whenever it must be; return why it must end when it cannot."""
        while True:
            wish = await self._wish()
            self._adopted = self._adopted and self._record.now.next is not None
            self._failing_since_s = None if wish.planned else self._failing_since_s or self._now()
            try:
                end = await self._move(wish)
            except (UnavailableError, DeadlineExceededError, ConflictError, NotFoundError) as error:
                # NATS or its bridge is away, or it ended: of that its watcher tells. The time does not count.
                log.info("move interrupted", session=self._record.now.id, reason=error.reason)
                self._failing_since_s, self._adopted = None, True
                await asyncio.sleep(RETRY_S)
                continue
            self._adopted = False
            if end is not None:
                return end

    # --- what is wished

    async def _wish(self) -> Verdict:
        """Wait until the session is wished elsewhere."""
        watched: tuple[Latest[Any], ...] = (
            self._record.changed,
            self._watch.verdict,
            self._watch.report,
        )
        while True:
            versions = [one.version for one in watched]
            wish = self._wished()
            if wish is not None:
                return wish
            self._failing_since_s, self._wanted = None, ""
            if self._record.now.phase is Phase.MIGRATING and self._watch.heard_for_s > SETTLED_S:
                await self._stay_tolerantly()  # whoever meant to move it died, and nothing calls for it now
            await race(*(_newer(one, version) for one, version in zip(watched, versions, strict=True)))

    def _wished(self) -> Verdict | None:
        session = self._record.now
        if session.bridge_lost_unix_ms or session.phase in {Phase.ALLOCATING, Phase.ENDED}:
            return None
        if not self._watch.opened:  # its publisher comes back elsewhere just now: that goes first
            return None
        verdict = self._watch.verdict_of(session.epoch)
        if verdict.step is not Step.STAY and not verdict.planned:
            return verdict
        if session.move_wanted:
            return wished(session.move_wanted)
        if self._adopted and session.next is not None:
            return wished(session.next.why)
        return verdict if verdict.step is Step.MOVE else None

    def _due(self) -> bool:
        """Whether viewers are to get the output of a candidate that is there."""
        wish = self._wished()
        return wish is not None and wish.step is Step.MOVE

    # --- one move

    async def _move(self, wish: Verdict) -> End | None:
        session = self._record.now
        context = {"traceparent": session.traceparent}
        with span("session.move", carrier=context, session_id=session.id, session_why=wish.why) as current:
            result, end = await self._through_runners(wish)
            if result == NO_ROOM and await self._give_up(wish):
                result = GIVEN_UP
            current.set_attribute("session.result", result)
        MOVES.labels(wish.why if wish.why in WHYS else "other", result).inc()
        if result == NO_ROOM:
            within_s = QUICKER_AGAIN_S if wish.why == SLOW else WARM_AGAIN_S if wish.warm else RETRY_S
            await self._until(lambda: self._wished() != wish, within_s=within_s)
        return end

    async def _give_up(self, wish: Verdict) -> bool:
        """Whether somebody's wish was without room for so long that it is taken out of the record.

        A drained runner's session cannot stay, so that wish is its operator's to take back.
        """
        wanted = self._record.now.move_wanted
        if not wish.planned or wanted in {"", DRAIN}:
            return False
        if wanted != self._wanted:
            self._wanted, self._wanted_since_s = wanted, self._now()
        for_s = self._now() - self._wanted_since_s
        if for_s < WISHED_FOR_S:
            return False
        await self._record.change(
            lambda was: alive(was).with_(move_wanted="" if was.move_wanted == wanted else was.move_wanted)
        )
        log.warning("move given up", session=self._record.now.id, why=wanted, for_s=round(for_s))
        return True

    async def _through_runners(self, wish: Verdict) -> tuple[str, End | None]:
        """Ask one runner after the other; the result, and why the session must end."""
        refused: set[str] = set()
        if not wish.planned and not self._record.now.move_wanted:
            await self._enter(lambda was: alive(was).leaving())
        while True:
            session = self._record.now
            if session.next is not None and self._watch.shows(session.next):
                await self._arrive(session, session.next, wish)
                return MOVED, None
            if wish.counts and session.failures + 1 >= BREAKER:
                return ENDED, End(Reason.BREAKS_RUNNERS, f"{BREAKER} in a row, the last: {wish.message}")
            self._accuse(session, wish)
            try:
                granted = await self._grant(wish, refused)
            except ExhaustedError:
                return await self._without_room(wish)
            if granted is None:
                await self._stay()
                return CALLED_OFF, None
            candidate = self._candidate(await self._head_for(replace(granted, why=wish.why)))
            outcome = await candidate.run()
            result = await self._after(candidate.place, outcome, wish, refused)
            if result:
                return result, None

    def _candidate(self, place: Place) -> Candidate:
        return Candidate(
            place,
            record=self._record,
            watch=self._watch,
            store=self._store,
            neighbours=self._neighbours,
            settings=self._settings,
            wanted=lambda: self._wished() is not None,
            due=self._due,
        )

    async def _after(self, place: Place, outcome: Outcome, wish: Verdict, refused: set[str]) -> str:
        """What a candidate's fate means: the result of the move; empty when another runner is to be asked."""
        session = self._record.now
        if session.next != place:  # its publisher came back elsewhere
            self._farewell(place)
            return CALLED_OFF
        if outcome.fate is Fate.TOO_EARLY:
            self._farewell(place)
            await self._stay()
            return CALLED_OFF
        if outcome.fate is Fate.ARRIVED or not await closed(session, place, self._neighbours):
            newest = self._wished()  # the runner may have failed it since
            await self._arrive(session, place, newest if newest is not None and newest.counts else wish)
            return MOVED
        log.warning(
            "candidate let go",
            session=session.id,
            runner=place.runner,
            fate=outcome.fate.name,
            why=outcome.why,
        )
        self._farewell(place)
        if outcome.fate in {Fate.UNWANTED, Fate.NO_BRIDGE}:
            await self._stay()
            if outcome.fate is Fate.NO_BRIDGE:
                await asyncio.sleep(RETRY_S)
            return CALLED_OFF
        refused.add(place.runner)
        if outcome.fate is Fate.FAILED and not wish.planned:
            self._telling.failed(session, place, outcome.why)
            await self._record.change(lambda was: alive(was).with_(failures=was.failures + 1))
        return ""

    async def _arrive(self, session: Session, place: Place, wish: Verdict) -> None:
        self._accuse(session, wish)
        handover = self._watch.report.value.handover
        mine = handover.epoch == place.epoch
        move = Move(
            unix_ms=now_unix_ms(),
            left=session.runner,
            to=place.runner,
            why=place.why,
            epoch=place.epoch,
            freeze_ms=handover.freeze_ms if mine else 0,
            lost=handover.lost if mine else 0,
            repeated=handover.repeated if mine else 0,
        )
        now = await self._record.change(lambda was: alive(was).moved(move, failures=int(wish.counts)))
        self._telling.moved(now, move)
        FREEZE.labels("planned" if wish.planned else "failed").observe(move.freeze_ms / 1000)
        log.info(
            "session moved",
            session=now.id,
            left=move.left,
            to=move.to,
            why=move.why,
            freeze_ms=move.freeze_ms,
        )
        self._failing_since_s = None
        self._farewell(session.place)

    async def _stay(self) -> None:
        """The session is on its way to nowhere, and lives where it is.

        Raises ConflictError when viewers get the output of the next place already.
        """
        session = self._record.now
        if session.next is not None and session.next.epoch not in self._parted:
            if not await closed(session, session.next, self._neighbours):
                raise ConflictError("it has arrived", reason="EPOCH_IS_CURRENT", session=session.id)
            self._farewell(session.next)
        phase = Phase.LIVE if self._watch.shown else Phase.STARTING
        await self._enter(lambda was: alive(was).staying(phase))

    async def _enter(self, step: Callable[[Session], Session]) -> Session:
        was = self._record.now.phase
        now = await self._record.change(step)
        if now.phase is not was:
            self._telling.entered(now)
        return now

    async def _without_room(self, wish: Verdict) -> tuple[str, End | None]:
        if wish.planned or self._watch.flowing:
            await self._stay()
            return NO_ROOM, None
        within_s, failures = self._settings.failover_within_s, self._record.now.failures + 1
        message = f"{wish.why}: {wish.message or 'it cannot stay'}, and no other runner within {within_s:g} s"
        if wish.why in RUNNERS_OWN and failures > 1:  # there is room, but on those that it broke
            return ENDED, End(Reason.BREAKS_RUNNERS, f"{failures} in a row; {message}")
        return ENDED, End(Reason.NO_CAPACITY, message)

    def _accuse(self, session: Session, wish: Verdict) -> None:
        """Tell the routers of a runner that failed the session, once."""
        blamed = wish.step is Step.MOVE and wish.why in FAILURES
        if blamed and self._accused_epoch != session.epoch:
            self._accused_epoch = session.epoch
            self._telling.failed(session, session.place, wish.why)

    # --- a slot

    async def _grant(self, wish: Verdict, refused: set[str]) -> Place | None:
        """A slot at another runner; None when none is needed any more. Raises ExhaustedError."""
        until_s = self._now() + PLANNED_WAIT_S
        if self._failing_since_s is not None:
            until_s = self._failing_since_s + self._settings.failover_within_s
        while self._wished() is not None:
            restarted = self._watch.restarted
            # A process that was started again may have the session again, in the same slot.
            own = () if restarted else (self._record.now.runner,)
            exclude = sorted({*refused, *self._left, *own})
            try:
                place = await race(self._ask(exclude, wish, until_s), self._otherwise(restarted=restarted))
            except (ExhaustedError, UnavailableError, DeadlineExceededError) as error:
                # Only a router knows that there is no room: one that is away ends no session.
                known = wish.planned or isinstance(error, ExhaustedError)
                if known and (wish.warm or self._now() >= until_s):
                    raise ExhaustedError(error.message, reason="NO_CAPACITY") from error
                log.info("no runner yet", session=self._record.now.id, reason=error.reason)
                await self._until(lambda: self._wished() is None, within_s=RETRY_S)
            else:
                if place is not None:
                    return place
        await self._give_back(refused)
        return None

    async def _ask(self, exclude: list[str], wish: Verdict, until_s: float) -> Place | None:
        """A warm runner shows the session in a moment; any other one is better than none.

        Of these last the ones that failed it a moment ago. For slowness alone only a quicker one is better.
        """
        session = self._record.now
        recent = session.moves[-session.failures :] if session.failures else ()
        others = sorted({*exclude, *(move.left for move in recent if move.why in FAILURES)})
        max_frame_us = quicker_us(self._watch.infer_ms) if wish.why == SLOW else 0
        with span("session.grant"):
            for warm in (True,) if wish.warm else (True, False):
                try:
                    return await self._neighbours.grant(
                        session,
                        exclude=others,
                        wait_s=0,
                        warm=warm,
                        max_frame_us=max_frame_us,
                        priority=PRIORITY,
                    )
                except ExhaustedError:
                    if wish.warm:
                        raise
            wait_s = max(0.0, until_s - self._now())
            return await self._neighbours.grant(session, exclude=exclude, wait_s=wait_s, priority=PRIORITY)

    async def _otherwise(self, *, restarted: bool) -> Place | None:
        """Return when it makes no sense any more to wait for what was asked."""
        while True:
            wish = self._wished()
            if wish is None or self._watch.restarted is not restarted:
                return None
            await asyncio.sleep(PLANNED_LOOK_S if wish.planned else LOOK_S)

    async def _give_back(self, refused: set[str]) -> None:
        """Free what was granted while nobody waited for it any more: a router that is asked again says so."""
        session = self._record.now
        exclude = sorted({*refused, session.runner})
        try:
            place = await self._neighbours.grant(session, exclude=exclude, wait_s=0)
            await self._neighbours.release(session.id, place.runner)
        except SluiceError as error:  # there was none, or the reconciler will find it
            log.debug("nothing given back", session=session.id, reason=error.reason)

    async def _head_for(self, granted: Place) -> Place:
        """Put the slot into the record as the next one, unless it is there from before; the next one."""
        session = self._record.now
        before = session.next
        if before is not None and before.same_slot(granted):
            return before
        parting = before if before is not None and before.epoch not in self._parted else None
        try:
            if parting is not None and not await closed(session, parting, self._neighbours):
                self._farewell(granted)  # viewers get the one before already
                return parting
            place = (await self._enter(lambda was: was.heading(granted))).next
        except SluiceError:
            self._farewell(granted)
            raise
        assert place is not None, "it heads for somewhere"
        if parting is not None:
            self._farewell(parting)  # only now: it may be of the runner that is granted again
        return place

    # --- farewell

    def _farewell(self, place: Place) -> None:
        """Have a runner let the session go, and free its slot, while the session goes on elsewhere."""
        self._parted.add(place.epoch)
        here = self._record.now.place
        # The process that came after the one that failed, in the very slot: it is let go, the slot is kept.
        in_vain = place.same_slot(here) and place.epoch > here.epoch
        if place.runner not in self._left and (in_vain or not self._has(place)):
            self._left.add(place.runner)
            self._aside(f"leave/{place.runner}/{self._record.now.id}", self._leave(place))

    async def _leave(self, place: Place) -> None:
        session = self._record.now.id
        try:
            await tolerant(self._neighbours.detach(session, place, "moved"))
            for _ in range(LEAVE_ATTEMPTS):
                if self._has(place):
                    return
                try:
                    await self._neighbours.release(session, place.runner)
                except SluiceError as error:
                    log.info(
                        "slot not released yet", session=session, runner=place.runner, reason=error.reason
                    )
                else:
                    return
                await asyncio.sleep(RETRY_S)
        finally:
            self._left.discard(place.runner)

    def _has(self, place: Place) -> bool:
        """Whether the session is or will be on that runner, or in the very slot, in another epoch."""
        now = self._record.now
        others = [now.place, *([now.next] if now.next and now.next.epoch not in self._parted else [])]
        return any(other.runner == place.runner and other.epoch != place.epoch for other in others)

    async def _until(self, true: Callable[[], bool], *, within_s: float) -> None:
        """Look until it is `true`, for a while: several may make it so."""
        until_s = self._now() + within_s
        while not true() and self._now() < until_s:  # noqa: ASYNC110 - it depends on more than one thing
            await asyncio.sleep(LOOK_S)

    async def _stay_tolerantly(self) -> None:
        try:
            await self._stay()
        except SluiceError as error:  # NATS is away, or the record is another's: with the next report
            log.info("not recorded", session=self._record.now.id, reason=error.reason)


async def _newer(one: Latest[Any], version: int) -> None:
    await one.newer_than(version)
