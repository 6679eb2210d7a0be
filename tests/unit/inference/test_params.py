from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ConflictError, InvalidError
from services.common.json_objects import merge_patch
from services.inference.params import CAPACITY, Fold, Patch

VALUES = st.none() | st.integers(0, 5) | st.dictionaries(st.sampled_from("xy"), st.none() | st.integers(0, 5))
PATCHES = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


def applied_at(fold: Fold, pts: int) -> tuple[Fold, tuple[int, ...]]:
    """After a frame at `pts` that shows all that is due, and which revisions it is the first to show."""
    fresh = tuple(patch.revision for patch in fold.due(pts))
    return (fold.show(fresh, pts).settle(), fresh) if fresh else (fold, ())


@st.composite
def revisions(draw: st.DrawFn) -> list[Patch]:
    """Patches of distinct revisions above 1, some with a time, some missing."""
    numbers = draw(st.lists(st.integers(2, 12), unique=True, max_size=8))
    return [Patch(n, draw(PATCHES), draw(st.sampled_from([0, 0, 10, 20, 30]))) for n in sorted(numbers)]


@given(st.data(), revisions())
def test_what_arrives_before_its_time_may_arrive_in_any_order_and_twice(
    data: st.DataObject, patches: list[Patch]
) -> None:
    base = {"a": 1, "b": {"x": 1}}
    fold = Fold(1, base)
    for patch in data.draw(st.permutations(patches + patches)):
        fold = fold.add(patch)
    shown: list[int] = []
    for pts in (0, 5, 15, 25, 40):
        fold, fresh = applied_at(fold, pts)
        shown += fresh
        expected: object = base
        for patch in sorted(patches, key=lambda one: (one.apply_at_pts, one.revision)):
            if patch.due(pts):
                expected = merge_patch(expected, patch.patch)
        params, revision = fold.effective(pts)
        assert params == expected
        assert revision == max([1, *(patch.revision for patch in patches if patch.due(pts))])
    assert sorted(shown) == [patch.revision for patch in patches]  # each was shown first once


@given(st.data(), st.lists(PATCHES, min_size=1, max_size=6))
def test_unscheduled_patches_may_arrive_in_any_order_between_frames(
    data: st.DataObject, bodies: list[dict[str, Any]]
) -> None:
    patches = [Patch(number, body) for number, body in enumerate(bodies, 2)]
    fold, pts = Fold(1, {"a": 1}), 0
    for patch in data.draw(st.permutations(patches + patches)):
        fold = fold.add(patch)
        if data.draw(st.booleans()):
            pts += 3
            fold, _ = applied_at(fold, pts)
    expected: object = {"a": 1}
    for patch in patches:
        expected = merge_patch(expected, patch.patch)
    assert fold.effective(pts) == (expected, len(patches) + 1)


@given(revisions(), st.integers(0, 40))
def test_asking_changes_nothing(patches: list[Patch], pts: int) -> None:
    fold = Fold(1, {"a": 1})
    for patch in patches:
        fold = fold.add(patch)
    before = fold.effective(pts)
    after, _ = applied_at(fold, pts)
    assert after.effective(pts) == before
    assert applied_at(after, pts) == (after, ())


def test_a_scheduled_patch_is_in_effect_from_its_picture_on() -> None:
    fold = Fold(1, {"a": 1}).add(Patch(2, {"a": 2}, 100)).add(Patch(3, {"b": 3}))
    assert fold.effective(99) == ({"a": 1, "b": 3}, 3)
    fold, fresh = applied_at(fold, 99)
    assert fresh == (3,)
    fold, fresh = applied_at(fold, 100)
    assert fresh == (2,)
    assert fold.effective(100) == ({"a": 2, "b": 3}, 3)


def test_a_revision_that_came_late_does_not_undo_a_newer_one() -> None:
    fold, _ = applied_at(Fold(1, {}).add(Patch(3, {"a": 3})), 0)
    fold, fresh = applied_at(fold.add(Patch(2, {"a": 2, "b": 2})), 0)
    assert fresh == (2,)
    assert fold.effective(0) == ({"a": 3, "b": 2}, 3)
    assert fold.patches == ()  # without a gap there is nothing to keep apart


def test_what_was_shown_stays_when_the_clock_steps_back() -> None:
    fold, _ = applied_at(Fold(1, {}).add(Patch(2, {"a": 2}, 100)).add(Patch(4, {"b": 4}, 100)), 100)
    assert fold.effective(0) == ({"a": 2, "b": 4}, 4)


