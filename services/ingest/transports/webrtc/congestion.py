"""What the way to one viewer can carry, as far as its reports say that it is less than what is sent. Pure.

A receiver's estimate follows what it gets, so one that is above that says nothing of the way: it counts only
where it is below what is sent, and until the viewer takes more again. The runner is told of it, for all
viewers. One that goes on to lose packets, because the others need more than it can take, gets what its way
carries, in whole pictures from a key frame on.
"""

from __future__ import annotations

from typing import Final

WINDOW_S: Final = 1.0
BELOW: Final = 0.95  # of what is sent: an estimate has noise
MUCH_LOST: Final = 0.10  # of the packets, over some reports: more is congestion, less is a bad link
SMOOTHING: Final = 0.3
MUCH_MORE: Final = 1.3  # than the limit; less is not worth a gap up to the next key frame
PATIENCE: Final = 3  # windows: the runner hears of the limit too, and may come down to it
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
        self._offered_bits = 0  # with what was not sent
        self._offered_bps = 0.0
        self._over = 0  # windows in a row in which there was much more than the limit
        self._budget_bits = 0.0
        self._filled_s = now_s

    def estimated(self, bits_per_second: int) -> None:
        self._estimate_bps = bits_per_second

    def lost(self, part: float) -> None:
        """Take in what part of the packets since the last report was lost."""
        self._loss += SMOOTHING * (part - self._loss)

    @property
    def _overloaded(self) -> bool:
        """Whether the way loses because too much is sent: much, and the estimate does not say otherwise."""
        estimate_bps = self._estimate_bps
        return self._loss > MUCH_LOST and (
            estimate_bps is None or estimate_bps < BELOW * self._sent_bps or self.limit_bps is not None
        )

    def allows(self, bits: int, now_s: float, *, keyframe: bool) -> bool:
        """Whether a picture of so many bits may be sent now; counts it if so."""
        self._roll(now_s)
        self._offered_bits += bits
        if self.limit_bps is not None and self._over >= PATIENCE:
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
        self._offered_bps = self._offered_bits / (now_s - self._window_s)
        self._window_s, self._window_bits, self._offered_bits = now_s, 0, 0
        self._judge()

    def _judge(self) -> None:
        """Once in a window: what the reports say now."""
        estimate_bps = self._estimate_bps
        said = [estimate_bps] if estimate_bps is not None and estimate_bps < BELOW * self._sent_bps else []
        if self._overloaded:
            said.append(round(max(LEAST_BPS, self._sent_bps * (1 - self._loss / 2))))
        if said:
            self.limit_bps = float(min(said))
            beyond = self._overloaded and self._offered_bps > MUCH_MORE * self.limit_bps
            self._over = self._over + 1 if beyond else 0
        elif self.limit_bps is not None:
            self.limit_bps *= GROWTH
            if self.limit_bps > FREE * self._sent_bps:
                self.limit_bps = None
            self._over = 0
