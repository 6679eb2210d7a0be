from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.billing import keys
from services.billing.ledger import PriceList, Rates, SessionAccount, SessionId, TenantId, Unit, Window
from services.billing.store import WAITING_MAX, Arrival, Outcome, Store, open_store
from services.common.errors import ConflictError, NotFoundError, PaymentRequiredError, UnavailableError

ACME = TenantId("acme")
S1 = SessionId("s1")
PRICES = PriceList({"*": Rates(1_000, 100)})  # a micro-unit for every delivered millisecond
MARGIN_MS = 120_000


class Clock:
    """The wall clock of a test."""

    def __init__(self) -> None:
        self.now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "billing.sqlite3"


def opened(path: Path, clock: Clock, prices: PriceList = PRICES) -> Store:
    return Store(f"sqlite:///{path}", prices, MARGIN_MS, clock)


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    store = opened(path, clock)
    store.create_tenant(ACME, "Acme")
    yield store
    store.close()


def window(
    seq: int,
    session: str = "s1",
    tenant: str = "acme",
    unit: str = Unit.DELIVERED,
    quantity: int = 5_000,
) -> Arrival:
    parsed = Window(
        id=f"{session}:1:{seq}",
        session=SessionId(session),
        epoch=1,
        seq=seq,
        tenant=TenantId(tenant),
        stream="stream",
        pipeline="sepia",
        from_ms=seq * 5_000,
        to_ms=(seq + 1) * 5_000,
        unit=unit,
        quantity=quantity,
        runner="r1",
        source="ingest-1",
    )
    return Arrival(f"usage.{tenant}.{session}", repr(parsed).encode(), parsed)


def reserve(store: Store, until_ms: int, session: str = "s1", tenant: str = "acme") -> SessionAccount:
    return store.reserve(SessionId(session), TenantId(tenant), "stream", "sepia", until_ms)


def session(store: Store, name: str = "s1") -> SessionAccount:
    (account,) = store.sessions(ACME, SessionId(name), 10)
    return account


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def assert_consistent(path: Path) -> None:
    """Every transaction sums to zero, balances are what the entries say, no credit is below zero."""
    assert rows(path, "SELECT 1 FROM entry GROUP BY transaction_id HAVING SUM(micro) <> 0") == []
    assert (
        rows(
            path,
            "SELECT account FROM account_balance b WHERE micro <> "
            "(SELECT COALESCE(SUM(micro), 0) FROM entry e WHERE e.account = b.account)",
        )
        == []
    )
    assert rows(path, "SELECT 1 FROM account_balance WHERE account LIKE 'prepaid:%' AND micro < 0") == []


# --- tenants and keys


def test_a_tenant_is_created_once(store: Store) -> None:
    assert store.create_tenant(TenantId("other"), "Other")
    assert not store.create_tenant(TenantId("other"), "Renamed")


def test_a_key_belongs_to_its_tenant_until_it_is_revoked(store: Store) -> None:
    key = keys.mint()
    store.add_key(key.id, ACME, "laptop", keys.digest(key, ""))
    stored = store.key(key.id)
    assert stored is not None
    assert (stored.tenant, stored.revoked) == (ACME, False)
    store.revoke_key(key.id)
    store.revoke_key(key.id)
    revoked = store.key(key.id)
    assert revoked is not None
    assert revoked.revoked


def test_a_key_that_nobody_made_is_not_found(store: Store) -> None:
    assert store.key(keys.KeyId("nobody")) is None
    with pytest.raises(NotFoundError):
        store.revoke_key(keys.KeyId("nobody"))


def test_an_unknown_tenant_has_no_key_no_credit_and_no_reservation(store: Store) -> None:
    nobody = TenantId("nobody")
    for refused in (
        lambda: store.add_key(keys.KeyId("k"), nobody, "", b""),
        lambda: store.add_credit(nobody, 1, "r"),
        lambda: store.balance(nobody),
        lambda: reserve(store, 1_000, tenant="nobody"),
        lambda: store.sessions(nobody, SessionId(""), 1),
        lambda: store.entries(nobody, SessionId(""), 1),
    ):
        with pytest.raises(NotFoundError) as error:
            refused()
        assert error.value.reason == "TENANT_NOT_FOUND"


