"""A session that went on at another meter is paid once: where epochs overlap, the higher one has the time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing.ledger import (
    Metered,
    PriceList,
    Rates,
    SessionAccount,
    SessionId,
    TenantId,
    Unit,
    Window,
    cost,
    payable,
    usage,
)
from services.billing.store import Arrival, Outcome, Store
from services.ingest.bridge.meter import LONGEST_GAP_MS, Meter

ACME = TenantId("acme")
SESSION = SessionId("ses")
RATES = Rates(1_000, 100)  # a micro-unit for every delivered millisecond


def window(
    epoch: int,
    seq: int,
    from_ms: int,
    to_ms: int,
    quantity: int | None = None,
    unit: str = Unit.DELIVERED,
    *,
    final: bool = False,
) -> Window:
    return Window(
        id=f"{SESSION}:{epoch}:{seq}",
        session=SESSION,
        epoch=epoch,
        seq=seq,
        tenant=ACME,
        stream="str",
        pipeline="sepia",
        from_ms=from_ms,
        to_ms=to_ms,
        unit=unit,
        quantity=to_ms - from_ms if quantity is None else quantity,
        final=final,
    )


@st.composite
def meters(draw: st.DrawFn) -> list[Window]:
    """What the meters of some epochs report that each began, stopped and paused when it liked."""
    windows: list[Window] = []
    for epoch in draw(st.lists(st.integers(1, 6), unique=True, min_size=1, max_size=4)):
        at_ms = draw(st.integers(0, 40_000))
        for seq in range(draw(st.integers(0, 5))):
            to_ms = at_ms + draw(st.integers(0, 6_000))
            delivered_ms = draw(st.integers(0, to_ms - at_ms))
            windows.append(window(epoch, 2 * seq, at_ms, to_ms, delivered_ms))
            paused_ms = draw(st.integers(0, to_ms - at_ms - delivered_ms))
            windows.append(window(epoch, 2 * seq + 1, at_ms, to_ms, paused_ms, Unit.PAUSED))
            at_ms = to_ms + draw(st.sampled_from((0, 0, 700)))
    return windows


def charged(
    windows: list[Window], balance: int, rates: Rates = RATES
) -> tuple[SessionAccount, int, dict[str, int]]:
    """The account after `windows` in this order, what is left of the balance, and every account's sum."""
    account = SessionAccount(SESSION, ACME, "str", "sepia", rates, opened_unix_ms=0)
    sums: dict[str, int] = {}
    for place, item in enumerate(windows):
        account, amount = account.charge(item, balance, windows[:place])
        balance -= amount.funded
        assert balance >= 0
        assert account.written_off_micro >= 0
        for side in usage(item, amount).entries:
            sums[side.account] = sums.get(side.account, 0) + side.micro
    return account, balance, {name: micro for name, micro in sums.items() if micro}


@given(meters(), st.integers(0, 200_000), st.randoms(use_true_random=False))
def test_no_order_of_the_windows_of_several_meters_changes_anything(
    windows: list[Window], balance: int, random: Random
) -> None:
    shuffled = windows.copy()
    random.shuffle(shuffled)
    assert charged(shuffled, balance) == charged(windows, balance)


@given(meters(), st.integers(0, 200_000))
def test_what_is_posted_is_the_price_of_what_is_payable(windows: list[Window], balance: int) -> None:
    account, left, sums = charged(windows, balance)
    owed = cost(RATES, payable(windows))
    assert account.posted_micro == owed == sums.get("earnings", 0)
    assert balance - left == min(owed, balance)
    assert account.written_off_micro == max(0, owed - balance) == -sums.get("write_off", 0)


@given(meters())
def test_no_time_is_paid_twice_and_none_that_no_meter_measured(windows: list[Window]) -> None:
    paid = payable(windows)
    measured = {millisecond for item in windows for millisecond in range(item.from_ms, item.to_ms)}
    assert paid.delivered_ms + paid.paused_ms <= len(measured)
    assert paid.delivered_ms <= sum(item.quantity for item in windows if item.unit == Unit.DELIVERED)
    newest = max((item.epoch for item in windows), default=0)
    of_the_newest = sum(
        item.quantity for item in windows if item.epoch == newest and item.unit == Unit.DELIVERED
    )
    assert paid.delivered_ms >= of_the_newest, "the highest epoch is paid in full"


@given(st.integers(1, 60_000), st.integers(0, 30_000), st.data())
def test_billed_is_at_most_what_was_delivered_by_whoever_had_the_session(
    handover_ms: int, woken_for_ms: int, data: st.DataObject
) -> None:
    """An ingest process freezes, another goes on, the first wakes up and measures on for a while."""
    first, second = Meter(), Meter()
    windows: list[Window] = []
    delivered_ms = 0
    at_ms = 0
    while at_ms < handover_ms:
        step_ms = data.draw(st.integers(1, LONGEST_GAP_MS))
        at_ms = min(handover_ms, at_ms + step_ms)
        first.delivered(at_ms)
    delivered_ms += first.delivered_ms
    frozen_at_ms = at_ms
    for _ in range(data.draw(st.integers(0, 3))):
        at_ms += 1000
        second.delivered(at_ms)
    delivered_ms += second.delivered_ms
    for woken_ms in range(0, woken_for_ms, 900):  # to nobody
        first.delivered(frozen_at_ms + woken_ms)
    for epoch, meter, end_ms in ((1, first, frozen_at_ms + woken_for_ms), (2, second, at_ms)):
        windows += [
            window(epoch, cut.seq, max(cut.from_ms, frozen_at_ms * (epoch - 1)), cut.to_ms, cut.quantity)
            for cut in meter.cut(end_ms, (0, 0, 0), final=True)
        ]
    assert payable(windows).delivered_ms <= delivered_ms


