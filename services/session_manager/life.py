"""One session's life at its owner: start it whole or not at all, watch it, end it once, free what it held.

An end is one compare-and-set; whoever wins it has the duty to free the slot, the credit and the channels.
Should that replica die meanwhile, the record is not `settled`, and whoever adopts it does it all again: each
step is idempotent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter, Gauge, Histogram

from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.common.latest import DropOldest
from services.common.lifecycle import Bulkhead
from services.common.telemetry import carrier, detached, report_bug, span
from services.common.topology import session_event
from services.session_manager.machine import (
    Latency,
    Phase,
    Reason,
    Scheduled,
    Session,
    SessionId,
    Stream,
    difference,
)
from services.session_manager.neighbours import Neighbours
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store, patch_to_proto
from services.session_manager.watch import RETRY_S, Watch, alive

log = structlog.get_logger()
T = TypeVar("T")

STARTS: Final = Counter("sluice_session_starts_total", "Session starts by result.", ["result"])
ENDS: Final = Counter("sluice_session_end_total", "Ended sessions by reason.", ["reason"])
START_SECONDS: Final = Histogram(
    "sluice_session_start_seconds",
    "From the request to a runner that has the session.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
OWNED: Final = Gauge("sluice_sessions_owned", "Sessions whose duties this replica has.")
EVENTS_LOST: Final = Counter("sluice_session_events_lost_total", "Session events that NATS never took.")

ATTACH_ATTEMPTS: Final = 3  # runners that refuse, one after another, before a start fails
EVENTS_CAPACITY: Final = 1000
FOREIGN_END_S: Final = 3.0  # a stop frees the slot within 2 s, or its replica is dead
REFUSALS: Final = frozenset({"SLOT_OCCUPIED", "STALE_EPOCH", "NOT_READY", "DRAINING"})


class Lives:
    """The sessions that this replica has the duties of, a task each."""

    def __init__(
        self,
        *,
        replica: str,
        store: Store,
        neighbours: Neighbours,
        bus: Bus,
        settings: SessionManagerSettings,
    ) -> None:
        self._replica = replica
        self._store = store
        self._neighbours = neighbours
        self._bus = bus
        self._settings = settings
        self._events: DropOldest[events_pb2.SessionEvent] = DropOldest(EVENTS_CAPACITY)
        self._tasks = Bulkhead(self._failed)
        self._starting: set[str] = set()

    async def __aenter__(self) -> Lives:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def __contains__(self, session: str) -> bool:
        return session in self._tasks or session in self._starting

    # --- start

    async def start(self, stream: Stream, session: SessionId, bridge: str, signalling: str) -> Session:
        """Make the session and all it needs. Raises what stood in the way, and then leaves nothing behind.

        The work goes on when the caller goes away: what it made is then ended like any other session.
        """
        if session in self:
            raise ConflictError("the session is there already", reason="SESSION_EXISTS", session=session)
        started_s = time.monotonic()
        done: asyncio.Future[Session] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                result = await self._start(stream, session, bridge, signalling)
            except SluiceError as error:
                STARTS.labels(error.reason).inc()
                if not done.cancelled():
                    done.set_exception(error)
                return
            except BaseException:
                done.cancel()
                raise
            finally:
                self._starting.discard(session)
            STARTS.labels("OK").inc()
            START_SECONDS.observe(time.monotonic() - started_s)
            if not done.cancelled():
                done.set_result(result)

        self._starting.add(session)
        self._tasks.start(f"start/{session}", work())
        try:
            return await done
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise UnavailableError("the start failed inside", reason="INTERNAL") from None

    async def _start(self, stream: Stream, session_id: SessionId, bridge: str, signalling: str) -> Session:
        session = await self._store.create_session(
            Session(
                id=session_id,
                stream=stream.id,
                tenant=stream.tenant,
                pipeline=stream.pipeline,
                owner=self._replica,
                bridge=bridge,
                signalling=signalling,
                created_unix_ms=now_unix_ms(),
                traceparent=carrier().get("traceparent", ""),
                delivery=stream.delivery,
                max_duration_ms=round(self._settings.max_session_s * 1000),
            )
        )
        try:
            stream = await self._claim(stream, session)
            session = await self._allocate(session)
            session = await self._attach(session, stream)
        except SluiceError as error:
            try:
                await self._undo(session.id, start_failure(error), error.message)
            except UnavailableError as also:  # the record stays ours, and is ended when NATS is back
                log.warning("start not undone yet", session=session.id, reason=also.reason)
            raise
        self._emit(session, session.phase.name.lower())
        self._tasks.start(session.id, self._care(session))
        log.info("session started", session=session.id, stream=session.stream, runner=session.runner)
        return session

    async def _claim(self, stream: Stream, session: Session) -> Stream:
        """Make `session` the stream's one. A claim of a session that has ended does not count."""
        if stream.session and stream.session != session.id:
            try:
                holder = await self._store.session(stream.session)
                if holder.phase is Phase.ENDED:
                    await self._release_stream(holder)
            except NotFoundError:
                await self._store.change_stream(
                    stream.id, lambda was: was.released_by(SessionId(stream.session))
                )
        return await self._store.change_stream(stream.id, lambda was: was.claimed_by(session.id))

    async def _allocate(self, session: Session) -> Session:
        with span("session.reserve"):
            reserved = await self._neighbours.reserve(session, round(self._settings.slice_s * 1000))
        return await self._store.change_session(
            session.id,
            lambda was: alive(was).with_(
                paid_until_ms=reserved.paid_until_ms, micro_per_second=reserved.micro_per_second
            ),
        )

    async def _attach(self, session: Session, stream: Stream) -> Session:
        """Grant, open and attach; a runner that refuses is left out the next time."""
        refused: list[str] = []
        while True:
            with span("session.grant"):
                grant = await self._neighbours.grant(session, refused)
            session = await self._store.change_session(
                session.id,
                lambda was, grant=grant: alive(was).with_(  # type: ignore[misc]
                    runner=grant.runner,
                    runner_address=grant.address,
                    slot=grant.slot,
                    slot_epoch=grant.slot_epoch,
                ),
            )
            with span("session.open"):
                channels = await self._neighbours.open_bridge(
                    session,
                    overdraft_s=self._settings.overdraft_s,
                    processes_audio=stream.processes_audio,
                )
            try:
                with span("session.attach", session_runner=session.runner):
                    await self._neighbours.attach(session, stream, channels)
                break
            except (ConflictError, UnavailableError, DeadlineExceededError) as error:
                log.warning("runner refused", session=session.id, runner=session.runner, reason=error.reason)
                if isinstance(error, ConflictError) and error.reason not in REFUSALS:
                    raise
                refused.append(session.runner)
                if not isinstance(error, ConflictError):  # it may have taken the session all the same
                    await tolerant(self._neighbours.detach(session))
                await self._neighbours.release(session)
                if len(refused) == ATTACH_ATTEMPTS:
                    raise ExhaustedError(
                        "no runner took the session", reason="NO_CAPACITY", retry_after_s=2
                    ) from error
        session = await self._store.change_session(session.id, lambda was: alive(was).to(Phase.STARTING))
        await self._catch_up(session, stream)
        return session

    async def _catch_up(self, session: Session, attached: Stream) -> None:
        """Pass on what was accepted between the reading of the parameters and the end of the attach."""
        now = await self._store.stream(attached.id)
        known = {item.revision for item in attached.scheduled}
        missed = [item for item in now.scheduled if item.revision not in known]
        if now.params != attached.params:
            waiting = {item.revision for item in now.scheduled}
            revision = next(r for r in range(attached.revision + 1, now.revision + 1) if r not in waiting)
            missed.insert(0, Scheduled(revision, difference(attached.params, now.params), 0))
        for item in missed:
            await self._neighbours.update(session, patch_to_proto(item))

    # --- care

    def adopt(self, session: Session) -> None:
        """Take up the duties of a session whose record already names this replica."""
        self._tasks.start(session.id, self._care(session))

    async def _care(self, session: Session) -> None:
        """Watch one session until it has ended and holds nothing."""
        OWNED.inc()
        try:
            end: tuple[str, str] | None = Reason.START_INTERRUPTED, "the replica that started it died"
            if session.phase is not Phase.ALLOCATING:
                watch = Watch(
                    session,
                    replica=self._replica,
                    store=self._store,
                    neighbours=self._neighbours,
                    settings=self._settings,
                    entered=lambda now: self._emit(now, now.phase.name.lower()),
                )
                with detached():  # else every renewal of credit would be a line of the session's trace
                    end = await watch.until_over()
            if end is None:
                return
            session, won = await self._end_surely(session, *end)
            if not won:  # whoever ended it frees it; if that replica died, we do
                await asyncio.sleep(FOREIGN_END_S)
            await self._free_until_done(session)
        finally:
            OWNED.dec()

    # --- end

    async def end(self, session: str, reason: str, message: str) -> Session:
        """End the session, once, and free what it holds: tried now, and again until it worked."""
        ended, _ = await self._end(session, reason, message)
        if not await self._free(ended) and session not in self._tasks:
            self._tasks.start(session, self._free_until_done(ended))
        return ended

    async def _undo(self, session: str, reason: str, message: str) -> None:
        """End a start that failed. If somebody was faster, they freed it before all of it was there."""
        ended, won = await self._end(session, reason, message)
        if not won:
            ended = await self._store.change_session(session, lambda was: was.with_(settled=False))
        if not await self._free_once(ended):
            self._tasks.start(session, self._free_until_done(ended))

    async def _end(self, session: str, reason: str, message: str) -> tuple[Session, bool]:
        """Return the ended record, and whether it was this call that ended it."""
        won = False

        def step(was: Session) -> Session:
            nonlocal won
            won = was.phase is not Phase.ENDED
            return was.end(reason, message[:500], now_unix_ms())

        ended = await self._store.change_session(session, step)
        if won:
            ENDS.labels(reason).inc()
            self._emit(ended, "ended")
            log.info("session ended", session=session, reason=reason, message=message)
        return ended, won

    async def _end_surely(self, session: Session, reason: str, message: str) -> tuple[Session, bool]:
        while True:
            try:
                return await self._end(session.id, reason, message)
            except UnavailableError:
                await asyncio.sleep(RETRY_S)

    async def _free_until_done(self, session: Session) -> None:
        while not await self._free(session):  # noqa: ASYNC110 - a retry, there is no event to wait for
            await asyncio.sleep(RETRY_S)

    async def _free(self, session: Session) -> bool:
        """Do every step of freeing once; True when all of them are known to have worked."""
        seen = self._store.session_seen(session.id)
        if seen is not None and seen.settled and seen.revision >= session.revision:
            return True
        return await self._free_once(session)

    async def _free_once(self, session: Session) -> bool:
        context = {"traceparent": session.traceparent}
        with span("session.close", carrier=context, session_id=session.id, session_reason=session.end_reason):
            return await self._free_all(session)

    async def _free_all(self, session: Session) -> bool:
        steps: list[Awaitable[object]] = [
            tolerant(self._neighbours.close_bridge(session)),
            self._free_slot(session),
            self._neighbours.settle(session),
            self._release_stream(session),
        ]
        results = await asyncio.gather(*steps, return_exceptions=True)
        freed = all(self._freed(session, result) for result in results)
        # The bridge knows it once: it is kept though another step has to be tried again.
        latency = results[0] if isinstance(results[0], Latency) and results[0].pictures else None
        if not freed and latency is None:
            return False
        try:
            await self._store.change_session(
                session.id,
                lambda was: was if was.settled else was.with_(settled=freed, latency=latency or was.latency),
            )
        except UnavailableError:
            return False
        return freed

    def _freed(self, session: Session, result: object) -> bool:
        """Whether one step of freeing worked, or there was nothing to free."""
        if isinstance(result, SluiceError) and not isinstance(result, NotFoundError):
            log.warning("not freed yet", session=session.id, reason=result.reason, why=result.message)
            return False
        if isinstance(result, BaseException) and not isinstance(result, SluiceError):
            raise result
        return True

    async def _free_slot(self, session: Session) -> None:
        """Detach, then release: in this order, so that a slot is never granted while it is still busy."""
        if session.runner_address:
            await tolerant(self._neighbours.detach(session))
        await self._neighbours.release(session)

    async def _release_stream(self, session: Session) -> None:
        await self._store.change_stream(session.stream, lambda was: was.released_by(session.id))

    # --- telling

    def _emit(self, session: Session, event: str) -> None:
        self._events.put(
            events_pb2.SessionEvent(
                session=session.id,
                stream=session.stream,
                tenant=session.tenant,
                type=event,
                reason=session.end_reason,
                unix_ms=now_unix_ms(),
                epoch=session.epoch,
            )
        )

    async def publish_events(self) -> None:
        """Store session events in JetStream for ever: a loop for `background`."""
        sequence = 0
        while True:
            event = await self._events.get()
            sequence += 1
            subject = session_event(event.tenant, event.session)
            try:
                await self._bus.store(
                    subject, event.SerializeToString(), message_id=f"{self._replica}:{sequence}"
                )
            except SluiceError:
                EVENTS_LOST.inc()

    def _failed(self, key: str, error: Exception) -> None:
        """A bug in one session's care: that session ends, the process goes on."""
        session = key.rpartition("/")[2]
        report_bug("session", error, session=session)
        if not key.startswith("bury/"):
            self._tasks.start(f"bury/{session}", self._bury(session))

    async def _bury(self, session: str) -> None:
        try:
            await self.end(session, Reason.INTERNAL_ERROR, "a bug in the platform; it was reported")
        except SluiceError as error:
            log.warning("cannot end the session now", session=session, reason=error.reason)


async def tolerant(step: Awaitable[T]) -> T | None:
    """Await `step`; one that cannot be reached has nothing to free that its own death did not free.

    A dead ingest pod has closed its channels, and a dead runner its slot; the router's key is freed after.
    """
    try:
        return await step
    except (UnavailableError, DeadlineExceededError, NotFoundError, ConflictError) as error:
        log.info("not reached while freeing", reason=error.reason)
        return None


def start_failure(error: SluiceError) -> str:
    """The end reason of a start that failed with `error`."""
    if isinstance(error, PaymentRequiredError):
        return Reason.CREDIT_EXHAUSTED
    if isinstance(error, ExhaustedError):
        return Reason.NO_CAPACITY
    if isinstance(error, ConflictError) and error.reason == "STREAM_BUSY":
        return Reason.STREAM_BUSY
    if isinstance(error, InvalidError):
        return Reason.INPUT_UNUSABLE
    return Reason.START_FAILED


def now_unix_ms() -> int:
    return time.time_ns() // 1_000_000
