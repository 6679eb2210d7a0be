"""Session accounts, windows and poison as rows of the database, inside their caller's transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, select
from sqlalchemy.dialects.sqlite import insert

from services.billing.ledger import Metered, Rates, SessionAccount, SessionId, TenantId, Window
from services.billing.schema import poison, session_account, usage_window


def accounts_of(connection: Connection, sessions: set[SessionId]) -> dict[SessionId, SessionAccount]:
    query = select(session_account).where(session_account.c.session.in_(sessions))
    return {SessionId(row.session): account_from_row(row) for row in connection.execute(query)}


def account_of(connection: Connection, session: SessionId) -> SessionAccount | None:
    return accounts_of(connection, {session}).get(session)


def account_from_row(row: Row[Any]) -> SessionAccount:
    account = SessionAccount(
        session=SessionId(row.session),
        tenant=TenantId(row.tenant),
        stream=row.stream,
        pipeline=row.pipeline,
        rates=Rates(row.micro_per_second, row.hold_micro_per_second),
        opened_unix_ms=row.opened_unix_ms,
        metered=Metered(row.delivered_ms, row.paused_ms),
        written_off_micro=row.written_off_micro,
        reserved_until_ms=row.reserved_until_ms,
        accounted_to_ms=row.accounted_to_ms,
        expires_unix_ms=row.expires_unix_ms,
        settled_unix_ms=row.settled_unix_ms,
        final=bool(row.final),
        epoch=row.epoch,
        epoch_from_ms=row.epoch_from_ms,
    )
    assert account.posted_micro == row.posted_micro, (account, row.posted_micro)
    return account


def _to_row(account: SessionAccount) -> dict[str, object]:
    return {
        "session": account.session,
        "tenant": account.tenant,
        "stream": account.stream,
        "pipeline": account.pipeline,
        "micro_per_second": account.rates.micro_per_second,
        "hold_micro_per_second": account.rates.hold_micro_per_second,
        "opened_unix_ms": account.opened_unix_ms,
        "delivered_ms": account.metered.delivered_ms,
        "paused_ms": account.metered.paused_ms,
        "posted_micro": account.posted_micro,
        "written_off_micro": account.written_off_micro,
        "reserved_until_ms": account.reserved_until_ms,
        "accounted_to_ms": account.accounted_to_ms,
        "held_micro": account.held_micro,
        "expires_unix_ms": account.expires_unix_ms,
        "settled_unix_ms": account.settled_unix_ms,
        "final": int(account.final),
        "epoch": account.epoch,
        "epoch_from_ms": account.epoch_from_ms,
    }


# Identity, owner and rates are fixed when the session opens; the rest follows its windows and reservations.
FOLLOWS: Final = (
    "delivered_ms",
    "paused_ms",
    "posted_micro",
    "written_off_micro",
    "reserved_until_ms",
    "accounted_to_ms",
    "held_micro",
    "expires_unix_ms",
    "settled_unix_ms",
    "final",
    "epoch",
    "epoch_from_ms",
)


def save(connection: Connection, accounts: Sequence[SessionAccount]) -> None:
    if not accounts:
        return
    statement = insert(session_account)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[session_account.c.session],
            set_={name: statement.excluded[name] for name in FOLLOWS},
        ),
        [_to_row(account) for account in accounts],
    )


WINDOW_COLUMNS: Final = tuple(column.name for column in usage_window.c)


def insert_windows(connection: Connection, windows: Sequence[Window]) -> set[str]:
    """Insert those whose id was never seen; returns their ids."""
    if not windows:
        return set()
    rows = [{column: getattr(window, column) for column in WINDOW_COLUMNS} for window in windows]
    statement = insert(usage_window).on_conflict_do_nothing().returning(usage_window.c.id)
    return set(connection.scalars(statement, rows))


def charged_before(connection: Connection, window: Window, *, not_yet: set[str]) -> list[Window]:
    """The windows of the same session that were charged before `window`."""
    key = usage_window.c.id
    # An id begins with its session and a colon: a range of the primary key. ";" comes after ":".
    query = select(usage_window).where(key >= f"{window.session}:", key < f"{window.session};")
    found = [Window(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - SQLAlchemy's name
    return [item for item in found if item.id not in not_yet and item.id != window.id]


def insert_poison(connection: Connection, subject: str, raw: bytes, error: str, unix_ms: int) -> None:
    digest = hashlib.blake2b(subject.encode() + b"\0" + raw, digest_size=16).digest()
    connection.execute(
        insert(poison).on_conflict_do_nothing(),
        {
            "digest": digest,
            "subject": subject,
            "raw": raw,
            "error": error,
            "unix_ms": unix_ms,
        },
    )
