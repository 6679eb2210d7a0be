"""The ledger's database: every change is one transaction, and one thread makes them all.

A window's id is unique for ever in the same transaction as its entries, so that windows may be delivered any
number of times.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError, OperationalError

from services.billing.keys import KeyId
from services.billing.ledger import (
    PREPAID_PREFIX,
    Kind,
    PriceList,
    SessionAccount,
    SessionId,
    TenantId,
    Transaction,
    Window,
    defect,
    payment,
    prepaid,
    usage,
)
from services.billing.rows import (
    account_from_row,
    account_of,
    accounts_of,
    charged_before,
    insert_poison,
    insert_windows,
    save,
)
from services.billing.schema import (
    account_balance,
    api_key,
    create,
    engine,
    entry,
    ledger_transaction,
    session_account,
    tenant,
)
from services.common.errors import ConflictError, NotFoundError, UnavailableError

# Calls in line: at 1 ms each the last one still answers within a caller's patience.
WAITING_MAX: Final = 1_000


class Outcome(StrEnum):
    """What became of a window."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"
    POISON = "poison"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that should be a window: `window` is None, and `error` says why, if it is not."""

    subject: str
    raw: bytes
    window: Window | None
    error: str = ""


@dataclass(slots=True)
class Applied:
    """What a batch did, in the order of its arrivals; committed."""

    outcomes: list[Outcome] = field(default_factory=list)
    posted_micro: int = 0
    written_off_micro: int = 0  # of what was posted
    returned_micro: int = 0  # of what was posted before


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What is known of a key: whose it is, and how to verify its secret."""

    tenant: TenantId
    digest: bytes
    revoked: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """A tenant's credit, and what of it the reservations of its sessions hold."""

    micro: int
    held_micro: int


@dataclass(frozen=True, slots=True)
class PostedEntry:
    """An entry as the journal shows it."""

    transaction: int
    account: str
    micro: int
    cause: str
    unix_ms: int
    session: str


def wall_clock() -> int:
    return time.time_ns() // 1_000_000


