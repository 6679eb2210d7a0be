"""What a session at a runner is asked to be, and what is known of it: values for whoever hosts it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.trickle.protocol import RANDOM_ACCESS
from services.inference.params import Fold


class State(enum.Enum):
    """Where a session at this runner is; the values are the wire's."""

    STARTING = 1
    RUNNING = 2
    FINISHED = 3
    FAILED = 4
    DETACHED = 5

    @property
    def terminal(self) -> bool:
        return self not in {State.STARTING, State.RUNNING}


@dataclass(frozen=True, slots=True)
class Report:
    """What the runner knows of a session.

    `interrupted`: its engine died, as `reason` says, and another one starts. `suspected`: perhaps of its
    pipeline.
    """

    state: State = State.STARTING
    reason: str = ""
    message: str = ""
    decoded: int = 0
    inferred: int = 0
    encoded: int = 0
    dropped: int = 0
    infer_ms: float = 0.0
    interrupted: bool = False
    suspected: bool = False
    in_pts: int = 0
    out_pts: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """URLs at the bridge: `in_`, `control` and `restore` are read, the others written.

    `state`, `restore`: what the pipeline remembers, and what that of the runner before did; empty: neither.
    `start`: the index at which `in_` is read; other trickle servers know only 0 and above, -1 and -2.
    """

    in_: str
    out: str
    control: str
    events: str
    data: str
    state: str = ""
    restore: str = ""
    start: int = RANDOM_ACCESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an attach says."""

    session: str
    session_epoch: int
    slot: int
    slot_epoch: int
    channels: Channels
    pipeline: str
    fold: Fold
    live: bool
    headers: Mapping[str, str]  # of the trace that it belongs to
    after_pts: int = 0  # of a session that goes on from another runner; 0: it begins
