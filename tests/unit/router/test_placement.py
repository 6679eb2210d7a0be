"""Choosing a slot: what is preferred, what is refused and why, and what is never chosen."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.placement import (
    Candidate,
    Refusal,
    Requirements,
    RunnerId,
    SlotState,
    choose,
)

DEPTH = frozenset({"depth"})


def slot(runner: str, state: SlotState = SlotState.READY, **fields: object) -> Candidate:
    return Candidate(runner=RunnerId(runner), slot=0, state=state, offered=DEPTH, **fields)  # type: ignore[arg-type]


def drawn(
    fleet: list[Candidate],
    wanted: Requirements | None = None,
    *,
    exclude: tuple[str, ...] = (),
    among: int = 3,
) -> set[str] | Refusal:
    """The runners that a hundred draws chose, or the refusal."""
    chosen: set[str] = set()
    for seed in range(100):
        choice = choose(
            fleet,
            wanted or Requirements("depth"),
            exclude=frozenset(map(RunnerId, exclude)),
            among=among,
            random=Random(seed),
        )
        if isinstance(choice, Refusal):
            return choice
        chosen.add(choice.runner)
    return chosen


def test_a_warm_slot_is_better_than_any_idle_cold_one() -> None:
    fleet = [slot("cold"), slot("warm", warm=DEPTH, load=0.9), slot("cold too")]
    assert drawn(fleet) == {"warm"}


def test_the_choice_is_drawn_among_the_least_loaded_few() -> None:
    fleet = [slot(f"r{number}", load=number / 10) for number in range(10)]
    assert drawn(fleet) == {"r0", "r1", "r2"}
    assert drawn(fleet, among=1) == {"r0"}


def test_of_equals_each_can_be_drawn_wherever_it_is_listed() -> None:
    fleet = [slot(f"r{number}") for number in range(10)]
    assert drawn(fleet) == {f"r{number}" for number in range(10)}
    assert drawn(fleet, among=1) == {f"r{number}" for number in range(10)}


def test_fewer_than_the_few_are_enough() -> None:
    assert drawn([slot("only")]) == {"only"}


@pytest.mark.parametrize("state", [state for state in SlotState if state is not SlotState.READY])
def test_only_ready_slots_are_chosen(state: SlotState) -> None:
    assert drawn([slot("a", state), slot("b")]) == {"b"}
    assert drawn([slot("a", state)]) is Refusal.NOTHING_FREE


@pytest.mark.parametrize(
    ("wanted", "outcome"),
    [
        (Requirements("depth"), {"eu", "us"}),
        (Requirements("depth", region="eu"), {"eu"}),
        (Requirements("depth", gpu_class="l40"), {"us"}),
        (Requirements("depth", labels=frozenset({("tier", "gold")})), {"eu"}),
        (Requirements("depth", labels=frozenset({("tier", "gold"), ("rack", "1")})), Refusal.NO_MATCH),
        (Requirements("depth", region="eu", gpu_class="l40"), Refusal.NO_MATCH),
        (Requirements("canny"), Refusal.UNKNOWN_PIPELINE),
    ],
)
def test_requirements_must_all_match(wanted: Requirements, outcome: set[str] | Refusal) -> None:
    fleet = [
        slot("eu", region="eu", gpu_class="h100", labels=frozenset({("tier", "gold"), ("rack", "2")})),
        slot("us", region="us", gpu_class="l40"),
    ]
    assert drawn(fleet, wanted) == outcome


def test_excluded_runners_are_not_chosen() -> None:
    assert drawn([slot("a"), slot("b")], exclude=("a",)) == {"b"}
    assert drawn([slot("a")], exclude=("a",)) is Refusal.EXCLUDED
    assert drawn([slot("a", SlotState.HELD)], exclude=("a",)) is Refusal.EXCLUDED


def test_in_an_empty_fleet_every_pipeline_is_unknown() -> None:
    assert drawn([]) is Refusal.UNKNOWN_PIPELINE


NAMES = st.sampled_from(["a", "b", "c", "d"]).map(RunnerId)
SETS = st.frozensets(st.sampled_from(["depth", "canny"]))
CANDIDATES = st.builds(
    Candidate,
    runner=NAMES,
    slot=st.integers(0, 3),
    state=st.sampled_from(SlotState),
    offered=SETS,
    warm=SETS,
    load=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    region=st.sampled_from(["", "eu", "us"]),
    gpu_class=st.sampled_from(["", "h100"]),
    labels=st.frozensets(st.sampled_from([("tier", "gold"), ("rack", "1")])),
)
WANTED = st.builds(
    Requirements,
    pipeline=st.sampled_from(["depth", "canny"]),
    region=st.sampled_from(["", "eu", "us"]),
    gpu_class=st.sampled_from(["", "h100"]),
    labels=st.frozensets(st.sampled_from([("tier", "gold"), ("rack", "1")])),
)


@given(
    fleet=st.lists(CANDIDATES, max_size=12),
    wanted=WANTED,
    exclude=st.frozensets(NAMES),
    among=st.integers(1, 5),
    random=st.randoms(use_true_random=False),
)
def test_what_is_chosen_is_free_fits_and_is_not_excluded_and_a_refusal_means_there_was_none(
    fleet: list[Candidate],
    wanted: Requirements,
    exclude: frozenset[RunnerId],
    among: int,
    random: Random,
) -> None:
    good = [
        candidate
        for candidate in fleet
        if candidate.state is SlotState.READY
        and wanted.pipeline in candidate.offered
        and candidate.runner not in exclude
        and wanted.match(candidate)
    ]
    choice = choose(fleet, wanted, exclude=exclude, among=among, random=random)
    if isinstance(choice, Refusal):
        assert not good
        return
    assert choice in good
    rivals = [rival for rival in good if (wanted.pipeline in rival.warm) >= (wanted.pipeline in choice.warm)]
    assert choice in rivals
    if wanted.pipeline not in choice.warm:
        assert not any(wanted.pipeline in rival.warm for rival in good)
    assert sum(rival.load < choice.load for rival in rivals) < among
