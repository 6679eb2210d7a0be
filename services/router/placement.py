"""What a session wishes of its place, and by what places are compared. Pure.

The rules it keeps: a wish is met whole or refused; a runner that has the pipeline loaded comes before any
that has not, unless the wish is for the cheapest. A cost has no unit; the least one is the best:

    cost = cold x (the pipeline is not loaded: 0 or 1)
         + slow x log2(the frame time measured there / 33 ms)     not measured: as 33 ms
         + penalty x (recent failures: 0..1)
         + load x (the taken share of the runner's slots: 0..1)
         + price x log2(1 + what a second costs there)

Logarithms, because twice as slow or twice as dear means the same wherever one stands.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Final, NewType

RunnerId = NewType("RunnerId", str)
SessionId = NewType("SessionId", str)

USUAL_FRAME_US: Final = 33_333
QUARANTINED_FROM: Final = 0.5  # of the penalty
CLOSE: Final = 0.25  # costs no further from the best one's are as good: the draw spreads over them


@dataclass(frozen=True, slots=True)
class Place:
    """One slot of one runner."""

    runner: RunnerId
    slot: int


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
    PRICE = "price"
    COLD = "cold"  # nowhere is it loaded, and the wish was for that
    SLOW = "slow"  # nowhere does a frame take as little as was wished
    EXCLUDED = "excluded"
    NOTHING_FREE = "nothing_free"
    QUARANTINED = "quarantined"  # free is only what failed lately, and others that fit are healthy


class Policy(Enum):
    """By what runners that fit are compared."""

    BALANCED = "balanced"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"


@dataclass(frozen=True, slots=True)
class Weights:
    """What each term of the cost counts."""

    cold: float
    slow: float  # for each doubling of the frame time
    penalty: float
    load: float
    price: float  # for each doubling of the price


WEIGHTS: Final = {
    Policy.BALANCED: Weights(cold=64, slow=0.5, penalty=2, load=1, price=0.25),
    Policy.CHEAPEST: Weights(cold=1, slow=0.1, penalty=2, load=0.2, price=16),  # 5 % cheaper beats the rest
    Policy.FASTEST: Weights(cold=64, slow=4, penalty=2, load=2, price=0.05),
}


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a session needs; an empty region or GPU class means any, a price or frame time of 0 any."""

    pipeline: str
    region: str = ""
    gpu_class: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()
    max_micro_per_second: int = 0
    policy: Policy = Policy.BALANCED
    warm: bool = False
    max_frame_us: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a session needs and which runners it cannot use. Equal wishes compete for the same slots."""

    requirements: Requirements
    exclude: frozenset[RunnerId] = frozenset()

    def text(self) -> str:
        """The same text for the same wish, so that other routers know what is waited for."""
        needs = self.requirements
        return json.dumps(
            {
                "pipeline": needs.pipeline,
                "region": needs.region,
                "gpu_class": needs.gpu_class,
                "labels": sorted(needs.labels),
                "max_micro_per_second": needs.max_micro_per_second,
                "policy": needs.policy.value,
                "warm": needs.warm,
                "max_frame_us": needs.max_frame_us,
                "exclude": sorted(self.exclude),
            },
            separators=(",", ":"),
        )


def wish_from_text(text: str) -> Wish:
    """The wish that `Wish.text` wrote. Raises ValueError for anything else."""
    try:
        fields = json.loads(text)
        return Wish(
            Requirements(
                pipeline=str(fields["pipeline"]),
                region=str(fields["region"]),
                gpu_class=str(fields["gpu_class"]),
                labels=frozenset((str(name), str(value)) for name, value in fields["labels"]),
                max_micro_per_second=int(fields["max_micro_per_second"]),
                policy=Policy(fields["policy"]),
                warm=bool(fields["warm"]),
                # A router of the last release writes none.
                max_frame_us=int(fields.get("max_frame_us", 0)),
            ),
            frozenset(RunnerId(str(name)) for name in fields["exclude"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no wish: {text[:80]!r}") from error


def slowness(frame_us: int) -> float:
    """Doublings of the frame time above the usual one; 0 where it is not known."""
    return math.log2(frame_us / USUAL_FRAME_US) if frame_us > 0 else 0.0


def dearness(micro_per_second: int) -> float:
    """Doublings of the price; 0 where nobody asks for money."""
    return math.log2(1 + max(0, micro_per_second))