class Store:
    """The ledger in a database. Blocking, for one thread: the service calls it through `open_store`."""

    def __init__(
        self, url: str, prices: PriceList, lapse_margin_ms: int, unix_ms: Callable[[], int] = wall_clock
    ) -> None:
        """Open the database, creating its tables where they are missing. `unix_ms` is the clock.

        Raises UnavailableError if it cannot be this service's ledger.
        """
        self._prices = prices
        self._lapse_margin_ms = lapse_margin_ms
        self._unix_ms = unix_ms
        self._summed_to = 0
        self._sum_micro = 0
        self._engine = engine(url)
        try:
            with self._transaction() as connection:
                create(connection)
        except UnavailableError:
            self.close()
            raise
        except DBAPIError as error:
            self.close()
            raise UnavailableError(
                f"the database cannot be opened: {error.orig}", reason="DATABASE_UNUSABLE"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One transaction. What the database's state or disk refuses is Unavailable: it may be repeated."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise UnavailableError(
                f"the database failed: {error.orig}", reason="DATABASE_UNAVAILABLE"
            ) from error

    # --- tenants and keys

    def create_tenant(self, tenant_id: TenantId, name: str) -> bool:
        """Returns False, and changes nothing, if the tenant exists."""
        with self._transaction() as connection:
            row = {"id": tenant_id, "name": name, "created_unix_ms": self._unix_ms()}
            if connection.execute(insert(tenant).on_conflict_do_nothing(), row).rowcount == 0:
                return False
            connection.execute(insert(account_balance), {"account": prepaid(tenant_id), "micro": 0})
            return True

    def add_key(self, key_id: KeyId, tenant_id: TenantId, label: str, digest: bytes) -> None:
        with self._transaction() as connection:
            _credit_of(connection, tenant_id)
            connection.execute(
                insert(api_key),
                {
                    "id": key_id,
                    "tenant": tenant_id,
                    "label": label,
                    "digest": digest,
                    "created_unix_ms": self._unix_ms(),
                },
            )

    def key(self, key_id: KeyId) -> StoredKey | None:
        with self._transaction() as connection:
            row = connection.execute(select(api_key).where(api_key.c.id == key_id)).one_or_none()
        if row is None:
            return None
        return StoredKey(TenantId(row.tenant), row.digest, row.revoked_unix_ms is not None)

    def revoke_key(self, key_id: KeyId) -> None:
        """The first revocation counts. Raises NotFoundError if there is no such key."""
        with self._transaction() as connection:
            revoked_ms = func.coalesce(api_key.c.revoked_unix_ms, self._unix_ms())
            change = update(api_key).where(api_key.c.id == key_id).values(revoked_unix_ms=revoked_ms)
            if connection.execute(change).rowcount == 0:
                raise NotFoundError("no such key", reason="KEY_NOT_FOUND", key_id=key_id)

    # --- credit

    def add_credit(self, tenant_id: TenantId, micro: int, reference: str) -> int:
        """Credit a payment once; returns the balance.

        Raises ConflictError if `reference` was already used for another amount.
        """
        with self._transaction() as connection:
            credit_micro = _credit_of(connection, tenant_id)
            earlier = connection.scalar(
                select(entry.c.micro)
                .join(ledger_transaction)
                .where(
                    ledger_transaction.c.tenant == tenant_id,
                    ledger_transaction.c.kind == Kind.CREDIT.value,
                    ledger_transaction.c.cause == reference,
                    entry.c.account == prepaid(tenant_id),
                )
            )
            if earlier is None:
                self._post(connection, [payment(tenant_id, micro, reference)])
                return credit_micro + micro
            if earlier != micro:
                raise ConflictError(
                    "the reference was used for another amount",
                    reason="REFERENCE_REUSED",
                    reference=reference,
                    credited_micro=earlier,
                )
            return credit_micro

    def balance(self, tenant_id: TenantId) -> Balance:
        with self._transaction() as connection:
            credit_micro = _credit_of(connection, tenant_id)
            return Balance(credit_micro, self._held(connection, tenant_id))

    # --- sessions

    def reserve(
        self, session: SessionId, tenant_id: TenantId, stream: str, pipeline: str, until_ms: int
    ) -> SessionAccount:
        """Hold credit for a session, opening it at today's prices. See `SessionAccount.reserve`."""
        with self._transaction() as connection:
            now_ms = self._unix_ms()
            credit_micro = _credit_of(connection, tenant_id)
            account = account_of(connection, session) or SessionAccount(
                session, tenant_id, stream, pipeline, self._prices.of(pipeline), opened_unix_ms=now_ms
            )
            if account.tenant != tenant_id:
                raise ConflictError(
                    "the session is another tenant's", reason="SESSION_OF_ANOTHER_TENANT", session=session
                )
            free_micro = credit_micro - self._held(connection, tenant_id, besides=session)
            account = account.reserve(
                until_ms, credit_micro=free_micro, now_unix_ms=now_ms, margin_ms=self._lapse_margin_ms
            )
            save(connection, [account])
            return account

    def settle(self, session: SessionId) -> SessionAccount:
        """End a session's reservation. Raises NotFoundError if nobody ever reserved or metered it."""
        with self._transaction() as connection:
            account = account_of(connection, session)
            if account is None:
                raise NotFoundError("no such session", reason="SESSION_NOT_FOUND", session=session)
            account = account.settle(self._unix_ms())
            save(connection, [account])
            return account

    def sessions(self, tenant_id: TenantId, session: SessionId, limit: int) -> list[SessionAccount]:
        """The tenant's sessions, newest first; only `session` where it is given."""
        table = session_account
        query = select(table).where(table.c.tenant == tenant_id)
        if session:
            query = query.where(table.c.session == session)
        query = query.order_by(table.c.opened_unix_ms.desc(), table.c.session).limit(limit)
        with self._transaction() as connection:
            _credit_of(connection, tenant_id)
            return [account_from_row(row) for row in connection.execute(query)]

    # --- windows

    def apply(self, arrivals: Sequence[Arrival]) -> Applied:
        """Post what is new of a batch, in one transaction; what cannot be posted goes to the poison table."""
        applied = Applied()
        with self._transaction() as connection:
            now_ms = self._unix_ms()
            windows = [arrival.window for arrival in arrivals if arrival.window is not None]
            accounts = accounts_of(connection, {window.session for window in windows})
            credit_micro = _credits(connection, {window.tenant for window in windows})
            owners = {account.session: account.tenant for account in accounts.values()}
            errors = [_objection(arrival, owners, set(credit_micro)) for arrival in arrivals]
            good = [
                arrival.window
                for arrival, error in zip(arrivals, errors, strict=True)
                if arrival.window is not None and not error
            ]
            fresh = insert_windows(connection, good)
            transactions: list[Transaction] = []
            for arrival, error in zip(arrivals, errors, strict=True):
                window = arrival.window
                if error or window is None:
                    applied.outcomes.append(Outcome.POISON)
                    insert_poison(connection, arrival.subject, arrival.raw, error, now_ms)
                    continue
                if window.id not in fresh:
                    applied.outcomes.append(Outcome.DUPLICATE)
                    continue
                fresh.remove(window.id)  # the same id again in this batch is a duplicate
                applied.outcomes.append(Outcome.APPLIED)
                account = accounts.get(window.session) or self._unreserved(window, now_ms)
                alone = account.stands_alone(window)
                others = () if alone else charged_before(connection, window, not_yet=fresh)
                accounts[window.session], amount = account.charge(window, credit_micro[window.tenant], others)
                credit_micro[window.tenant] -= amount.funded
                applied.posted_micro += max(0, amount.funded + amount.written_off)
                applied.written_off_micro += max(0, amount.written_off)
                applied.returned_micro -= min(0, amount.funded + amount.written_off)
                transactions.append(usage(window, amount))
            self._post(connection, transactions)
            touched = {transaction.session for transaction in transactions}
            save(connection, [accounts[session] for session in touched])
        return applied

    def _unreserved(self, window: Window, now_ms: int) -> SessionAccount:
        """The account of a session that is known by its windows only: today's price, nothing reserved."""
        return SessionAccount(
            window.session,
            window.tenant,
            window.stream,
            window.pipeline,
            self._prices.of(window.pipeline),
            opened_unix_ms=now_ms,
        )

    # --- the journal

    def entries(self, tenant_id: TenantId, session: SessionId, limit: int) -> list[PostedEntry]:
        """The entries of the tenant's transactions, newest first; only `session`'s where it is given."""
        transaction = ledger_transaction
        query = (
            select(
                transaction.c.id,
                entry.c.account,
                entry.c.micro,
                transaction.c.cause,
                transaction.c.unix_ms,
                transaction.c.session,
            )
            .join(entry, entry.c.transaction_id == transaction.c.id)
            .where(transaction.c.tenant == tenant_id)
            .order_by(transaction.c.id.desc(), entry.c.id)
            .limit(limit)
        )
        if session:
            query = query.where(transaction.c.session == session)
        with self._transaction() as connection:
            _credit_of(connection, tenant_id)
            return [PostedEntry(*row) for row in connection.execute(query)]

    def imbalance_micro(self) -> int:
        """The sum of every entry there is: 0, or an alarm.

        Entries cannot change, so each is added once in the life of this process.
        """
        query = select(func.coalesce(func.sum(entry.c.micro), 0), func.max(entry.c.id))
        with self._transaction() as connection:
            micro, newest = connection.execute(query.where(entry.c.id > self._summed_to)).one()
        self._sum_micro += micro
        self._summed_to = newest or self._summed_to
        return self._sum_micro

    def _post(self, connection: Connection, transactions: Sequence[Transaction]) -> None:
        """Write transactions and their entries, and move the balances; what moves nothing is not written."""
        newest: int = connection.execute(
            select(func.coalesce(func.max(ledger_transaction.c.id), 0))
        ).scalar_one()
        numbered = list(enumerate((item for item in transactions if item.entries), start=newest + 1))
        if not numbered:
            return
        connection.execute(
            insert(ledger_transaction),
            [
                {
                    "id": number,
                    "kind": item.kind.value,
                    "tenant": item.tenant,
                    "session": item.session,
                    "cause": item.cause,
                    "unix_ms": self._unix_ms(),
                }
                for number, item in numbered
            ],
        )
        moved: dict[str, int] = {}
        rows: list[dict[str, object]] = []
        for number, item in numbered:
            for side in item.entries:
                rows.append({"transaction_id": number, "account": side.account, "micro": side.micro})
                moved[side.account] = moved.get(side.account, 0) + side.micro
        connection.execute(insert(entry), rows)
        connection.execute(
            update(account_balance)
            .where(account_balance.c.account == bindparam("moved"))
            .values(micro=account_balance.c.micro + bindparam("by_micro")),
            [{"moved": account, "by_micro": micro} for account, micro in sorted(moved.items())],
        )

    def _held(self, connection: Connection, tenant_id: TenantId, besides: str = "") -> int:
        """What the tenant's reservations hold, other than that of `besides`."""
        query = select(func.coalesce(func.sum(session_account.c.held_micro), 0)).where(
            session_account.c.tenant == tenant_id,
            session_account.c.settled_unix_ms.is_(None),
            session_account.c.expires_unix_ms > self._unix_ms(),
            session_account.c.session != besides,
        )
        held: int = connection.execute(query).scalar_one()
        return held


