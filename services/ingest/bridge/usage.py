"""What a session has used and may use: its meter, the windows on their way to the disk, its credit."""

from __future__ import annotations

import time
from collections import deque

from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from services.ingest.bridge.identity import GOES_ON, Identity
from services.ingest.bridge.meter import Meter, Window
from services.ingest.bridge.outbox import Outbox


class Usage:
    """Session time is passed in, in ms. Nothing is billed before `runs` named a runner's epoch."""

    def __init__(self, identity: Identity, outbox: Outbox) -> None:
        self.meter = Meter()
        self.paid_until_ms: int | None = None
        self.exhausted = False
        self._identity = identity
        self._outbox = outbox
        self._overdraft_ms = 0
        self._epoch = 0
        self._runner = ""
        self._cut_ms = 0
        self._unstored: deque[events_pb2.UsageWindow] = deque()

    def resume(self, position: bridge_pb2.Position) -> None:
        """Go on from where the session's bridge before this one stopped."""
        self._cut_ms = position.session_ms
        self.meter.resume(
            position.session_ms, delivered_ms=position.delivered_ms, paused_ms=position.paused_ms
        )

    def runs(self, epoch: int, runner: str) -> None:
        """Whose output is metered from here on; what another one delivered was cut before."""
        self._epoch = epoch
        self._runner = runner

    def settle(self, session_ms: int, frames: tuple[int, int, int]) -> None:
        """End the window of the one who ran it until now; the next `cut`, no later for this, stores it."""
        self._unstored.extend(
            self._line(window, "") for window in self.meter.cut(session_ms, frames, final=False)
        )

    def extend(self, request: bridge_pb2.OpenRequest) -> None:
        """Take what the session's owner says: until when it is paid."""
        self.paid_until_ms = max(self.paid_until_ms or 0, request.paid_until_ms)
        self._overdraft_ms = request.overdraft_ms

    def spend(self, session_ms: int) -> bool:
        """True once, when the credit ends: the output stops there, also if nobody is left to say so."""
        if self.paid_until_ms is None or self.exhausted:
            return False
        self.exhausted = session_ms >= self.paid_until_ms + self._overdraft_ms
        return self.exhausted

    def unpaid_ms(self, session_ms: int) -> int:
        """Since the credit ended; 0 while there is some."""
        if not self.exhausted or self.paid_until_ms is None:
            return 0
        return max(0, session_ms - self.paid_until_ms - self._overdraft_ms)

    def since_cut_ms(self, session_ms: int) -> int:
        return session_ms - self._cut_ms

    async def cut(self, session_ms: int, frames: tuple[int, int, int], *, end_reason: str | None) -> None:
        """Put what was used since the last cut into the outbox; with `end_reason` it is the last one here."""
        if not self._epoch:
            return
        self._cut_ms = session_ms
        if end_reason in GOES_ON:
            end_reason = None
        windows = self.meter.cut(session_ms, frames, final=end_reason is not None)
        self._unstored.extend(self._line(window, end_reason or "") for window in windows)
        while self._unstored:  # a cut that the session's end interrupted is finished by the last one
            await self._outbox.put(self._unstored[0])
            self._unstored.popleft()

    def _line(self, window: Window, end_reason: str) -> events_pb2.UsageWindow:
        identity = self._identity
        return events_pb2.UsageWindow(
            id=f"{identity.session}:{self._epoch}:{window.seq}",
            session=identity.session,
            epoch=self._epoch,
            seq=window.seq,
            tenant=identity.tenant,
            stream=identity.stream,
            pipeline=identity.pipeline,
            from_ms=window.from_ms,
            to_ms=window.to_ms,
            unit=window.unit,
            quantity=window.quantity,
            final=window.final,
            end_reason=end_reason,
            frames_in=window.frames_in,
            frames_out=window.frames_out,
            frames_dropped=window.frames_dropped,
            runner=self._runner,
            source=self._outbox.source,
            unix_ms=time.time_ns() // 1_000_000,
            traceparent=identity.traceparent,
        )
