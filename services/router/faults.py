"""How far a runner is mistrusted after it failed sessions. Pure: times come in.

The rules it keeps: mistrust halves with each minute; one session, however often it fails there, is
one witness, so that a stream which breaks every runner it meets takes none of them out of the fleet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from services.router.placement import RunnerId

HALF_LIFE_S: Final = 60.0
FAULT: Final = 0.35  # of the trust that was left: two sessions within a minute are needed for quarantine
ANEW: Final = 0.5  # of the penalty stays with the next process: what broke it may be the machine
WITNESSES_KEPT: Final = 16  # a runner
NEGLIGIBLE: Final = 0.01


@dataclass(slots=True)
class _Record:
    penalty: float = 0.0
    at_s: float = 0.0
    witnesses: dict[str, float] = field(default_factory=dict)  # sessions, and when each was heard last

    def now(self, now_s: float) -> float:
        return float(self.penalty * 0.5 ** ((now_s - self.at_s) / HALF_LIFE_S))


class Faults:
    """The penalties, 0..1, of the runners that failed lately."""

    def __init__(self) -> None:
        self._records: dict[RunnerId, _Record] = {}

    def add(self, runner: RunnerId, session: str, now_s: float, share: float = FAULT) -> None:
        """A session was moved away because `runner` failed it: `share` of the trust that was left is gone."""
        record = self._records.setdefault(runner, _Record())
        heard_s = record.witnesses.pop(session, None)
        record.witnesses[session] = now_s
        if len(record.witnesses) > WITNESSES_KEPT:
            del record.witnesses[next(iter(record.witnesses))]
        if heard_s is not None and now_s - heard_s < HALF_LIFE_S:
            return
        before = record.now(now_s)
        record.penalty, record.at_s = before + share * (1 - before), now_s

    def booted(self, runner: RunnerId, now_s: float) -> None:
        """The process of `runner` is another one than before."""
        record = self._records.get(runner)
        if record is not None:
            record.penalty, record.at_s = record.now(now_s) * ANEW, now_s

    def penalties(self, now_s: float) -> dict[RunnerId, float]:
        """Of those who still have one; the others are forgotten."""
        faded = [runner for runner, record in self._records.items() if record.now(now_s) < NEGLIGIBLE]
        for runner in faded:
            del self._records[runner]
        return {runner: record.now(now_s) for runner, record in self._records.items()}
