"""Which parameters a frame shows, while some of them take time to take effect. Pure.

The rule it keeps: a revision is shown whole or not at all. One that changes only what is live is shown by the
next frame, also while another is being prepared; one that was refused is as if it had said nothing, and no
later one is lost with it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.inference.params import Fold, Patch
from sluice.pipeline import Apply

ORDER: Final = (Apply.LIVE, Apply.WARM, Apply.RELOAD)
NOW: Final = sys.maxsize  # a time after all that was shown


@dataclass(frozen=True, slots=True)
class Target:
    """Complete parameters that take time: how they take effect, and which revisions will be shown by them."""

    revisions: tuple[int, ...]
    params: Mapping[str, Any]
    way: Apply


class Changes:
    """One stream's. Any thread may `add`; the rest is for the pipeline's.

    `params` is what frames show now; `wanted`, while nothing is `under_way`, is what to begin next.
    """

    def __init__(self, fold: Fold, complete: Mapping[str, Any], ways: Mapping[str, Apply]) -> None:
        """`complete` has the value of every parameter that a stream does not set."""
        self._fold = fold
        self._complete = complete
        self._ways = ways
        self._arrived: deque[Patch] = deque()
        self._judged: tuple[int, ...] = ()  # that are due and have to wait
        self._alone: set[int] = set()  # one of them cannot be had: each is tried for itself
        self.params: Mapping[str, Any] = self._completed(fold.with_only((), NOW))
        self.wanted: Target | None = None
        self.under_way: Target | None = None

    @property
    def revision(self) -> int:
        """Of the parameters that a stream began with, and what became part of them."""
        return self._fold.revision

    def add(self, patch: Patch) -> None:
        self._arrived.append(patch)

    def step(self, pts: int, *, one: bool = False) -> tuple[int, ...]:
        """Be right for a frame at `pts`; returns the revisions that it is the first to show, or `one`."""
        while self._arrived:
            self._fold = self._fold.add(self._arrived.popleft())
        due = self._fold.due(pts)
        revisions = tuple(patch.revision for patch in due)
        if revisions == self._judged:
            return ()
        live, waiting = self._judge(due, pts)
        if one:
            self._alone.update(waiting)
            live, waiting = live[:1], () if live else waiting
        self._judged = waiting
        self.wanted = self._target(waiting, pts) if self.under_way is None else None
        if self.wanted is not None and self.wanted.way is Apply.LIVE:
            live, self._judged, self.wanted = (*live, *self.wanted.revisions), (), None  # they cancel out
        if live:
            self._show(live, pts)
        return live

    def begin(self) -> Target:
        """The newest target is being prepared from now on: the next one is for who comes after it."""
        assert self.wanted is not None
        assert self.under_way is None
        self.under_way, self.wanted, self._judged = self.wanted, None, ()
        return self.under_way

    def reached(self, pts: int) -> tuple[int, ...]:
        """What was under way is in a frame at `pts`; returns the revisions that it is the first to show."""
        assert self.under_way is not None
        revisions, self.under_way = self.under_way.revisions, None
        self._alone.difference_update(revisions)
        self._judged = ()
        self._show(revisions, pts)
        return revisions

    def abandon(self) -> None:
        """What was under way is not any more; it will be wanted again."""
        self.under_way, self._judged = None, ()

    def cannot_be_had(self, parameter: str | None) -> tuple[int, ...]:
        """What was under way failed; returns the revisions that are refused.

        Who says which `parameter` is to blame blames the newest that set it. Otherwise of several each is
        tried for itself, the oldest first, and none is refused yet.
        """
        assert self.under_way is not None
        revisions, self.under_way = self.under_way.revisions, None
        self._judged = ()
        setting = [
            patch.revision
            for patch in self._fold.patches
            if patch.revision in revisions and parameter is not None and parameter in patch.patch
        ]
        blamed = max(setting, default=None)
        if blamed is None and len(revisions) > 1:
            self._alone.update(revisions)
            return ()
        refused = revisions if blamed is None else (blamed,)
        for revision in refused:
            self._refuse(revision)
        return refused

    def roll_back(self, revision: int) -> Apply:
        """Take back what frames showed already; returns how `params`, which are right now, take effect."""
        was = self.params
        self._refuse(revision)
        self.params = self._completed(self._fold.with_only((), NOW))
        return self.way(was, self.params)

    def doubtful(self) -> tuple[int, ...]:
        """The revisions that are shown and can still be taken back, newest first."""
        shown = (patch.revision for patch in self._fold.patches if patch.revision in self._fold.shown)
        return tuple(sorted(shown, reverse=True))

    def newest_that_set(self, parameter: str | None) -> int | None:
        """Of the doubtful revisions."""
        setting = (patch.revision for patch in self._fold.patches if parameter in patch.patch)
        return max((one for one in setting if one in self._fold.shown), default=None)

    def settle(self, keep: Collection[int]) -> None:
        """What is shown, but for `keep`, need not be taken back any more."""
        self._fold = self._fold.settle(keep)

    def way(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> Apply:
        """The slowest way in which a parameter that changed takes effect."""
        changed = (way for name, way in self._ways.items() if was.get(name) != now.get(name))
        return max(changed, key=ORDER.index, default=Apply.LIVE)

    def _judge(self, due: tuple[Patch, ...], pts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which of `due` a frame may show at once, and which have to wait, in the order of their effect."""
        revisions = {patch.revision for patch in due}
        live: list[int] = []
        waiting: list[int] = []
        taken = set[str]()  # parameters that those that wait set
        for patch in self._fold.in_order_of_effect(pts):
            if patch.revision not in revisions:
                continue
            slow = {name for name in patch.patch if self._ways.get(name, Apply.LIVE) is not Apply.LIVE}
            shown = self._completed(self._fold.with_only((*live, patch.revision), pts)) if slow else {}
            if slow and (slow & taken or self.way(self.params, shown) is not Apply.LIVE):
                waiting.append(patch.revision)
                taken |= slow
            else:
                live.append(patch.revision)
        return tuple(live), tuple(waiting)

    def _target(self, waiting: tuple[int, ...], pts: int) -> Target | None:
        if not waiting:
            return None
        alone = next((one for one in waiting if one in self._alone), None)
        chosen = waiting if alone is None else (alone,)
        params = self._completed(self._fold.with_only(chosen, pts))
        return Target(chosen, params, self.way(self.params, params))

    def _show(self, revisions: Collection[int], pts: int) -> None:
        self._fold = self._fold.show(revisions, pts)
        self.params = self._completed(self._fold.with_only((), NOW))

    def _refuse(self, revision: int) -> None:
        self._fold = self._fold.refuse(revision)
        self._alone.discard(revision)
        self._judged = ()

    def _completed(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**self._complete, **params}
