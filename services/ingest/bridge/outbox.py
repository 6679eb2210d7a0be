"""Usage windows wait here, on disk, until the ledger has confirmed them; a killed process sends them later.

SQLite because an append-only file would need its own recovery and trimming; one thread does all of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Gauge

from protos.events.v1 import events_pb2
from services.common.bus import BAD_MESSAGES, Bus
from services.common.errors import SluiceError
from services.common.telemetry import continued
from services.common.topology import usage, usage_confirmed

log = structlog.get_logger()
T = TypeVar("T")

DEPTH: Final = Gauge("sluice_outbox_depth", "Usage windows that the ledger has not confirmed.")
NOT_STORED: Final = Counter(
    "sluice_outbox_not_stored_total", "Windows that the disk did not take (kept in memory)."
)
RESEND_S: Final = 10.0  # an unconfirmed window is sent again: the ledger's key makes that harmless
BATCH: Final = 200
IN_MEMORY: Final = 10_000  # windows held without a disk, oldest dropped: 14 hours of one stream


class Outbox:
    """`put` a window; `deliver` and `confirm` run for ever beside it."""

    def __init__(self, path: str, bus: Bus) -> None:
        self._path = path
        self._bus = bus
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._wake = asyncio.Event()
        self._unstored: dict[str, tuple[str, bytes]] = {}

    @property
    def source(self) -> str:
        """The outbox's own name, as old as its file: confirmations find it again after a restart."""
        return self._source

    async def open(self) -> None:
        """Raises OSError when the path cannot be used."""
        try:
            await self._run(self._open)
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise OSError(f"cannot use the outbox at {self._path}: {error}") from error

    async def close(self) -> None:
        await self._run(self._shut)
        self._thread.shutdown()

    def _shut(self) -> None:
        self._database.close()

    def _open(self) -> None:
        self._database = sqlite3.connect(self._path, isolation_level=None, timeout=5.0)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS usage (id TEXT PRIMARY KEY, subject TEXT NOT NULL,"
            " payload BLOB NOT NULL, sent_s REAL NOT NULL DEFAULT 0,"
            " attempts INTEGER NOT NULL DEFAULT 0) STRICT"
        )
        self._database.execute("CREATE TABLE IF NOT EXISTS outbox (source TEXT PRIMARY KEY) STRICT")
        self._database.execute(
            "INSERT INTO outbox SELECT ? WHERE NOT EXISTS (SELECT 1 FROM outbox)", (uuid.uuid4().hex,)
        )
        self._source: str = self._database.execute("SELECT source FROM outbox").fetchone()[0]
        self._count()

    async def put(self, window: events_pb2.UsageWindow) -> None:
        """Keep `window` until it is confirmed; when this returns a kill of the process does not lose it."""
        subject, payload = usage(window.tenant, window.session), window.SerializeToString()
        try:
            await self._run(lambda: self._insert([(window.id, subject, payload)]))
        except sqlite3.Error as error:
            NOT_STORED.inc()
            log.warning("the outbox's disk refuses", error=str(error))
            self._unstored[window.id] = (subject, payload)
            if len(self._unstored) > IN_MEMORY:
                self._unstored.pop(next(iter(self._unstored)))
        self._wake.set()

    def _insert(self, rows: Iterable[tuple[str, str, bytes]]) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO usage (id, subject, payload) VALUES (?, ?, ?)", rows
        )
        self._count()

    def _count(self) -> None:
        DEPTH.set(self._database.execute("SELECT count(*) FROM usage").fetchone()[0])

    async def deliver(self) -> None:
        """Send what is due, for ever: a loop for `background`."""
        while True:
            self._wake.clear()
            try:
                await self._store_again()
                due = await self._run(self._due)
                for identifier, subject, payload, attempts in due:
                    # The transport's own de-duplication would swallow a repeat before billing can confirm it.
                    window = events_pb2.UsageWindow.FromString(payload)
                    with continued({"traceparent": window.traceparent}):
                        await self._bus.store(subject, payload, message_id=f"{identifier}#{attempts}")
                    await self._run(lambda identifier=identifier: self._mark(identifier))  # type: ignore[misc]
                if len(due) == BATCH:
                    continue
            except (SluiceError, sqlite3.Error) as error:
                log.warning("usage not sent yet", error=str(error))
                await asyncio.sleep(1.0)
                continue
            try:
                async with asyncio.timeout(RESEND_S / 2):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def flush(self, within_s: float) -> None:
        """Wait until everything was sent once, or until `within_s` is over: before an orderly end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while await self._run(self._due):
                    self._wake.set()
                    await asyncio.sleep(0.05)

    async def _store_again(self) -> None:
        if self._unstored:
            waiting = [(identifier, *row) for identifier, row in self._unstored.items()]
            await self._run(lambda: self._insert(waiting))
            for identifier, _, _ in waiting:
                self._unstored.pop(identifier, None)

    def _due(self) -> list[tuple[str, str, bytes, int]]:
        return self._database.execute(
            "SELECT id, subject, payload, attempts FROM usage WHERE sent_s < ? ORDER BY rowid LIMIT ?",
            (time.time() - RESEND_S, BATCH),
        ).fetchall()

    def _mark(self, identifier: str) -> None:
        self._database.execute(
            "UPDATE usage SET sent_s = ?, attempts = attempts + 1 WHERE id = ?", (time.time(), identifier)
        )

    async def confirm(self) -> None:
        """Forget what the ledger has, for ever: a loop for `background`."""
        while True:
            async for message in self._bus.subscribe(usage_confirmed(self._source)):
                try:
                    ids = events_pb2.UsageConfirmed.FromString(message.data).ids
                except DecodeError:
                    BAD_MESSAGES.labels("usage_confirmed").inc()
                    continue
                confirmed = [(identifier,) for identifier in ids]
                await self._run(lambda confirmed=confirmed: self._forget(confirmed))  # type: ignore[misc]
            await asyncio.sleep(1.0)

    def _forget(self, identifiers: list[tuple[str]]) -> None:
        try:
            self._database.executemany("DELETE FROM usage WHERE id = ?", identifiers)
            self._count()
        except sqlite3.Error as error:  # they are sent and confirmed once more
            log.warning("the outbox was not trimmed", error=str(error))

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


@asynccontextmanager
async def outbox(path: str, bus: Bus) -> AsyncIterator[Outbox]:
    """The outbox at `path` as a block."""
    opened = Outbox(path, bus)
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()
