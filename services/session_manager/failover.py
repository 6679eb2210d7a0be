"""Whether a session must leave its runner, and why. Pure: evidence and the time in, a verdict out.

The rule it keeps: a stream whose output arrives is not moved for failure, and no runner is blamed for what
the publisher does: a stall counts pictures that went in and did not come back, and nothing else.

The first that is true:

| verdict | why              | when                                                                         |
| ------- | ---------------- | ---------------------------------------------------------------------------- |
| END     | the reason       | the runner gave the session up, for a reason that is the session's own       |
| STAY    |                  | the bridge was not heard for `BLIND_S`: nobody can say what viewers see      |
| MOVE    | the reason       | the runner gave it up for another reason                                     |
| MOVE    | `runner_lost`    | it is gone, and the output stalls for `GONE_STALL_MS`, or if the output      |
|         |                  | broke off as well for `BROKEN_STALL_MS`                                      |
| MOVE    | `runner_lost`    | it is gone for `UNSHOWN_GONE_S`, and no picture of it was ever seen          |
| MOVE    | `runner_lost`    | it is gone for `BROKEN_GONE_S`, and its output broke off: no input, no stall |
| MOVE    | `stalled`        | the output stalls for `STALL_MS`, or if it is not heard for `GONE_STALL_MS`  |
| PREPARE | `runner_lost`    | it is gone, and its output broke off                                         |
| PREPARE | `stalled`        | the output stalls for `GONE_STALL_MS`, and it missed a report                |
| MOVE    | `engine_crashed` | its engine died: to a warm runner that is free, else it restarts in place    |
| MOVE    | `slow`           | slow for `SLOW_S`: to a warm one that is clearly quicker, else it stays; not |
|         |                  | soon again, and not if the last was in vain                                  |
| STAY    |                  |                                                                              |
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

GONE_STALL_MS: Final = 1000
BROKEN_STALL_MS: Final = 500
STALL_MS: Final = 3000
UNSHOWN_GONE_S: Final = 1.0
BROKEN_GONE_S: Final = 3.0
BLIND_S: Final = 2.5  # the bridge reports every second, and at every edge
MISSED_S: Final = 1.5  # a runner reports every second
UNHEARD_S: Final = 2.5
SLOW_S: Final = 5.0
SLOW_AGAIN_S: Final = 60.0
QUICKER: Final = 0.7  # of what a picture takes its runner, or less: less of a difference is none
QUICKER_MAX_US: Final = 100_000_000  # what comes from a runner is bounded
WELL_S: Final = 30.0  # after which a move for slowness has helped
BREAKER: Final = 5  # runners that a session may break, one after the other
PROVEN_S: Final = 10.0  # of flowing output after which a runner is none of these

RUNNER_LOST: Final = "runner_lost"
STALLED: Final = "stalled"
ENGINE_CRASHED: Final = "engine_crashed"
SLOW: Final = "slow"
# What a runner says of a session that it gave up. Another runner would say the same of these:
SESSIONS_OWN: Final = frozenset({"params_refused", "input_undecodable", "pipeline_failed"})
# and of these perhaps not. Whatever else it says stands for a runner that is lost.
RUNNERS_OWN: Final = frozenset(
    {ENGINE_CRASHED, "engine_hung", "out_of_memory", "bridge_lost", "start_failed"}
)
FAILURES: Final = RUNNERS_OWN | {RUNNER_LOST, STALLED}
# It cannot stay where it is, though nobody failed it. What else is wished is planned: its runner shows it.
FORCED: Final = frozenset({"rebind_failed", "slot_lost", "runner_forgot"})
PLANNED: Final = frozenset({"drain", "asked", SLOW})  # among other words


class Step(enum.Enum):
    """What is to be done with a session."""

    STAY = enum.auto()
    PREPARE = enum.auto()  # have another runner ready, for it will probably be needed
    MOVE = enum.auto()
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`planned`: the runner works, and may keep the session if there is no better one.

    `warm`: only a runner that is free now and has the pipeline loaded is better.
    """

    step: Step = Step.STAY
    why: str = ""
    message: str = ""
    planned: bool = False
    warm: bool = False
    counts: bool = False  # as a runner that the session broke