def test_a_session_that_moved_has_scheduled_patches_below_its_base() -> None:
    fold = Fold.starting(7, {"a": 7}, [Patch(5, {"b": 5}, 100), Patch(3, {"c": 3}, 50)])
    assert fold.effective(0) == ({"a": 7}, 7)
    fold, fresh = applied_at(fold.add(Patch(8, {"b": 8})), 60)
    assert fresh == (3, 8)
    fold, fresh = applied_at(fold, 100)
    assert fresh == (5,)
    assert fold == Fold(8, {"a": 7, "c": 3, "b": 5}), "the schedule holds over what was said before its time"


def test_every_outcome_is_known_ahead() -> None:
    fold = Fold(1, {"a": 1}).add(Patch(2, {"a": 2}, 100)).add(Patch(3, {"a": 3}, 50))
    assert [params["a"] for params in fold.outcomes()] == [1, 3, 2]


def test_what_is_said_after_a_scheduled_change_took_effect_holds() -> None:
    fold, _ = applied_at(Fold(1, {"a": 1}).add(Patch(2, {"a": 2}, 100)), 100)
    fold, _ = applied_at(fold.add(Patch(3, {"a": 3})), 120)
    assert fold == Fold(3, {"a": 3})
    assert fold.effective(200) == ({"a": 3}, 3)


def test_a_gap_does_not_grow_without_a_bound() -> None:
    fold = Fold(1, {})
    for revision in range(3, CAPACITY + 100):
        fold, _ = applied_at(fold.add(Patch(revision, {"a": revision})), 0)
    assert len(fold.patches) <= CAPACITY
    assert fold.effective(0) == ({"a": CAPACITY + 99}, CAPACITY + 99)


def test_too_many_that_wait_are_refused() -> None:
    fold = Fold(1, {})
    for revision in range(2, CAPACITY + 2):
        fold = fold.add(Patch(revision, {}, 1000))
    with pytest.raises(ConflictError) as refused:
        fold.add(Patch(CAPACITY + 2, {}, 1000))
    assert refused.value.reason == "TOO_MANY_SCHEDULED"


def test_parameters_are_objects() -> None:
    wrong: Any = [1]
    with pytest.raises(InvalidError):
        Fold(1, wrong)
    with pytest.raises(InvalidError):
        Fold(1, {}).add(Patch(2, wrong))


def test_what_has_to_wait_is_not_in_effect_and_what_came_later_is() -> None:
    fold = Fold(1, {"a": 1}).add(Patch(2, {"a": 2, "b": 2})).add(Patch(3, {"a": 3}))
    assert fold.with_only((3,), 50) == {"a": 3}
    fold = fold.show([3], 50).show([2], 70)
    assert fold.with_only((), 70) == {"a": 3, "b": 2}, (
        "in the order of the revisions, however they were shown"
    )
    assert fold.settle() == Fold(3, {"a": 3, "b": 2})


def test_what_was_refused_is_as_if_nobody_had_said_it() -> None:
    fold = Fold(1, {"a": 1}).add(Patch(2, {"a": 2})).add(Patch(3, {"b": 3}))
    fold = fold.show([2, 3], 50).refuse(2)
    assert fold.due(100) == ()
    assert fold.with_only((), 100) == {"a": 1, "b": 3}
    assert fold.add(Patch(2, {"a": 2})) is fold, "and it stays refused"
    assert fold.settle() == Fold(3, {"a": 1, "b": 3})


def test_what_is_part_of_the_base_or_unknown_cannot_be_refused() -> None:
    fold = Fold(3, {"a": 1}).add(Patch(4, {"a": 4}))
    assert fold.refuse(2) is fold
    assert fold.refuse(9) is fold


def test_what_is_kept_can_still_be_refused_and_what_comes_before_it_settles() -> None:
    fold = Fold(1, {}).add(Patch(2, {"a": 2})).add(Patch(3, {"a": 3})).show([2, 3], 50).settle(keep=[3])
    assert (fold.revision, [patch.revision for patch in fold.patches]) == (2, [3])
    assert fold.refuse(3).with_only((), 60) == {"a": 2}


def test_nothing_settles_that_something_unknown_may_come_before() -> None:
    fold = Fold(1, {}).add(Patch(3, {"a": 3})).show([3], 50)
    assert fold.settle() is fold
    assert fold.add(Patch(2, {"a": 2})).show([2], 60).settle() == Fold(3, {"a": 3})
