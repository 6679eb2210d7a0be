"""Shows a session's viewers that its publisher is away: a still of the stream's size, again and again.

The rule it keeps: a still is no picture of the stream. Nothing is counted or billed for it, no runner is
judged by it, and its time is one that the publisher's next picture will be above.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from services.common.media.mpegts import AccessUnit, Codec
from services.ingest.bridge.absence import Absence
from services.ingest.bridge.incoming import Incoming
from services.ingest.bridge.metrics import PLACEHOLDERS
from services.ingest.bridge.outputs import Outputs
from services.ingest.bridge.playout import Playout

LOOK_S: Final = 0.1

MakeStills: TypeAlias = Callable[[int, int], Awaitable[tuple[bytes, bytes]]]
"""Two key frames of that width and height, the same picture."""


class StandIn:
    """Of one session. `run` is its task."""

    def __init__(
        self,
        incoming: Incoming,
        outputs: Outputs,
        playout: Playout,
        *,
        stills: MakeStills,
        now_s: Callable[[], float],
    ) -> None:
        self._incoming = incoming
        self._outputs = outputs
        self._playout = playout
        self._make = stills
        self._now_s = now_s
        self._absence = Absence()

    async def run(self, away: Callable[[], bool]) -> None:
        """For as long as the session lives; `away` is whether its publisher is."""
        while True:
            await asyncio.sleep(LOOK_S)
            size = self._playout.size if self._due(away) else None
            if size is None:
                continue
            stills = await self._make(*size)
            if self._due(away):  # the publisher may have come back meanwhile
                self._show(stills)

    def _due(self, away: Callable[[], bool]) -> bool:
        now_s = self._now_s()
        return self._absence.due(now_s, away=away(), quiet=self._outputs.quiet(now_s))

    def _show(self, stills: tuple[bytes, bytes]) -> None:
        pts = self._incoming.insert(self._outputs.out_pts)
        self._outputs.pass_over(pts)
        data = stills[self._absence.show(self._now_s())]
        self._playout.show_still(AccessUnit(Codec.H264, pts, pts, data, keyframe=True))
        PLACEHOLDERS.inc()
