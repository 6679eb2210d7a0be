"""How far ahead of its output a publisher may be, where every picture counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from services.common.latest import Latest
from services.common.media.mpegts import CLOCK_HZ
from services.ingest.bridge.identity import Closed
from services.ingest.bridge.outputs import Outputs
from services.ingest.bridge.presence import Presence

REORDERED: Final = 20  # pictures that a decoder may hold back (H.264: 16) before the first of them comes out


async def room(
    outputs: Outputs,
    presence: Presence,
    *,
    ahead_s: float,
    changed: Latest[None],
    closed: asyncio.Future[Closed],
    now_s: Callable[[], float],
) -> None:
    """Wait until the output is less than `ahead_s` behind, or the session has ended."""
    ahead = round(ahead_s * CLOCK_HZ)
    while outputs.in_pts and not closed.done():
        earliest = outputs.under_way.next_pts
        delivered = outputs.out_pts or (outputs.in_pts if earliest is None else earliest)
        if outputs.in_pts - delivered <= ahead or len(outputs.under_way) <= REORDERED:
            return
        presence.holding = True
        try:
            await changed.newer_than(changed.version)
        finally:
            presence.holding = False
            presence.in_at_s = now_s()  # it was not late: we kept it
