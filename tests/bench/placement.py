"""How many places a second one router chooses among 100,000 runners, and how good they are.

Everything is in memory: no NATS, no gRPC. Each decision takes a slot and ends another session, and `BEATS`
more runners say how fast they are now, so that there are always rows to look at again. First-in-list and the
better of two drawn at random choose in the same fleet. `regret` is the cost above that of the best runner;
`load_spread` the standard deviation of the runners' load; `conflicts` the share of decisions in which one of
four routers that choose at the same moment drew a slot that another one drew too.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

from services.router.placement import WEIGHTS, Policy, Requirements, SlotState
from services.router.ranking import Rankings, fitting
from services.router.table import OFFERED, WARM, Table, Term
from tests.bench.figures import Figure, show

RUNNERS: Final = 100_000
SLOTS: Final = 4
DECISIONS: Final = 30_000
WARM_UP: Final = 5_000
BEATS: Final = 1  # rows with another frame time, a decision
ROUTERS: Final = 4
ROUNDS: Final = 1_000
PIPELINES: Final = tuple(f"p{number}" for number in range(8))
REGIONS: Final = ("eu", "us", "ap")
CLASSES: Final = ("h100", "l40", "a10")

Choose = Callable[[Requirements], int]


@dataclass(slots=True)
class World:
    """A fleet of which a third is taken, and the sessions that took it."""

    table: Table
    random: Random
    held: list[int]
    sessions: list[int]

    def take(self, row: int) -> None:
        self.held[row] += 1
        self._write(row)
        self.sessions.append(row)

    def end_one(self) -> None:
        at = self.random.randrange(len(self.sessions))
        self.sessions[at], row = self.sessions[-1], self.sessions[at]
        self.sessions.pop()
        self.held[row] -= 1
        self._write(row)

    def beat(self) -> None:
        self.table.set_frame_us(self.random.randrange(RUNNERS), self.random.randrange(8_000, 90_000))

    def _write(self, row: int) -> None:
        held = self.held[row]
        first = SlotState.HELD if held else SlotState.READY
        self.table.set_slots(
            row,
            slots=SLOTS,
            held=held,
            untaken=SlotState.READY,
            taken=SlotState.HELD,
            first=first,
            heard=True,
        )

    def wish(self) -> Requirements:
        """Half of them ask for a region, a third for a class, a third for a policy of their own."""
        draw = self.random
        return Requirements(
            draw.choice(PIPELINES),
            region=draw.choice(REGIONS) if draw.random() < 0.5 else "",
            gpu_class=draw.choice(CLASSES) if draw.random() < 0.33 else "",
            policy=draw.choice((Policy.CHEAPEST, Policy.FASTEST))
            if draw.random() < 0.33
            else Policy.BALANCED,
        )


def world(seed: int) -> World:
    random = Random(seed)
    table = Table()
    made = World(table, random, [0] * RUNNERS, [])
    for _ in range(RUNNERS):
        row = table.add()
        offers = dict.fromkeys(random.sample(PIPELINES, 3), OFFERED)
        offers[random.choice(list(offers))] = WARM
        table.describe(
            row,
            region=random.choice(REGIONS),
            gpu_class=random.choice(CLASSES),
            labels=frozenset(),
            offers=offers,
            price=random.choice((0, 400, 500, 700, 900)),
        )
        table.set_frame_us(row, random.randrange(8_000, 90_000))
        made._write(row)
    for _ in range(RUNNERS * SLOTS // 3):
        row = random.randrange(RUNNERS)
        if made.held[row] < SLOTS:
            made.take(row)
    return made


def ranked(fleet: World, seed: int = 0) -> Choose:
    rankings = Rankings(fleet.table, Random(seed))

    def choose(needs: Requirements) -> int:
        row = rankings.choose(needs, exclude=(), reserved={}, among=8)
        assert row is not None, needs
        return row

    return choose


def first_in_list(fleet: World, _: int = 0) -> Choose:
    table = fleet.table

    def choose(needs: Requirements) -> int:
        return int(np.argmax(fitting(table, needs, table.all) & (table.ready[table.all] > 0)))

    return choose


def two_choices(fleet: World, seed: int = 0) -> Choose:
    """The less loaded of two that fit, drawn at random; no more is looked at than it takes to find two."""
    table, random = fleet.table, Random(seed)

    def fitting_one(needs: Requirements) -> int:
        while True:
            rows = np.array([random.randrange(RUNNERS) for _ in range(16)])
            good = rows[fitting(table, needs, rows) & (table.ready[rows] > 0)]
            if len(good):
                return int(good[0])

    def choose(needs: Requirements) -> int:
        return min(fitting_one(needs), fitting_one(needs), key=lambda row: float(table.terms[row, Term.LOAD]))

    return choose


def regret(table: Table, needs: Requirements, row: int) -> float:
    """How much more the chosen row costs than the best one."""
    rows = np.flatnonzero(fitting(table, needs, table.all) & (table.ready[table.all] > 0))
    offers = table.offers(needs.pipeline)
    assert offers is not None
    weights = WEIGHTS[needs.policy]
    costs = (
        weights.cold * (offers[rows] != WARM)
        + weights.slow * table.terms[rows, Term.SLOW]
        + weights.load * table.terms[rows, Term.LOAD]
        + weights.price * table.terms[rows, Term.DEAR]
    )
    return float(costs[np.flatnonzero(rows == row)[0]] - costs.min())


@dataclass(frozen=True, slots=True)
class Decided:
    """How fast and how good the choices were; the processor's seconds leave out what other work took."""

    per_second: float
    per_cpu_second: float
    regret: float
    load_spread: float


