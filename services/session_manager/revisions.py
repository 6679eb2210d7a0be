"""What a revision changes of parameters, and what it replaced: merge patches there and back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.json_objects import merge_patch


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A patch that was accepted and takes effect at a picture of the session's timeline."""

    revision: int
    patch: Mapping[str, object]
    apply_at_pts: int


@dataclass(frozen=True, slots=True)
class Before:
    """What a revision replaced: the values that there were, and the names that had none."""

    revision: int
    values: Mapping[str, object]
    added: tuple[str, ...] = ()

    @classmethod
    def of(cls, item: Scheduled, was: Mapping[str, object]) -> Before:
        """What there was of all that a patch names, also where it changes nothing."""
        values = {name: was[name] for name in item.patch if name in was}
        return cls(item.revision, values, tuple(name for name in item.patch if name not in was))

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.values, *self.added))

    def put_back(self, names: frozenset[str], params: Mapping[str, object]) -> Mapping[str, object]:
        """Return `params` with those of `names` as they were."""
        kept = {name: value for name, value in params.items() if name not in names}
        return {**kept, **{name: value for name, value in self.values.items() if name in names}}

    def instead(self, names: frozenset[str], earlier: Before) -> Before:
        """Return it as if `earlier`, the revision before it that changed these `names`, had not been."""
        added = [name for name in self.added if name not in names]
        added += [name for name in earlier.added if name in names]
        return Before(self.revision, earlier.put_back(names, self.values), tuple(added))


def merged(params: Mapping[str, object], patch: Mapping[str, object]) -> Mapping[str, object]:
    result = merge_patch(params, patch)
    assert isinstance(result, dict)
    return result


def taken_out(
    revision: int, params: Mapping[str, object], history: tuple[Before, ...]
) -> tuple[Mapping[str, object], tuple[Before, ...]]:
    """Return parameters and history without one revision of the history."""
    place = next(place for place, one in enumerate(history) if one.revision == revision)
    gone, names, later = history[place], history[place].names, []
    for one in history[place + 1 :]:
        later.append(one.instead(names & one.names, gone))
        names -= one.names
    return gone.put_back(names, params), (*history[:place], *later)


def whole(patch: Mapping[str, object], params: Mapping[str, object]) -> dict[str, object]:
    """Return the merge patch that puts each value of `patch` in the place of all of what `params` have there.

    A merge patch alone would leave what an object had before: nobody could take a LoRA out of a list of them.
    """
    return {name: _whole(value, params.get(name)) for name, value in patch.items()}


def _whole(value: object, old: object) -> object:
    if not isinstance(value, Mapping) or not isinstance(old, Mapping):
        return value
    return {**dict.fromkeys(old), **whole(value, old)}


def difference(was: Mapping[str, object], now: Mapping[str, object]) -> dict[str, object]:
    """Return the merge patch that makes `now` of `was`."""
    patch: dict[str, object] = {name: None for name in was if name not in now}
    for name, value in now.items():
        old = was.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if old != value:
                patch[name] = difference(old, value)
        elif name not in was or old != value:
            patch[name] = value
    return patch
