"""A bucket's content as last heard; it may be stale, so decide by compare-and-set, never by a look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from services.common.latest import Latest

log = structlog.get_logger()
T = TypeVar("T")

BAD_MESSAGES: Final = Counter("sluice_nats_bad_messages_total", "Messages that could not be read.", ["kind"])


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key holds, and the revision to name when it is replaced."""

    value: bytes
    revision: int


class Update(NamedTuple):
    """What a bucket says of a key; without an entry it is gone."""

    key: str
    entry: Entry | None
    revision: int


class View:
    """A bucket's content as last heard; it may be stale, so decide by compare-and-set, never by a look."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.ready = asyncio.Event()
        self.changed = Latest(None)

    def replace(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.ready.set()
        self.changed.set(None)

    def put(self, key: str, entry: Entry | None) -> None:
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        self.changed.set(None)


class Filling:
    """What a new watcher tells, for one view: first all that is there, then what changes.

    `newest` is the revision up to which everything is heard; to begin with that of the bucket before.
    """

    def __init__(self, view: View, newest: int) -> None:
        self.newest = newest
        self._view = view
        self._fresh: dict[str, Entry] | None = {}

    def take(self, update: Update | None) -> None:
        """Take one update in; None is the end of what was there already."""
        if update is None:
            if self._fresh is not None:
                self._view.replace(self._fresh)
                self._fresh = None
            return
        key, entry, revision = update
        self.newest = max(self.newest, revision)
        if self._fresh is None:
            self._view.put(key, entry)
        elif entry is not None:
            self._fresh[key] = entry
        else:
            self._fresh.pop(key, None)  # a busy bucket changes while it is told what is there


class ParsedView(View, Generic[T]):
    """A view that reads each value once, when it comes; what cannot be read is counted and left out."""

    def __init__(self, parse: Callable[[bytes], T]) -> None:
        super().__init__()
        self.parsed: dict[str, T] = {}
        self._parse = parse

    def replace(self, entries: dict[str, Entry]) -> None:
        before, known = self.entries, self.parsed
        self.parsed = {}
        for key, entry in entries.items():
            if key in known and before.get(key) == entry:
                self.parsed[key] = known[key]
            else:
                self._read(key, entry)
        super().replace(entries)

    def put(self, key: str, entry: Entry | None) -> None:
        self.parsed.pop(key, None)
        if entry is not None:
            self._read(key, entry)
        super().put(key, entry)

    def _read(self, key: str, entry: Entry) -> None:
        try:
            self.parsed[key] = self._parse(entry.value)
        except (DecodeError, ValueError) as error:
            BAD_MESSAGES.labels("record").inc()
            log.warning("record refused", key=key, error=str(error))
