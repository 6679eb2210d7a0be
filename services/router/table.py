"""The fleet as a structure of arrays: a row a runner, a column a fact. Pure.

The rule it keeps: every change of a row is in the log, so that who ranked the rows need look at no others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.router.placement import QUARANTINED_FROM, Requirements, SlotState, dearness, slowness

T = TypeVar("T", bound=Hashable)
Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]


class Term(IntEnum):
    """A column of `Table.terms`."""

    SLOW = 0
    PENALTY = 1
    LOAD = 2
    DEAR = 3
    QUARANTINED = 4


STATES: Final = tuple(SlotState)  # a state's place here is its number in a column
OFFERED: Final = 1
WARM: Final = 2
FIRST_CAPACITY: Final = 64
LOG_KEPT: Final = 1 << 16  # changes; who is further behind looks at all rows again


class Codes(Generic[T]):
    """Small numbers for values that many rows share; a value that no row has gives its number back."""

    def __init__(self) -> None:
        self._code: dict[T, int] = {}
        self._rows: dict[int, int] = {}
        self._values: list[T | None] = []
        self._free: list[int] = []

    def take(self, value: T) -> int:
        """The number of `value`, for one row more."""
        code = self._code.get(value)
        if code is None:
            if self._free:
                code = self._free.pop()
                self._values[code] = value
            else:
                code = len(self._values)
                self._values.append(value)
            self._code[value] = code
            self._rows[code] = 0
        self._rows[code] += 1
        return code

    def give_back(self, code: int) -> None:
        """One row fewer has it."""
        self._rows[code] -= 1
        if self._rows[code] == 0:
            value = self._values[code]
            assert value is not None, code
            del self._code[value], self._rows[code]
            self._values[code] = None
            self._free.append(code)

    def find(self, value: T) -> int:
        """The number of `value`; -1 if no row has it."""
        return self._code.get(value, -1)

    def __iter__(self) -> Iterator[tuple[int, T]]:
        return ((code, value) for value, code in self._code.items())

    def __len__(self) -> int:
        """One more than the highest number."""
        return len(self._values)


class Table:
    """Rows are numbers below `size`; a freed one is used again and matches nothing meanwhile."""

    def __init__(self) -> None:
        self.size = 0
        self.changes = 0  # so many there were; the newest are in the log
        self.version = np.zeros(FIRST_CAPACITY, np.int64)  # the number of the row's last change
        self.ready = np.zeros(FIRST_CAPACITY, np.int32)  # slots that can be granted now
        self.slots = np.zeros(FIRST_CAPACITY, np.int32)
        self.held = np.zeros(FIRST_CAPACITY, np.int32)
        self.first = np.zeros(FIRST_CAPACITY, np.uint8)  # the state of its first slot
        self.untaken = np.zeros(FIRST_CAPACITY, np.uint8)  # the state of its slots that are not held
        self.taken = np.zeros(FIRST_CAPACITY, np.uint8)  # and of those that are
        self.heard = np.zeros(FIRST_CAPACITY, np.bool_)
        self.price = np.zeros(FIRST_CAPACITY, np.int64)
        self.terms = np.zeros((FIRST_CAPACITY, len(Term)), np.float32)  # (rows, terms), of the cost
        self.region = np.full(FIRST_CAPACITY, -1, np.int32)
        self.gpu_class = np.full(FIRST_CAPACITY, -1, np.int32)
        self.labels = np.full(FIRST_CAPACITY, -1, np.int32)
        self.regions = Codes[str]()
        self.gpu_classes = Codes[str]()
        self.label_sets = Codes[frozenset[tuple[str, str]]]()
        self._offers: dict[str, NDArray[np.uint8]] = {}
        self._offered: dict[int, Mapping[str, int]] = {}  # by row
        self._offering: dict[str, int] = {}  # rows that offer it
        self._free: list[int] = []
        self._log = np.zeros(LOG_KEPT, np.intp)  # a ring: the rows that changed

    # --- what changes

    def add(self) -> int:
        """A row of its own for a runner that offers nothing yet."""
        if self._free:
            return self._free.pop()
        if self.size == len(self.ready):
            self._grow()
        self.size += 1
        return self.size - 1

    def remove(self, row: int) -> None:
        self.describe(row, region="", gpu_class="", labels=frozenset(), offers={}, price=0)
        for column, codes in self._coded():
            codes.give_back(int(column[row]))
            column[row] = -1
        self.terms[row] = 0
        lost = SlotState.LOST
        self.set_slots(row, slots=0, held=0, untaken=lost, taken=lost, first=lost, heard=False)
        self._free.append(row)

    def describe(
        self,
        row: int,
        *,
        region: str,
        gpu_class: str,
        labels: frozenset[tuple[str, str]],
        offers: Mapping[str, int],
        price: int,
    ) -> None:
        """Take what a runner advertises; `offers` is OFFERED or WARM, by pipeline."""
        facts: tuple[Hashable, ...] = (region, gpu_class, labels)
        for (column, codes), fact in zip(self._coded(), facts, strict=True):
            before = int(column[row])
            column[row] = codes.take(fact)
            if before >= 0:
                codes.give_back(before)
        before_offers = self._offered.pop(row, {})
        for name in before_offers.keys() - offers.keys():
            self._offers[name][row] = 0
            self._offering[name] -= 1
            if self._offering[name] == 0:
                del self._offers[name], self._offering[name]
        for name, how in offers.items():
            if name not in self._offers:
                self._offers[name] = np.zeros(len(self.ready), np.uint8)
                self._offering[name] = 0
            if name not in before_offers:
                self._offering[name] += 1
            self._offers[name][row] = how
        if offers:
            self._offered[row] = offers
        self.price[row] = price
        self.terms[row, Term.DEAR] = dearness(price)
        self._changed(row)

    def set_slots(
        self,
        row: int,
        *,
        slots: int,
        held: int,
        untaken: SlotState,
        taken: SlotState,
        first: SlotState,
        heard: bool,
    ) -> None:
        self.ready[row] = slots - held if untaken is SlotState.READY else 0
        self.slots[row] = slots
        self.held[row] = held
        self.terms[row, Term.LOAD] = held / slots if slots else 0.0
        self.untaken[row] = STATES.index(untaken)
        self.taken[row] = STATES.index(taken)
        self.first[row] = STATES.index(first)
        self.heard[row] = heard
        self._changed(row)

    def set_frame_us(self, row: int, frame_us: int) -> None:
        self.terms[row, Term.SLOW] = slowness(frame_us)
        self._changed(row)

    def set_penalty(self, row: int, penalty: float) -> None:
        self.terms[row, Term.PENALTY] = penalty
        self.terms[row, Term.QUARANTINED] = penalty >= QUARANTINED_FROM
        self._changed(row)

    # --- what is read

    def changed_since(self, change: int) -> Rows | None:
        """The rows of the changes after number `change`, some more than once; None: that was too long ago."""
        if self.changes - change > LOG_KEPT:
            return None
        begin, end = change % LOG_KEPT, self.changes % LOG_KEPT
        if self.changes == change or begin < end:
            return self._log[begin:end]
        return np.concatenate([self._log[begin:], self._log[:end]])

    @property
    def all(self) -> slice:
        return slice(0, self.size)

    def pipelines(self) -> Iterable[str]:
        return self._offers.keys()

    def offers(self, pipeline: str) -> NDArray[np.uint8] | None:
        """How each row offers `pipeline`: 0, OFFERED or WARM; None if no row does."""
        return self._offers.get(pipeline)

    def narrow(self, mask: Mask, needs: Requirements, rows: Rows | slice) -> None:
        """Take those of `rows` out of `mask` that are not the place that `needs` asks for."""
        if needs.region:
            mask &= self.region[rows] == self.regions.find(needs.region)
        if needs.gpu_class:
            mask &= self.gpu_class[rows] == self.gpu_classes.find(needs.gpu_class)
        if needs.labels:
            has = np.zeros(len(self.label_sets) + 1, np.bool_)  # the last is that of rows without: -1
            for code, labels in self.label_sets:
                has[code] = needs.labels <= labels
            mask &= has[self.labels[rows]]

    def slots_by_state(self) -> dict[SlotState, int]:
        states = len(STATES)
        left = self.slots[self.all] - self.held[self.all]
        counts = np.bincount(self.untaken[self.all], left, states) + np.bincount(
            self.taken[self.all], self.held[self.all], states
        )
        return dict(zip(STATES, counts.astype(int).tolist(), strict=True))

    def runners_by_kind(self) -> dict[tuple[SlotState, str, str], int]:
        """How many there are of each state of the first slot, GPU class and region."""
        rows = np.flatnonzero(self.slots[self.all])
        classes, regions = len(self.gpu_classes), len(self.regions)
        kinds = (self.first[rows].astype(np.int64) * classes + self.gpu_class[rows]) * regions
        distinct, counts = np.unique(kinds + self.region[rows], return_counts=True)
        class_names, region_names = dict(self.gpu_classes), dict(self.regions)
        return {
            (
                STATES[kind // regions // classes],
                class_names[kind // regions % classes],
                region_names[kind % regions],
            ): count
            for kind, count in zip(distinct.tolist(), counts.tolist(), strict=True)
        }

    def _changed(self, row: int) -> None:
        self._log[self.changes % LOG_KEPT] = row
        self.changes += 1
        self.version[row] = self.changes

    def _coded(self) -> tuple[tuple[NDArray[np.int32], Codes[Any]], ...]:
        return (
            (self.region, self.regions),
            (self.gpu_class, self.gpu_classes),
            (self.labels, self.label_sets),
        )

    def _grow(self) -> None:
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray) and name != "_log":
                fill = -1 if name in {"region", "gpu_class", "labels"} else 0
                setattr(self, name, _doubled(column, fill))
        self._offers = {name: _doubled(column, 0) for name, column in self._offers.items()}


def _doubled(column: NDArray[Any], fill: int) -> NDArray[Any]:
    return np.concatenate([column, np.full_like(column, fill)])