def test_a_handover_in_one_bridge_costs_what_it_would_without() -> None:
    windows = [window(1, 1, 0, 5_000), window(1, 2, 5_000, 7_000), window(2, 3, 7_000, 12_000)]
    assert payable(windows) == Metered(delivered_ms=12_000)


def test_of_a_window_that_reaches_into_the_next_epoch_what_is_surely_before_it_counts() -> None:
    successor = window(2, 1, 4_000, 9_000)
    assert payable([window(1, 1, 0, 10_000, 5_000), successor]) == Metered(delivered_ms=5_000)
    assert payable([window(1, 1, 0, 10_000, 9_000), successor]) == Metered(delivered_ms=3_000 + 5_000)
    assert payable([window(1, 1, 0, 10_000), successor]) == Metered(delivered_ms=4_000 + 5_000)


def test_a_zombie_s_window_that_was_posted_first_is_given_back() -> None:
    zombie, successor = window(1, 1, 0, 10_000), window(2, 1, 6_000, 11_000)
    account, left, _ = charged([zombie], 20_000)
    assert (account.posted_micro, left) == (10_000, 10_000)
    account, left, _ = charged([zombie, successor], 20_000)
    assert (account.posted_micro, left) == (11_000, 9_000)
    held_only = window(2, 1, 6_000, 11_000, 5_000, Unit.PAUSED)
    account, left, sums = charged([zombie, held_only], 20_000)
    assert (account.posted_micro, left) == (6_500, 13_500)
    assert sums == {"prepaid:acme": -6_500, "earnings": 6_500}


def test_what_is_given_back_goes_to_the_write_off_first() -> None:
    account, left, sums = charged([window(1, 1, 0, 10_000), window(2, 1, 2_000, 4_000)], 7_000)
    assert (account.posted_micro, account.written_off_micro, left) == (4_000, 0, 3_000)
    assert "write_off" not in sums


def test_the_last_word_is_the_newest_meter_s() -> None:
    moved, last = window(1, 1, 0, 5_000, final=True), window(2, 1, 5_000, 9_000)
    for order in ([moved, last], [last, moved]):
        assert not charged(order, 0)[0].final
    ended = window(2, 2, 9_000, 10_000, final=True)
    assert charged([moved, ended, last], 0)[0].final


# --- the database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "billing.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{path}", PriceList({"*": RATES}), 120_000)
    store.create_tenant(ACME, "Acme")
    store.add_credit(ACME, 1_000_000, "opening")
    yield store
    store.close()


def arrival(item: Window) -> Arrival:
    return Arrival("usage.acme.ses", item.id.encode(), item)


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("seed", range(4))
def test_the_ledger_posts_what_is_payable_in_any_order_and_any_batches(
    store: Store, batch: int, seed: int
) -> None:
    windows = [window(1, seq, 1_000 * seq, 1_000 * (seq + 1)) for seq in range(20)]
    windows += [window(3, seq, 12_500 + 1_000 * seq, 13_500 + 1_000 * seq) for seq in range(10)]
    windows += [window(2, seq, 11_000 + 500 * seq, 11_500 + 500 * seq, 300) for seq in range(12)]
    Random(seed).shuffle(windows)
    arrivals = [arrival(item) for item in windows]
    returned_micro = posted_micro = 0
    for start in range(0, len(arrivals), batch):
        applied = store.apply(arrivals[start : start + batch])
        assert set(applied.outcomes) == {Outcome.APPLIED}
        returned_micro += applied.returned_micro
        posted_micro += applied.posted_micro
    assert set(store.apply(arrivals).outcomes) == {Outcome.DUPLICATE}
    (account,) = store.sessions(ACME, SESSION, 1)
    assert account.metered == payable(windows) == Metered(delivered_ms=11_000 + 900 + 10_000)
    assert posted_micro - returned_micro == account.posted_micro
    assert store.balance(ACME).micro == 1_000_000 - account.posted_micro
    assert store.imbalance_micro() == 0


def test_windows_of_a_session_whose_id_begins_alike_are_another_s(store: Store) -> None:
    other = Window(
        id="ses2:1:1",
        session=SessionId("ses2"),
        epoch=1,
        seq=1,
        tenant=ACME,
        stream="str",
        pipeline="sepia",
        from_ms=0,
        to_ms=9_000,
        unit=Unit.DELIVERED,
        quantity=9_000,
    )
    store.apply([arrival(window(1, 1, 0, 9_000)), arrival(other)])
    store.apply([arrival(window(2, 1, 3_000, 4_000))])
    metered = {
        account.session: account.metered.delivered_ms for account in store.sessions(ACME, SessionId(""), 9)
    }
    assert metered == {"ses": 4_000, "ses2": 9_000}


def test_a_ledger_of_the_first_version_goes_on(path: Path, store: Store) -> None:
    store.apply([arrival(window(1, 1, 0, 5_000))])
    store.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE session_account DROP COLUMN epoch")
        database.execute("ALTER TABLE session_account DROP COLUMN epoch_from_ms")
        database.execute("UPDATE schema_version SET version = 1")
    database.close()
    for _ in range(2):
        again = Store(f"sqlite:///{path}", PriceList({"*": RATES}), 120_000)
        again.apply([arrival(window(1, 2, 5_000, 8_000)), arrival(window(2, 1, 6_000, 7_000))])
        assert again.sessions(ACME, SESSION, 1)[0].metered.delivered_ms == 7_000
        again.close()