# --- credit


def test_a_payment_is_credited_once(store: Store, path: Path) -> None:
    assert store.add_credit(ACME, 500, "invoice-1") == 500
    assert store.add_credit(ACME, 500, "invoice-1") == 500
    assert store.add_credit(ACME, 200, "invoice-2") == 700
    assert_consistent(path)


def test_a_reference_cannot_be_used_for_another_amount(store: Store) -> None:
    store.add_credit(ACME, 500, "invoice-1")
    with pytest.raises(ConflictError) as refused:
        store.add_credit(ACME, 501, "invoice-1")
    assert refused.value.reason == "REFERENCE_REUSED"


def test_two_tenants_may_use_the_same_reference(store: Store) -> None:
    store.create_tenant(TenantId("other"), "")
    store.add_credit(ACME, 500, "invoice-1")
    assert store.add_credit(TenantId("other"), 40, "invoice-1") == 40


# --- reservations


def test_a_reservation_holds_credit_and_moves_none(store: Store) -> None:
    store.add_credit(ACME, 100_000, "r")
    assert reserve(store, 30_000).reserved_until_ms == 30_000
    balance = store.balance(ACME)
    assert (balance.micro, balance.held_micro) == (100_000, 30_000)


def test_a_reservation_is_idempotent_and_only_grows(store: Store) -> None:
    store.add_credit(ACME, 60_000, "r")
    assert [reserve(store, ms).reserved_until_ms for ms in (30_000, 30_000, 10_000, 60_000)] == [
        30_000,
        30_000,
        30_000,
        60_000,
    ]
    assert store.balance(ACME).held_micro == 60_000


def test_credit_that_covers_less_grants_less_and_then_nothing(store: Store) -> None:
    store.add_credit(ACME, 20_000, "r")
    assert reserve(store, 30_000).reserved_until_ms == 20_000
    with pytest.raises(PaymentRequiredError) as refused:
        reserve(store, 30_000)
    assert refused.value.reason == "INSUFFICIENT_CREDIT"
    assert reserve(store, 20_000).reserved_until_ms == 20_000


def test_a_session_without_credit_leaves_no_trace(store: Store) -> None:
    with pytest.raises(PaymentRequiredError):
        reserve(store, 30_000)
    assert store.sessions(ACME, SessionId(""), 10) == []


def test_sessions_of_one_tenant_share_its_credit(store: Store) -> None:
    store.add_credit(ACME, 50_000, "r")
    assert reserve(store, 30_000, "s1").reserved_until_ms == 30_000
    assert reserve(store, 30_000, "s2").reserved_until_ms == 20_000
    with pytest.raises(PaymentRequiredError):
        reserve(store, 30_000, "s3")


def test_reservations_that_race_never_hold_more_than_the_credit(path: Path, clock: Clock) -> None:
    first, second = opened(path, clock), opened(path, clock)  # two processes on one file
    first.create_tenant(ACME, "")
    first.add_credit(ACME, 100_000, "r")
    start = threading.Barrier(2)

    def ask(store: Store, name: str) -> int:
        start.wait()
        granted = 0
        for number in range(20):
            try:
                granted += reserve(store, 7_000, f"{name}-{number}").reserved_until_ms
            except PaymentRequiredError:
                break
        return granted

    with ThreadPoolExecutor(2) as threads:
        granted_ms = sum(threads.map(ask, (first, second), ("a", "b")))
    assert granted_ms == 100_000
    assert first.balance(ACME).held_micro == 100_000
    first.close()
    second.close()


