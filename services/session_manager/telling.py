"""What others are told of sessions: every edge, in JetStream; and the routers, of runners that failed."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import Counter

from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import SluiceError
from services.common.latest import DropOldest
from services.common.topology import runner_fault, session_event
from services.session_manager.machine import Move, Phase, Place, Session

EVENTS_LOST: Final = Counter("sluice_session_events_lost_total", "Session events that NATS never took.")
EVENTS_CAPACITY: Final = 1000


class Telling:
    """A queue towards NATS: nobody waits for it, and a full one drops its oldest."""

    def __init__(self, bus: Bus, replica: str) -> None:
        self._bus = bus
        self._replica = replica
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
        self._waiting.put(fault)

    def _happened(self, session: Session, event: str, reason: str, **details: str) -> None:
        self._waiting.put(
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

    async def publish(self) -> None:
        """Tell all of it: a loop for `background`."""
        sequence = 0
        while True:
            news = await self._waiting.get()
            if isinstance(news, events_pb2.RunnerFault):
                await self._bus.publish(runner_fault(news.runner), news.SerializeToString())
                continue
            sequence += 1
            try:
                await self._bus.store(
                    session_event(news.tenant, news.session),
                    news.SerializeToString(),
                    message_id=f"{self._replica}:{sequence}",
                )
            except SluiceError:
                EVENTS_LOST.inc()


def now_unix_ms() -> int:
    """Wall time, for records only."""
    return time.time_ns() // 1_000_000
