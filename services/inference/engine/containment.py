"""What is done about a pipeline that fails: which remedy next, and when none is left. Pure.

The rule it keeps: what a good picture did not need is tried before the stream is given up, in the order of
what it costs the viewer; and good pictures make up for failures of before.

| it failed                                                     | what is done                      |
| ------------------------------------------------------------- | --------------------------------- |
| for want of memory, for the first time with this frame        | memory is freed, the same again   |
| naming a parameter that a revision set which is on probation  | that revision is rolled back      |
| fewer than `IN_A_ROW` times in a row                          | the next frame is tried           |
| so often, with revisions on probation when that began         | the newest of them is rolled back |
| so often, without                                             | the instance is loaded anew       |
| so often, `FORGIVEN_AFTER` good frames after that had not come | the stream ends                   |
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

IN_A_ROW: Final = 3  # one picture may be odd; of more the viewer sees a standstill
PROBATION: Final = 30  # good frames until a revision counts as harmless: some fail only when a buffer is full
FORGIVEN_AFTER: Final = 300  # good frames after which an instance may be loaded anew once more


class Action(enum.StrEnum):
    """The values are the wire's."""

    AGAIN = "again"  # and nobody is told
    HELD = "held"
    ROLLED_BACK = "rolled_back"
    RELOADING = "reloading"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`revision`: the one that is rolled back."""

    action: Action
    revision: int = 0


class Containment:
    """One stream's. Say `showing` of revisions before their frame, and `worked` or `failed` of each frame."""

    def __init__(self) -> None:
        self._probation: dict[int, int] = {}  # good frames until it ends, by revision
        self._suspects: list[int] = []  # on probation when this row of failures began
        self._in_a_row = 0
        self._again = False  # this frame is tried for the second time
        self._reloaded = False
        self._good = 0  # since then

    @property
    def on_probation(self) -> tuple[int, ...]:
        return tuple(self._probation)

    def showing(self, revisions: Iterable[int]) -> None:
        self._probation |= dict.fromkeys(revisions, PROBATION)

    def worked(self) -> bool:
        """A frame went through; returns whether the probation of a revision ended."""
        self._in_a_row, self._again = 0, False
        self._good += 1
        if self._good >= FORGIVEN_AFTER:
            self._reloaded = False
        if not self._probation:
            return False
        left = {revision: frames - 1 for revision, frames in self._probation.items()}
        self._probation = {revision: frames for revision, frames in left.items() if frames}
        return len(self._probation) < len(left)

    def failed(self, *, out_of_memory: bool, blamed: int | None = None) -> Verdict:
        """A frame did not; `blamed` is the revision that set what the pipeline complains of, if it does."""
        if out_of_memory and not self._again:
            self._again = True
            return Verdict(Action.AGAIN)
        self._again = False
        if self._in_a_row == 0:
            self._suspects = sorted(self._probation)
        self._in_a_row += 1
        if blamed in self._probation:
            return self._roll_back(blamed)
        if self._in_a_row < IN_A_ROW:
            return Verdict(Action.HELD)
        if self._suspects:
            return self._roll_back(self._suspects[-1])
        self._in_a_row = 0
        if self._reloaded:
            return Verdict(Action.ENDED)
        self._reloaded, self._good = True, 0
        return Verdict(Action.RELOADING)

    def forget(self, revisions: Iterable[int]) -> None:
        """They were refused: what they say is not in frames any more."""
        for revision in revisions:
            self._probation.pop(revision, None)

    def _roll_back(self, revision: int | None) -> Verdict:
        assert revision is not None
        del self._probation[revision]
        # Those that came after the failures had begun are not to blame; those that came before still may be.
        self._suspects = [one for one in self._suspects if one != revision and one in self._probation]
        self._in_a_row = 1 if self._suspects else 0
        return Verdict(Action.ROLLED_BACK, revision)
