"""Which parameters frames show while others are being prepared, loaded, refused and taken back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.json_objects import merge_patch
from services.inference.engine.changes import Changes, Target
from services.inference.params import Fold, Patch
from sluice.pipeline import Apply

COMPLETE = {"live": 0, "other": 0, "prompt": "a", "style": "a", "model": "a", "size": 1}
WAYS = {
    "live": Apply.LIVE,
    "other": Apply.LIVE,
    "prompt": Apply.WARM,
    "style": Apply.WARM,
    "model": Apply.RELOAD,
    "size": Apply.RELOAD,
}


def changes(*patches: Patch, **base: Any) -> Changes:
    made = Changes(Fold(1, base), COMPLETE, WAYS)
    for patch in patches:
        made.add(patch)
    return made


def differing(params: Any) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value != COMPLETE[name]}


def test_every_parameter_has_a_value() -> None:
    assert changes(live=3).params == {**COMPLETE, "live": 3}


def test_a_live_value_is_shown_by_the_next_frame() -> None:
    made = changes(Patch(2, {"live": 5}))
    assert made.step(10) == (2,)
    assert differing(made.params) == {"live": 5}
    assert made.step(20) == ()


def test_a_live_value_is_shown_from_the_frame_of_its_time_on() -> None:
    made = changes(Patch(2, {"live": 5}, apply_at_pts=20))
    assert made.step(19) == ()
    assert made.step(20) == (2,)


def test_frames_show_live_values_while_a_warm_one_is_prepared() -> None:
    made = changes(Patch(2, {"prompt": "b"}))
    assert made.step(0) == ()
    assert made.begin() == Target((2,), {**COMPLETE, "prompt": "b"}, Apply.WARM)
    made.add(Patch(3, {"live": 1}))
    assert made.step(10) == (3,)
    assert differing(made.params) == {"live": 1}
    assert made.reached(20) == (2,)
    assert differing(made.params) == {"live": 1, "prompt": "b"}


def test_a_revision_with_a_warm_and_a_live_value_is_shown_whole() -> None:
    made = changes(Patch(2, {"prompt": "b", "live": 9}))
    assert made.step(0) == ()
    assert differing(made.params) == {}
    made.begin()
    made.reached(10)
    assert differing(made.params) == {"prompt": "b", "live": 9}


def test_a_burst_of_warm_values_is_one_preparation_of_the_newest() -> None:
    made = changes(Patch(2, {"prompt": "b"}))
    made.step(0)
    made.begin()
    for revision in range(3, 50):
        made.add(Patch(revision, {"prompt": f"b{revision}"}))
        made.step(revision)
        assert made.wanted is None  # one at a time
    made.reached(100)
    made.step(100)
    assert made.wanted == Target(tuple(range(3, 50)), {**COMPLETE, "prompt": "b49"}, Apply.WARM)


def test_of_a_warm_and_a_reload_value_the_slower_tells() -> None:
    made = changes(Patch(2, {"prompt": "b"}), Patch(3, {"model": "b"}))
    made.step(0)
    assert made.wanted == Target((2, 3), {**COMPLETE, "prompt": "b", "model": "b"}, Apply.RELOAD)


def test_a_patch_that_repeats_a_slow_value_is_live() -> None:
    made = changes(Patch(2, {"prompt": "a", "model": "a", "live": 4}))
    assert made.step(0) == (2,)
    assert made.wanted is None


def test_a_value_that_waits_is_not_overtaken_by_a_newer_one_of_the_same_parameter() -> None:
    made = changes(Patch(2, {"prompt": "b"}))
    made.step(0)
    made.begin()
    made.add(Patch(3, {"prompt": "a", "live": 1}))  # what frames show, but not what they will show
    assert made.step(10) == ()
    made.reached(20)
    assert differing(made.params) == {"prompt": "b"}
    assert made.step(20) == ()
    assert made.begin().params == {**COMPLETE, "live": 1}


def test_values_that_cancel_each_other_before_anything_began_are_shown_at_once() -> None:
    made = changes(Patch(2, {"prompt": "b"}), Patch(3, {"prompt": "a"}))
    assert made.step(0) == (2, 3)
    assert made.wanted is None


def test_a_value_that_cannot_be_had_is_as_if_nobody_had_said_it() -> None:
    made = changes(Patch(2, {"prompt": "bad", "live": 9}))
    made.step(0)
    made.begin()
    made.add(Patch(3, {"live": 1}))
    made.step(5)
    assert made.cannot_be_had(None) == (2,)
    assert made.step(10) == ()
    assert made.wanted is None
    assert differing(made.params) == {"live": 1}


def test_of_several_each_is_tried_for_itself_and_only_the_bad_one_is_refused() -> None:
    made = changes(Patch(2, {"prompt": "b"}), Patch(3, {"style": "bad"}), Patch(4, {"prompt": "c"}))
    made.step(0)
    assert made.begin().revisions == (2, 3, 4)
    assert made.cannot_be_had(None) == ()
    refused: list[int] = []
    for pts in range(10, 60, 10):
        made.step(pts)
        if made.wanted is None:
            break
        target = made.begin()
        if target.params["style"] == "bad":
            refused += made.cannot_be_had(None)
        else:
            made.reached(pts)
    assert refused == [3]
    assert differing(made.params) == {"prompt": "c"}


def test_who_names_a_parameter_blames_the_newest_that_set_it() -> None:
    made = changes(Patch(2, {"prompt": "b"}), Patch(3, {"style": "bad"}), Patch(4, {"prompt": "c"}))
    made.step(0)
    made.begin()
    assert made.cannot_be_had("style") == (3,)
    made.step(10)
    assert made.begin().params == {**COMPLETE, "prompt": "c"}


def test_what_was_shown_can_be_taken_back_and_later_values_stay() -> None:
    made = changes(Patch(2, {"live": 5}), Patch(3, {"other": 7}))
    made.step(0)
    assert made.doubtful() == (3, 2)
    assert made.roll_back(2) is Apply.LIVE
    assert differing(made.params) == {"other": 7}
    made.add(Patch(2, {"live": 5}))
    assert made.step(10) == ()


def test_to_take_back_a_slow_value_the_instance_has_to_change() -> None:
    made = changes(Patch(2, {"model": "b"}))
    made.step(0)
    made.begin()
    made.reached(10)
    assert made.roll_back(2) is Apply.RELOAD
    assert differing(made.params) == {}


def test_what_has_settled_is_not_doubtful() -> None:
    made = changes(Patch(2, {"live": 5}), Patch(3, {"other": 7}))
    made.step(0)
    made.settle(keep=(3,))
    assert made.doubtful() == (3,)
    assert made.revision == 2
    assert made.roll_back(2) is Apply.LIVE
    assert differing(made.params) == {"live": 5, "other": 7}


PATCHES = st.dictionaries(
    st.sampled_from(sorted(COMPLETE)), st.one_of(st.none(), st.sampled_from("abc")), min_size=1, max_size=3
)


@given(st.data(), st.lists(PATCHES, min_size=1, max_size=8), st.sampled_from(["", "b", "c"]))
def test_whatever_happens_the_end_is_that_of_the_revisions_that_could_be_had(
    data: st.DataObject, bodies: list[dict[str, Any]], bad: str
) -> None:
    """`bad` is a value of `model` that cannot be had. What an instance has always is what its frames show."""
    made, refused, shown = changes(), set[int](), list[int]()
    has = {name: COMPLETE[name] for name in WAYS if WAYS[name] is not Apply.LIVE}
    waiting = [Patch(revision, body) for revision, body in enumerate(bodies, 2)]
    for pts in range(0, 1000, 10):
        while waiting and (pts > 200 or data.draw(st.booleans(), label="arrives")):
            made.add(waiting.pop(0))
        shown += made.step(pts)
        if made.under_way is not None and (pts > 200 or data.draw(st.booleans(), label="done")):
            target = made.under_way
            if target.params["model"] == bad != "":
                refused |= set(made.cannot_be_had(None))
            else:
                has = {name: target.params[name] for name in has}
                shown += made.reached(pts)
            shown += made.step(pts)
        if made.under_way is None and made.wanted is not None:
            made.begin()
        assert {name: made.params[name] for name in has} == has
        if not waiting and made.under_way is None and made.wanted is None:
            break
    else:
        raise AssertionError("it does not come to an end")
    expected: object = {}
    for revision, body in enumerate(bodies, 2):
        if revision not in refused:
            expected = merge_patch(expected, body)
    assert isinstance(expected, dict)
    assert made.params == {**COMPLETE, **expected}
    assert sorted([*shown, *refused]) == list(range(2, len(bodies) + 2))
