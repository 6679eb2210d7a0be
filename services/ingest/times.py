"""Times as clients give and get them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ


def media_ms(pts: int) -> int:
    """Media time of a PTS on a session's clock: 0 is its first picture."""
    return (pts - ORIGIN_TICKS) * 1000 // CLOCK_HZ


def media_pts(at_ms: int) -> int:
    """The PTS on a session's clock of a media time."""
    return ORIGIN_TICKS + at_ms * CLOCK_HZ // 1000


def iso(unix_ms: int) -> str:
    """A moment in UTC, to the millisecond."""
    moment = datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    return moment.replace("+00:00", "Z")