def test_a_reservation_that_nobody_renews_lapses_by_itself(store: Store, clock: Clock) -> None:
    store.add_credit(ACME, 30_000, "r")
    reserve(store, 30_000)
    clock.now_ms += 30_000 + MARGIN_MS - 1
    assert store.balance(ACME).held_micro == 30_000
    clock.now_ms += 1
    assert store.balance(ACME).held_micro == 0
    assert reserve(store, 30_000, "s2").reserved_until_ms == 30_000
    with pytest.raises(PaymentRequiredError):
        reserve(store, 30_000, "s1")  # its credit is another's now


def test_asking_again_keeps_a_waiting_sessions_credit(store: Store, clock: Clock) -> None:
    store.add_credit(ACME, 30_000, "r")
    for _ in range(10):
        assert reserve(store, 30_000).reserved_until_ms == 30_000
        clock.now_ms += 100_000
        assert store.balance(ACME).held_micro == 30_000


def test_windows_turn_what_was_held_into_what_was_posted(store: Store, path: Path) -> None:
    store.add_credit(ACME, 60_000, "r")
    reserve(store, 30_000)
    store.apply([window(0), window(1)])
    balance = store.balance(ACME)
    assert (balance.micro, balance.held_micro) == (50_000, 20_000)
    assert_consistent(path)


def test_a_session_is_one_tenants(store: Store) -> None:
    store.create_tenant(TenantId("other"), "")
    store.add_credit(ACME, 30_000, "r")
    store.add_credit(TenantId("other"), 30_000, "r")
    reserve(store, 1_000)
    with pytest.raises(ConflictError) as refused:
        reserve(store, 1_000, tenant="other")
    assert refused.value.reason == "SESSION_OF_ANOTHER_TENANT"


def test_settling_frees_what_was_not_used(store: Store) -> None:
    store.add_credit(ACME, 30_000, "r")
    reserve(store, 30_000)
    store.apply([window(0)])
    assert store.settle(S1).posted_micro == 5_000
    assert store.settle(S1).posted_micro == 5_000
    balance = store.balance(ACME)
    assert (balance.micro, balance.held_micro) == (25_000, 0)
    with pytest.raises(ConflictError) as refused:
        reserve(store, 30_000)
    assert refused.value.reason == "SESSION_SETTLED"


def test_a_session_that_nobody_knows_cannot_be_settled(store: Store) -> None:
    with pytest.raises(NotFoundError):
        store.settle(S1)


def test_a_window_that_comes_after_the_settlement_is_posted_from_the_balance(store: Store) -> None:
    store.add_credit(ACME, 30_000, "r")
    reserve(store, 30_000)
    store.settle(S1)
    assert store.apply([window(0)]).outcomes == [Outcome.APPLIED]
    assert store.balance(ACME).micro == 25_000
    assert store.settle(S1).posted_micro == 5_000


def test_a_session_keeps_the_price_it_opened_with(path: Path, clock: Clock) -> None:
    store = opened(path, clock)
    store.create_tenant(ACME, "")
    store.add_credit(ACME, 100_000, "r")
    reserve(store, 10_000)
    store.close()
    dearer = opened(path, clock, PriceList({"*": Rates(9_000, 900)}))
    assert reserve(dearer, 20_000).rates == Rates(1_000, 100)
    assert reserve(dearer, 1_000, "s2").rates == Rates(9_000, 900)
    dearer.close()


# --- windows


def test_a_window_is_posted_once_however_often_it_comes(store: Store, path: Path) -> None:
    store.add_credit(ACME, 60_000, "r")
    first = store.apply([window(0), window(1), window(0)])
    assert first.outcomes == [Outcome.APPLIED, Outcome.APPLIED, Outcome.DUPLICATE]
    assert first.posted_micro == 10_000
    again = store.apply([window(1), window(2), window(0)])
    assert again.outcomes == [Outcome.DUPLICATE, Outcome.APPLIED, Outcome.DUPLICATE]
    assert store.balance(ACME).micro == 45_000
    assert_consistent(path)


