"""One session's life at its owner: start it whole or not at all, watch it, end it once, free what it held.

An end is one compare-and-set; whoever wins it has the duty to free the slot, the credit and the channels.
Should that replica die meanwhile, the record is not `settled`, and whoever adopts it does it all again: each
step is idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.common.bus import Bus
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.lifecycle import Bulkhead
from services.common.telemetry import carrier, detached, report_bug, span
from services.session_manager.care import until_over
from services.session_manager.machine import Latency, Phase, Reason, Session, SessionId, Stream
from services.session_manager.neighbours import Neighbours
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.starting import Start, failure
from services.session_manager.store import Store
from services.session_manager.telling import Telling, now_unix_ms
from services.session_manager.waiting import tolerant

log = structlog.get_logger()

STARTS: Final = Counter("sluice_session_starts_total", "Session starts by result.", ["result"])
ENDS: Final = Counter("sluice_session_end_total", "Ended sessions by reason.", ["reason"])
START_SECONDS: Final = Histogram(
    "sluice_session_start_seconds",
    "From the request to a runner that has the session.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
OWNED: Final = Gauge("sluice_sessions_owned", "Sessions whose duties this replica has.")

RETRY_S: Final = 0.5
FOREIGN_END_S: Final = 3.0  # a stop frees the slot within 2 s, or its replica is dead


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
        self._settings = settings
        self.telling = Telling(bus, replica)
        self._tasks = Bulkhead(self._failed)
        self._starting: set[str] = set()
        self._aside = 0  # things done, for their keys

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

        A caller that goes away while it waits for a slot leaves the queue. Beyond that the work goes on: what
        it made is then ended like any other session.
        """
        if session in self:
            raise ConflictError("the session is there already", reason="SESSION_EXISTS", session=session)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        start = Start(store=self._store, neighbours=self._neighbours, settings=self._settings)
        done: asyncio.Future[Session] = loop.create_future()

        async def work() -> None:
            try:
                result = await self._start(start, stream, session, bridge, signalling)
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
            START_SECONDS.observe(loop.time() - started_s)
            if not done.cancelled():
                done.set_result(result)

        self._starting.add(session)
        self._tasks.start(f"start/{session}", work())
        try:
            return await done
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                start.gone.set()
                raise
            raise UnavailableError("the start failed inside", reason="INTERNAL") from None

    async def _start(
        self, start: Start, stream: Stream, session_id: SessionId, bridge: str, signalling: str
    ) -> Session:
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
                wishes=stream.wishes,
                max_duration_ms=round(self._settings.max_session_s * 1000),
            )
        )
        try:
            session = await start.run(session, stream)
        except SluiceError as error:
            try:
                await self._undo(session.id, failure(error), error.message)
            except UnavailableError as also:  # the record stays ours, and is ended when NATS is back
                log.warning("start not undone yet", session=session.id, reason=also.reason)
            raise
        self.telling.entered(session)
        if session.id not in self._tasks:  # else somebody ended it already, and it is being freed
            self._tasks.start(session.id, self._care(session))
        log.info("session started", session=session.id, stream=session.stream, runner=session.runner)
        return session

    # --- care

    def adopt(self, session: Session) -> None:
        """Take up the duties of a session whose record already names this replica."""
        self._tasks.start(session.id, self._care(session))

    async def _care(self, session: Session) -> None:
        """Watch one session until it has ended and holds nothing."""
        OWNED.inc()
        try:
            end: tuple[str, str] | None = Reason.START_INTERRUPTED, "the replica that started it died"
            if session.phase is Phase.ENDED:
                end = session.end_reason, session.end_message
            elif session.phase is not Phase.ALLOCATING:
                with detached():  # else every renewal of credit would be a line of the session's trace
                    end = await until_over(
                        session,
                        replica=self._replica,
                        store=self._store,
                        neighbours=self._neighbours,
                        settings=self._settings,
                        telling=self.telling,
                        aside=self.aside,
                    )
            if end is None:
                return
            session, won = await self._end_surely(session, *end)
            if not won:  # whoever ended it frees it; if that replica died, we do
                await asyncio.sleep(FOREIGN_END_S)
            await self._free_until_done(session)
        finally:
            OWNED.dec()

    def aside(self, key: str, work: Coroutine[object, object, None]) -> None:
        """Do `work` beside a session, also when that has ended meanwhile; the key ends with "/<session>"."""
        kind, _, session = key.rpartition("/")
        # An owner that lost the session and has it again may do what it is still doing from before.
        self._aside += 1
        self._tasks.start(f"{kind}/{self._aside}/{session}", work)

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
        if not await self._free_once(ended) and session not in self._tasks:
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
            self.telling.ended(ended)
            log.info("session ended", session=session, reason=reason, message=message)
        return ended, won

    async def _end_surely(self, session: Session, reason: str, message: str) -> tuple[Session, bool]:
        while True:
            try:
                return await self._end(session.id, reason, message)
            except UnavailableError:
                await asyncio.sleep(RETRY_S)

    async def _free_until_done(self, session: Session) -> None:
        now = asyncio.get_running_loop().time
        until_s = now() + self._settings.publisher_grace_s
        while not await self._free(session, bridge_lives=now() < until_s):  # noqa: ASYNC110 - a retry
            await asyncio.sleep(RETRY_S)

    async def _free(self, session: Session, *, bridge_lives: bool = True) -> bool:
        """Do every step of freeing once; True when all of them are known to have worked."""
        seen = self._store.session_seen(session.id)
        if seen is not None and seen.settled and seen.revision >= session.revision:
            return True
        return await self._free_once(session, bridge_lives=bridge_lives)

    async def _free_once(self, session: Session, *, bridge_lives: bool = True) -> bool:
        context = {"traceparent": session.traceparent}
        with span("session.close", carrier=context, session_id=session.id, session_reason=session.end_reason):
            return await self._free_all(session, bridge_lives=bridge_lives)

    async def _free_all(self, session: Session, *, bridge_lives: bool) -> bool:
        steps: list[Awaitable[object]] = [
            self._close_bridge(session, may_live=bridge_lives),
            self._free_slot(session),
            self._settle(session),
            self._store.release_stream(session),
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

    async def _close_bridge(self, session: Session, *, may_live: bool) -> Latency | None:
        """Close it, so that its publisher and its viewers are let go.

        An ingest process that cannot be reached `may_live`: it is asked until it is dead for everybody, which
        is when the grace of its publisher is over.
        """
        try:
            return await self._neighbours.close_bridge(session)
        except (NotFoundError, ConflictError):
            return None
        except (UnavailableError, DeadlineExceededError):
            if may_live and session.end_reason != Reason.BRIDGE_LOST:
                raise
            return None

    async def _settle(self, session: Session) -> None:
        if session.runner:  # credit is reserved once there is a slot
            await self._neighbours.settle(session)

    async def _free_slot(self, session: Session) -> None:
        """Detach, then release: in this order, so that a slot is never granted while it is still busy."""
        places = [session.place, *([session.next] if session.next else [])]
        await asyncio.gather(
            *(
                tolerant(self._neighbours.detach(session.id, place, session.end_reason))
                for place in places
                if place.address
            )
        )
        await self._neighbours.release(session.id)

    def _failed(self, key: str, error: Exception) -> None:
        """A bug in one session's care: that session ends, the process goes on."""
        session = key.rpartition("/")[2]
        report_bug("session", error, session=session)
        grave = f"bury/{session}"
        if not key.startswith(("bury/", "leave/", "tell/")) and grave not in self._tasks:
            self._tasks.start(grave, self._bury(session))

    async def _bury(self, session: str) -> None:
        try:
            await self.end(session, Reason.INTERNAL_ERROR, "a bug in the platform; it was reported")
        except SluiceError as error:
            log.warning("cannot end the session now", session=session, reason=error.reason)
