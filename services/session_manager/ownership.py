"""Who has the duties of a session: the replica that its record names, as long as that replica's key lives."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog
from prometheus_client import Counter

from protos.events.v1 import events_pb2
from services.common.bus import Bucket, Bus, View
from services.common.errors import ConflictError, NotFoundError, UnavailableError
from services.session_manager.life import Lives, now_unix_ms
from services.session_manager.machine import Phase, Session
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store

log = structlog.get_logger()

ADOPTED: Final = Counter("sluice_sessions_adopted_total", "Sessions taken over from a replica that died.")
LINK_SETTLE_S: Final = 3.0  # others' silence is evidence only after our own link was healthy for so long


class Ownership:
    """This replica's liveness, and the adoption of what dead replicas left."""

    def __init__(
        self,
        *,
        replica: str,
        replicas: Bucket,
        store: Store,
        lives: Lives,
        bus: Bus,
        settings: SessionManagerSettings,
    ) -> None:
        self.view = View()
        self._replica = replica
        self._replicas = replicas
        self._store = store
        self._lives = lives
        self._bus = bus
        self._settings = settings

    async def live(self) -> None:
        """Renew this replica's key for ever; make it again if it lapsed while NATS was away."""
        value = events_pb2.Replica(
            replica=self._replica, address=self._settings.listen, started_unix_ms=now_unix_ms()
        ).SerializeToString()
        ttl_s = self._settings.replica_ttl_s
        revision: int | None = None
        while True:
            try:
                if revision is None:
                    revision = await self._replicas.create(self._replica, value, ttl_s=ttl_s)
                else:
                    revision = await self._replicas.renew(self._replica, value, revision, ttl_s)
            except ConflictError:  # lapsed, or renewed by a publish that timed out and was stored
                revision = await self._revision()
            except UnavailableError as error:
                log.warning("liveness not renewed", reason=error.reason)
            await asyncio.sleep(ttl_s / 3)

    async def _revision(self) -> int | None:
        try:
            entry = await self._replicas.get(self._replica)
        except UnavailableError:
            return None
        return entry.revision if entry else None

    async def adopt_orphans(self) -> None:
        """Every second, take the duties of sessions whose owner is dead, and forget what is long over."""
        await self.view.ready.wait()
        await self._store.sessions_view.ready.wait()
        while True:
            await asyncio.sleep(1.0)
            if self._bus.healthy_for_s < max(LINK_SETTLE_S, self._settings.replica_ttl_s):
                continue
            for session in self._store.list_sessions():
                try:
                    await self._consider(session)
                except (UnavailableError, NotFoundError, ConflictError) as error:
                    log.info("not adopted", session=session.id, reason=error.reason)

    async def _consider(self, session: Session) -> None:
        if session.settled:
            age_ms = time.time_ns() // 1_000_000 - session.ended_unix_ms
            if session.phase is Phase.ENDED and age_ms > self._settings.keep_ended_s * 1000:
                await self._store.sessions.delete(session.id)
            return
        if session.id in self._lives:
            return
        if session.owner != self._replica:
            if session.owner in self.view.entries:
                return
            dead = session.owner
            session = await self._store.change_session(
                session.id, lambda was: was.with_(owner=self._replica) if was.owner == dead else was
            )
            if session.owner != self._replica:
                return
            ADOPTED.inc()
            log.info("session adopted", session=session.id, of=dead)
        if session.id not in self._lives:
            self._lives.adopt(session)
