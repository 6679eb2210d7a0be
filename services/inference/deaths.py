"""How often engines died of one session, and what follows: another try, without a revision, or its end. Pure.

Who is to blame: of a hang the session whose frame did not come back, of a crash each that had a call of its
pipeline under way, and where nobody is known, as when memory was exhausted, everybody. The others begin again
however often it happens, for they did nothing. Deaths are forgotten after a while: a stream that lives for
days may see more than a few.

A revision that two engines in a row died with is left out. Of several that were on probation when the first
did, the second tries one after the other, and so finds out which it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST: Final = 3  # the one that ends the session; fewer may be a mishap
FORGOTTEN_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Sequel:
    """`poisoned`: a revision to leave out, because two deaths in a row had it on probation."""

    again: bool
    poisoned: int | None = None


class Deaths:
    """One session's; the clock is the caller's."""

    def __init__(self) -> None:
        self._at_s: list[float] = []
        self._tried = range(0)  # the revisions that were on probation when it died last

    @property
    def in_a_row(self) -> int:
        """That are not forgotten."""
        return len(self._at_s)

    def happened(self, now_s: float, *, guilty: bool, oldest: int = 0, newest: int = 0) -> Sequel:
        """`oldest` and `newest`: the revisions that were on probation, 0 for none."""
        if not guilty:
            return Sequel(again=True)
        before, self._tried = self._tried, range(oldest, newest + 1) if newest else range(0)
        if newest in before:
            self._at_s.clear()  # what they died of is gone
            return Sequel(again=True, poisoned=newest)
        self._at_s = [at_s for at_s in self._at_s if now_s - at_s < FORGOTTEN_AFTER_S] + [now_s]
        return Sequel(len(self._at_s) < MOST)
