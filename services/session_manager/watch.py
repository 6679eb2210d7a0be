"""What a session's owner sees of it: evidence for a verdict, and the first reason for which it must end.

Three watchers: the bridge's reports, the runner's, the record. They follow the session: to another runner
when it moved, to another bridge when its publisher came back there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

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
from services.common.latest import Latest
from services.session_manager.failover import (
    PROVEN_S,
    RUNNER_LOST,
    SLOW,
    STAY,
    WELL_S,
    Evidence,
    Step,
    Verdict,
    judge,
)
from services.session_manager.machine import Phase, Place, Reason, Session
from services.session_manager.neighbours import Neighbours
from services.session_manager.progress import LOADING, Progress
from services.session_manager.record import Record
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import Telling, now_unix_ms
from services.session_manager.waiting import race, within

log = structlog.get_logger()

RETRY_S: Final = 0.5
UNEASY_S: Final = 0.1  # between two judgements while something is wrong
NOTHING_YET: Final = bridge_pb2.BridgeReport(output_age_ms=-1)


class End(NamedTuple):
    """Why a session must end."""

    reason: str
    message: str = ""


class Watch:
    """Of one session. `verdict` and `report` are the newest, for whoever acts upon them."""

    def __init__(
        self,
        record: Record,
        *,
        replica: str,
        store: Store,
        neighbours: Neighbours,
        settings: SessionManagerSettings,
        telling: Telling,
    ) -> None:
        self.report = Latest(NOTHING_YET)
        self.verdict = Latest(STAY)
        self.restarted = False  # the runner's process runs, and does not know the session
        self.infer_ms = 0.0  # that a picture takes its runner, as that last said; 0: not known
        self._record = record
        self._replica = replica
        self._store = store
        self._neighbours = neighbours
        self._settings = settings
        self._telling = telling
        self._progress = Progress(
            record,
            store=store,
            neighbours=neighbours,
            telling=telling,
            untold_after_s=settings.call_timeout_s + 1,
        )
        self._now = asyncio.get_running_loop().time
        self._evidence = Latest(Evidence(runner_heard_s=self._now()))
        self._evidence_epoch = self._judged_epoch = record.now.epoch
        self._reported_s: float | None = None  # when this bridge last did
        self._heard_since_s: float | None = None  # when it did first
        self._flows_since_s: float | None = None
        self._well_since_s: float | None = None

    # --- what there is to know

    def verdict_of(self, epoch: int) -> Verdict:
        """The newest verdict, if it is of that epoch's runner."""
        return self.verdict.value if self._judged_epoch == epoch else STAY

    @property
    def session_ms(self) -> float | None:
        """Session time now, as the bridge counts it; None while it reports nothing of this epoch."""
        if self._reported_s is None or self._heard_since_s is None:
            return None
        if self.report.value.epoch != self._record.now.epoch:
            return None
        return self.report.value.session_ms + (self._now() - self._reported_s) * 1000

    @property
    def flowing(self) -> bool:
        """True while the bridge says that what goes in comes back, at whatever cadence is usual for it."""
        report = self.report.value
        good = self.shown and self.sending and not report.stalled_ms and not report.output_broken
        return good and report.health not in {LOADING, "error"} and self.heard_for_s > 0

    @property
    def opened(self) -> bool:
        """Whether its bridge, the one that it has now, knows its epoch."""
        return self._reported_s is not None and self.report.value.epoch >= self._record.now.epoch

    def shows(self, place: Place) -> bool:
        """Whether viewers get the output of `place`, or of one after it."""
        return self.opened and self.report.value.epoch >= place.epoch

    @property
    def heard_for_s(self) -> float:
        """For how long this bridge has reported; 0 while it does not."""
        return 0.0 if self._heard_since_s is None else self._now() - self._heard_since_s

    @property
    def shown(self) -> bool:
        """Whether viewers ever got a picture."""
        return self._evidence.value.shown

    @property
    def sending(self) -> bool:
        """Whether the publisher sends pictures, as far as the bridge says."""
        return self.report.value.publisher == bridge_pb2.PUBLISHER_SENDING

    def _know(self, **facts: object) -> None:
        self._evidence.set(replace(self._evidence.value, **facts))  # type: ignore[arg-type]

    async def judging(self) -> End:
        """Weigh the evidence whenever there is more of it; return why the session must end."""
        while True:
            version = self._evidence.version
            verdict = judge(self._evidence.value, self._now())
            if verdict.step is Step.END:
                return End(verdict.why, verdict.message)
            if (verdict, self._evidence_epoch) != (self.verdict.value, self._judged_epoch):
                self._judged_epoch = self._evidence_epoch
                self.verdict.set(verdict)
            uneasy = verdict.step is not Step.STAY or self._evidence.value.uneasy
            with suppress(TimeoutError):
                async with asyncio.timeout(UNEASY_S if uneasy else 1.0):
                    await self._evidence.newer_than(version)

    async def _while_same(
        self, key: Callable[[Session], Hashable], work: Callable[[], Coroutine[object, object, End | None]]
    ) -> End:
        """Do `work`, and again from its beginning when `key` of the record has changed."""

        async def other(was: Hashable) -> End | None:
            await self._record.until(lambda now: key(now) != was)
            return None

        while True:
            end = await race(work(), other(key(self._record.now)))
            if end is not None:
                return end

    # --- the bridge

    async def bridge(self) -> End:
        """Follow the bridge's reports; return why the session must end."""
        return await self._while_same(lambda session: session.bridge, self._follow_bridge)

    async def _follow_bridge(self) -> End | None:
        broken_since_s: float | None = None
        lost_since_s: float | None = None
        self._reported_s = self._heard_since_s = None
        while True:
            why = ""
            try:
                async for report in within(
                    self._settings.bridge_lost_after_s, self._neighbours.bridge_reports(self._record.now)
                ):
                    broken_since_s = lost_since_s = None
                    end = await self._take(report)
                    if end is not None:
                        return end
            except NotFoundError:
                why = "the ingest process does not know the session any more"
            except (UnavailableError, DeadlineExceededError):
                broken_since_s = broken_since_s or self._now()
                if self._now() - broken_since_s > self._settings.bridge_lost_after_s:
                    why = "the ingest process does not answer"
            self._heard_since_s = None  # who answers next may be another process
            if why:
                lost_since_s = lost_since_s or self._now()
                if self._now() - lost_since_s > self._settings.publisher_grace_s:
                    return End(Reason.BRIDGE_LOST, why)
                await self._lost_bridge(why)
            await asyncio.sleep(RETRY_S)

    async def _lost_bridge(self, why: str) -> None:
        """Its publisher may come back elsewhere: until then the session is paused, and keeps its runner."""
        if self._record.now.bridge_lost_unix_ms:
            return
        was = self._record.now
        try:
            now = await self._record.change(
                lambda session: session.without_bridge(was.bridge, now_unix_ms=now_unix_ms())
            )
        except SluiceError as error:
            log.info("lost bridge not recorded", session=was.id, reason=error.reason)
            return
        self._reported_s = None
        log.warning("bridge lost", session=was.id, bridge=was.bridge, why=why)
        if now.phase is not was.phase:
            self._telling.entered(now)

    async def _take(self, report: bridge_pb2.BridgeReport) -> End | None:
        """Note what the bridge sees, or return why the session must end."""
        if self._record.now.bridge_lost_unix_ms:
            with suppress(SluiceError):  # NATS is away: with the next report
                await self._record.change(lambda was: was.with_bridge())
        now_s = self._now()
        self._reported_s = now_s
        self._heard_since_s = self._heard_since_s or now_s
        self.report.set(report)
        end = self._over(report)
        if end is not None:
            return end
        mine = report.epoch == self._record.now.epoch  # else it is of a runner before or after
        slow = mine and (report.health, report.health_cause) == ("degraded_inference", SLOW)
        well = mine and report.health == "online"
        self._well_since_s = (self._well_since_s or now_s) if well else None
        was = self._evidence.value
        self._know(
            bridge_heard_s=now_s,
            stalled_ms=report.stalled_ms if mine else 0,
            output_broken=report.output_broken and mine,
            shown=report.output_age_ms >= 0,
            slow_since_s=(was.slow_since_s or now_s) if slow else None,
            slow_helped=was.slow_helped or now_s - (self._well_since_s or now_s) >= WELL_S,
        )
        await self._progress.note(report)
        await self._prove(now_s)
        return None

    def _over(self, report: bridge_pb2.BridgeReport) -> End | None:
        limit_ms = self._record.now.max_duration_ms
        if report.fault:
            return End(Reason.INPUT_UNUSABLE, report.fault)
        if report.drained:
            return End(Reason.INPUT_ENDED)
        if report.credit_exhausted:
            return End(Reason.CREDIT_EXHAUSTED, "the credit is used up")
        if report.publisher == bridge_pb2.PUBLISHER_GONE:
            return End(Reason.PUBLISHER_GONE, "the publisher did not come back within its grace")
        if limit_ms and report.session_ms >= limit_ms:
            return End(Reason.MAX_DURATION, f"{limit_ms / 1000:g} s are the longest session allowed")
        if report.frames_in and report.output_age_ms < 0 and self._waits_in_vain(report):
            return End(Reason.NO_OUTPUT, "the runner returned no picture")
        return None

    def _waits_in_vain(self, report: bridge_pb2.BridgeReport) -> bool:
        """Whether the first picture is overdue. A runner that says that it loads has more time."""
        if report.session_ms > self._settings.load_within_s * 1000:
            return True
        silent_ms = report.progress_age_ms if report.HasField("progress_age_ms") else report.session_ms
        return silent_ms > self._settings.first_output_within_s * 1000

    async def _prove(self, now_s: float) -> None:
        """Forget the runners that failed the session once one has shown it for a while."""
        if not self.flowing:
            self._flows_since_s = None
            return
        self._flows_since_s = self._flows_since_s or now_s
        session = self._record.now
        if session.failures and session.next is None and now_s - self._flows_since_s >= PROVEN_S:
            with suppress(SluiceError):  # NATS is away, or it ended: with the next report, or never
                await self._record.change(lambda was: was.proven(session.epoch))

    # --- the runner

    async def runner(self) -> End:
        """Follow the reports of the runner that has the session; return why the session must end."""
        return await self._while_same(lambda session: session.place, self._follow_runner)

    async def _follow_runner(self) -> End | None:
        place = self._record.now.place
        self._begin_evidence()
        while True:
            try:
                reports = self._neighbours.runner_reports(self._record.now.id, place)
                async for report in within(self._settings.runner_lost_after_s, reports):
                    if report.state == runner_pb2.SlotReport.STATE_FINISHED:
                        await asyncio.sleep(self._settings.runner_lost_after_s)  # the bridge has the word
                        return End(Reason.INPUT_ENDED)
                    if self._returns_to(place):
                        self._gone(place, restarted=True)
                    else:
                        self._hear(report)
                self._gone(place, restarted=False)
            except NotFoundError:
                self._gone(place, restarted=True)
            except (UnavailableError, DeadlineExceededError, ConflictError):
                self._gone(place, restarted=False)
            await asyncio.sleep(RETRY_S)

    def _returns_to(self, place: Place) -> bool:
        """Whether the session is about to be in the very slot again: who reports there is the next one."""
        candidate = self._record.now.next
        return candidate is not None and candidate.same_slot(place)

    def _begin_evidence(self) -> None:
        """What was known of another runner says nothing of this one."""
        moves = self._record.now.moves
        was = self._evidence.value
        slow_moved_s, helped = was.slow_moved_s, was.slow_helped
        if moves and moves[-1].why == SLOW and moves[-1].epoch == self._record.now.epoch:
            slow_moved_s, helped = self._now(), False  # until it was well for a while
        self.restarted, self.infer_ms = False, 0.0
        self._evidence_epoch = self._record.now.epoch
        self._flows_since_s = self._well_since_s = None
        self._evidence.set(
            Evidence(
                bridge_heard_s=was.bridge_heard_s,
                shown=was.shown,
                runner_heard_s=self._now(),
                slow_moved_s=slow_moved_s,
                slow_helped=helped,
            )
        )

    def _hear(self, report: runner_pb2.SlotReport) -> None:
        failed = ""
        if report.state == runner_pb2.SlotReport.STATE_FAILED:
            failed = report.reason or RUNNER_LOST
        if report.state == runner_pb2.SlotReport.STATE_DETACHED and report.reason != "moved":
            failed = RUNNER_LOST
        self.restarted, self.infer_ms = False, report.infer_ms
        self._know(
            runner_heard_s=self._now(),
            gone_since_s=None,
            failed=failed,
            message=report.message,
            interrupted=report.interrupted,
            suspected=report.suspected,
        )

    def _gone(self, place: Place, *, restarted: bool) -> None:
        since_s = self._evidence.value.gone_since_s
        if since_s is None or restarted is not self.restarted:
            log.info("runner gone", session=self._record.now.id, runner=place.runner, restarted=restarted)
        self.restarted = restarted
        self._know(gone_since_s=since_s or self._now())

    # --- the record

    async def record(self) -> End | None:
        """Return when somebody else ended the session; None when somebody took its duties over."""
        session = self._record.now.id
        while True:
            try:
                record = await self._store.session(session)
            except UnavailableError:  # NATS is away: the session runs on
                await asyncio.sleep(RETRY_S)
                continue
            except NotFoundError:  # NATS lost what it had, and the session runs on
                with suppress(SluiceError):
                    await self._store.create_session(self._record.now)
                await asyncio.sleep(RETRY_S)
                continue
            self._record.saw(record)
            if record.phase is Phase.ENDED:
                return End(record.end_reason, record.end_message)
            if record.owner != self._replica:
                return None
            with suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await self._store.session_beyond(session, record.revision)
