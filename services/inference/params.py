"""Which parameters are in effect at a frame: the fold of the due patches, in order of revision. Pure.

The rule it keeps: revisions may arrive in any order and more than once, and the outcome is the same. A patch
that was in effect once stays so, wherever the clock goes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from services.common.errors import ConflictError, InvalidError
from services.common.merge_patch import merge_patch

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
    `applied` are those that a frame has shown.
    """

    revision: int
    params: Mapping[str, Any]
    patches: tuple[Patch, ...] = ()
    applied: frozenset[int] = frozenset()

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
        if len(patches) <= CAPACITY:
            return replace(self, patches=tuple(patches))
        oldest = patches[0]
        if oldest.revision not in self.applied:
            raise ConflictError("too many parameter changes wait for their time", reason="TOO_MANY_SCHEDULED")
        return _compacted(replace(self, patches=tuple(patches)), 1)

    def effective(self, pts: int) -> tuple[Mapping[str, Any], int]:
        """The parameters for a frame at `pts`, and the newest revision in them."""
        params, revision = self.params, self.revision
        for patch in self.patches:
            if patch.revision in self.applied or patch.due(pts):
                params, revision = _merged(params, patch), max(revision, patch.revision)
        return params, revision

    def applied_at(self, pts: int) -> tuple[Fold, tuple[int, ...]]:
        """The fold after a frame at `pts`, and the revisions that this frame is the first to show."""
        fresh = tuple(
            patch.revision for patch in self.patches if patch.revision not in self.applied and patch.due(pts)
        )
        if not fresh:
            return self, ()
        applied = self.applied.union(fresh)
        newest, settled = self.revision, 0
        for patch in self.patches:  # below the first gap nothing can arrive: those need not be kept apart
            if patch.revision > newest + 1 or patch.revision not in applied:
                break
            newest, settled = max(newest, patch.revision), settled + 1
        return _compacted(replace(self, applied=applied), settled), fresh

    def outcomes(self) -> Iterator[Mapping[str, Any]]:
        """Every set of parameters that will be in effect at some time if nothing else arrives."""
        for pts in sorted({0, *(patch.apply_at_pts for patch in self.patches)}):
            yield self.effective(pts)[0]


def _compacted(fold: Fold, count: int) -> Fold:
    """The fold with its `count` oldest patches, all applied, made part of the base."""
    params, revision = fold.params, fold.revision
    for patch in fold.patches[:count]:
        params, revision = _merged(params, patch), max(revision, patch.revision)
    patches = fold.patches[count:]
    return Fold(revision, params, patches, fold.applied & {patch.revision for patch in patches})


def _merged(params: Mapping[str, Any], patch: Patch) -> Mapping[str, Any]:
    merged = merge_patch(params, patch.patch)
    assert isinstance(merged, dict)
    return merged
