"""The sessions of this pod: made by a publisher, found by session-managers and viewers, gone when closed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from prometheus_client import Gauge

from services.common.errors import ConflictError, ExhaustedError, NotFoundError, RateLimitedError
from services.common.latest import Latest
from services.common.lifecycle import Bulkhead
from services.common.telemetry import report_bug
from services.common.trickle.registry import Registry
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.session import BridgeSession
from services.ingest.settings import IngestSettings

SESSIONS: Final = Gauge("sluice_session_active", "Sessions whose media passes here.")
CLOSE_S: Final = 10.0  # the last windows of all sessions go to the disk


class Hub:
    """Owns a task per session; a session that fails is closed, and nothing else is."""

    def __init__(self, registry: Registry, outbox: Outbox, settings: IngestSettings) -> None:
        self._registry = registry
        self._outbox = outbox
        self._settings = settings
        self._sessions: dict[str, BridgeSession] = {}
        self._by_stream: dict[str, BridgeSession] = {}
        self._changed: Latest[None] = Latest(None)
        self._tasks = Bulkhead(self._failed)

    async def __aenter__(self) -> Hub:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close_all("the ingest process ends")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                while self._sessions:
                    await self._changed.newer_than(self._changed.version)
        await self._tasks.__aexit__(*exc_info)

    def close_all(self, message: str) -> None:
        """Let every publisher and viewer go; each session still writes its last window."""
        for session in list(self._sessions.values()):
            session.close("bridge_lost", message)

    def __len__(self) -> int:
        return len(self._sessions)

    def create(self, identity: Identity) -> BridgeSession:
        """Begin a session. Raises ExhaustedError (pod full), RateLimitedError (tenant has enough).

        Raises ConflictError when somebody else was quicker to begin one for the stream.
        """
        if identity.stream in self._by_stream:
            raise ConflictError(
                "the stream has a publisher already", reason="STREAM_BUSY", stream=identity.stream
            )
        if len(self._sessions) >= self._settings.max_sessions:
            raise ExhaustedError(
                "this ingest process is full",
                reason="INGEST_FULL",
                retry_after_s=5,
                limit=self._settings.max_sessions,
            )
        theirs = sum(session.identity.tenant == identity.tenant for session in self._sessions.values())
        if theirs >= self._settings.max_streams_per_tenant:
            raise RateLimitedError(
                f"at most {self._settings.max_streams_per_tenant} streams of a tenant at once",
                reason="TOO_MANY_STREAMS",
                retry_after_s=5,
                limit=self._settings.max_streams_per_tenant,
            )
        session = BridgeSession(
            identity, registry=self._registry, outbox=self._outbox, settings=self._settings
        )
        self._sessions[identity.session] = session
        self._by_stream[identity.stream] = session
        SESSIONS.inc()
        self._tasks.start(identity.session, self._live(session))
        self._changed.set(None)
        return session

    async def _live(self, session: BridgeSession) -> None:
        identity = session.identity
        try:
            await session.run()
        finally:
            del self._sessions[identity.session]
            del self._by_stream[identity.stream]
            SESSIONS.dec()
            self._changed.set(None)

    def _failed(self, key: str, error: Exception) -> None:
        report_bug("bridge", error, session=key)

    def session(self, session: str) -> BridgeSession:
        """The session. Raises NotFoundError if it is not, or no longer, here."""
        if session not in self._sessions:
            raise NotFoundError(f"no session {session} at this bridge", reason="SESSION_NOT_HERE")
        return self._sessions[session]

    def of_stream(self, stream: str) -> BridgeSession | None:
        """The live session of a stream, if its media passes here."""
        return self._by_stream.get(stream)

    async def until_gone(self, session: BridgeSession) -> None:
        """Wait until a session that was closed has left nothing here, so that its stream may have another."""
        while self._by_stream.get(session.identity.stream) is session:
            await self._changed.newer_than(self._changed.version)

    async def wait_for(
        self, stream: str, within_s: float, *, other_than: BridgeSession | None = None
    ) -> BridgeSession | None:
        """The session of a stream as soon as there is one (another one); None if there is none in time."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    version = self._changed.version
                    session = self.of_stream(stream)
                    if session is not None and session is not other_than:
                        return session
                    await self._changed.newer_than(version)
        except TimeoutError:
            return None
