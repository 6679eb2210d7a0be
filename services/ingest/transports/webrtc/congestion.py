"""What the way to one viewer can carry, as far as its reports say that it is less than what is sent. Pure.

A receiver's estimate follows what it gets, so one that is above that says nothing of the way: it counts only
where it is below what is sent, and until the viewer takes more again. A viewer that also loses packets gets
what the estimate allows, in whole pictures up to the next key frame.
"""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 1.0
BELOW: Final = 0.95  # of what is sent: an estimate has noise
MUCH_LOST: Final = 0.10  # of the packets: more is congestion, less is a bad link
LEAST_BPS: Final = 150_000.0  # a way that loses at any rate is not helped by less and less
GROWTH: Final = 1.08  # a second, while nothing speaks against it: what aiortc's and Chromium's own control do
FREE: Final = 4.0  # a limit of so many times of what is sent is none
BURST_S: Final = 1.0
DEBT_S: Final = -2.0  # what a key frame may take ahead


class Congestion:
    """One viewer's. Times are seconds of any one clock."""

    def __init__(self, now_s: float) -> None:
        self.limit_bps: float | None = None
        self._estimate_bps: int | None = None
        self._loss = 0.0
        self._window_s = now_s
        self._window_bits = 0
        self._sent_bps = 0.0
        self._budget_bits = 0.0
        self._filled_s = now_s

    def estimated(self, bits_per_second: int) -> None:
        self._estimate_bps = bits_per_second

    def lost(self, part: float) -> None:
        self._loss = part

    def allows(self, bits: int, now_s: float, *, keyframe: bool) -> bool:
        """Whether a picture of so many bits may be sent now; counts it if so."""
        self._roll(now_s)
        if self.limit_bps is not None and self._loss > MUCH_LOST:
            gained = self.limit_bps * (now_s - self._filled_s)
            self._budget_bits = min(self._budget_bits + gained, self.limit_bps * BURST_S)
            self._filled_s = now_s
            if self._budget_bits < (self.limit_bps * DEBT_S if keyframe else bits):
                return False
            self._budget_bits -= bits
        else:
            self._budget_bits, self._filled_s = 0.0, now_s
        self._window_bits += bits
        return True

    def _roll(self, now_s: float) -> None:
        if now_s - self._window_s < WINDOW_S:
            return
        self._sent_bps = self._window_bits / (now_s - self._window_s)
        self._window_s, self._window_bits = now_s, 0
        self._judge()

    def _judge(self) -> None:
        """Once in a window: what the reports say now."""
        said = [max(LEAST_BPS, self._sent_bps * (1 - self._loss / 2))] if self._loss > MUCH_LOST else []
        if self._estimate_bps is not None and self._estimate_bps < BELOW * self._sent_bps:
            said.append(float(self._estimate_bps))
        if said:
            self.limit_bps = min(said)
        elif self.limit_bps is not None:
            self.limit_bps *= GROWTH
            if self.limit_bps > FREE * self._sent_bps:
                self.limit_bps = None
