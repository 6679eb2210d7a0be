"""A view of a bucket that tells which keys changed, and never goes back behind what we wrote ourselves."""

from __future__ import annotations

from collections.abc import Callable

from services.common.bus import Entry, View


class MarkedView(View):
    """Calls `changed(key, entry)` for each key whose entry is another one now; None: it is gone."""

    def __init__(self, changed: Callable[[str, Entry | None], None]) -> None:
        super().__init__()
        self._changed = changed

    def replace(self, entries: dict[str, Entry]) -> None:
        before = self.entries
        for key, entry in entries.items():
            known = before.get(key)
            if known is not None and known.revision > entry.revision:
                entries[key] = known
        super().replace(entries)
        for key in before.keys() | entries.keys():
            if before.get(key) != entries.get(key):
                self._changed(key, entries.get(key))

    def put(self, key: str, entry: Entry | None) -> None:
        known = self.entries.get(key)
        if entry is not None and known is not None and entry.revision <= known.revision:
            return
        super().put(key, entry)
        self._changed(key, entry)
