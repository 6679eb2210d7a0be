"""One session's record as its owner knows it: the newest revision of all that was read and written."""

from __future__ import annotations

from collections.abc import Callable

from services.common.errors import ConflictError
from services.common.latest import Latest
from services.session_manager.machine import Phase, Session
from services.session_manager.store import Store


class Record:
    """Shared by those who look after one session; `changed` wakes whoever waits for a change of it."""

    def __init__(self, session: Session, store: Store) -> None:
        self.changed = Latest(session)
        self._store = store

    @property
    def now(self) -> Session:
        return self.changed.value

    def saw(self, session: Session) -> None:
        """Take note of what was read or written; what is older than what is known is no news."""
        if session.revision > self.now.revision:
            self.changed.set(session)

    async def change(self, step: Callable[[Session], Session]) -> Session:
        """Change the record by compare-and-set. Raises what `step` raises, and UnavailableError."""
        session = await self._store.change_session(self.now.id, step)
        self.saw(session)
        return session

    async def until(self, true: Callable[[Session], bool]) -> Session:
        """Wait until `true` of the record."""
        version = self.changed.version
        while not true(self.now):
            version, _ = await self.changed.newer_than(version)
        return self.now


def alive(session: Session) -> Session:
    """Return the session unless it has ended: then somebody was faster, and a start or a renewal stops."""
    if session.phase is Phase.ENDED:
        raise ConflictError("the session has ended", reason="SESSION_ENDED", session=session.id)
    return session
