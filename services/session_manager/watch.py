"""What a session's owner sees of it, and the first reason for which it must end.

Four watchers: the bridge's reports, the runner's, the record, the credit. A stream whose output arrives is
never ended because its runner does not answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeVar

import structlog

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.common.lifecycle import Bulkhead
from services.session_manager.machine import Phase, Reason, Scheduled, Session, Stream, difference
from services.session_manager.neighbours import Neighbours
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store, patch_to_proto

log = structlog.get_logger()
Report = TypeVar("Report")

RETRY_S: Final = 0.5
FLOWING_MS: Final = 2000  # output that is younger is evidence of a runner that works
# What the runner says of a session that it gave up is the reason of the end, if it is one of these.
RUNNER_FAULTS: Final = frozenset(
    {
        "engine_crashed",
        "engine_hung",
        "pipeline_failed",
        "start_failed",
        "out_of_memory",
        "params_refused",
        "input_undecodable",
        "bridge_lost",
    }
)
# Whose fault it is that the output is not what it should be, by the runner's health; not here: nobody's.
FAULTS: Final = {"degraded_input": "input", "degraded_inference": "inference", "error": "inference"}
LOADING: Final = "loading"  # it mends something or prepares something: nothing new is known


class Watch:
    """Of one session; `entered` is called with its record at every change of phase."""

    def __init__(
        self,
        session: Session,
        *,
        replica: str,
        store: Store,
        neighbours: Neighbours,
        settings: SessionManagerSettings,
        entered: Callable[[Session], None],
    ) -> None:
        self.session = session
        self.report = bridge_pb2.BridgeReport(output_age_ms=-1)
        self.reported_s = time.monotonic()
        self.folded_pts = 0
        self._taken_back: set[int] = set()
        self._replica = replica
        self._store = store
        self._neighbours = neighbours
        self._settings = settings
        self._entered = entered

    @property
    def session_ms(self) -> float:
        """Session time now, as the bridge counts it, between its reports."""
        return self.report.session_ms + self._since_report_ms

    @property
    def flowing(self) -> bool:
        """True while the bridge says that output arrives."""
        age_ms = self.report.output_age_ms
        return age_ms >= 0 and age_ms + self._since_report_ms < FLOWING_MS

    @property
    def _since_report_ms(self) -> float:
        return (time.monotonic() - self.reported_s) * 1000

    async def until_over(self) -> tuple[str, str] | None:
        """Return the first reason for which the session must end; None when its duties are not ours now."""
        first: asyncio.Future[tuple[str, str] | None] = asyncio.get_running_loop().create_future()

        async def report(watcher: Awaitable[tuple[str, str] | None]) -> None:
            verdict = await watcher
            if not first.done():
                first.set_result(verdict)

        def failed(_: str, error: Exception) -> None:
            if not first.done():
                first.set_exception(error)

        async with Bulkhead(failed) as watchers:  # a TaskGroup cancels once, and nats-py may swallow that
            watchers.start("bridge", report(self._watch_bridge()))
            watchers.start("runner", report(self._watch_runner()))
            watchers.start("record", report(self._watch_record()))
            watchers.start("slices", report(self._renew_slices()))
            return await first

    async def _watch_bridge(self) -> tuple[str, str]:
        broken_since_s: float | None = None
        while True:
            try:
                async for report in within(
                    self._settings.bridge_lost_after_s, self._neighbours.bridge_reports(self.session)
                ):
                    broken_since_s = None
                    verdict = await self._judge(report)
                    if verdict is not None:
                        return verdict
            except NotFoundError:
                return Reason.BRIDGE_LOST, "the ingest process does not know the session any more"
            except (UnavailableError, DeadlineExceededError):
                now_s = time.monotonic()
                broken_since_s = broken_since_s or now_s
                if now_s - broken_since_s > self._settings.bridge_lost_after_s:
                    return Reason.BRIDGE_LOST, "the ingest process does not answer"
            await asyncio.sleep(RETRY_S)

    async def _judge(self, report: bridge_pb2.BridgeReport) -> tuple[str, str] | None:
        """Move the session's phase as the bridge sees it, or return why it must end."""
        self.report = report
        self.reported_s = time.monotonic()
        if report.fault:
            return Reason.INPUT_UNUSABLE, report.fault
        if report.drained:
            return Reason.INPUT_ENDED, ""
        if report.credit_exhausted:
            return Reason.CREDIT_EXHAUSTED, "the credit is used up"
        if report.publisher == bridge_pb2.PUBLISHER_GONE:
            return Reason.PUBLISHER_GONE, "the publisher did not come back within its grace"
        limit_ms = self.session.max_duration_ms
        if limit_ms and report.session_ms >= limit_ms:
            return Reason.MAX_DURATION, f"{limit_ms / 1000:g} s are the longest session allowed"
        if report.frames_in and report.output_age_ms < 0 and self._waits_in_vain(report):
            return Reason.NO_OUTPUT, "the runner returned no picture"
        try:
            await self._record_progress(report)
        except (
            UnavailableError,
            NotFoundError,
        ) as error:  # NATS is away, or the stream was deleted: next time
            log.info("progress not recorded", session=self.session.id, reason=error.reason)
        return None

    def _waits_in_vain(self, report: bridge_pb2.BridgeReport) -> bool:
        """Whether the first picture is overdue. A runner that says that it loads has more time."""
        if report.session_ms > self._settings.load_within_s * 1000:
            return True
        silent_ms = report.progress_age_ms if report.HasField("progress_age_ms") else report.session_ms
        return silent_ms > self._settings.first_output_within_s * 1000

    async def _record_progress(self, report: bridge_pb2.BridgeReport) -> None:
        await self._take_back(report)
        phase, fault = phase_seen(self.session.phase, self.session.degraded_by, report)
        if (phase, fault) != (self.session.phase, self.session.degraded_by):
            entered = phase is not self.session.phase
            self.session = await self._store.change_session(
                self.session.id, lambda was: was.seen_in(phase, degraded_by=fault)
            )
            if entered:
                self._entered(self.session)
        if report.applied_pts > self.folded_pts:
            await self._store.change_stream(self.session.stream, lambda was: was.past(report.applied_pts))
            self.folded_pts = report.applied_pts

    async def _take_back(self, report: bridge_pb2.BridgeReport) -> None:
        """Put the stream's parameters back to what they were before the revisions that the runner refused.

        It is a revision of its own, told to the runner like any other: to whom it changes nothing.
        """
        refused = set(report.refused_revisions) - self._taken_back
        if not refused:
            return
        was: list[Stream] = []

        def step(stream: Stream) -> Stream:
            was[:] = [stream]
            return stream.without(refused)

        now = await self._store.change_stream(self.session.stream, step)
        self._taken_back |= refused
        patch = difference(was[0].params, now.params)
        if not patch:
            return
        log.info("refused parameters taken back", session=self.session.id, revisions=sorted(refused))
        try:
            message = patch_to_proto(Scheduled(now.revision, patch, 0))
            await self._neighbours.update(self.session, message)
        except SluiceError as error:  # it shows these values already
            log.info("runner not told", session=self.session.id, reason=error.reason)

    async def _watch_runner(self) -> tuple[str, str]:
        broken_since_s: float | None = None
        while True:
            try:
                async for report in within(
                    self._settings.runner_lost_after_s, self._neighbours.runner_reports(self.session)
                ):
                    broken_since_s = None
                    if report.state == runner_pb2.SlotReport.STATE_FAILED:
                        reason = report.reason if report.reason in RUNNER_FAULTS else Reason.RUNNER_LOST
                        return reason, report.message
                    if report.state == runner_pb2.SlotReport.STATE_FINISHED:
                        await asyncio.sleep(self._settings.runner_lost_after_s)  # the bridge has the word
                        return Reason.INPUT_ENDED, ""
                    if report.state == runner_pb2.SlotReport.STATE_DETACHED:
                        return Reason.RUNNER_LOST, "the runner let the session go"
            except NotFoundError:
                return Reason.RUNNER_LOST, "the runner does not know the session any more"
            except (UnavailableError, DeadlineExceededError, ConflictError):
                now_s = time.monotonic()
                broken_since_s = broken_since_s or now_s
                if now_s - broken_since_s > self._settings.runner_lost_after_s and not self.flowing:
                    return Reason.RUNNER_LOST, "the runner does not answer"
            await asyncio.sleep(RETRY_S)

    async def _watch_record(self) -> tuple[str, str] | None:
        """Return when somebody else ended the session, or took its duties over."""
        while True:
            version = self._store.sessions_view.changed.version
            try:
                record = await self._store.session(self.session.id)
            except UnavailableError:  # NATS is away: the session runs on
                await asyncio.sleep(RETRY_S)
                continue
            if record.phase is Phase.ENDED:
                return record.end_reason, record.end_message
            if record.owner != self._replica:
                return None
            try:
                async with asyncio.timeout(5.0):
                    await self._changed(self.session.id, record.revision, version)
            except TimeoutError:
                continue

    async def _changed(self, session: str, revision: int, version: int) -> None:
        view = self._store.sessions_view
        while True:
            version, _ = await view.changed.newer_than(version)
            seen = self._store.session_seen(session)
            if seen is not None and seen.revision != revision:
                return

    async def _renew_slices(self) -> tuple[str, str]:
        """Keep credit reserved ahead; once there is no more, tell the bridge where it ends."""
        slice_ms = self._settings.slice_s * 1000
        while True:
            await asyncio.sleep(min(1.0, self._settings.slice_s / 4))
            session_ms = self.session_ms
            if self.session.paid_until_ms - session_ms > slice_ms / 2:
                continue
            overdraft_s = self._settings.overdraft_s
            try:
                reserved = await self._neighbours.reserve(self.session, round(session_ms + slice_ms))
                paid_until_ms = reserved.paid_until_ms
            except (UnavailableError, DeadlineExceededError) as error:
                log.warning("billing does not answer", session=self.session.id, reason=error.reason)
                continue
            except ConflictError:
                continue  # settled, so it has ended; the watcher of the record says so
            except PaymentRequiredError:
                overdraft_s, paid_until_ms = 0.0, self.session.paid_until_ms
            try:
                self.session = await self._store.change_session(
                    self.session.id,
                    lambda was, paid=paid_until_ms: alive(was).with_(paid_until_ms=paid),  # type: ignore[misc]
                )
            except UnavailableError:
                self.session = replace(self.session, paid_until_ms=paid_until_ms)
            except ConflictError:
                continue  # it ended; the watcher of the record says so
            try:
                await self._neighbours.extend_credit(self.session, overdraft_s=overdraft_s)
            except SluiceError as error:
                log.warning("bridge not told of credit", session=self.session.id, reason=error.reason)


async def within(silence_s: float, reports: AsyncIterator[Report]) -> AsyncIterator[Report]:
    """Yield `reports`. Raises DeadlineExceededError when the next one, due every second, does not come.

    A process that hangs keeps its connections: gRPC answers pings from a thread of its own. One silence is no
    evidence, for it was perhaps this process that stood still: the caller asks anew.
    """
    while True:
        try:
            async with asyncio.timeout(silence_s):
                report = await anext(reports)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceededError(f"no report for {silence_s:g} s", reason="SILENT") from None
        yield report


def alive(session: Session) -> Session:
    """Return the session unless it has ended: then somebody was faster, and a start or a renewal stops."""
    if session.phase is Phase.ENDED:
        raise ConflictError("the session has ended", reason="SESSION_ENDED", session=session.id)
    return session


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
