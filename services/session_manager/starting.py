"""The start of a session: a slot, credit, channels, a runner, each recorded before the next is asked for.

Nothing is reserved for who waits for a slot: credit is asked for when there is one, so that a refusal for
lack of room costs nobody anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from protos.ingest.v1 import bridge_pb2
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
from services.common.telemetry import span
from services.session_manager.candidate import catch_up
from services.session_manager.machine import Phase, Place, Reason, Session, SessionId, Stream
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import alive
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.waiting import race, tolerant

log = structlog.get_logger()

ATTACH_ATTEMPTS: Final = 3  # runners that refuse, one after another, before a start fails
REFUSALS: Final = frozenset({"SLOT_OCCUPIED", "STALE_EPOCH", "NOT_READY", "DRAINING"})


class Start:
    """Of one session. `gone` is set when nobody waits for it any more: then it leaves the queue."""

    def __init__(self, *, store: Store, neighbours: Neighbours, settings: SessionManagerSettings) -> None:
        self.gone = asyncio.Event()
        self._store = store
        self._neighbours = neighbours
        self._settings = settings

    async def run(self, session: Session, stream: Stream) -> Session:
        """Return the session with a runner that has it. Raises what stood in the way."""
        stream = await self._claim(stream, session)
        refused: list[str] = []
        while True:
            session = await self._allocate(session, refused)
            channels = await self._open(session, stream)
            try:
                with span("session.attach", session_runner=session.runner):
                    await self._neighbours.attach(session, session.place, stream, channels)
                break
            except (ConflictError, UnavailableError, DeadlineExceededError) as error:
                log.warning("runner refused", session=session.id, runner=session.runner, reason=error.reason)
                if isinstance(error, ConflictError) and error.reason not in REFUSALS:
                    raise
                refused.append(session.runner)
                await self._leave(session, sure=isinstance(error, ConflictError))
                if len(refused) == ATTACH_ATTEMPTS:
                    raise ExhaustedError(
                        "no runner took the session", reason="NO_CAPACITY", retry_after_s=2
                    ) from error
        session = await self._store.change_session(session.id, lambda was: alive(was).to(Phase.STARTING))
        await catch_up(session, session.place, stream, store=self._store, neighbours=self._neighbours)
        return session

    async def _claim(self, stream: Stream, session: Session) -> Stream:
        """Make `session` the stream's one. A claim of a session that has ended does not count."""
        if stream.session and stream.session != session.id:
            try:
                holder = await self._store.session(stream.session)
                if holder.phase is Phase.ENDED:
                    await self._store.release_stream(holder)
            except NotFoundError:
                await self._store.change_stream(
                    stream.id, lambda was: was.released_by(SessionId(stream.session))
                )
        return await self._store.change_stream(stream.id, lambda was: was.claimed_by(session.id))

    async def _allocate(self, session: Session, refused: Sequence[str]) -> Session:
        """A slot, and then the first slice of credit."""
        with span("session.grant"):
            place = await self._grant(session, refused)
        session = await self._store.change_session(
            session.id, lambda was: alive(was).at(replace(place, epoch=was.epoch))
        )
        if session.paid_until_ms:
            return session
        with span("session.reserve"):
            reserved = await self._neighbours.reserve(session, round(self._settings.slice_s * 1000))
        cap = session.wishes.max_micro_per_second
        if cap and reserved.micro_per_second > cap:
            raise ConflictError(
                "the pipeline costs more than the stream allows",
                reason="PRICE_ABOVE_CAP",
                micro_per_second=reserved.micro_per_second,
                max_micro_per_second=cap,
            )
        return await self._store.change_session(
            session.id,
            lambda was: alive(was).with_(
                paid_until_ms=reserved.paid_until_ms, micro_per_second=reserved.micro_per_second
            ),
        )

    async def _grant(self, session: Session, refused: Sequence[str]) -> Place:
        wait_s = session.wishes.max_wait_ms / 1000 or self._settings.grant_wait_s
        grant = self._neighbours.grant(session, exclude=refused, wait_s=wait_s)
        place = await race(grant, self._nobody_waits(), self._ended(session))
        if place is None:
            raise UnavailableError("nobody waits for the session any more", reason="CALLER_GONE")
        return place

    async def _nobody_waits(self) -> Place | None:
        await self.gone.wait()
        return None

    async def _ended(self, session: Session) -> Place | None:
        """Raises ConflictError once somebody has ended the session."""
        revision = -1
        while True:
            revision = alive(await self._store.session_beyond(session.id, revision)).revision

    async def _open(self, session: Session, stream: Stream) -> bridge_pb2.Channels:
        with span("session.open"):
            return await self._neighbours.open_bridge(
                session,
                session.place,
                overdraft_s=self._settings.overdraft_s,
                processes_audio=stream.processes_audio,
                it_asked=True,
            )

    async def _leave(self, session: Session, *, sure: bool) -> None:
        """Free the slot of a runner that refused; one that is not `sure` to have may have the session."""
        if not sure:
            await tolerant(self._neighbours.detach(session.id, session.place, "refused"))
        await self._neighbours.release(session.id, session.runner)


def failure(error: SluiceError) -> str:
    """The end reason of a start that failed with `error`."""
    if isinstance(error, PaymentRequiredError):
        return Reason.CREDIT_EXHAUSTED
    if isinstance(error, ExhaustedError):
        return Reason.NO_CAPACITY
    if isinstance(error, ConflictError) and error.reason == "STREAM_BUSY":
        return Reason.STREAM_BUSY
    if isinstance(error, ConflictError) and error.reason == "PRICE_ABOVE_CAP":
        return Reason.PRICE_ABOVE_CAP
    if isinstance(error, InvalidError):
        return Reason.INPUT_UNUSABLE
    return Reason.START_FAILED
