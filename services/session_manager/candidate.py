"""One other runner for a session: its channels opened, attached, promoted when it is wanted, or let go.

Each step may be done again, by whoever adopts a move that is half done.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.telemetry import span
from services.session_manager.failover import RUNNER_LOST
from services.session_manager.machine import Place, Session, Stream
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import Record, alive
from services.session_manager.revisions import Scheduled, difference
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store, patch_to_proto
from services.session_manager.waiting import race, within
from services.session_manager.watch import Watch

log = structlog.get_logger()

LOOK_S: Final = 0.02  # between two looks at whether it is wanted still
RETRY_S: Final = 0.25
BREAKS: Final = 2  # of its reports, one after the other, until it is lost
OPENS: Final = 5  # of which each is above what the bridge knew before
LOST: Final = frozenset({runner_pb2.SlotReport.STATE_FAILED, runner_pb2.SlotReport.STATE_DETACHED})


class Fate(enum.Enum):
    """What became of a candidate."""

    ARRIVED = enum.auto()  # viewers get its output
    REFUSED = enum.auto()
    FAILED = enum.auto()
    UNWANTED = enum.auto()
    TOO_EARLY = enum.auto()  # its publisher comes back at another bridge just now, and that goes first
    NO_BRIDGE = enum.auto()  # that knows the session


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fate and, of a failure, its reason."""

    fate: Fate
    why: str = ""


