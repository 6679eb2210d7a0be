"""How large a world is, and how long each part of its life: drawn from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the world is, and how long each part of its life."""

    runners: int = 4
    slots: int = 1  # of each
    routers: int = 2
    session_managers: int = 2
    ingests: int = 2
    people: int = 5
    opening_s: float = 5.0
    evil_s: float = 30.0
    calm_s: float = 45.0  # the longest time in which everything must be well again
    steady_s: float = 5.0  # and then stay so
    closing_s: float = 45.0  # and in which nothing may be left when everybody has stopped
    evils: tuple[str, ...] = ()  # the only ones that there are; none: a few, drawn

    @classmethod
    def drawn(cls, seed: int, evils: tuple[str, ...] = ()) -> Plan:
        """Worlds differ in what there is too little of."""
        random = Random(seed)
        return cls(
            runners=random.randint(3, 6),
            slots=random.choice((1, 1, 2)),
            routers=random.randint(1, 3),
            session_managers=random.randint(1, 3),
            ingests=random.randint(1, 3),
            people=random.randint(3, 6),
            evils=evils,
        )
