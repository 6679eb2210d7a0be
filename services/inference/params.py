"""Which parameters are in effect at a frame: the fold of the due patches, in the order of their effect. Pure.

A scheduled patch takes effect at its picture, any other as soon as it is here; among those the order is that
of their revisions, however they arrived. Revisions may come more than once. A patch that was in effect once
stays so, wherever the clock goes.
"""

from __future__ import annotations

import sys
from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from services.common.errors import ConflictError, InvalidError
from services.common.json_objects import merge_patch

CAPACITY: Final = 256  # patches kept apart, so that a late one finds its place among them


@dataclass(frozen=True, slots=True)
class Patch:
    """A merge patch (RFC 7396) that is due from `apply_at_pts` on; 0 is at once."""

    revision: int
    patch: Mapping[str, Any]
    apply_at_pts: int = 0

    def due(self, pts: int) -> bool:
        return self.apply_at_pts <= 0 or self.apply_at_pts <= pts


@dataclass(frozen=True, slots=True)
class Fold:
    """Complete parameters at `revision`, and the patches that are not in them, in order of revision.

    Patches may have revisions below the base's: those that waited for their time when the base was made.
    `shown` says of the patches that a frame has shown, at which pts it did so first.
    """

    revision: int
    params: Mapping[str, Any]
    patches: tuple[Patch, ...] = ()
    shown: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.params, Mapping):
            raise InvalidError("parameters are a JSON object", field="params")

    @classmethod
    def starting(cls, revision: int, params: Mapping[str, Any], scheduled: Iterable[Patch]) -> Fold:
        """A session's start: complete parameters, and what was accepted but is not in them yet."""
        return cls(revision, params, tuple(sorted(scheduled, key=lambda one: one.revision)))

    def add(self, patch: Patch) -> Fold:
        """Take `patch` in; a revision that is known already changes nothing.

        Raises InvalidError when it is no object, ConflictError when too many wait for their time.
        """
        if not isinstance(patch.patch, Mapping):
            raise InvalidError("a patch of parameters is a JSON object", field="patch")
        if patch.revision <= self.revision or any(old.revision == patch.revision for old in self.patches):
            return self
        patches = list(self.patches)
        insort(patches, patch, key=lambda one: one.revision)
        fold = replace(self, patches=tuple(patches))
        if len(patches) <= CAPACITY:
            return fold
        first = fold.in_order_of_effect(sys.maxsize)[0]
        if first.revision not in self.shown:
            raise ConflictError("too many parameter changes wait for their time", reason="TOO_MANY_SCHEDULED")
        return fold.settled([first])

    def effective(self, pts: int) -> tuple[Mapping[str, Any], int]:
        """The parameters for a frame at `pts`, and the newest revision in them."""
        params, revision = self.params, self.revision
        for patch in self.in_order_of_effect(pts):
            if patch.revision in self.shown or patch.due(pts):
                params, revision = _merged(params, patch), max(revision, patch.revision)
        return params, revision

    def due(self, pts: int) -> tuple[Patch, ...]:
        """What no frame has shown yet, and one at `pts` may."""
        return tuple(patch for patch in self.patches if patch.revision not in self.shown and patch.due(pts))

    def with_only(self, revisions: Collection[int], pts: int) -> Mapping[str, Any]:
        """The parameters for a frame at `pts` if, of what was not shown yet, it shows just `revisions`."""
        params = self.params
        for patch in self.in_order_of_effect(pts):
            if patch.revision in self.shown or patch.revision in revisions:
                params = _merged(params, patch)
        return params

    def show(self, revisions: Iterable[int], pts: int) -> Fold:
        """The fold after a frame at `pts` that was the first to show `revisions`."""
        fresh = {one: pts for one in revisions if one not in self.shown and self._patch(one) is not None}
        return replace(self, shown={**self.shown, **fresh}) if fresh else self

    def refuse(self, revision: int) -> Fold:
        """The fold without what `revision` said, though it was shown; a part of the base stays."""
        refused = self._patch(revision)
        if refused is None:
            return self
        patches = tuple(replace(one, patch={}) if one is refused else one for one in self.patches)
        at = self.shown.get(revision, max(refused.apply_at_pts, 0))
        return replace(self, patches=patches, shown={**self.shown, revision: at})

    def settle(self, keep: Collection[int] = ()) -> Fold:
        """Make those part of the base that were shown, and that nothing can come before; not `keep`."""
        known = {patch.revision for patch in self.patches}
        complete = self.revision
        while complete + 1 in known:
            complete += 1
        settled: list[Patch] = []
        for patch in self.in_order_of_effect(sys.maxsize):
            one = patch.revision
            if one not in self.shown or one in keep or one > complete:
                break
            settled.append(patch)
        return self.settled(settled) if settled else self

    def outcomes(self) -> Iterator[Mapping[str, Any]]:
        """Every set of parameters that will be in effect at some time if nothing else arrives."""
        for pts in sorted({0, *(patch.apply_at_pts for patch in self.patches)}):
            yield self.effective(pts)[0]

    def _patch(self, revision: int) -> Patch | None:
        return next((patch for patch in self.patches if patch.revision == revision), None)

    def in_order_of_effect(self, pts: int) -> list[Patch]:
        """The patches in the order in which they take effect, for a frame at `pts`."""
        moment = pts
        keyed: list[tuple[int, int, Patch]] = []
        for patch in reversed(self.patches):
            if patch.apply_at_pts > 0:
                keyed.append((patch.apply_at_pts, patch.revision, patch))
            else:  # not after a newer one: a late arrival takes the place that it would have had
                moment = min(moment, self.shown.get(patch.revision, moment))
                keyed.append((moment, patch.revision, patch))
        return [patch for _, _, patch in sorted(keyed, key=lambda one: one[:2])]

    def settled(self, patches: Iterable[Patch]) -> Fold:
        """The fold with `patches`, which come first in the order of effect, made part of the base."""
        params, revision, gone = self.params, self.revision, set[int]()
        for patch in patches:
            params, revision = _merged(params, patch), max(revision, patch.revision)
            gone.add(patch.revision)
        kept = tuple(patch for patch in self.patches if patch.revision not in gone)
        return Fold(revision, params, kept, {one: at for one, at in self.shown.items() if one not in gone})


def _merged(params: Mapping[str, Any], patch: Patch) -> Mapping[str, Any]:
    merged = merge_patch(params, patch.patch)
    assert isinstance(merged, dict)
    return merged
