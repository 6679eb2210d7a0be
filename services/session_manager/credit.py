"""Credit reserved ahead of a live session; once there is no more, its bridge is told where it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.session_manager.machine import Session
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import Record, alive
from services.session_manager.settings import SessionManagerSettings

log = structlog.get_logger()


class Credit:
    """Of one session. `session_ms`: session time now; None while nothing of its epoch is delivered."""

    def __init__(
        self,
        record: Record,
        session_ms: Callable[[], float | None],
        *,
        neighbours: Neighbours,
        settings: SessionManagerSettings,
    ) -> None:
        self._record = record
        self._session_ms = session_ms
        self._neighbours = neighbours
        self._settings = settings
        self._paid_until_ms = record.now.paid_until_ms  # ahead of the record while NATS is away

    async def renew(self) -> None:
        """For as long as the session lives."""
        slice_ms = self._settings.slice_s * 1000
        while True:
            await asyncio.sleep(min(1.0, self._settings.slice_s / 4))
            self._paid_until_ms = max(self._paid_until_ms, self._record.now.paid_until_ms)
            session_ms = self._session_ms()
            if session_ms is not None and self._paid_until_ms - session_ms <= slice_ms / 2:
                await self._extend(round(session_ms + slice_ms))

    async def _extend(self, until_ms: int) -> None:
        session, overdraft_s = self._record.now, self._settings.overdraft_s
        try:
            self._paid_until_ms = (await self._neighbours.reserve(session, until_ms)).paid_until_ms
        except (UnavailableError, DeadlineExceededError) as error:
            log.warning("billing does not answer", session=session.id, reason=error.reason)
            return
        except ConflictError:
            return  # settled, so it has ended; the watcher of the record says so
        except PaymentRequiredError:
            overdraft_s = 0.0
        paid_until_ms = self._paid_until_ms
        try:
            session = await self._record.change(lambda was: _paid(alive(was), paid_until_ms))
        except (UnavailableError, NotFoundError):
            session = session.with_(paid_until_ms=paid_until_ms)
        except ConflictError:
            return  # it ended; the watcher of the record says so
        if self._session_ms() is None:
            return  # its publisher comes back elsewhere: that opens a bridge, and says where time goes on
        try:
            await self._neighbours.open_bridge(session, session.place, overdraft_s=overdraft_s)
        except SluiceError as error:
            log.warning("bridge not told of credit", session=session.id, reason=error.reason)


def _paid(was: Session, until_ms: int) -> Session:
    """Return the session paid until then; one whose tenant has no more is not written every second."""
    return was if was.paid_until_ms == until_ms else was.with_(paid_until_ms=until_ms)