def decide(fleet: World, choose: Choose, decisions: int) -> Decided:
    regrets: list[float] = []
    spent_s = spent_cpu_s = 0.0
    for _ in range(WARM_UP):  # so that every kind of wish was seen
        choose(fleet.wish())
    for number in range(decisions):
        needs = fleet.wish()
        for _ in range(BEATS):
            fleet.beat()
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        row = choose(needs)
        spent_cpu_s += time.thread_time() - started_cpu_s
        spent_s += time.perf_counter() - started_s
        if number % 200 == 199:
            regrets.append(regret(fleet.table, needs, row))
        fleet.take(row)
        fleet.end_one()
    return Decided(
        per_second=decisions / spent_s,
        per_cpu_second=decisions / spent_cpu_s,
        regret=statistics.fmean(regrets),
        load_spread=float(np.std(fleet.table.terms[fleet.table.all, Term.LOAD])),
    )


def conflicts(fleet: World, make: Callable[[World, int], Choose]) -> float:
    """The share of decisions that meet another of the same moment, all for one wish."""
    routers = [make(fleet, seed) for seed in range(ROUTERS)]
    needs = Requirements(PIPELINES[0])
    met = 0
    for _ in range(ROUNDS):
        drawn = [
            (row, fleet.random.randrange(int(fleet.table.ready[row])))
            for row in [choose(needs) for choose in routers]
        ]
        met += len(drawn) - len(set(drawn))
        fleet.take(drawn[0][0])
        fleet.end_one()
    return met / (ROUNDS * ROUTERS)


def main() -> None:
    placements = {"ranked": ranked, "two_choices": two_choices, "first_in_list": first_in_list}
    decided: dict[str, Decided] = {}
    met: dict[str, float] = {}
    for name, make in placements.items():
        fleet = world(1)
        gc.freeze()  # a hundred thousand runners are not looked through by the collector again and again
        make_one: Callable[[World, int], Choose] = make
        decided[name] = decide(fleet, make_one(fleet, 0), DECISIONS if name == "ranked" else DECISIONS // 10)
        met[name] = conflicts(fleet, make_one)
    best, two, first = decided["ranked"], decided["two_choices"], decided["first_in_list"]
    show(
        [
            Figure("placement", "runners", RUNNERS, "1"),
            Figure("placement", "decisions_per_second", best.per_second, "1/s", first.per_second),
            Figure("placement", "decisions_per_cpu_second", best.per_cpu_second, "1/s", first.per_cpu_second),
            Figure("placement", "regret", best.regret, "cost", two.regret),
            Figure("placement", "load_spread", best.load_spread, "1", two.load_spread),
            Figure("placement", "conflicts", met["ranked"], "1", met["first_in_list"]),
            Figure("placement", "two_choices_decisions_per_second", two.per_second, "1/s"),
            Figure("placement", "two_choices_conflicts", met["two_choices"], "1"),
            Figure("placement", "first_in_list_regret", first.regret, "cost"),
            Figure("placement", "first_in_list_load_spread", first.load_spread, "1"),
        ]
    )


if __name__ == "__main__":
    main()
