from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing.ledger import (
    LEAST_GRANT_MS,
    Entry,
    Kind,
    Metered,
    PriceList,
    Rates,
    SessionAccount,
    SessionId,
    TenantId,
    Transaction,
    Unit,
    Window,
    affordable_ms,
    cost,
    defect,
    hold_for,
    payment,
    split,
    usage,
)
from services.common.errors import ConflictError, PaymentRequiredError

TENANT = TenantId("acme")
SESSION = SessionId("s1")
MARGIN_MS = 120_000

rates_strategy = st.builds(Rates, st.integers(0, 10**6), st.integers(0, 10**6))
quantities = st.lists(st.tuples(st.sampled_from(Unit), st.integers(0, 6_000)), max_size=40)


def window(seq: int, unit: Unit = Unit.DELIVERED, quantity: int = 5_000) -> Window:
    return Window(
        id=f"{SESSION}:1:{seq}",
        session=SESSION,
        epoch=1,
        seq=seq,
        tenant=TENANT,
        stream="stream",
        pipeline="sepia",
        from_ms=seq * 5_000,
        to_ms=(seq + 1) * 5_000,
        unit=unit,
        quantity=quantity,
    )


def account(rates: Rates = Rates(1_000, 100)) -> SessionAccount:  # noqa: B008 - frozen
    return SessionAccount(SESSION, TENANT, "stream", "sepia", rates, opened_unix_ms=0)


def charge_all(
    opened: SessionAccount, windows: list[Window], balance: int
) -> tuple[SessionAccount, int, list[Transaction]]:
    transactions = []
    for place, item in enumerate(windows):
        opened, amount = opened.charge(item, balance, windows[:place])
        balance -= amount.funded
        assert balance >= 0
        transactions.append(usage(item, amount))
    return opened, balance, transactions


@given(rates_strategy, quantities, st.integers(0, 10**9))
def test_what_is_posted_is_the_floor_of_the_price_of_all_the_time(
    rates: Rates, parts: list[tuple[Unit, int]], balance: int
) -> None:
    windows = [window(seq, unit, quantity) for seq, (unit, quantity) in enumerate(parts)]
    charged, left, transactions = charge_all(account(rates), windows, balance)

    delivered_ms = sum(quantity for unit, quantity in parts if unit is Unit.DELIVERED)
    paused_ms = sum(quantity for unit, quantity in parts if unit is Unit.PAUSED)
    owed = rates.micro_per_second * delivered_ms // 1000 + rates.hold_micro_per_second * paused_ms // 1000
    earned = sum(side.micro for item in transactions for side in item.entries if side.account == "earnings")
    assert charged.posted_micro == earned == owed
    assert left == balance - (owed - charged.written_off_micro)


@given(rates_strategy, quantities, st.integers(0, 10**9), st.randoms(use_true_random=False))
def test_the_order_of_windows_changes_no_total(
    rates: Rates, parts: list[tuple[Unit, int]], balance: int, random: st.DataObject
) -> None:
    windows = [window(seq, unit, quantity) for seq, (unit, quantity) in enumerate(parts)]
    shuffled = windows.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    in_order, left_in_order, _ = charge_all(account(rates), windows, balance)
    out_of_order, left_out_of_order, _ = charge_all(account(rates), shuffled, balance)
    assert in_order == out_of_order
    assert left_in_order == left_out_of_order


@given(rates_strategy, st.integers(0, 10**8), st.lists(st.integers(0, 10**8), max_size=5))
def test_how_time_is_cut_into_windows_changes_no_total(rates: Rates, total_ms: int, cuts: list[int]) -> None:
    edges = [0, *sorted(cut % (total_ms + 1) for cut in cuts), total_ms]
    metered = Metered()
    for start, end in pairwise(edges):
        metered = metered.plus(Unit.DELIVERED, end - start)
    assert cost(rates, metered) == cost(rates, Metered(delivered_ms=total_ms))


@given(st.integers(0, 10**12), st.integers(-(10**6), 10**12))
def test_a_split_loses_nothing_and_never_overdraws(micro: int, balance: int) -> None:
    parts = split(micro, balance)
    assert parts.funded + parts.written_off == micro
    assert min(parts.funded, parts.written_off) >= 0
    assert parts.funded <= max(0, balance)


@given(rates_strategy, st.integers(0, 10**9), st.integers(0, 10**7), st.integers(0, 10**4))
def test_what_credit_affords_costs_no_more_than_the_credit(
    rates: Rates, micro: int, before_ms: int, paused_ms: int
) -> None:
    ms = affordable_ms(rates, micro)
    before = Metered(before_ms, paused_ms)
    assert hold_for(rates, ms) <= micro
    for unit in Unit:
        assert cost(rates, before.plus(unit, ms)) - cost(rates, before) <= micro
    if rates.dearest:
        assert hold_for(rates, ms + 1) > micro


def test_credit_below_zero_affords_nothing() -> None:
    assert affordable_ms(Rates(1_000, 0), -5) == 0


def test_a_transaction_that_does_not_sum_to_zero_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="does not sum to zero"):
        Transaction(Kind.CREDIT, TENANT, SessionId(""), "r", (Entry("wash", -5), Entry("prepaid:acme", 6)))


