"""Which slot gets a session. Pure: a picture of the fleet goes in, a choice or the reason for none comes out.

The rule it keeps: only a READY slot is ever chosen. Among slots that fit, one that has the pipeline loaded is
better than any that has not, then the one on the least loaded runner; and the choice is drawn among the best
few, because routers that all take the first one race for it (`tests/contract/test_router_contention.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import NewType

RunnerId = NewType("RunnerId", str)
SessionId = NewType("SessionId", str)


class SlotState(Enum):
    """STARTING: not known to be ready. DRAINING: takes no new session. LOST: its runner is not heard."""

    STARTING = "starting"
    READY = "ready"
    HELD = "held"
    DRAINING = "draining"
    LOST = "lost"


class Refusal(Enum):
    """Why no slot was chosen: the first of these sieves that let nothing through."""

    UNKNOWN_PIPELINE = "unknown_pipeline"
    NO_MATCH = "no_match"  # of region, GPU class or labels
    EXCLUDED = "excluded"
    NOTHING_FREE = "nothing_free"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a session needs; an empty region or GPU class means any."""

    pipeline: str
    region: str = ""
    gpu_class: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()

    def match(self, candidate: Candidate) -> bool:
        """Whether the place fits, whatever pipelines it has and whoever holds it."""
        return (
            (not self.region or self.region == candidate.region)
            and (not self.gpu_class or self.gpu_class == candidate.gpu_class)
            and self.labels <= candidate.labels
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """One slot. `load` is the share of its runner's slots that are taken, 0..1."""

    runner: RunnerId
    slot: int
    state: SlotState
    offered: frozenset[str]
    warm: frozenset[str] = frozenset()
    load: float = 0.0
    region: str = ""
    gpu_class: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()


def choose(
    fleet: Collection[Candidate],
    requirements: Requirements,
    *,
    exclude: frozenset[RunnerId],
    among: int,
    random: Random,
) -> Candidate | Refusal:
    """Draw one of the `among` best READY slots that fit, or say which sieve let nothing through."""
    pipeline = requirements.pipeline
    fits = [
        candidate
        for candidate in fleet
        if candidate.state is SlotState.READY  # first, for it costs least and refuses most
        and pipeline in candidate.offered
        and candidate.runner not in exclude
        and requirements.match(candidate)
    ]
    if not fits:
        return _refusal(fleet, requirements, exclude)
    warm = [candidate for candidate in fits if pipeline in candidate.warm]
    return random.choice(_least_loaded(warm or fits, among, random))


def _refusal(
    fleet: Collection[Candidate], requirements: Requirements, exclude: frozenset[RunnerId]
) -> Refusal:
    offering = [candidate for candidate in fleet if requirements.pipeline in candidate.offered]
    if not offering:
        return Refusal.UNKNOWN_PIPELINE
    matching = [candidate for candidate in offering if requirements.match(candidate)]
    if not matching:
        return Refusal.NO_MATCH
    if all(candidate.runner in exclude for candidate in matching):
        return Refusal.EXCLUDED
    return Refusal.NOTHING_FREE


def _least_loaded(candidates: Sequence[Candidate], count: int, random: Random) -> Sequence[Candidate]:
    """Up to `count` of the least loaded; which of several equals is drawn, for routers list them alike."""
    by_load: dict[float, list[Candidate]] = {}
    for candidate in candidates:
        by_load.setdefault(candidate.load, []).append(candidate)
    few: list[Candidate] = []
    for load in sorted(by_load):
        equals = by_load[load]
        few += random.sample(equals, min(count - len(few), len(equals)))
        if len(few) == count:
            break
    return few
