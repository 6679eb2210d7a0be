"""Choosing a runner: what is preferred by each policy, what is refused and why, and what is never chosen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.placement import (
    CLOSE,
    QUARANTINED_FROM,
    USUAL_FRAME_US,
    WEIGHTS,
    Policy,
    Refusal,
    Requirements,
    RunnerId,
    SlotState,
    Wish,
    dearness,
    slowness,
    wish_from_text,
)
from services.router.ranking import NOISE, POOL, Rankings
from services.router.table import LOG_KEPT, OFFERED, WARM, Table

DEPTH = Requirements("depth")


@dataclass(frozen=True)
class Spec:
    """One runner as a test thinks of it."""

    warm: bool = True
    offers: bool = True
    slots: int = 1
    held: int = 0
    state: SlotState = SlotState.READY
    frame_us: int = 0
    penalty: float = 0.0
    price: int = 0
    region: str = ""
    gpu_class: str = ""
    labels: frozenset[tuple[str, str]] = frozenset()

    @property
    def ready(self) -> int:
        return self.slots - self.held if self.state is SlotState.READY else 0

    def fits(self, needs: Requirements) -> bool:
        return (
            self.offers
            and needs.pipeline == "depth"
            and needs.region in {"", self.region}
            and needs.gpu_class in {"", self.gpu_class}
            and needs.labels <= self.labels
            and (not needs.max_micro_per_second or self.price <= needs.max_micro_per_second)
            and (self.warm or not needs.warm)
            and (not needs.max_frame_us or (self.frame_us or USUAL_FRAME_US) <= needs.max_frame_us)
        )

    def cost(self, policy: Policy) -> float:
        weights = WEIGHTS[policy]
        return (
            weights.cold * (not self.warm)
            + weights.slow * slowness(self.frame_us)
            + weights.penalty * self.penalty
            + weights.load * (self.held / self.slots)
            + weights.price * dearness(self.price)
        )


@dataclass
class Fleet:
    """Runners by name, in a table, as one router ranks them."""

    seed: int = 0
    table: Table = field(default_factory=Table)
    rows: dict[str, int] = field(default_factory=dict)
    specs: dict[str, Spec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rankings = Rankings(self.table, Random(self.seed))

    def put(self, name: str, spec: Spec) -> None:
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = self.table.add()
        self.specs[name] = spec
        self.table.describe(
            row,
            region=spec.region,
            gpu_class=spec.gpu_class,
            labels=spec.labels,
            offers={"depth": WARM if spec.warm else OFFERED} if spec.offers else {},
            price=spec.price,
        )
        self.table.set_frame_us(row, spec.frame_us)
        self.table.set_penalty(row, spec.penalty)
        held = SlotState.HELD if spec.state is SlotState.READY else spec.state
        self.table.set_slots(
            row,
            slots=spec.slots,
            held=spec.held,
            untaken=spec.state,
            taken=held,
            first=held if spec.held else spec.state,
            heard=spec.state is not SlotState.LOST,
        )

    def remove(self, name: str) -> None:
        self.table.remove(self.rows.pop(name))
        del self.specs[name]

    def choose(
        self,
        needs: Requirements = DEPTH,
        *,
        exclude: Iterable[str] = (),
        reserved: Mapping[str, int] | None = None,
        among: int = 3,
    ) -> str | Refusal:
        excluded = [self.rows[name] for name in exclude if name in self.rows]
        choice = self.rankings.choose(
            needs,
            exclude=excluded,
            reserved={self.rows[name]: count for name, count in (reserved or {}).items()},
            among=among,
        )
        if choice is None:
            return self.rankings.why_none(needs, excluded)
        return next(name for name, row in self.rows.items() if row == choice)


def drawn(
    specs: Mapping[str, Spec],
    needs: Requirements = DEPTH,
    *,
    exclude: Iterable[str] = (),
    among: int = 3,
) -> set[str] | Refusal:
    """The runners that a hundred routers chose, or their refusal."""
    chosen: set[str] = set()
    for seed in range(100):
        fleet = Fleet(seed)
        for name, spec in specs.items():
            fleet.put(name, spec)
        choice = fleet.choose(needs, exclude=exclude, among=among)
        if isinstance(choice, Refusal):
            return choice
        chosen.add(choice)
    return chosen


def test_a_warm_runner_is_better_than_any_idle_cold_one() -> None:
    specs = {
        "cold": Spec(warm=False, frame_us=8_000),
        "warm": Spec(slots=10, held=9, price=5_000, penalty=0.4, frame_us=200_000),
    }
    assert drawn(specs) == {"warm"}
    assert drawn(specs, replace(DEPTH, policy=Policy.FASTEST)) == {"warm"}


def test_the_draw_spreads_over_the_best_few_that_are_as_good() -> None:
    specs = {f"r{number}": Spec(slots=10, held=number) for number in range(10)}
    assert drawn(specs) == {"r0", "r1", "r2"}
    assert drawn(specs, among=2) == {"r0", "r1"}
    assert drawn({"r0": Spec(slots=2), "r1": Spec(slots=2, held=1)}) == {"r0"}


def test_of_equals_each_can_be_drawn_wherever_it_is_listed() -> None:
    specs = {f"r{number}": Spec() for number in range(10)}
    assert drawn(specs) == set(specs)
    assert drawn(specs, among=1) == set(specs)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (Spec(frame_us=20_000), Spec(frame_us=40_000)),
        (Spec(), Spec(frame_us=66_000)),
        (Spec(penalty=0.0), Spec(penalty=0.3)),
        (Spec(slots=4), Spec(slots=4, held=2)),
        (Spec(price=100), Spec(price=500)),
        (Spec(), Spec(price=100)),
    ],
)
def test_balanced_weighs_each_of_its_terms(better: Spec, worse: Spec) -> None:
    assert drawn({"worse": worse, "better": better}) == {"better"}


def test_the_cheapest_is_chosen_however_slow_and_loaded_it_is() -> None:
    specs = {
        "cheap": Spec(price=95, slots=4, held=3, frame_us=120_000),
        "dear": Spec(price=120, frame_us=8_000),
    }
    assert drawn(specs, replace(DEPTH, policy=Policy.CHEAPEST)) == {"cheap"}
    assert drawn(specs) == {"dear"}


def test_the_fastest_is_chosen_whatever_it_costs() -> None:
    specs = {
        "fast": Spec(price=5_000, frame_us=12_000),
        "slow": Spec(frame_us=30_000),
    }
    assert drawn(specs, replace(DEPTH, policy=Policy.FASTEST)) == {"fast"}
    assert drawn(specs) == {"slow"}


def test_runners_that_failed_lately_are_used_only_where_no_other_fits() -> None:
    bad = Spec(penalty=QUARANTINED_FROM)
    assert drawn({"bad": bad, "cold": Spec(warm=False)}) == {"cold"}
    assert drawn({"bad": bad}) == {"bad"}
    assert drawn({"bad": bad, "busy": Spec(held=1)}) is Refusal.QUARANTINED
    assert drawn({"bad": bad, "busy": Spec(held=1)}, exclude=["busy"]) == {"bad"}
    assert drawn({"bad": bad, "lost": Spec(state=SlotState.LOST)}) == {"bad"}
    assert drawn({"bad": bad, "elsewhere": Spec(offers=False)}) == {"bad"}


@pytest.mark.parametrize("state", [state for state in SlotState if state is not SlotState.READY])
def test_only_ready_slots_are_chosen(state: SlotState) -> None:
    assert drawn({"a": Spec(state=state), "b": Spec()}) == {"b"}
    assert drawn({"a": Spec(state=state)}) is Refusal.NOTHING_FREE


@pytest.mark.parametrize(
    ("needs", "outcome"),
    [
        (DEPTH, {"eu", "us"}),
        (replace(DEPTH, region="eu"), {"eu"}),
        (replace(DEPTH, gpu_class="l40"), {"us"}),
        (replace(DEPTH, labels=frozenset({("tier", "gold")})), {"eu"}),
        (replace(DEPTH, labels=frozenset({("tier", "gold"), ("rack", "1")})), Refusal.NO_MATCH),
        (replace(DEPTH, region="eu", gpu_class="l40"), Refusal.NO_MATCH),
        (replace(DEPTH, max_micro_per_second=500), {"eu", "us"}),
        (replace(DEPTH, max_micro_per_second=499), Refusal.PRICE),
        (replace(DEPTH, warm=True), {"eu", "us"}),
        (Requirements("canny"), Refusal.UNKNOWN_PIPELINE),
    ],
)
def test_requirements_must_all_match(needs: Requirements, outcome: set[str] | Refusal) -> None:
    eu = Spec(region="eu", gpu_class="h100", labels=frozenset({("tier", "gold"), ("rack", "2")}), price=500)
    assert drawn({"eu": eu, "us": Spec(region="us", gpu_class="l40", price=500)}, needs) == outcome


def test_a_wish_for_a_loaded_pipeline_is_not_met_by_a_cold_one() -> None:
    assert drawn({"cold": Spec(warm=False)}, replace(DEPTH, warm=True)) is Refusal.COLD
    assert drawn({"cold": Spec(warm=False), "busy": Spec(held=1)}, replace(DEPTH, warm=True)) is (
        Refusal.NOTHING_FREE
    )


def test_only_a_runner_that_is_as_quick_as_was_wished_is_chosen() -> None:
    specs = {"slow": Spec(frame_us=40_000), "quick": Spec(frame_us=28_000, price=900)}
    assert drawn(specs, replace(DEPTH, max_frame_us=28_000)) == {"quick"}
    assert drawn(specs, replace(DEPTH, max_frame_us=27_999)) is Refusal.SLOW
    busy = {**specs, "quick": replace(specs["quick"], held=1)}
    assert drawn(busy, replace(DEPTH, max_frame_us=28_000)) is Refusal.NOTHING_FREE


def test_a_runner_of_which_no_frame_was_measured_is_as_quick_as_is_usual() -> None:
    assert drawn({"new": Spec()}, replace(DEPTH, max_frame_us=USUAL_FRAME_US)) == {"new"}
    assert drawn({"new": Spec()}, replace(DEPTH, max_frame_us=USUAL_FRAME_US - 1)) is Refusal.SLOW


def test_a_runner_that_became_slow_is_not_chosen_for_a_quick_one() -> None:
    fleet, needs = Fleet(), replace(DEPTH, max_frame_us=20_000)
    fleet.put("a", Spec(frame_us=10_000))
    assert fleet.choose(needs) == "a"
    fleet.table.set_frame_us(fleet.rows["a"], 21_000)
    assert fleet.choose(needs) is Refusal.SLOW
    assert fleet.choose() == "a"


def test_runners_that_failed_lately_are_used_where_the_healthy_ones_are_too_slow() -> None:
    specs = {"bad": Spec(frame_us=9_000, penalty=QUARANTINED_FROM), "slow": Spec(held=1)}
    assert drawn(specs, replace(DEPTH, max_frame_us=20_000)) == {"bad"}
    assert drawn(specs) is Refusal.QUARANTINED


def test_a_wish_of_a_router_that_knows_no_frame_times_is_read() -> None:
    fields = json.loads(Wish(DEPTH).text())
    del fields["max_frame_us"]
    assert wish_from_text(json.dumps(fields)) == Wish(DEPTH)


def test_a_runner_that_asks_for_no_money_is_below_any_cap() -> None:
    assert drawn({"own": Spec()}, replace(DEPTH, max_micro_per_second=1)) == {"own"}


def test_excluded_runners_are_not_chosen() -> None:
    assert drawn({"a": Spec(), "b": Spec()}, exclude=["a"]) == {"b"}
    assert drawn({"a": Spec()}, exclude=["a"]) is Refusal.EXCLUDED
    assert drawn({"a": Spec(held=1)}, exclude=["a"]) is Refusal.EXCLUDED


def test_in_an_empty_fleet_every_pipeline_is_unknown() -> None:
    assert drawn({}) is Refusal.UNKNOWN_PIPELINE
    fleet = Fleet()
    fleet.put("a", Spec())
    assert fleet.choose() == "a"
    fleet.remove("a")
    assert fleet.choose() is Refusal.UNKNOWN_PIPELINE


def test_slots_for_which_others_come_first_are_left_to_them() -> None:
    fleet = Fleet()
    fleet.put("a", Spec(slots=2))
    fleet.put("b", Spec(slots=2, held=1))
    assert fleet.choose(reserved={"a": 2}) == "b"
    assert fleet.choose(reserved={"a": 1, "b": 1}) == "a"
    assert fleet.choose(reserved={"a": 2, "b": 1}) is Refusal.NOTHING_FREE


def test_a_fleet_larger_than_the_few_kept_ready_is_given_out_to_the_last_slot() -> None:
    fleet = Fleet()
    for number in range(3 * POOL):
        fleet.put(f"r{number}", Spec(frame_us=8_000 + 100 * number))
    taken = []
    while not isinstance(name := fleet.choose(), Refusal):
        taken.append(name)
        fleet.put(name, replace(fleet.specs[name], held=1))
    assert name is Refusal.NOTHING_FREE
    assert sorted(taken) == sorted(fleet.specs)


def test_a_ranking_that_is_far_behind_looks_at_all_again() -> None:
    fleet = Fleet()
    fleet.put("a", Spec())
    fleet.put("b", Spec(frame_us=60_000))
    assert fleet.choose() == "a"
    for _ in range(LOG_KEPT):
        fleet.table.set_frame_us(fleet.rows["a"], 250_000)
    assert fleet.choose() == "b"


def test_a_ranking_of_which_all_is_excluded_finds_the_others() -> None:
    fleet = Fleet()
    for number in range(2 * POOL):
        fleet.put(f"r{number}", Spec(frame_us=round(8_000 * 1.02**number)))
    best = [f"r{number}" for number in range(POOL + 5)]
    assert fleet.choose(exclude=best, among=1) == f"r{POOL + 5}"


@given(
    st.builds(
        Wish,
        st.builds(
            Requirements,
            pipeline=st.text(min_size=1),
            region=st.text(),
            gpu_class=st.text(),
            labels=st.frozensets(st.tuples(st.text(), st.text())),
            max_micro_per_second=st.integers(0, 2**63 - 1),
            policy=st.sampled_from(Policy),
            warm=st.booleans(),
            max_frame_us=st.integers(0, 2**63 - 1),
        ),
        st.frozensets(st.text().map(RunnerId)),
    )
)
def test_a_wish_reads_as_it_was_written(wish: Wish) -> None:
    assert wish_from_text(wish.text()) == wish


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"pipeline":"p"}', "depth", "1"])
def test_what_is_no_wish_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no wish"):
        wish_from_text(text)


LABELS = st.frozensets(st.sampled_from([("tier", "gold"), ("rack", "1")]))
SPECS = st.integers(1, 3).flatmap(
    lambda slots: st.builds(
        Spec,
        warm=st.booleans(),
        offers=st.booleans(),
        slots=st.just(slots),
        held=st.integers(0, slots),
        state=st.sampled_from(SlotState),
        frame_us=st.sampled_from([0, 10_000, 40_000, 90_000]),
        penalty=st.sampled_from([0.0, 0.3, 0.6]),
        price=st.sampled_from([0, 100, 200]),
        region=st.sampled_from(["", "eu", "us"]),
        gpu_class=st.sampled_from(["", "h100"]),
        labels=LABELS,
    )
)
NEEDS = st.builds(
    Requirements,
    pipeline=st.sampled_from(["depth", "canny"]),
    region=st.sampled_from(["", "eu", "us"]),
    gpu_class=st.sampled_from(["", "h100"]),
    labels=LABELS,
    max_micro_per_second=st.sampled_from([0, 150]),
    policy=st.sampled_from(Policy),
    warm=st.booleans(),
)
NAMES = st.sampled_from("abcdefgh")
CHANGES = st.lists(st.tuples(NAMES, st.none() | SPECS), max_size=12)


@settings(max_examples=50)
@given(
    rounds=st.lists(
        st.tuples(CHANGES, NEEDS, st.frozensets(NAMES, max_size=3), st.integers(1, 4)), max_size=8
    ),
    seed=st.integers(0, 5),
)
def test_what_is_chosen_is_free_fits_and_is_nearly_the_best_and_a_refusal_means_there_was_none(
    rounds: list[tuple[list[tuple[str, Spec | None]], Requirements, frozenset[str], int]], seed: int
) -> None:
    fleet = Fleet(seed)
    for changes, needs, exclude, among in rounds:
        for name, spec in changes:
            if spec is not None:
                fleet.put(name, spec)
            elif name in fleet.specs:
                fleet.remove(name)
        fits = {name: spec for name, spec in fleet.specs.items() if name not in exclude and spec.fits(needs)}
        healthy = {name for name, spec in fits.items() if spec.penalty < QUARANTINED_FROM}
        trusted = any(fits[name].state is SlotState.READY for name in healthy)
        free = {name for name, spec in fits.items() if spec.ready and (name in healthy or not trusted)}
        choice = fleet.choose(needs, exclude=exclude, among=among)
        if isinstance(choice, Refusal):
            assert not free, choice
            continue
        assert choice in free
        best = min(fleet.specs[name].cost(needs.policy) for name in free)
        assert fleet.specs[choice].cost(needs.policy) <= best + CLOSE + 2 * NOISE