def test_a_payment_moves_money_from_wash_to_prepaid() -> None:
    assert payment(TENANT, 7, "r").entries == (Entry("wash", -7), Entry("prepaid:acme", 7))


def test_unfunded_usage_is_written_off_not_taken_from_the_tenant() -> None:
    charged, amount = account().charge(window(0), 2_000)
    assert usage(window(0), amount).entries == (
        Entry("prepaid:acme", -2_000),
        Entry("earnings", 2_000),
        Entry("write_off", -3_000),
        Entry("earnings", 3_000),
    )
    assert (charged.posted_micro, charged.written_off_micro) == (5_000, 3_000)


def test_a_window_that_costs_nothing_has_no_entries() -> None:
    _, amount = account(Rates(0, 0)).charge(window(0), 0)
    assert usage(window(0), amount).entries == ()


def test_an_unlisted_pipeline_has_the_default_price() -> None:
    prices = PriceList({"*": Rates(1, 2), "depth": Rates(3, 4)})
    assert prices.of("depth") == Rates(3, 4)
    assert prices.of("sepia") == Rates(1, 2)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": ""}, "no id"),
        ({"session": ""}, "no session"),
        ({"id": "s1:1:9"}, "the id is not <session>:<epoch>:<seq>"),
        ({"unit": "frames"}, "unknown unit"),
        ({"from_ms": -1}, "from_ms is negative"),
        ({"from_ms": 6_000}, "to_ms is before from_ms"),
        ({"to_ms": 86_400_001}, "longer than a day"),
        ({"from_ms": 2**62, "to_ms": 2**62 + 1}, "to_ms is beyond the longest session"),
        ({"quantity": -1}, "negative quantity"),
        ({"quantity": 6_001}, "more quantity than time"),
    ],
)
def test_a_window_that_cannot_be_believed_says_why(change: dict[str, object], problem: str) -> None:
    assert defect(replace(window(0), **change)) == problem  # type: ignore[arg-type]


def test_a_window_may_round_up_by_a_second() -> None:
    assert defect(window(0, quantity=6_000)) == ""


def reserve(opened: SessionAccount, until_ms: int, credit_micro: int, now_ms: int = 0) -> SessionAccount:
    return opened.reserve(until_ms, credit_micro=credit_micro, now_unix_ms=now_ms, margin_ms=MARGIN_MS)


def test_a_reservation_holds_the_price_of_the_time_that_is_not_accounted() -> None:
    held = reserve(account(), 30_000, 10**6)
    assert held.held_micro == 30_000
    charged, _ = held.charge(window(0), 10**6)
    assert charged.held_micro == 25_000


def test_a_reservation_holds_the_dearer_of_the_two_prices() -> None:
    assert reserve(account(Rates(10, 1_000)), 30_000, 10**6).held_micro == 30_000


def test_asking_again_for_what_is_reserved_needs_no_credit() -> None:
    held = reserve(account(), 30_000, 30_000)
    assert reserve(held, 20_000, 0).reserved_until_ms == 30_000


def test_credit_that_covers_less_grants_less_in_whole_milliseconds() -> None:
    assert reserve(account(Rates(3_000, 0)), 30_000, 10_000).reserved_until_ms == 3_333


def test_credit_that_covers_less_than_a_second_more_is_insufficient() -> None:
    with pytest.raises(PaymentRequiredError) as refused:
        reserve(account(), 30_000, LEAST_GRANT_MS - 1)
    assert refused.value.reason == "INSUFFICIENT_CREDIT"


def test_a_short_wish_that_credit_covers_is_granted() -> None:
    assert reserve(account(), 400, 400).reserved_until_ms == 400


def test_a_session_in_overdraft_is_not_granted_time_that_it_has_already_used() -> None:
    held = reserve(account(), 5_000, 5_000)
    charged, _, _ = charge_all(held, [window(0), window(1), window(2)], 5_000)
    with pytest.raises(PaymentRequiredError):
        reserve(charged, 30_000, 0)


def test_a_free_pipeline_needs_no_credit() -> None:
    assert reserve(account(Rates(0, 0)), 30_000, 0).reserved_until_ms == 30_000


def test_a_reservation_lapses_a_margin_after_its_paid_time_however_late_it_was_made() -> None:
    assert reserve(account(), 30_000, 10**6, now_ms=1_000).expires_unix_ms == 1_000 + 30_000 + MARGIN_MS
    later, _ = reserve(account(), 30_000, 10**6).charge(window(3), 10**6)  # accounted to 20 s
    assert reserve(later, 60_000, 10**6, now_ms=20_000).expires_unix_ms == 20_000 + 40_000 + MARGIN_MS


def test_a_lapsed_reservation_starts_again_from_what_is_accounted() -> None:
    held, _ = reserve(account(), 30_000, 30_000).charge(window(0), 30_000)
    again = reserve(held, 30_000, 8_000, now_ms=10**6)
    assert again.reserved_until_ms == 5_000 + 8_000


def test_a_settled_session_reserves_nothing() -> None:
    settled = account().settle(5)
    assert settled.settle(9) == settled
    with pytest.raises(ConflictError) as refused:
        reserve(settled, 30_000, 10**6)
    assert refused.value.reason == "SESSION_SETTLED"