class Candidate:
    """At `place`, the next one of the record.

    `wanted`: whether it may still be needed; `due`: whether viewers are to get its output now.
    """

    def __init__(
        self,
        place: Place,
        *,
        record: Record,
        watch: Watch,
        store: Store,
        neighbours: Neighbours,
        settings: SessionManagerSettings,
        wanted: Callable[[], bool],
        due: Callable[[], bool],
    ) -> None:
        self.place = place
        self._record = record
        self._watch = watch
        self._store = store
        self._neighbours = neighbours
        self._settings = settings
        self._wanted = wanted
        self._due = due
        self._now = asyncio.get_running_loop().time

    async def run(self) -> Outcome:
        """Make viewers get its output as soon as that is due. What it holds is for the caller to free."""
        if not self._watch.opened:
            return Outcome(Fate.TOO_EARLY)
        if self._is_there():
            return Outcome(Fate.ARRIVED)
        try:
            with span("session.open", session_runner=self.place.runner):
                channels = await self._open()
        except ConflictError:
            return Outcome(Fate.UNWANTED)
        except (NotFoundError, UnavailableError, DeadlineExceededError) as error:
            return Outcome(Fate.NO_BRIDGE, error.reason)
        stream = await self._store.stream(self._record.now.stream)
        try:
            with span("session.attach", session_runner=self.place.runner):
                await self._attach(stream, channels)
        except SluiceError as error:
            return Outcome(Fate.REFUSED, error.reason)
        return await race(self._until_lost(), self._until_there())

    @property
    def _superseded(self) -> bool:
        """Whether the session goes elsewhere, or nowhere: its publisher came back through another bridge."""
        return self._record.now.next != self.place

    async def _open(self) -> bridge_pb2.Channels:
        """Raises ConflictError when the session does not go there any more."""
        for _ in range(OPENS):
            if self._superseded:
                raise ConflictError("the session does not go there any more", reason="SUPERSEDED")
            try:
                return await self._neighbours.open_bridge(
                    self._record.now, self.place, overdraft_s=self._settings.overdraft_s
                )
            except ConflictError as error:
                # Of a candidate that was let go: the record does not keep what became of nothing.
                highest = int(error.details.get("highest", "0"))
            self.place = await self._above(highest)
        raise UnavailableError("the bridge opens no epoch of the session", reason="STALE_EPOCH")

    async def _above(self, highest: int) -> Place:
        """Its place, in an epoch above all that the bridge knows."""

        def step(was: Session) -> Session:
            if was.next != self.place:
                raise ConflictError("the session does not go there any more", reason="SUPERSEDED")
            return alive(was).heading(self.place, above=highest)

        place = (await self._record.change(step)).next
        assert place is not None, "it heads for somewhere"
        return place

    async def _attach(self, stream: Stream, channels: bridge_pb2.Channels) -> None:
        session = self._record.now
        out_pts = self._watch.report.value.position.out_pts
        await self._neighbours.attach(session, self.place, stream, channels, after_pts=out_pts)
        await catch_up(session, self.place, stream, store=self._store, neighbours=self._neighbours)

    async def _until_there(self) -> Outcome:
        while self._wanted() and not self._due():  # noqa: ASYNC110 - several may change it, this looks at all
            await asyncio.sleep(LOOK_S)
        if not self._wanted() or self._superseded:
            return Outcome(Fate.UNWANTED)
        outcome = await self._promote(self.place)
        if outcome is not None:
            return outcome
        waited_s, looked_s = 0.0, self._now()
        while not self._is_there():
            if self._superseded:
                return Outcome(Fate.UNWANTED)
            now_s = self._now()
            if self._watch.sending:  # without pictures that go in none comes out
                waited_s += now_s - looked_s
            looked_s = now_s
            if waited_s > self._settings.first_output_within_s:
                return Outcome(Fate.FAILED, "no_output")
            await asyncio.sleep(LOOK_S)
        return Outcome(Fate.ARRIVED)

    async def _promote(self, place: Place) -> Outcome | None:
        deadline_s = self._now() + self._settings.call_timeout_s
        while True:
            try:
                with span("session.promote", session_epoch=place.epoch):
                    await self._neighbours.promote(self._record.now, place.epoch)
            except NotFoundError as error:
                return Outcome(Fate.NO_BRIDGE, error.reason)
            except ConflictError as error:
                return Outcome(Fate.REFUSED, error.reason)
            except (UnavailableError, DeadlineExceededError) as error:
                if self._now() > deadline_s:
                    return Outcome(Fate.NO_BRIDGE, error.reason)
            else:
                return None
            await asyncio.sleep(RETRY_S)

    def _is_there(self) -> bool:
        return not self._superseded and self._watch.report.value.epoch >= self.place.epoch

    async def _until_lost(self) -> Outcome:
        """Return when the candidate will show nothing: as it says, or because it does not answer."""
        breaks = 0
        while breaks < BREAKS:
            try:
                reports = self._neighbours.runner_reports(self._record.now.id, self.place)
                async for report in within(self._settings.runner_lost_after_s, reports):
                    breaks = 0
                    if report.state in LOST or report.interrupted:
                        return Outcome(Fate.FAILED, report.reason or RUNNER_LOST)
            except NotFoundError:
                return Outcome(Fate.FAILED, RUNNER_LOST)
            except (UnavailableError, DeadlineExceededError, ConflictError) as error:
                log.info("candidate not heard", session=self._record.now.id, reason=error.reason)
            breaks += 1
            await asyncio.sleep(RETRY_S)
        return Outcome(Fate.FAILED, RUNNER_LOST)


async def catch_up(
    session: Session, place: Place, attached: Stream, *, store: Store, neighbours: Neighbours
) -> None:
    """Pass on what was accepted between the reading of the parameters and the end of the attach."""
    now = await store.stream(attached.id)
    known = {item.revision for item in attached.scheduled}
    missed = [item for item in now.scheduled if item.revision not in known]
    waiting = {item.revision for item in now.scheduled}
    made = [r for r in range(attached.revision + 1, now.revision + 1) if r not in waiting]
    if made and now.params != attached.params:  # else what was scheduled took effect, and it knows of that
        missed.insert(0, Scheduled(made[0], difference(attached.params, now.params), 0))
    for item in missed:
        await neighbours.update(session.id, place, patch_to_proto(item))


async def closed(session: Session, place: Place, neighbours: Neighbours) -> bool:
    """Close a candidate's channels; False when viewers get its output, so that it is none any more.

    Raises UnavailableError or DeadlineExceededError while the bridge cannot say which.
    """
    try:
        await neighbours.close_epoch(session, place.epoch, "moved")
    except ConflictError as error:
        if error.reason == "EPOCH_IS_CURRENT":
            return False
        log.info("candidate not closed", session=session.id, reason=error.reason)
    except NotFoundError as error:
        log.info("candidate not closed", session=session.id, reason=error.reason)
    return True
