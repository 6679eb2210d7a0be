"""What a scenario found, as one JSON line. Pure.

The rule it keeps: figures of freezes are of trials that recovered; those that did not are counted beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from tests.bench.figures import machine, percentile
from tests.chaos.harness.history import View

# With none in n trials, the rate is below 3/n with 95 % confidence (the rule of three).
RULE_OF_THREE: Final = 3
NOTHING: Final = View()


@dataclass(frozen=True, slots=True)
class Trial:
    """One fault and what a viewer saw of it."""

    recovered: bool
    seen: View = NOTHING
    sound_s: float = 0.0  # the longest wall time without sound
    connected: bool = True  # the publisher's connection and the viewer's
    params_kept: bool = True  # every picture after it has the parameters that were accepted last
    memory_kept: bool = True  # the pipeline's own memory went on
    why: str = ""  # of what is not as it should be


@dataclass(frozen=True, slots=True)
class Books:
    """What the stores say after all trials."""

    violations: Sequence[str] = ()  # slots given twice
    billing_difference_ms: float = 0.0  # billed beyond what was let out to viewers; negative: below
    viewer_difference_ms: float = 0.0  # beyond what the viewer saw when it was due: starved, it is late
    imbalance_micro: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one scenario. `extra`: figures that only it has."""

    name: str
    trials: int
    recovered: int
    freeze_p50_s: float | None
    freeze_p99_s: float | None
    freeze_max_s: float | None
    frames_lost: int
    seam_lost: int
    frames_repeated: int
    frames_backwards: int
    zombie_frames: int
    longest_gap_ms: float
    sound_gap_max_s: float
    disconnected: int
    params_lost: int
    memory_lost: int
    double_grants: int
    billing_difference_ms: float
    viewer_difference_ms: float
    imbalance_micro: int
    failures_upper_bound_95: float | None
    extra: Mapping[str, object] = field(default_factory=dict)

    def line(self) -> str:
        found = asdict(self)
        extra = found.pop("extra")
        rounded = {
            key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()
        }
        return json.dumps({"chaos": rounded.pop("name"), **rounded, **extra, "machine": machine()})


def summary(name: str, trials: Sequence[Trial], books: Books, **extra: object) -> Summary:
    recovered = [trial for trial in trials if trial.recovered]
    freezes = [trial.seen.freeze_s for trial in recovered]
    none_failed = trials and len(recovered) == len(trials)
    return Summary(
        name=name,
        trials=len(trials),
        recovered=len(recovered),
        freeze_p50_s=percentile(freezes, 50) if freezes else None,
        freeze_p99_s=percentile(freezes, 99) if freezes else None,
        freeze_max_s=max(freezes, default=None),
        frames_lost=sum(trial.seen.lost for trial in trials),
        seam_lost=sum(trial.seen.seam_lost for trial in trials),
        frames_repeated=sum(trial.seen.repeated for trial in trials),
        frames_backwards=sum(trial.seen.backwards for trial in trials),
        zombie_frames=sum(trial.seen.zombies for trial in trials),
        longest_gap_ms=max((trial.seen.gap_ms for trial in trials), default=0.0),
        sound_gap_max_s=max((trial.sound_s for trial in trials), default=0.0),
        disconnected=sum(not trial.connected for trial in trials),
        params_lost=sum(not trial.params_kept for trial in trials),
        memory_lost=sum(not trial.memory_kept for trial in trials),
        double_grants=len(books.violations),
        billing_difference_ms=books.billing_difference_ms,
        viewer_difference_ms=books.viewer_difference_ms,
        imbalance_micro=books.imbalance_micro,
        failures_upper_bound_95=min(1.0, RULE_OF_THREE / len(trials)) if none_failed else None,
        extra=extra,
    )