def _credits(connection: Connection, tenants: set[TenantId]) -> dict[TenantId, int]:
    """The prepaid balance of each of `tenants` that exists."""
    query = select(account_balance).where(account_balance.c.account.in_([prepaid(each) for each in tenants]))
    return {
        TenantId(row.account.removeprefix(PREPAID_PREFIX)): row.micro for row in connection.execute(query)
    }


def _credit_of(connection: Connection, tenant_id: TenantId) -> int:
    credit_micro = _credits(connection, {tenant_id}).get(tenant_id)
    if credit_micro is None:
        raise NotFoundError("no such tenant", reason="TENANT_NOT_FOUND", tenant=tenant_id)
    return credit_micro


def _objection(arrival: Arrival, owners: dict[SessionId, TenantId], tenants: set[TenantId]) -> str:
    """Why `arrival` cannot be posted, or "". The first window of an unknown session says whose it is."""
    window = arrival.window
    if window is None or arrival.error:
        return arrival.error
    if problem := defect(window):
        return problem
    if window.tenant not in tenants:
        return "unknown tenant"
    if owners.setdefault(window.session, window.tenant) != window.tenant:
        return "the session is another tenant's"
    return ""


P = ParamSpec("P")
T = TypeVar("T")


class StoreThread:
    """Runs a store's calls one by one in a thread of its own; a call behind too many others is refused."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store = store
        self._executor = executor
        self._waiting = 0

    async def call(self, method: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `method` of the store. A cancelled call may still take effect."""
        if self._waiting >= WAITING_MAX:
            raise UnavailableError("too many calls wait for the ledger", reason="LEDGER_BUSY")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, partial(method, self._store, *args, **kwargs))
        finally:
            self._waiting -= 1


@asynccontextmanager
async def open_store(url: str, prices: PriceList, lapse_margin_ms: int) -> AsyncIterator[StoreThread]:
    """The ledger, open until the block ends. Raises what `Store` raises."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger") as executor:
        store = await loop.run_in_executor(executor, Store, url, prices, lapse_margin_ms)
        try:
            yield StoreThread(store, executor)
        finally:
            await loop.run_in_executor(executor, store.close)
