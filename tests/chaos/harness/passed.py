"""What passed through the bridge of a session, as a witness wrote it down, and what follows from it. Pure.

The rule it keeps: a picture that went out in time was delivered, however late a starved viewer took it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Final

from tests.chaos.harness.history import delivered_ms

UNSURE_S: Final = 0.02  # about the meter's bound, between two readings of the clock in one process
IN: Final = "in"
OUT: Final = "out"


@dataclass(frozen=True, slots=True)
class Passed:
    """A picture at one end of a bridge. `bridge` is the session's at one process, whoever else had it."""

    end: str
    session: str
    bridge: str
    epoch: int
    at_s: float
    pts: int
    dropped: int = 0  # so far, as the runners say


def line_of(passed: Passed) -> str:
    return " ".join(str(part) for part in astuple(passed)) + "\n"


def of_session(session: str, lines: Sequence[str]) -> list[Passed]:
    """What passed of one session, in order."""
    found: list[Passed] = []
    for end, name, bridge, epoch, at_s, pts, dropped in (line.split() for line in lines):
        if name == session:
            found.append(Passed(end, name, bridge, int(epoch), float(at_s), int(pts), int(dropped)))
    return found


def let_out_ms(passed: Sequence[Passed]) -> list[tuple[float, float]]:
    """What may be billed for the pictures that went out, bridge by bridge."""
    by_bridge: dict[str, list[float]] = {}
    for picture in passed:
        if picture.end == OUT:
            by_bridge.setdefault(picture.bridge, []).append(picture.at_s)
    return [delivered_ms(times_s, UNSURE_S) for times_s in by_bridge.values()]


@dataclass(frozen=True, slots=True)
class Seams:
    """What a bridge made of two runners' pictures: whoever starves, it is to be nothing at all."""

    lost: int = 0  # came back from the runner whose turn it was, and did not go out
    repeated: int = 0  # went out, and not above the one before
    dropped: int = 0  # by the runners, as they say: a starved one does, and then fewer come back


def seams(passed: Sequence[Passed]) -> Seams:
    """Of one session. It is an epoch's turn from its first picture that went out to the next one's."""
    out = [picture for picture in passed if picture.end == OUT]
    turns: dict[int, int] = {}
    for picture in out:
        turns.setdefault(picture.epoch, picture.pts)
    ends = dict(zip(turns, [*turns.values()][1:], strict=False))
    shown = {picture.pts for picture in out}
    lost = {
        picture.pts
        for picture in passed
        if picture.end == IN
        and picture.epoch in ends
        and turns[picture.epoch] <= picture.pts < ends[picture.epoch]
    }
    return Seams(
        lost=len(lost - shown),
        repeated=sum(b.pts <= a.pts for a, b in pairwise(out)),
        dropped=out[-1].dropped - out[0].dropped if out else 0,
    )
