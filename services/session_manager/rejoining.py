"""A publisher that came back at another ingest process: its session goes on there, with its runner's state.

The record says so first; then the old bridge closes, the new one opens, and the runner is bound to it. What
cannot be bound is attached anew, or moved to another runner.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from protos.ingest.v1 import bridge_pb2
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.session_time import furthest
from services.common.telemetry import span
from services.session_manager.candidate import catch_up
from services.session_manager.machine import Phase, Place, Position, Session, Stream
from services.session_manager.neighbours import Neighbours, position
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import now_unix_ms
from services.session_manager.waiting import tolerant, within

log = structlog.get_logger()

ANSWERS_WITHIN_S: Final = 1.0  # else a bridge or a runner is taken for dead
CONNECTED: Final = frozenset({bridge_pb2.PUBLISHER_WAITING, bridge_pb2.PUBLISHER_SENDING})


class Rejoining:
    """One at a time for each stream."""

    def __init__(self, *, store: Store, neighbours: Neighbours, settings: SessionManagerSettings) -> None:
        self._store = store
        self._neighbours = neighbours
        self._settings = settings
        self._under_way: set[str] = set()

    async def rejoin(self, stream: str, bridge: str, signalling: str) -> tuple[Session, Position]:
        """The session, and where its media goes on.

        Raises NotFoundError SESSION_NOT_FOUND; ConflictError STREAM_BUSY while its publisher is connected.
        """
        if stream in self._under_way:
            raise UnavailableError("its publisher is coming back already", reason="REJOINING")
        self._under_way.add(stream)
        try:
            return await self._rejoin(await self._store.stream(stream), bridge, signalling)
        finally:
            self._under_way.discard(stream)

    async def _rejoin(self, stream: Stream, bridge: str, signalling: str) -> tuple[Session, Position]:
        session = await self._store.session(stream.session)
        if session.phase is Phase.ENDED:
            raise NotFoundError("the session has ended", reason="SESSION_NOT_FOUND")
        if session.phase is Phase.ALLOCATING:
            raise ConflictError("the stream is being started", reason="STREAM_BUSY", session=session.id)
        there = await self._report(session)
        if session.bridge == bridge:
            if there is not None and there.epoch >= session.epoch:
                return session, position(there.position)  # asked again
        elif there is not None and there.publisher in CONNECTED:
            raise ConflictError("its publisher is still connected", reason="STREAM_BUSY", session=session.id)
        with span("session.rejoin", carrier={"traceparent": session.traceparent}, session_id=session.id):
            return await self._go_on(session, stream, bridge, signalling)

    async def _go_on(
        self, session: Session, stream: Stream, bridge: str, signalling: str
    ) -> tuple[Session, Position]:
        left: list[Session] = []

        def step(was: Session) -> Session:
            left[:] = [was]
            if was.phase is Phase.ENDED:
                raise NotFoundError("the session has ended", reason="SESSION_NOT_FOUND")
            return was.rejoined(bridge=bridge, signalling=signalling)

        session = await self._store.change_session(session.id, step)
        log.info("publisher came back elsewhere", session=session.id, left=left[0].bridge, bridge=bridge)
        resume = await self._reached(left[0], session)
        if left[0].next is not None:
            await self._let_go(left[0], left[0].next)
        channels = await self._neighbours.open_bridge(
            session,
            session.place,
            overdraft_s=self._settings.overdraft_s,
            processes_audio=stream.processes_audio,
            resume=resume,
            it_asked=True,
        )
        return session, await self._bind(session, stream, channels, resume)

    async def _report(self, session: Session) -> bridge_pb2.BridgeReport | None:
        """What its bridge says of it; None when it does not answer, or does not know it."""
        with suppress(NotFoundError, UnavailableError, DeadlineExceededError):
            async for report in within(ANSWERS_WITHIN_S, self._neighbours.bridge_reports(session)):
                return report
        return None

    async def _reached(self, was: Session, session: Session) -> Position:
        """How far the media is: by the old bridge, or else by the runner and the time."""
        if was.bridge != session.bridge:
            try:
                return await self._neighbours.leave_bridge(was, timeout_s=ANSWERS_WITHIN_S)
            except SluiceError as error:
                log.info("old bridge not closed", session=session.id, bridge=was.bridge, reason=error.reason)
        in_pts, out_pts = 0, 0
        with suppress(SluiceError):
            reports = self._neighbours.runner_reports(session.id, session.place)
            async for report in within(ANSWERS_WITHIN_S, reports):
                in_pts, out_pts = report.in_pts, report.out_pts
                break
        age_ms = max(0, now_unix_ms() - session.created_unix_ms)
        if not in_pts:  # nobody is left who knows: viewers' time must not go back all the same
            in_pts = out_pts = furthest(age_ms)
        return Position(in_pts=in_pts, out_pts=out_pts, session_ms=age_ms)

    async def _let_go(self, session: Session, candidate: Place) -> None:
        """Free the place that it was about to move to; its publisher does not wait for a dead runner."""
        with suppress(TimeoutError):  # the reconciler finds what is left
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                await tolerant(self._neighbours.detach(session.id, candidate, "moved"))
                if candidate.runner != session.runner:
                    await tolerant(self._neighbours.release(session.id, candidate.runner))

    async def _bind(
        self, session: Session, stream: Stream, channels: bridge_pb2.Channels, resume: Position
    ) -> Position:
        place = session.place
        try:
            answer = await self._neighbours.rebind(session.id, place, channels, timeout_s=ANSWERS_WITHIN_S)
        except (NotFoundError, ConflictError) as error:  # it forgot the session, or can bind none
            log.info("runner not bound", session=session.id, runner=place.runner, reason=error.reason)
        except (UnavailableError, DeadlineExceededError) as error:
            await self._wish_elsewhere(session, error)
            return resume
        else:
            return replace(
                resume,
                in_pts=max(resume.in_pts, answer.in_pts),
                out_pts=max(resume.out_pts, answer.out_pts),
            )
        await tolerant(self._neighbours.detach(session.id, place, "moved"))
        try:
            await self._neighbours.attach(session, place, stream, channels, after_pts=resume.out_pts)
            await catch_up(session, place, stream, store=self._store, neighbours=self._neighbours)
        except SluiceError as error:
            await self._wish_elsewhere(session, error)
        return resume

    async def _wish_elsewhere(self, session: Session, error: SluiceError) -> None:
        """Have the session's owner move it: its runner does not take it."""
        log.warning("runner does not go on", session=session.id, runner=session.runner, reason=error.reason)
        await self._store.change_session(
            session.id,
            lambda was: was.with_(move_wanted="rebind_failed") if was.phase is not Phase.ENDED else was,
        )