def test_a_batch_that_was_committed_but_not_acked_is_ignored_after_a_restart(
    path: Path, clock: Clock
) -> None:
    batch = [window(seq) for seq in range(10)]
    store = opened(path, clock)
    store.create_tenant(ACME, "")
    store.add_credit(ACME, 60_000, "r")
    store.apply(batch)
    store.close()
    reopened = opened(path, clock)
    assert set(reopened.apply(batch).outcomes) == {Outcome.DUPLICATE}
    assert reopened.balance(ACME).micro == 10_000
    reopened.close()


def test_paused_time_costs_the_hold_price(store: Store) -> None:
    store.add_credit(ACME, 60_000, "r")
    store.apply([window(0, unit=Unit.PAUSED)])
    account = session(store)
    assert (account.metered.paused_ms, account.metered.delivered_ms) == (5_000, 0)
    assert account.posted_micro == 500


def test_usage_beyond_the_credit_is_written_off(store: Store, path: Path) -> None:
    store.add_credit(ACME, 7_000, "r")
    applied = store.apply([window(0), window(1), window(2)])
    assert (applied.posted_micro, applied.written_off_micro) == (15_000, 8_000)
    assert store.balance(ACME).micro == 0
    assert session(store).written_off_micro == 8_000
    assert_consistent(path)


def test_a_session_known_by_its_windows_only_is_priced_from_the_list(store: Store) -> None:
    store.add_credit(ACME, 7_000, "r")
    store.apply([window(0, session="unannounced")])
    account = session(store, "unannounced")
    assert (account.rates, account.reserved_until_ms) == (Rates(1_000, 100), 0)
    assert store.balance(ACME).micro == 2_000


def test_what_cannot_be_posted_is_kept_and_stops_nothing(store: Store, path: Path) -> None:
    store.add_credit(ACME, 60_000, "r")
    reserve(store, 10_000)
    malformed = window(1)
    assert malformed.window is not None
    arrivals = [
        Arrival("usage.x.y", b"\xff\xff", None, "not a UsageWindow"),
        window(0, session="s9", tenant="nobody"),
        replace(malformed, window=replace(malformed.window, quantity=-1)),
        window(0),
    ]
    outcomes = [Outcome.POISON, Outcome.POISON, Outcome.POISON, Outcome.APPLIED]
    assert store.apply(arrivals).outcomes == outcomes
    store.apply(arrivals)  # handed again: the same poison
    assert rows(path, "SELECT subject, error FROM poison ORDER BY error") == [
        ("usage.acme.s1", "negative quantity"),
        ("usage.x.y", "not a UsageWindow"),
        ("usage.nobody.s9", "unknown tenant"),
    ]
    assert rows(path, "SELECT raw FROM poison WHERE subject = 'usage.x.y'") == [(b"\xff\xff",)]
    assert store.balance(ACME).micro == 55_000


def test_a_window_that_names_another_tenant_than_its_session_is_poison(store: Store) -> None:
    store.create_tenant(TenantId("other"), "")
    assert store.apply([window(0), window(1, tenant="other")]).outcomes == [Outcome.APPLIED, Outcome.POISON]
    assert store.apply([window(2, tenant="other")]).outcomes == [Outcome.POISON]


def test_the_raw_fields_of_a_window_are_kept(store: Store, path: Path) -> None:
    store.apply([window(3)])
    assert rows(path, "SELECT id, from_ms, to_ms, unit, quantity, runner, source FROM usage_window") == [
        ("s1:1:3", 15_000, 20_000, "delivered_ms", 5_000, "r1", "ingest-1")
    ]


