"""The tables of the ledger, and how its database is opened.

Entries, transactions and windows are immutable, by trigger; balances and sessions are projections that change
with them in the same transaction.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import ConnectionPoolEntry

from services.billing.ledger import EARNINGS, PREPAID_PREFIX, WASH, WRITE_OFF, Kind
from services.common.errors import UnavailableError

SCHEMA_VERSION: Final = 2
BUSY_TIMEOUT_MS: Final = 5_000  # somebody reads the file with another tool

metadata: Final = MetaData()
Int64: Final = BigInteger().with_variant(Integer, "sqlite")  # SQLite's INTEGER is an int64


def _table(name: str, *items: Column[Any] | CheckConstraint | Index, rowid: bool = True) -> Table:
    return Table(name, metadata, *items, sqlite_strict=True, sqlite_with_rowid=rowid)


schema_version = _table("schema_version", Column("version", Int64, nullable=False))

tenant = _table(
    "tenant",
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_unix_ms", Int64, nullable=False),
)

api_key = _table(
    "api_key",
    Column("id", Text, primary_key=True),
    Column("tenant", ForeignKey("tenant.id"), nullable=False),
    Column("label", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("created_unix_ms", Int64, nullable=False),
    Column("revoked_unix_ms", Int64),
)

account_balance = _table(
    "account_balance",
    Column("account", Text, primary_key=True),
    Column("micro", Int64, nullable=False),
    CheckConstraint(f"account NOT LIKE '{PREPAID_PREFIX}%' OR micro >= 0", name="prepaid_is_never_negative"),
)

ledger_transaction = _table(
    "ledger_transaction",
    Column("id", Int64, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("tenant", ForeignKey("tenant.id"), nullable=False),
    Column("session", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("unix_ms", Int64, nullable=False),
)
Index("transactions_of_a_tenant", ledger_transaction.c.tenant, ledger_transaction.c.id)
Index(
    "a_payment_is_credited_once",
    ledger_transaction.c.tenant,
    ledger_transaction.c.cause,
    unique=True,
    sqlite_where=ledger_transaction.c.kind == Kind.CREDIT.value,
)

entry = _table(
    "entry",
    Column("id", Int64, primary_key=True),
    Column("transaction_id", ForeignKey("ledger_transaction.id"), nullable=False, index=True),
    Column("account", ForeignKey("account_balance.account"), nullable=False),
    Column("micro", Int64, nullable=False),
)

usage_window = _table(
    "usage_window",
    Column("id", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("epoch", Int64, nullable=False),
    Column("seq", Int64, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("stream", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("from_ms", Int64, nullable=False),
    Column("to_ms", Int64, nullable=False),
    Column("unit", Text, nullable=False),
    Column("quantity", Int64, nullable=False),
    Column("final", Int64, nullable=False),
    Column("end_reason", Text, nullable=False),
    Column("frames_in", Int64, nullable=False),
    Column("frames_out", Int64, nullable=False),
    Column("frames_dropped", Int64, nullable=False),
    Column("runner", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("unix_ms", Int64, nullable=False),
    rowid=False,
)

session_account = _table(
    "session_account",
    Column("session", Text, primary_key=True),
    Column("tenant", ForeignKey("tenant.id"), nullable=False),
    Column("stream", Text, nullable=False),
    Column("pipeline", Text, nullable=False),
    Column("micro_per_second", Int64, nullable=False),
    Column("hold_micro_per_second", Int64, nullable=False),
    Column("opened_unix_ms", Int64, nullable=False),
    Column("delivered_ms", Int64, nullable=False),
    Column("paused_ms", Int64, nullable=False),
    Column("posted_micro", Int64, nullable=False),
    Column("written_off_micro", Int64, nullable=False),
    Column("reserved_until_ms", Int64, nullable=False),
    Column("accounted_to_ms", Int64, nullable=False),
    Column("held_micro", Int64, nullable=False),
    Column("expires_unix_ms", Int64, nullable=False),
    Column("settled_unix_ms", Int64),
    Column("final", Int64, nullable=False),  # 0 or 1
    Column("epoch", Int64, nullable=False, server_default="0"),
    Column("epoch_from_ms", Int64, nullable=False, server_default="0"),
)
Index("sessions_of_a_tenant", session_account.c.tenant, session_account.c.opened_unix_ms)
Index(
    "open_sessions_of_a_tenant",
    session_account.c.tenant,
    sqlite_where=session_account.c.settled_unix_ms.is_(None),
)

poison = _table(
    "poison",
    Column("digest", LargeBinary, primary_key=True),  # of subject and bytes: a redelivery is the same poison
    Column("subject", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("error", Text, nullable=False),
    Column("unix_ms", Int64, nullable=False),
)

IMMUTABLE: Final = (entry, ledger_transaction, usage_window)


def create(connection: Connection) -> None:
    """Create what is missing. Raises UnavailableError if a newer program has written this database."""
    schema_version.create(connection, checkfirst=True)
    found = connection.scalar(select(schema_version.c.version))
    if found is not None and found > SCHEMA_VERSION:
        raise _unusable(
            f"the database has schema version {found}, this program knows {SCHEMA_VERSION}: "
            "a newer one has written it"
        )
    if found is not None:
        _renew(connection, found)
        return
    metadata.create_all(connection)
    for table in IMMUTABLE:
        for verb in ("UPDATE", "DELETE"):
            connection.exec_driver_sql(
                f"CREATE TRIGGER {table.name}_refuses_{verb.lower()} BEFORE {verb} ON {table.name} "
                f"BEGIN SELECT RAISE(ABORT, '{table.name} is immutable'); END"
            )
    connection.execute(
        insert(account_balance),
        [{"account": account, "micro": 0} for account in (WASH, EARNINGS, WRITE_OFF)],
    )
    connection.execute(insert(schema_version), {"version": SCHEMA_VERSION})


def _renew(connection: Connection, found: int) -> None:
    """Bring a database of an earlier version up to this one's."""
    if found < 2:
        for column in ("epoch", "epoch_from_ms"):
            connection.exec_driver_sql(
                f"ALTER TABLE session_account ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0"
            )
    connection.execute(update(schema_version).values(version=SCHEMA_VERSION))


def engine(url: str) -> Engine:
    """The database at `url`; every transaction is a writer's. Raises UnavailableError if it is not SQLite."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise _unusable("the database URL is not one") from error
    if parsed.get_backend_name() != "sqlite":
        raise _unusable(f"the ledger is kept in SQLite; {parsed.get_backend_name()!r} is not supported")
    if parsed.database in {None, "", ":memory:"}:
        raise _unusable("the ledger needs a file: sqlite:///<path>")
    database = create_engine(parsed, pool_size=1, max_overflow=0, hide_parameters=True)

    @event.listens_for(database, "connect")
    def configure(connection: Any, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself: `begin` below does
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on the disk before a window is acked
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(database, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # what is read stays true until it is written

    return database


def _unusable(message: str) -> UnavailableError:
    return UnavailableError(message, reason="DATABASE_UNUSABLE")
