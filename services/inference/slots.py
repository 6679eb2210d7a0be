"""Which session is in which slot, and who may still say something about it: the fences are the slot epochs.

The rule it keeps: a slot has at most one session that lives, and commands of an older grant are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Gauge

from services.common.errors import ConflictError, DeadlineExceededError, InvalidError, NotFoundError
from services.common.latest import Latest
from services.common.lifecycle import Bulkhead
from services.common.param_schema import applies, validate
from services.common.telemetry import report_bug
from services.inference.assignment import Assignment, Channels, Report, State
from services.inference.hosting import Host, HostedSession, Offer
from services.inference.params import Patch
from services.inference.settings import InferenceSettings

log = structlog.get_logger()

UNWIND_S: Final = 2.0  # for a cancelled session, beside what the engine may take
SESSIONS: Final = Gauge("sluice_runner_sessions", "Sessions in the slots of this runner.")


class Slots:
    """The sessions of this runner. Leaving the block ends them; a slot remembers its last until the next."""

    def __init__(self, settings: InferenceSettings, host: Host) -> None:
        self._settings = settings
        self._host = host
        self._sessions: dict[int, HostedSession] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._offers: dict[int, Offer] = {}  # as they were at the attach: an engine may be away for a while
        self._epochs: dict[int, int] = {}  # the highest seen, by slot
        self._bulkhead = Bulkhead(self._broken)
        self._leaving = False  # the process does
        self.draining = False
        self.changed = Latest(None)  # which sessions live, or whether there may be more

    async def __aenter__(self) -> Slots:
        await self._bulkhead.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.leave()
        await self._bulkhead.__aexit__(*exc_info)

    @property
    def living(self) -> list[HostedSession]:
        return [session for session in self._sessions.values() if not session.report.value.state.terminal]

    def drain(self, *, cancel: bool = False) -> None:
        """Take no session any more; `cancel`: take some again, if the process stays."""
        draining = self._leaving or not cancel
        if draining != self.draining:
            log.info("the runner drains" if draining else "the runner takes sessions again")
            self.draining = draining
            self.changed.set(None)

    def leave(self) -> None:
        """Drain for good."""
        self._leaving = True
        self.drain()

    async def emptied(self) -> None:
        """Wait until no session is left."""
        while self.living:
            await self.changed.newer_than(self.changed.version)

    def free(self) -> tuple[int, int] | None:
        """A slot that nobody is in, with the epoch of its newest grant: for a session that nobody granted."""
        taken = {session.assignment.slot for session in self.living}
        slot = next((slot for slot in range(self._settings.slots) if slot not in taken), None)
        return None if slot is None else (slot, self._epochs.get(slot, 0))

    def attach(self, of: Assignment, session: Callable[[Assignment], HostedSession] | None = None) -> None:
        """Start a session; the same (session, session epoch) again changes nothing.

        `session` makes it, if not the host.
        Raises InvalidError, NotFoundError UNKNOWN_PIPELINE, and ConflictError STALE_EPOCH, SLOT_OCCUPIED,
        NOT_READY or DRAINING.
        """
        if not 0 <= of.slot < self._settings.slots:
            raise InvalidError("this runner has no such slot", field="slot", slots=self._settings.slots)
        if of.slot_epoch < self._epochs.get(of.slot, 0):
            raise ConflictError(
                "the slot was granted again", reason="STALE_EPOCH", epoch=self._epochs[of.slot]
            )
        there = self._sessions.get(of.slot)
        if there is not None and _same(there.assignment, of):
            return
        if self.draining:
            raise ConflictError("the runner is leaving", reason="DRAINING")
        if not self._host.ready:
            raise ConflictError("the host of its sessions is not ready", reason="NOT_READY")
        offer = self._offer(of.pipeline)
        for params in of.fold.outcomes():
            validate(params, offer.params_schema)
        self._require_room(of, offer)
        self._epochs[of.slot] = of.slot_epoch
        begun = (session or self._host.session)(of)
        self._sessions[of.slot], self._offers[of.slot] = begun, offer
        self._tasks[of.slot] = self._bulkhead.start(_key(of), self._run(begun))

    async def update(self, session_id: str, slot_epoch: int, patch: Patch) -> str:
        """Take a revision in; returns how it will take effect.

        Raises InvalidError, NotFoundError, ConflictError.
        """
        session = self.find(session_id, slot_epoch)
        if session.report.value.state.terminal:
            raise NotFoundError("the session has ended", reason="SESSION_ENDED", session=session_id)
        schema = self._offers[session.assignment.slot].params_schema
        fold = session.fold.add(patch)
        for params in fold.outcomes():
            validate(params, schema)
        if fold is not session.fold:
            await session.update(patch, fold)
        return applies(patch.patch, schema)

    def rebind(self, session_id: str, slot_epoch: int, *, channels: Channels, session_epoch: int) -> Report:
        """Have the session go on at another bridge; returns how far it is. Again changes nothing.

        Raises NotFoundError, ConflictError STALE_EPOCH or REBIND_UNSUPPORTED.
        """
        session = self.find(session_id, slot_epoch)
        if session.report.value.state.terminal:
            raise NotFoundError("the session has ended", reason="SESSION_ENDED", session=session_id)
        was = session.assignment.session_epoch
        if session_epoch < was:
            raise ConflictError("the session went on elsewhere", reason="STALE_EPOCH", epoch=was)
        if session_epoch > was:
            session.rebind(channels, session_epoch)
            self.changed.set(None)
        return session.newest

    async def detach(self, session_id: str, slot_epoch: int, reason: str) -> None:
        """End a session; when this returns its slot is free. An unknown one is gone already."""
        try:
            session = self.find(session_id, slot_epoch)
        except NotFoundError:
            return
        session.stopped = (State.DETACHED, reason)
        task = self._tasks[session.assignment.slot]
        task.cancel()
        await asyncio.wait([task], timeout=self._settings.detach_timeout_s + UNWIND_S)
        if not task.done():
            raise DeadlineExceededError("the session does not end", session=session_id)
        session.ended()
        self.changed.set(None)

    def find(self, session_id: str, slot_epoch: int) -> HostedSession:
        """Raises NotFoundError, and ConflictError STALE_EPOCH below the epoch of the attach."""
        for session in (*self.living, *self._sessions.values()):
            if session.assignment.session == session_id:
                if slot_epoch < session.assignment.slot_epoch:
                    raise ConflictError("the slot was granted again", reason="STALE_EPOCH")
                return session
        raise NotFoundError("the session is not on this runner", reason="UNKNOWN_SESSION", session=session_id)

    def _offer(self, pipeline: str) -> Offer:
        for offer in self._host.offers.value:
            if offer.name == pipeline:
                return offer
        raise NotFoundError("this runner has no such pipeline", reason="UNKNOWN_PIPELINE", pipeline=pipeline)

    def _require_room(self, of: Assignment, offer: Offer) -> None:
        living = self.living
        if any(one.assignment.slot == of.slot or one.assignment.session == of.session for one in living):
            raise ConflictError("the slot is taken", reason="SLOT_OCCUPIED", slot=of.slot)
        if sum(one.assignment.pipeline == of.pipeline for one in living) >= offer.slots_per_engine:
            raise ConflictError(
                "the pipeline serves no more streams at a time",
                reason="SLOT_OCCUPIED",
                streams=offer.slots_per_engine,
            )

    async def _run(self, session: HostedSession) -> None:
        of = session.assignment
        with structlog.contextvars.bound_contextvars(session=of.session, slot=of.slot):
            log.info(
                "session attached", pipeline=of.pipeline, epoch=of.session_epoch, slot_epoch=of.slot_epoch
            )
            SESSIONS.inc()
            self.changed.set(None)
            try:
                await session.run()
            finally:
                SESSIONS.dec()
                self.changed.set(None)

    def _broken(self, key: str, error: Exception) -> None:
        report_bug("session", error, session=key)


def _key(of: Assignment) -> str:
    return f"{of.session} epoch {of.session_epoch} slot {of.slot}"


def _same(one: Assignment, other: Assignment) -> bool:
    return (one.session, one.session_epoch) == (other.session, other.session_epoch)
