"""Which runner gets a session: the best few for a wish are kept ready, and one of them is drawn. Pure.

The rules it keeps: only a row with a READY slot is ever chosen; a quarantined runner only where no healthy
one fits; and the choice is drawn among the best few, because routers that all take the first one race for it
(`tests/contract/test_router_contention.py`). The fleet is looked through as a whole only when the few are
used up; between, only rows that changed are looked at (`make bench NAME=placement`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.router.placement import CLOSE, WEIGHTS, Policy, Refusal, Requirements, SlotState, slowness
from services.router.table import OFFERED, STATES, WARM, Mask, Rows, Table, Term

POOL: Final = 128  # kept ready for each wish
GLANCE: Final = 16  # of them are looked at together
RANKINGS_KEPT: Final = 1024
NOISE: Final = 0.01  # costs that differ by less are equal: among equals each router has its own order
QUARANTINED_COST: Final = 10_000.0  # above any other
POLICIES: Final = tuple(Policy)
Usable = Callable[[int], bool]  # None: every row is
TERM_WEIGHTS: Final = np.array(  # (policies, terms)
    [
        {
            Term.SLOW: WEIGHTS[policy].slow,
            Term.PENALTY: WEIGHTS[policy].penalty,
            Term.LOAD: WEIGHTS[policy].load,
            Term.DEAR: WEIGHTS[policy].price,
            Term.QUARANTINED: QUARANTINED_COST,
        }[term]
        for policy in POLICIES
        for term in Term
    ],
    np.float32,
).reshape(len(POLICIES), len(Term))


class Rankings:
    """The choices of one router."""

    def __init__(self, table: Table, random: Random) -> None:
        self._table = table
        self._random = random
        self._costs = Costs(table, random.getrandbits(64))
        self._kept: OrderedDict[Requirements, _Ranking] = OrderedDict()

    def choose(
        self,
        needs: Requirements,
        *,
        exclude: Collection[int],
        reserved: Mapping[int, int],
        among: int,
    ) -> int | None:
        """The row drawn among the `among` best; `reserved` are slots, by row, that others come first for."""

        def usable(row: int) -> bool:
            return row not in exclude and (row not in reserved or self._table.ready[row] > reserved[row])

        few = self._ranking(needs).best(among, usable if exclude or reserved else None)
        if not few or (few[0][0] >= QUARANTINED_COST and self._healthy(needs, exclude)):
            return None
        return self._random.choice(few)[1]

    def why_none(self, needs: Requirements, exclude: Collection[int]) -> Refusal:
        """The first sieve that lets nothing through: for whoever is told, it looks at all rows."""
        table = self._table
        offers = table.offers(needs.pipeline)
        if offers is None:
            return Refusal.UNKNOWN_PIPELINE
        left = offering(table, needs, table.all)
        if not left.any():
            return Refusal.NO_MATCH
        if needs.max_micro_per_second:
            left &= table.price[table.all] <= needs.max_micro_per_second
            if not left.any():
                return Refusal.PRICE
        if needs.warm:
            left &= offers[table.all] == WARM
            if not left.any():
                return Refusal.COLD
        if needs.max_frame_us:
            left &= quick(table, needs.max_frame_us, table.all)
            if not left.any():
                return Refusal.SLOW
        left[list(exclude)] = False
        if not left.any():
            return Refusal.EXCLUDED
        left &= table.ready[table.all] > 0
        if left.any() and (table.terms[table.all, Term.QUARANTINED] > 0)[left].all():
            return Refusal.QUARANTINED
        return Refusal.NOTHING_FREE

    def _ranking(self, needs: Requirements) -> _Ranking:
        self._costs.catch_up()
        ranking = self._kept.get(needs)
        if ranking is None:
            ranking = self._kept[needs] = _Ranking(self._table, self._costs, needs)
            if len(self._kept) > RANKINGS_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(needs)
            ranking.catch_up()
        return ranking

    def _healthy(self, needs: Requirements, exclude: Collection[int]) -> bool:
        """Whether there is a runner, however busy, that fits and is not quarantined."""
        table = self._table
        mask = fitting(table, needs, table.all)
        mask &= table.untaken[table.all] == STATES.index(SlotState.READY)
        mask &= table.terms[table.all, Term.QUARANTINED] == 0
        mask[list(exclude)] = False
        return bool(mask.any())


class Costs:
    """What each row costs by each policy, as far as it is the same for all pipelines: (policies, rows)."""

    def __init__(self, table: Table, seed: int) -> None:
        self.all = np.zeros((len(POLICIES), 0), np.float32)
        self._table = table
        self._noise = np.random.default_rng(seed)
        self._own_order = np.zeros(0, np.float32)
        self._seen = 0

    def catch_up(self) -> None:
        """Look at what changed since the last time."""
        table = self._table
        if table.changes == self._seen:
            return
        rows: Rows | slice | None = table.changed_since(self._seen)
        capacity = len(table.terms)
        if rows is None or self.all.shape[1] < capacity:
            rows = slice(0, capacity)
            self._own_order = np.float32(NOISE) * self._noise.random(capacity, np.float32)
            self.all = np.zeros((len(POLICIES), capacity), np.float32)
        self._seen = table.changes
        self.all[:, rows] = (TERM_WEIGHTS @ table.terms[rows].T) + self._own_order[rows]


class _Ranking:
    """The best rows for one wish, the best first. Each row that is not in it costs `_limit` or more."""

    def __init__(self, table: Table, costs: Costs, needs: Requirements) -> None:
        self._table = table
        self._common = costs
        self._needs = needs
        self._policy = POLICIES.index(needs.policy)
        self._cold = WEIGHTS[needs.policy].cold
        self._seen = 0
        self._limit = np.inf
        self._rows: Rows = np.zeros(0, np.intp)
        self._costs: NDArray[np.float32] = np.zeros(0, np.float32)
        self._look_through()

    def catch_up(self) -> None:
        """Look at what changed since the last time."""
        changed = self._table.changed_since(self._seen)
        if changed is None or 2 * len(changed) > self._table.size + POOL:
            self._look_through()
            return
        if not len(changed):
            return
        same = self._table.version[self._rows] <= self._seen
        self._seen = self._table.changes
        if not same.all():
            self._rows, self._costs = self._rows[same], self._costs[same]
        # What a row costs by itself is never more than what it costs here: most do not pass this sieve.
        perhaps = changed[self._common.all[self._policy][changed] < self._limit]
        if not len(perhaps):
            return
        rows, costs = self._fit(perhaps)
        better = {
            row: cost for row, cost in zip(rows.tolist(), costs.tolist(), strict=True) if cost < self._limit
        }
        if better:
            self._add(better)

    def _add(self, better: Mapping[int, float]) -> None:
        self._keep(
            np.concatenate([self._rows, np.fromiter(better.keys(), np.intp, len(better))]),
            np.concatenate([self._costs, np.fromiter(better.values(), np.float32, len(better))]),
        )
        if len(self._rows) > 2 * POOL:
            self._limit = float(self._costs[POOL])
            self._rows, self._costs = self._rows[:POOL], self._costs[:POOL]

    def best(self, among: int, usable: Usable | None) -> list[tuple[float, int]]:
        """Up to `among` usable rows that cost hardly more than the first of them."""
        few, cut_off = self._few(among, usable)
        if not cut_off:
            return few
        self._look_through()
        few, cut_off = self._few(among, usable)
        return self._few_of_all(among, usable) if cut_off and not few else few

    def _few(self, among: int, usable: Usable | None) -> tuple[list[tuple[float, int]], bool]:
        """The few, and whether rows that are not in the ranking might belong to them."""
        few = _first(self._rows, self._costs, among, usable)
        enough = len(few) == among or self._limit == np.inf
        return few, not enough and (not few or few[0][0] + CLOSE >= self._limit)

    def _few_of_all(self, among: int, usable: Usable | None) -> list[tuple[float, int]]:
        """Where whoever asks cannot use any of the ranked: rare, and slow."""
        rows, costs = self._fit(np.arange(self._table.size))
        order = np.argsort(costs)
        return _first(rows[order], costs[order], among, usable)

    def _look_through(self) -> None:
        self._seen = self._table.changes
        rows, costs = self._fit(self._table.all)
        self._limit = np.inf
        if len(rows) > POOL:
            few = np.argpartition(costs, POOL)[: POOL + 1]  # the last of them is the limit
            self._limit = float(costs[few[-1]])
            rows, costs = rows[few[:-1]], costs[few[:-1]]
        self._keep(rows, costs)

    def _keep(self, rows: Rows, costs: NDArray[np.float32]) -> None:
        order = costs.argsort()
        self._rows, self._costs = rows[order], costs[order]

    def _fit(self, rows: Rows | slice) -> tuple[Rows, NDArray[np.float32]]:
        """Those of `rows` that fit and have a free slot, and what they cost."""
        table = self._table
        offers = table.offers(self._needs.pipeline)
        mask = fitting(table, self._needs, rows) & (table.ready[rows] > 0)
        fits = np.flatnonzero(mask) if isinstance(rows, slice) else rows[mask]
        if offers is None or not len(fits):
            return fits, np.zeros(len(fits), np.float32)
        costs = self._common.all[self._policy][fits]
        costs[offers[fits] != WARM] += self._cold
        return fits, costs


def _first(
    rows: Rows, costs: NDArray[np.float32], among: int, usable: Usable | None
) -> list[tuple[float, int]]:
    """Up to `among` usable rows, of those in order, that cost hardly more than the first of them."""
    if usable is None:
        first = costs[:among].tolist()
        close = bisect_right(first, first[0] + CLOSE) if first else 0
        return list(zip(first[:close], rows[:close].tolist(), strict=True))
    few: list[tuple[float, int]] = []
    for begin in range(0, len(rows), GLANCE):
        glance = slice(begin, begin + GLANCE)
        for cost, row in zip(costs[glance].tolist(), rows[glance].tolist(), strict=True):
            if few and (len(few) == among or cost > few[0][0] + CLOSE):
                return few
            if usable(row):
                few.append((cost, row))
    return few


def fitting(table: Table, needs: Requirements, rows: Rows | slice) -> Mask:
    """Which of `rows` meet the wish, whoever holds their slots."""
    mask = offering(table, needs, rows)
    if needs.max_micro_per_second:
        mask &= table.price[rows] <= needs.max_micro_per_second
    if needs.warm:
        offers = table.offers(needs.pipeline)
        mask &= False if offers is None else offers[rows] == WARM
    if needs.max_frame_us:
        mask &= quick(table, needs.max_frame_us, rows)
    return mask


def quick(table: Table, max_frame_us: int, rows: Rows | slice) -> Mask:
    """Where a frame takes no longer; where none was measured, it counts as the cost counts it: as 33 ms."""
    taken: NDArray[np.float32] = table.terms[rows, Term.SLOW]
    return taken <= np.float32(slowness(max_frame_us))


def offering(table: Table, needs: Requirements, rows: Rows | slice) -> Mask:
    """Which of `rows` have the pipeline and are the place that `needs` asks for, at whatever price."""
    offers = table.offers(needs.pipeline)
    if offers is None:
        return np.zeros_like(table.heard[rows])
    mask: Mask = offers[rows] >= OFFERED
    table.narrow(mask, needs, rows)
    return mask