STAY: Final = Verdict()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one session at one runner. Times are the caller's clock, in seconds."""

    bridge_heard_s: float | None = None
    stalled_ms: int = 0  # as the bridge said then
    output_broken: bool = False
    shown: bool = False  # a picture came back
    runner_heard_s: float = 0.0  # or since when we ask
    gone_since_s: float | None = None  # its reports broke off, or it does not know the session
    failed: str = ""  # the reason for which it gave up
    message: str = ""
    interrupted: bool = False
    suspected: bool = False
    slow_since_s: float | None = None
    slow_moved_s: float | None = None  # when it was last moved for that
    slow_helped: bool = True

    @property
    def uneasy(self) -> bool:
        """Whether time alone may change the verdict soon."""
        return self.gone_since_s is not None or bool(self.stalled_ms or self.failed or self.interrupted)


def judge(evidence: Evidence, now_s: float) -> Verdict:
    """What the evidence means now."""
    if evidence.failed in SESSIONS_OWN:
        return Verdict(Step.END, evidence.failed, evidence.message)
    if evidence.bridge_heard_s is None or now_s - evidence.bridge_heard_s > BLIND_S:
        return STAY
    if evidence.failed:
        why = evidence.failed if evidence.failed in RUNNERS_OWN else RUNNER_LOST
        return Verdict(Step.MOVE, why, evidence.message, counts=True)
    return _silence(evidence, now_s) or _weakness(evidence, now_s) or STAY


def _silence(evidence: Evidence, now_s: float) -> Verdict | None:
    assert evidence.bridge_heard_s is not None
    # An end of the stall would have been reported at once: it goes on between the reports.
    since_ms = (now_s - evidence.bridge_heard_s) * 1000
    stalled_ms = evidence.stalled_ms + since_ms if evidence.stalled_ms else 0.0
    unheard_s = now_s - evidence.runner_heard_s
    if evidence.gone_since_s is not None:
        gone = "the runner does not answer"
        enough_ms = BROKEN_STALL_MS if evidence.output_broken else GONE_STALL_MS
        gone_s = now_s - evidence.gone_since_s
        unshown = not evidence.shown and gone_s >= UNSHOWN_GONE_S
        broken = evidence.output_broken and gone_s >= BROKEN_GONE_S
        if stalled_ms >= enough_ms or unshown or broken:
            return Verdict(Step.MOVE, RUNNER_LOST, gone, counts=True)
        if evidence.output_broken:
            return Verdict(Step.PREPARE, RUNNER_LOST, gone, counts=True)
    stalled = f"no picture came back for {stalled_ms / 1000:.1f} s"
    if stalled_ms >= STALL_MS or (stalled_ms >= GONE_STALL_MS and unheard_s > UNHEARD_S):
        return Verdict(Step.MOVE, STALLED, stalled, counts=True)
    if stalled_ms >= GONE_STALL_MS and unheard_s > MISSED_S:
        return Verdict(Step.PREPARE, STALLED, stalled, counts=True)
    return None


def _weakness(evidence: Evidence, now_s: float) -> Verdict | None:
    if evidence.interrupted:
        # It shows the session again in a while; another session may have killed it.
        return Verdict(
            Step.MOVE, ENGINE_CRASHED, evidence.message, planned=True, warm=True, counts=evidence.suspected
        )
    if evidence.slow_since_s is None or now_s - evidence.slow_since_s < SLOW_S:
        return None
    if evidence.slow_moved_s is not None:
        soon = now_s - evidence.slow_moved_s < SLOW_AGAIN_S
        if soon or not evidence.slow_helped:
            return None
    return Verdict(Step.MOVE, SLOW, "it shows fewer than half of its usual pictures", planned=True, warm=True)


def wished(why: str) -> Verdict:
    """The verdict of somebody who wishes a session elsewhere."""
    return Verdict(Step.MOVE, why, planned=why not in FAILURES | FORCED, warm=why == SLOW)


def quicker_us(infer_ms: float) -> int:
    """What a picture may take a runner that is clearly quicker than one with `infer_ms`.

    To two digits, so that routers do not get a new wish with each report. Where nothing was measured, nobody
    is known to be quicker: it is what no runner can.
    """
    if not infer_ms > 0:
        return 1
    most_us = max(1, round(min(QUICKER * 1000 * infer_ms, QUICKER_MAX_US)))
    unit = 10 ** max(len(str(most_us)) - 2, 0)
    return int(most_us // unit * unit)