def test_a_batch_that_fails_changes_nothing(store: Store, path: Path) -> None:
    store.add_credit(ACME, 60_000, "r")
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TRIGGER curse BEFORE INSERT ON session_account WHEN NEW.session = 'cursed' "
        "BEGIN SELECT RAISE(ABORT, 'cursed'); END"
    )
    connection.close()
    with pytest.raises(Exception, match="cursed"):
        store.apply([window(0), window(0, session="cursed")])
    assert store.balance(ACME).micro == 60_000
    assert rows(path, "SELECT * FROM usage_window") == []


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    credit_micro=st.integers(0, 60_000),
    seed=st.integers(0, 2**32),
    copies=st.integers(1, 3),
    batch=st.integers(1, 7),
)
def test_replay_and_reordering_of_windows_change_no_balance(
    tmp_path_factory: pytest.TempPathFactory, credit_micro: int, seed: int, copies: int, batch: int
) -> None:
    path = tmp_path_factory.mktemp("replay") / "billing.sqlite3"
    dice = random.Random(seed)
    unique = [
        window(
            seq, session=f"s{dice.randrange(3)}", unit=dice.choice(list(Unit)), quantity=dice.randrange(6_000)
        )
        for seq in range(15)
    ]
    arriving = unique * copies
    dice.shuffle(arriving)
    store = opened(path, Clock())
    store.create_tenant(ACME, "")
    if credit_micro:
        store.add_credit(ACME, credit_micro, "r")
    for start in range(0, len(arriving), batch):
        store.apply(arriving[start : start + batch])

    accounts = store.sessions(ACME, SessionId(""), 10)
    posted = sum(account.posted_micro for account in accounts)
    written_off = sum(account.written_off_micro for account in accounts)
    quantity = sum(item.window.quantity for item in unique if item.window is not None)
    assert sum(account.metered.delivered_ms + account.metered.paused_ms for account in accounts) == quantity
    assert written_off == max(0, posted - credit_micro)
    assert store.balance(ACME).micro == max(0, credit_micro - posted)
    assert store.imbalance_micro() == 0
    store.close()
    assert_consistent(path)


# --- the journal


def test_entries_are_listed_newest_first_with_their_cause(store: Store) -> None:
    store.add_credit(ACME, 7_000, "invoice-1")
    store.apply([window(0), window(0, session="s2")])
    listed = store.entries(ACME, SessionId(""), 100)
    assert [(item.account, item.micro, item.cause) for item in listed] == [
        ("prepaid:acme", -2_000, "s2:1:0"),
        ("earnings", 2_000, "s2:1:0"),
        ("write_off", -3_000, "s2:1:0"),
        ("earnings", 3_000, "s2:1:0"),
        ("prepaid:acme", -5_000, "s1:1:0"),
        ("earnings", 5_000, "s1:1:0"),
        ("wash", -7_000, "invoice-1"),
        ("prepaid:acme", 7_000, "invoice-1"),
    ]
    assert {item.cause for item in store.entries(ACME, S1, 100)} == {"s1:1:0"}
    assert len(store.entries(ACME, SessionId(""), 3)) == 3


@pytest.mark.parametrize("table", ["entry", "ledger_transaction", "usage_window"])
def test_what_is_written_in_the_journal_cannot_be_changed(store: Store, path: Path, table: str) -> None:
    store.add_credit(ACME, 7_000, "r")
    store.apply([window(0)])
    connection = sqlite3.connect(path)
    for statement in (f"UPDATE {table} SET id = id", f"DELETE FROM {table}"):
        with pytest.raises(sqlite3.IntegrityError, match="immutable"):
            connection.execute(statement)
    connection.close()


def test_the_database_itself_refuses_a_negative_balance(store: Store, path: Path) -> None:
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="prepaid_is_never_negative"):
        connection.execute("UPDATE account_balance SET micro = -1 WHERE account = 'prepaid:acme'")
    connection.close()


def test_an_entry_that_appeared_by_itself_is_noticed(store: Store, path: Path) -> None:
    store.add_credit(ACME, 7_000, "r")
    assert store.imbalance_micro() == 0
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO entry (transaction_id, account, micro) VALUES (1, 'earnings', 3)")
    connection.commit()
    connection.close()
    assert store.imbalance_micro() == 3
    assert store.imbalance_micro() == 3


