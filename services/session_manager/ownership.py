"""Who has the duties of a session: the replica that its record names, as long as that replica's key lives.

Of those that live, each dead one's sessions have one heir: which, follows from the names alone.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Container, Iterable
from contextlib import suppress
from typing import Final

import structlog
from prometheus_client import Counter

from protos.events.v1 import events_pb2
from services.common.bus import Bucket, Bus, View
from services.common.errors import ConflictError, NotFoundError, UnavailableError
from services.common.topology import SESSIONS
from services.session_manager.life import Lives
from services.session_manager.machine import Session
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import now_unix_ms

log = structlog.get_logger()

ADOPTED: Final = Counter("sluice_sessions_adopted_total", "Sessions taken over from a replica that died.")
LOOK_EVERY_S: Final = 0.5
FORGET_EVERY_S: Final = 5.0
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
        revision: int | None = None
        period_s = self._settings.replica_ttl_s / 3
        while True:
            try:
                async with asyncio.timeout(period_s):  # a lost answer must not cost the key its life
                    revision = await self._renewed(value, revision)
            except TimeoutError:
                log.warning("liveness not renewed", reason="DEADLINE_EXCEEDED")
                continue
            except UnavailableError as error:
                log.warning("liveness not renewed", reason=error.reason)
            await asyncio.sleep(period_s)

    async def _renewed(self, value: bytes, revision: int | None) -> int | None:
        """Write the key over `revision`, or over what is there by now; its new revision, None if unknown.

        It lapsed, or was renewed by a publish that timed out and was stored, or by this replica in an earlier
        life: then there is no time to lose, for it may be about to lapse.
        """
        try:
            return await self._write(value, revision)
        except ConflictError:
            found = await self._replicas.get(self._replica)
        try:
            return await self._write(value, found.revision if found else None)
        except ConflictError:
            return None

    async def _write(self, value: bytes, revision: int | None) -> int:
        ttl_s = self._settings.replica_ttl_s
        if revision is None:
            return await self._replicas.create(self._replica, value, ttl_s=ttl_s)
        return await self._replicas.renew(self._replica, value, revision, ttl_s)

    async def adopt_orphans(self) -> None:
        """Take the duties of sessions whose owner is dead, and forget what is long over, for ever."""
        await self.view.ready.wait()
        await self._store.sessions_view.ready.wait()
        seen: frozenset[str] = frozenset()
        gone_since_s: dict[str, float] = {}
        forgot_s = 0.0
        while True:
            await self._come_or_gone(seen)
            seen = frozenset(self.view.entries)
            if self._bus.healthy_for_s < max(LINK_SETTLE_S, self._settings.replica_ttl_s):
                gone_since_s.clear()
                continue
            now_s = asyncio.get_running_loop().time()
            if now_s - forgot_s >= FORGET_EVERY_S:
                forgot_s = now_s
                await self._forget_ended()
            sessions = [one for one in self._store.sessions_view.parsed.values() if not one.settled]
            owners = {session.owner for session in sessions}
            gone_since_s = {name: gone_since_s.get(name, now_s) for name in owners - seen - {self._replica}}
            dead = {name for name, since_s in gone_since_s.items() if now_s - since_s >= self._grace_s}
            for session in sessions:
                try:
                    await self._consider(session, dead)
                except (UnavailableError, NotFoundError, ConflictError) as error:
                    log.info("not adopted", session=session.id, reason=error.reason)

    async def _forget_ended(self) -> None:
        """Remove the records that were kept for long enough; another replica may do the same."""
        before_ms = now_unix_ms() - self._settings.keep_ended_s * 1000
        view = self._store.sessions_view
        old = [one.id for one in view.parsed.values() if one.settled and 0 < one.ended_unix_ms < before_ms]
        for session in old:
            entry = view.entries.get(session)
            if entry is None:
                continue
            try:
                await self._store.sessions.withdraw(session, entry.revision, SESSIONS.markers_s)
            except (UnavailableError, ConflictError) as error:
                log.info("not forgotten", session=session, reason=error.reason)

    async def _come_or_gone(self, seen: frozenset[str]) -> None:
        """Wait until there are other replicas than those `seen`, and not long."""
        version = self.view.changed.version
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                while seen == self.view.entries.keys():
                    version, _ = await self.view.changed.newer_than(version)

    @property
    def _grace_s(self) -> float:
        """For how long a key must be gone: all lapse when NATS stands still, and are back when it goes on."""
        return self._settings.replica_ttl_s / 6

    async def _consider(self, session: Session, dead: Container[str]) -> None:
        if session.id in self._lives:
            return
        if session.owner != self._replica:
            living = {*self.view.entries, self._replica}
            gone = session.owner
            if gone not in dead or gone in living or heir(session.id, living) != self._replica:
                return
            session = await self._store.change_session(
                session.id, lambda was: was.with_(owner=self._replica) if was.owner == gone else was
            )
            if session.owner != self._replica:
                return
            ADOPTED.inc()
            log.info("session adopted", session=session.id, of=gone)
        if session.id not in self._lives:
            self._lives.adopt(session)


def heir(session: str, living: Iterable[str]) -> str:
    """Return which of the `living` replicas sees to a session that has no living owner."""
    return max(living, key=lambda name: (zlib.crc32(f"{name}/{session}".encode()), name))
