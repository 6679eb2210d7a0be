"""What a session is billed for: the time in which output was delivered, and the time it was held. Pure.

Session time is milliseconds since the bridge opened, on a monotonic clock that is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LONGEST_GAP_MS: Final = (
    1000  # between two pictures that still counts as delivery; a longer silence is a stall
)


@dataclass(frozen=True, slots=True)
class Window:
    """One line of usage: `quantity` milliseconds of `unit` within [from_ms, to_ms)."""

    seq: int
    from_ms: int
    to_ms: int
    unit: str
    quantity: int
    final: bool
    frames_in: int
    frames_out: int
    frames_dropped: int


class Meter:
    """Adds up delivered and paused time, and cuts it into windows with consecutive numbers."""

    def __init__(self) -> None:
        self.delivered_ms = 0
        self.paused_ms = 0
        self._last_picture_ms: int | None = None
        self._paused_from_ms: int | None = None
        self._cut_ms = 0
        self._cut_delivered_ms = 0
        self._cut_paused_ms = 0
        self._cut_frames = (0, 0, 0)
        self._seq = 0

    def resume(self, at_ms: int, *, delivered_ms: int, paused_ms: int) -> None:
        """Go on from another bridge's meter: what that one counted is its to bill."""
        self._cut_ms = at_ms
        self.delivered_ms = self._cut_delivered_ms = delivered_ms
        self.paused_ms = self._cut_paused_ms = paused_ms

    def delivered(self, at_ms: int) -> None:
        """A picture of the runner was passed on: the time since the one before it was delivery."""
        if self._last_picture_ms is not None:
            gap_ms = max(0, at_ms - self._last_picture_ms)
            if gap_ms <= LONGEST_GAP_MS:
                self.delivered_ms += gap_ms
        self._last_picture_ms = at_ms

    def paused(self, at_ms: int) -> None:
        """There is no input from here on; again is harmless."""
        if self._paused_from_ms is None:
            self._paused_from_ms = at_ms

    def resumed(self, at_ms: int) -> None:
        """There is input again; without a pause this is harmless."""
        self._account_pause(at_ms)
        self._paused_from_ms = None

    def _account_pause(self, at_ms: int) -> None:
        if self._paused_from_ms is not None:
            self.paused_ms += max(0, at_ms - self._paused_from_ms)
            self._paused_from_ms = max(at_ms, self._paused_from_ms)

    def cut(self, at_ms: int, frames: tuple[int, int, int], *, final: bool) -> list[Window]:
        """Return what was used since the last cut; the final cut's last window says so, and always exists."""
        self._account_pause(at_ms)
        delivered_ms = self.delivered_ms - self._cut_delivered_ms
        paused_ms = self.paused_ms - self._cut_paused_ms
        facts = tuple(now - then for now, then in zip(frames, self._cut_frames, strict=True))
        windows: list[Window] = []
        if delivered_ms or (final and not paused_ms):
            windows.append(self._window(at_ms, "delivered_ms", delivered_ms, final and not paused_ms, facts))
            facts = (0, 0, 0)  # each picture is in one window
        if paused_ms:
            windows.append(self._window(at_ms, "paused_ms", paused_ms, final, facts))
        self._cut_ms = at_ms
        self._cut_delivered_ms, self._cut_paused_ms = self.delivered_ms, self.paused_ms
        if windows:
            self._cut_frames = frames
        return windows

    def _window(self, at_ms: int, unit: str, quantity: int, final: bool, facts: tuple[int, ...]) -> Window:
        self._seq += 1
        return Window(
            seq=self._seq,
            from_ms=self._cut_ms,
            to_ms=at_ms,
            unit=unit,
            quantity=quantity,
            final=final,
            frames_in=facts[0],
            frames_out=facts[1],
            frames_dropped=facts[2],
        )
