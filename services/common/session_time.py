"""A session's time in ticks of 90 kHz, for who knows how old it is and nothing of its media. Pure."""

from __future__ import annotations

from typing import Final

TICKS_PER_S: Final = 90_000
# The first picture of a session: a second of room for DTS and PCR, which come before it.
ORIGIN_TICKS: Final = TICKS_PER_S
# The session before wall time or behind it, that a returning source evens out.
LARGEST_LEAD_TICKS: Final = TICKS_PER_S


def furthest(age_ms: int) -> int:
    """Where the timeline of a session of that age is at the latest, when its sources are in real time."""
    return ORIGIN_TICKS + age_ms * TICKS_PER_S // 1000 + LARGEST_LEAD_TICKS
