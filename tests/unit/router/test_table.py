"""The table of the fleet: what is counted, what is handed back, and what the log says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.router.placement import SlotState
from services.router.table import FIRST_CAPACITY, LOG_KEPT, OFFERED, WARM, Codes, Table


def put(table: Table, row: int, *, region: str = "eu", offers: dict[str, int] | None = None) -> None:
    table.describe(
        row,
        region=region,
        gpu_class="h100",
        labels=frozenset({("rack", str(row))}),
        offers={"depth": WARM} if offers is None else offers,
        price=row,
    )


def fill(table: Table, row: int, *, slots: int, held: int, untaken: SlotState = SlotState.READY) -> None:
    taken = SlotState.HELD if untaken is SlotState.READY else untaken
    first = taken if held else untaken
    table.set_slots(row, slots=slots, held=held, untaken=untaken, taken=taken, first=first, heard=True)


def test_a_table_grows_and_keeps_what_it_has() -> None:
    table = Table()
    rows = [table.add() for _ in range(3 * FIRST_CAPACITY)]
    for row in rows:
        put(table, row, offers={f"p{row % 5}": OFFERED})
        fill(table, row, slots=2, held=row % 3)
    assert rows == list(range(3 * FIRST_CAPACITY))
    assert table.size == len(rows)
    for pipeline in range(5):
        offers = table.offers(f"p{pipeline}")
        assert offers is not None
        assert [row for row in rows if offers[row]] == [row for row in rows if row % 5 == pipeline]
    assert [int(table.ready[row]) for row in rows] == [2 - row % 3 for row in rows]


def test_a_removed_row_is_used_again_and_counts_nowhere_meanwhile() -> None:
    table = Table()
    first, second = table.add(), table.add()
    for row in (first, second):
        put(table, row, region=f"region {row}")
        fill(table, row, slots=2, held=1)
    table.remove(first)
    assert table.slots_by_state()[SlotState.HELD] == 1
    assert table.runners_by_kind() == {(SlotState.HELD, "h100", "region 1"): 1}
    assert table.regions.find("region 0") == -1
    assert table.add() == first
    put(table, first, offers={})
    assert table.offers("depth") is not None
    table.remove(second)
    assert table.offers("depth") is None  # names do not pile up
    assert list(table.pipelines()) == []


def test_the_sums_are_those_of_the_rows() -> None:
    table = Table()
    for state in SlotState:
        if state is not SlotState.HELD:
            row = table.add()
            put(table, row)
            fill(table, row, slots=3, held=1, untaken=state)
    counts = table.slots_by_state()
    assert counts == {
        SlotState.STARTING: 3,
        SlotState.READY: 2,
        SlotState.HELD: 1,
        SlotState.DRAINING: 3,
        SlotState.LOST: 3,
    }
    assert sum(table.runners_by_kind().values()) == 4
    assert table.runners_by_kind()[SlotState.HELD, "h100", "eu"] == 1


def test_the_log_names_what_changed_until_that_is_too_long_ago() -> None:
    table = Table()
    rows = [table.add() for _ in range(4)]
    begin = table.changes
    table.set_frame_us(rows[2], 40_000)
    table.set_penalty(rows[1], 0.5)
    changed = table.changed_since(begin)
    assert changed is not None
    assert changed.tolist() == [2, 1]
    for number in range(LOG_KEPT - 3):
        table.set_frame_us(rows[number % 2], number)
    later = table.changes
    table.set_frame_us(rows[3], 1)
    table.set_frame_us(rows[2], 1)  # round the end of the ring
    changed = table.changed_since(later)
    assert changed is not None
    assert changed.tolist() == [3, 2]
    assert table.changed_since(table.changes - LOG_KEPT - 1) is None
    nothing = table.changed_since(table.changes)
    assert nothing is not None
    assert nothing.tolist() == []


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=60))
def test_equal_values_share_a_number_and_unused_numbers_are_used_again(steps: list[tuple[bool, int]]) -> None:
    codes: Codes[str] = Codes()
    rows: list[tuple[str, int]] = []
    for takes, value in steps:
        if takes:
            rows.append((str(value), codes.take(str(value))))
        elif rows:
            codes.give_back(rows.pop(value % len(rows))[1])
        distinct = {value for value, _ in rows}
        assert {codes.find(value) for value, _ in rows} == {code for _, code in rows}
        assert len({code for _, code in rows}) == len(distinct)
        assert {value: code for code, value in codes} == dict(rows)
        assert codes.find("never") == -1
        assert len(codes) <= 6
