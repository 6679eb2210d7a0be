"""Who watches by asking: a viewer is one from its first request until it has been quiet for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import Gauge

from services.ingest.seats import Seat

VIEWERS: Final = Gauge("sluice_hls_viewers", "Viewers that ask for HLS playlists.")


class Audience:
    """The viewers of one stream, each on a seat that it took."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._viewers: dict[str, tuple[Seat, float]] = {}

    def __len__(self) -> int:
        return len(self._viewers)

    def asked(self, viewer: str, take: Callable[[], Seat], now_s: float) -> None:
        """`viewer` asked for a playlist. Raises what `take` does, for one that is new."""
        known = self._viewers.get(viewer)
        if known is None:
            seat = take()
            VIEWERS.inc()
        else:
            seat, _ = known
        self._viewers[viewer] = seat, now_s

    def forget_quiet(self, now_s: float) -> None:
        for viewer, (_, asked_s) in list(self._viewers.items()):
            if now_s - asked_s > self._quiet_s:
                self._leave(viewer)

    def close(self) -> None:
        for viewer in list(self._viewers):
            self._leave(viewer)

    def _leave(self, viewer: str) -> None:
        seat, _ = self._viewers.pop(viewer)
        seat.release()
        VIEWERS.dec()