# --- the file


def test_everything_is_there_after_a_restart(path: Path, clock: Clock) -> None:
    store = opened(path, clock)
    store.create_tenant(ACME, "")
    store.add_credit(ACME, 60_000, "r")
    reserve(store, 30_000)
    store.apply([window(0)])
    before = session(store)
    store.close()
    again = opened(path, clock)
    assert session(again) == before
    assert again.balance(ACME).held_micro == 25_000
    again.close()


def test_a_database_of_a_newer_program_is_refused(path: Path, clock: Clock) -> None:
    opened(path, clock).close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE schema_version SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(UnavailableError, match="schema version 99"):
        opened(path, clock)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://user:secret@host/ledger", "kept in SQLite; 'postgresql'"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:////nowhere/at/all.sqlite3", "unable to open"),
        ("what?", "URL is not one"),
    ],
)
def test_a_database_that_cannot_be_the_ledger_is_refused(url: str, why: str, clock: Clock) -> None:
    with pytest.raises(UnavailableError, match=why) as refused:
        Store(url, PRICES, MARGIN_MS, clock)
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused(path: Path, clock: Clock) -> None:
    path.write_bytes(b"not a database, by a long way" * 100)
    with pytest.raises(UnavailableError, match="not a database"):
        opened(path, clock)


def test_a_database_that_is_locked_is_unavailable_and_later_works(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store._transaction() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError):
        store.add_credit(ACME, 1, "r")
    other.execute("ROLLBACK")
    other.close()
    assert store.add_credit(ACME, 1, "r") == 1


def test_a_full_disk_is_unavailable_and_posts_nothing(store: Store, path: Path) -> None:
    store.add_credit(ACME, 10**6, "r")
    with store._transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite's own "the disk is full"
    with pytest.raises(UnavailableError):
        store.apply([window(seq) for seq in range(200)])
    with store._transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert store.balance(ACME).micro == 10**6
    assert set(store.apply([window(seq) for seq in range(200)]).outcomes) == {Outcome.APPLIED}


# --- the thread


async def test_calls_are_made_one_after_another_in_one_thread(path: Path) -> None:
    def thread(_: Store) -> int:
        return threading.get_ident()

    async with open_store(f"sqlite:///{path}", PRICES, MARGIN_MS) as store:
        threads = await asyncio.gather(*(store.call(thread) for _ in range(50)))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


async def test_a_call_behind_too_many_others_is_refused(path: Path) -> None:
    gate = threading.Event()

    def wait(_: Store) -> None:
        gate.wait(10)

    async with open_store(f"sqlite:///{path}", PRICES, MARGIN_MS) as store, asyncio.TaskGroup() as group:
        waiting = [group.create_task(store.call(wait)) for _ in range(WAITING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError) as refused:
            await store.call(wait)
        assert refused.value.reason == "LEDGER_BUSY"
        gate.set()
        await asyncio.gather(*waiting)
        assert await store.call(lambda _: 7) == 7


async def test_reservations_of_many_tasks_never_hold_more_than_the_credit(path: Path) -> None:
    async with open_store(f"sqlite:///{path}", PRICES, MARGIN_MS) as thread:

        async def ask(name: str) -> int:
            try:
                account = await thread.call(
                    Store.reserve, SessionId(name), ACME, "stream", "sepia", until_ms=7_000
                )
            except PaymentRequiredError:
                return 0
            return account.reserved_until_ms

        await thread.call(Store.create_tenant, ACME, "")
        await thread.call(Store.add_credit, ACME, 100_000, "r")
        granted_ms = sum(await asyncio.gather(*(ask(f"s{number}") for number in range(40))))
        assert granted_ms == 100_000
        assert (await thread.call(Store.balance, ACME)).held_micro == 100_000
