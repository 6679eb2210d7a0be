"""What the bridge's reports change in the records: the phase, and the parameters in effect."""

from __future__ import annotations

import asyncio
import math
from typing import Final

import structlog

from protos.ingest.v1 import bridge_pb2
from services.common.errors import DeadlineExceededError, NotFoundError, SluiceError, UnavailableError
from services.session_manager.machine import Phase, Session, Stream
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import Record
from services.session_manager.revisions import Scheduled, difference, whole
from services.session_manager.store import Store, patch_to_proto
from services.session_manager.telling import Telling

log = structlog.get_logger()

# Whose fault it is that the output is not what it should be, by the runner's health; not here: nobody's.
FAULTS: Final = {"degraded_input": "input", "degraded_inference": "inference", "error": "inference"}
LOADING: Final = "loading"  # it mends something or prepares something: nothing new is known


class Progress:
    """Of one session. A revision that shows nowhere for `untold_after_s` is told again, once a runner."""

    def __init__(
        self,
        record: Record,
        *,
        store: Store,
        neighbours: Neighbours,
        telling: Telling,
        untold_after_s: float,
    ) -> None:
        self._record = record
        self._store = store
        self._neighbours = neighbours
        self._telling = telling
        self._untold_after_s = untold_after_s
        self._folded_pts = 0
        self._missed: dict[
            tuple[int, int], float
        ] = {}  # epoch and revision, since when; infinite: told again
        self._taken_back: set[int] = set()

    async def note(self, report: bridge_pb2.BridgeReport) -> None:
        """Record what is new; what cannot be recorded now is recorded with the next report."""
        try:
            await self._take_back(report)
            await self._enter(report)
            await self._tell_again(report)
            if report.applied_pts > self._folded_pts:
                stream = self._record.now.stream
                await self._store.change_stream(stream, lambda was: was.past(report.applied_pts))
                self._folded_pts = report.applied_pts
        except (UnavailableError, NotFoundError) as error:  # NATS is away, or the stream was deleted
            log.info("progress not recorded", session=self._record.now.id, reason=error.reason)

    async def _enter(self, report: bridge_pb2.BridgeReport) -> None:
        was = self._record.now
        if phase_seen(was.phase, was.degraded_by, report) == (was.phase, was.degraded_by):
            return

        def step(session: Session) -> Session:  # by the record as it is now: a move may have begun meanwhile
            phase, fault = phase_seen(session.phase, session.degraded_by, report)
            return session.seen_in(phase, degraded_by=fault)

        now = await self._record.change(step)
        if now.phase is not was.phase:
            self._telling.entered(now)

    async def _tell_again(self, report: bridge_pb2.BridgeReport) -> None:
        """A replica may have died, or a call have been cut, after a revision was recorded."""
        session = self._record.now
        stream = self._store.stream_seen(session.stream)
        if stream is None or session.phase is Phase.MIGRATING:
            return
        now_s = asyncio.get_running_loop().time()
        late = {
            (session.epoch, one.revision): one
            for one in stream.history
            if one.revision > report.applied_revision and one.revision not in report.refused_revisions
        }
        self._missed = {key: self._missed.get(key, now_s) for key in late}
        for key, before in late.items():
            if now_s - self._missed[key] < self._untold_after_s:
                continue
            patch = whole({name: stream.params.get(name) for name in before.names}, before.values)
            message = patch_to_proto(Scheduled(before.revision, patch, 0))
            try:
                await self._neighbours.update(session.id, session.place, message)
            except (UnavailableError, DeadlineExceededError) as error:
                log.info("revision not told again", session=session.id, reason=error.reason)
                return
            except SluiceError as error:
                log.info("revision refused", session=session.id, reason=error.reason)
            self._missed[key] = math.inf

    async def _take_back(self, report: bridge_pb2.BridgeReport) -> None:
        """Put the stream's parameters back to what they were before the revisions that the runner refused.

        It is a revision of its own, told to the runner like any other: to whom it changes nothing.
        """
        refused = set(report.refused_revisions) - self._taken_back
        if not refused:
            return
        before: list[Stream] = []

        def step(stream: Stream) -> Stream:
            before[:] = [stream]
            return stream.without(refused)

        session = self._record.now
        now = await self._store.change_stream(session.stream, step)
        self._taken_back |= refused
        patch = difference(before[0].params, now.params)
        if not patch:
            return
        log.info("refused parameters taken back", session=session.id, revisions=sorted(refused))
        try:
            message = patch_to_proto(Scheduled(now.revision, patch, 0))
            await self._neighbours.update(session.id, session.place, message)
        except SluiceError as error:  # it shows these values already
            log.info("runner not told", session=session.id, reason=error.reason)


def phase_seen(phase: Phase, fault: str, report: bridge_pb2.BridgeReport) -> tuple[Phase, str]:
    """Return the phase that the bridge's report stands for and, of a degraded session, whose fault it is."""
    silent = report.publisher == bridge_pb2.PUBLISHER_SILENT
    if report.output_age_ms < 0:
        return phase, fault
    if phase in {Phase.STARTING, Phase.LIVE, Phase.DEGRADED} and silent:
        return Phase.PAUSED, ""
    if phase in {Phase.STARTING, Phase.PAUSED} and not silent:
        return Phase.LIVE, ""  # and from there, with the next report, wherever the runner's health leads
    if phase in {Phase.LIVE, Phase.DEGRADED} and report.health != LOADING:
        fault = FAULTS.get(report.health, "")
        return (Phase.DEGRADED if fault else Phase.LIVE), fault
    return phase, fault
