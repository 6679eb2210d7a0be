"""What the ledger must say, read from its database behind billing's back."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.sim.checks import Checks

SLACK_S: Final = 0.02  # a meter counts whole milliseconds, and each window of a session rounds once


def audit(database: Path, checks: Checks) -> int:
    """Compare what was billed with what was seen; returns the number of windows."""
    connection = sqlite3.connect(database)
    try:
        imbalance = connection.execute("SELECT coalesce(sum(micro), 0) FROM entry").fetchone()[0]
        if imbalance:
            checks.violated(f"the entries sum to {imbalance}")
        for account, micro in connection.execute("SELECT account, micro FROM account_balance"):
            if account.startswith("prepaid:") and micro < 0:
                checks.violated(f"{account} is at {micro}")
        poison = connection.execute("SELECT count(*), min(error) FROM poison").fetchone()
        if poison[0]:
            checks.violated(f"{poison[0]} windows cannot be posted: {poison[1]}")
        billed = dict(connection.execute("SELECT session, delivered_ms FROM session_account"))
        for session, shown in sorted(checks.shown.items()):
            billed_s = billed.get(session, 0) / 1000
            if billed_s > shown.delivered_s + shown.either_s + SLACK_S:
                what = f"{session} is billed {billed_s:.1f} s of {shown.delivered_s:.1f} s shown"
                checks.violated(f"{what}: {_windows(connection, session)}")
            least_s = shown.delivered_s - SLACK_S - shown.lost_s
            if billed_s < least_s:
                what = f"{session} is billed only {billed_s:.1f} s of {shown.delivered_s:.1f} s shown"
                checks.violated(f"{what}: {_windows(connection, session)}")
        count: int = connection.execute("SELECT count(*) FROM usage_window").fetchone()[0]
        return count
    finally:
        connection.close()


def unsettled(database: Path) -> list[str]:
    """The sessions for which credit is reserved."""
    connection = sqlite3.connect(database)
    try:
        rows = connection.execute(
            "SELECT session FROM session_account WHERE settled_unix_ms IS NULL AND reserved_until_ms > 0"
        )
        return [f"credit of {session} is still reserved" for (session,) in rows]
    finally:
        connection.close()


def _windows(connection: sqlite3.Connection, session: str) -> str:
    rows = connection.execute(
        "SELECT epoch, seq, from_ms, to_ms, unit, quantity FROM usage_window"
        " WHERE session = ? ORDER BY epoch, seq",
        (session,),
    )
    return ", ".join(
        f"{epoch}:{seq} {start}-{end} {unit}={much}" for epoch, seq, start, end, unit, much in rows
    )
