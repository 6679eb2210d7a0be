"""A revision on its way to the runner of a live session: to both of them, while it moves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

from protos.inference.v1 import runner_pb2
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    SluiceError,
    UnavailableError,
)
from services.common.telemetry import span
from services.session_manager.machine import Phase, Place, Session, Stream
from services.session_manager.neighbours import Neighbours
from services.session_manager.revisions import Scheduled
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store, patch_to_proto
from services.session_manager.waiting import Aside

RETELL_S: Final = 0.25
OLD_ANSWERS_WITHIN_S: Final = 1.0  # the runner that a session leaves, which may be dead
AT_START: Final = "at_start"


class Updating:
    """Tells runners. `aside` runs what goes on when its caller went away: what is recorded must be told."""

    def __init__(
        self, *, store: Store, neighbours: Neighbours, settings: SessionManagerSettings, aside: Aside
    ) -> None:
        self._aside = aside
        self._store = store
        self._neighbours = neighbours
        self._settings = settings

    async def tell(self, stream: Stream, patch: Mapping[str, object], apply_at_pts: int) -> str:
        """Pass the revision on to a live session, return how it applies; without one it is at the start."""
        if not stream.session:
            return AT_START
        try:
            session = await self._store.session(stream.session)
        except NotFoundError:
            return AT_START
        message: runner_pb2.Patch = patch_to_proto(Scheduled(stream.revision, patch, apply_at_pts))
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> None:
            try:
                applies = await self._traced(session, message)
            except SluiceError as error:
                if not told.done():
                    told.set_exception(error)
            else:
                if not told.done():
                    told.set_result(applies)
            finally:
                told.cancel()

        self._aside(f"tell/{session.id}", work())
        return await told

    async def _traced(self, session: Session, message: runner_pb2.Patch) -> str:
        # In the session's trace, not the request's: what was changed is part of its life.
        context = {"traceparent": session.traceparent}
        with span(
            "session.update", carrier=context, session_id=session.id, session_revision=message.revision
        ) as current:
            applies = await self._tell_surely(session, message)
            current.set_attribute("session.applies", applies)
        return applies

    async def _tell_surely(self, session: Session, message: runner_pb2.Patch) -> str:
        """Until one took it: by the record as it is then, for a runner that does not answer is left soon."""
        now = asyncio.get_running_loop().time
        deadline_s = now() + self._settings.call_timeout_s
        while True:  # a revision may be told twice; one that is never told would part record and runner
            if session.phase in {Phase.ALLOCATING, Phase.ENDED}:
                return AT_START
            try:
                return await self._tell(session, message)
            except (UnavailableError, DeadlineExceededError) as error:
                if now() > deadline_s:
                    raise UnavailableError(
                        f"revision {message.revision} is stored, but not at the runner: {error.message}",
                        reason="RUNNER_NOT_TOLD",
                    ) from error
            await asyncio.sleep(RETELL_S)
            session = await self._store.session(session.id)

    async def _tell(self, session: Session, message: runner_pb2.Patch) -> str:
        if session.next is None:
            applies = await self._place(session, session.place, message)
            if applies is None and session.phase is Phase.MIGRATING:
                raise UnavailableError("it has no runner just now", reason="MIGRATING")
            return applies or AT_START  # it ended under our hands; the record has the revision
        old, new = await asyncio.gather(
            self._old(session, message), self._place(session, session.next, message), return_exceptions=True
        )
        for answer in (old, new):
            if isinstance(answer, str):
                return answer
        for answer in (old, new):
            if isinstance(answer, BaseException):
                raise answer
        raise UnavailableError("neither of its runners has it just now", reason="MIGRATING")

    async def _old(self, session: Session, message: runner_pb2.Patch) -> str | None:
        try:
            async with asyncio.timeout(OLD_ANSWERS_WITHIN_S):
                return await self._place(session, session.place, message)
        except TimeoutError:
            raise DeadlineExceededError("the old runner did not answer in time") from None

    async def _place(self, session: Session, place: Place, message: runner_pb2.Patch) -> str | None:
        """How it applies there; None where the session is not, or not yet: its attach brings the revision."""
        try:
            return await self._neighbours.update(session.id, place, message)
        except (NotFoundError, ConflictError):
            return None
