"""Usage windows wait here, on disk, until the ledger has confirmed them; a killed process sends them later.

SQLite because an append-only file would need its own recovery and trimming; one thread does all of it. A disk
that refuses stops nothing: what it does not take is kept in memory, within bounds, and sent from there.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
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
LOST: Final = Counter(
    "sluice_outbox_lost_total",
    "Windows that neither disk nor memory had room for: usage that is never billed.",
)
RESEND_S: Final = 10.0  # an unconfirmed window is sent again: the ledger's key makes that harmless
BATCH: Final = 200
IN_MEMORY: Final = 10_000  # windows held without a disk, oldest dropped: 14 hours of one stream


@dataclass(frozen=True, slots=True)
class Line:
    """A window on its way: how often it was sent, and when last, by the wall clock, for it outlives us."""

    id: str
    subject: str
    payload: bytes
    sent_s: float = 0.0
    attempts: int = 0


class Outbox:
    """`put` a window; `deliver` and `confirm` run for ever beside it."""

    def __init__(self, path: str, bus: Bus) -> None:
        self._path = path
        self._bus = bus
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._wake = asyncio.Event()
        self._unstored: dict[str, Line] = {}  # what the disk did not take
        self._unmarked: dict[str, Line] = {}  # sent, and the disk did not take that it was

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
        self._database.execute("PRAGMA wal_autocheckpoint=64")  # pages: a log that is small beside any disk
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
        line = Line(window.id, usage(window.tenant, window.session), window.SerializeToString())
        try:
            await self._run(lambda: self._insert([line]))
        except sqlite3.Error as error:
            NOT_STORED.inc()
            log.warning("the outbox's disk refuses", error=str(error))
            self._keep(line)
        self._wake.set()

    def _keep(self, line: Line) -> None:
        """Keep it in memory. Of too many one goes that was sent already or, there being none, the oldest."""
        self._unstored[line.id] = line
        DEPTH.inc()
        if len(self._unstored) > IN_MEMORY:
            oldest = next(iter(self._unstored.values()))
            gone = next((one for one in self._unstored.values() if one.attempts), oldest)
            del self._unstored[gone.id]
            if not gone.attempts:
                LOST.inc()

    def _insert(self, lines: Iterable[Line]) -> None:
        self._write(
            "INSERT OR IGNORE INTO usage (id, subject, payload, sent_s, attempts) VALUES (?, ?, ?, ?, ?)",
            [(line.id, line.subject, line.payload, line.sent_s, line.attempts) for line in lines],
        )
        self._count()

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Execute what may be done twice. On a full disk the log's own room is room, once it is copied."""
        try:
            self._database.executemany(statement, rows)
        except sqlite3.OperationalError:
            self._database.execute("PRAGMA wal_checkpoint(RESTART)")
            self._database.executemany(statement, rows)

    def _count(self) -> None:
        stored: int = self._database.execute("SELECT count(*) FROM usage").fetchone()[0]
        DEPTH.set(stored + len(self._unstored))

    async def deliver(self) -> None:
        """Send what is due, for ever: a loop for `background`."""
        while True:
            self._wake.clear()
            try:
                await self._store_again()
                due = await self._due()
                for line in due:
                    # The transport's own de-duplication would swallow a repeat before billing can confirm it.
                    window = events_pb2.UsageWindow.FromString(line.payload)
                    with continued({"traceparent": window.traceparent}):
                        await self._bus.store(
                            line.subject, line.payload, message_id=f"{line.id}#{line.attempts}"
                        )
                    await self._mark(replace(line, sent_s=time.time(), attempts=line.attempts + 1))
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
                while await self._due():
                    self._wake.set()
                    await asyncio.sleep(0.05)

    async def _store_again(self) -> None:
        """Give the disk what it refused before; it may refuse it again."""
        with suppress(sqlite3.Error):
            if unmarked := list(self._unmarked.values()):
                await self._run(lambda: self._write_marks(unmarked))
                for line in unmarked:
                    if self._unmarked.get(line.id) == line:
                        del self._unmarked[line.id]
            if unstored := list(self._unstored.values()):
                await self._run(lambda: self._insert(unstored))
                for line in unstored:
                    self._unstored.pop(line.id, None)

    async def _due(self) -> list[Line]:
        """The oldest that were not sent lately."""
        before_s = time.time() - RESEND_S
        limit = BATCH + len(self._unmarked)
        stored = [
            self._unmarked.get(line.id, line) for line in await self._run(lambda: self._read(limit, before_s))
        ]
        return [line for line in (*stored, *self._unstored.values()) if line.sent_s < before_s][:BATCH]

    def _read(self, limit: int, before_s: float) -> list[Line]:
        rows = self._database.execute(
            "SELECT id, subject, payload, sent_s, attempts FROM usage WHERE sent_s < ?"
            " ORDER BY rowid LIMIT ?",
            (before_s, limit),
        )
        return [Line(*row) for row in rows]

    async def _mark(self, line: Line) -> None:
        """Remember that it was sent, and when: on the disk, or else in memory."""
        if line.id in self._unstored:
            self._unstored[line.id] = line
            return
        try:
            await self._run(lambda: self._write_marks([line]))
        except sqlite3.Error as error:
            log.warning("the outbox's disk refuses", error=str(error))
            self._unmarked[line.id] = line

    def _write_marks(self, lines: Iterable[Line]) -> None:
        self._write(
            "UPDATE usage SET sent_s = ?, attempts = ? WHERE id = ?",
            [(line.sent_s, line.attempts, line.id) for line in lines],
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
                for identifier in ids:
                    self._unstored.pop(identifier, None)
                    self._unmarked.pop(identifier, None)
                confirmed = [(identifier,) for identifier in ids]
                await self._run(lambda confirmed=confirmed: self._forget(confirmed))  # type: ignore[misc]
            await asyncio.sleep(1.0)

    def _forget(self, identifiers: list[tuple[str]]) -> None:
        try:
            self._write("DELETE FROM usage WHERE id = ?", identifiers)
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
