"""What others are told of sessions: every edge, in JetStream; and the routers, of runners that failed."""

from __future__ import annotations

import asyncio
import time
from typing import Final
from uuid import uuid4

import structlog
from prometheus_client import Counter

from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import SluiceError, UnavailableError
from services.common.latest import DropOldest
from services.common.topology import runner_fault, session_event
from services.session_manager.machine import Move, Phase, Place, Session

log = structlog.get_logger()

EVENTS_LOST: Final = Counter("sluice_session_events_lost_total", "Session events that NATS never took.")
EVENTS_CAPACITY: Final = 1000
RETRY_S: Final = 0.5


class Telling:
    """A queue towards NATS: nobody waits for it, it waits for NATS, and a full one drops its oldest."""

    def __init__(self, bus: Bus, replica: str) -> None:
        self._bus = bus
        self._life = f"{replica}:{uuid4().hex}"  # one that is started again begins to count again
        self._waiting: DropOldest[events_pb2.SessionEvent | events_pb2.RunnerFault] = DropOldest(
            EVENTS_CAPACITY
        )

    def entered(self, session: Session) -> None:
        """It is in another phase. That it ended is told by whoever ended it, once."""
        if session.phase is not Phase.ENDED:
            self._happened(session, session.phase.name.lower(), "")

    def ended(self, session: Session) -> None:
        self._happened(session, "ended", session.end_reason)

    def moved(self, session: Session, move: Move) -> None:
        """Viewers get the output of another runner."""
        self._happened(
            session,
            "moved",
            move.why,
            left=move.left,
            to=move.to,
            freeze_ms=str(move.freeze_ms),
            lost=str(move.lost),
            repeated=str(move.repeated),
        )

    def failed(self, session: Session, place: Place, why: str) -> None:
        """A runner failed the session."""
        fault = events_pb2.RunnerFault(
            runner=place.runner, boot_id=place.boot_id, session=session.id, reason=why
        )
        self._put(fault)

    def _happened(self, session: Session, event: str, reason: str, **details: str) -> None:
        self._put(
            events_pb2.SessionEvent(
                session=session.id,
                stream=session.stream,
                tenant=session.tenant,
                type=event,
                reason=reason,
                unix_ms=now_unix_ms(),
                epoch=session.epoch,
                details=details,
            )
        )

    def _put(self, news: events_pb2.SessionEvent | events_pb2.RunnerFault) -> None:
        dropped = self._waiting.dropped
        self._waiting.put(news)
        EVENTS_LOST.inc(self._waiting.dropped - dropped)

    async def publish(self) -> None:
        """Tell all of it: a loop for `background`."""
        sequence = 0
        while True:
            news = await self._waiting.get()
            if isinstance(news, events_pb2.RunnerFault):
                await self._bus.publish(runner_fault(news.runner), news.SerializeToString())
                continue
            sequence += 1
            while not await self._stored(news, f"{self._life}:{sequence}"):  # noqa: ASYNC110 - a retry
                await asyncio.sleep(RETRY_S)

    async def _stored(self, news: events_pb2.SessionEvent, message_id: str) -> bool:
        """Whether it is stored, or never will be; what is unknown is stored again under the same id."""
        subject = session_event(news.tenant, news.session)
        try:
            await self._bus.store(subject, news.SerializeToString(), message_id=message_id)
        except UnavailableError:
            return False
        except SluiceError as error:
            log.warning("event refused", session=news.session, reason=error.reason)
            EVENTS_LOST.inc()
        return True


def now_unix_ms() -> int:
    """Wall time, for records only."""
    return time.time_ns() // 1_000_000
