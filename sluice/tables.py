"""The server's lists as tables for people. Pure: JSON in, a rich table out."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Final

from rich.table import Table

from sluice.client import Json
from sluice.money import money

QUARANTINED_FROM: Final = 0.5  # of the penalty for recent failures: others come first then


def sessions(answer: Json) -> Table:
    """One line per session, as the server has them: newest first; with their tenants where it says those."""
    several = any("tenant" in row for row in answer["data"])
    tenant = ("tenant",) if several else ()
    table = _table("session", *tenant, "pipeline", "phase", "runner", "fps", "age", "last move, freeze")
    for row in answer["data"]:
        table.add_row(
            row["session"],
            *([row.get("tenant", "")] if several else []),
            row["pipeline"],
            phase(row),
            row["runner"] or "",
            f"{row['fps_out']:.1f}" if "fps_out" in row else "",
            age(row["age_s"]),
            last_move(row),
        )
    return table


def phase(row: Json) -> str:
    """How a session is: why it ended, where it is in the line, where it goes."""
    if row["end_reason"]:
        return str(row["end_reason"])  # an end has a reason, and the reason says that it ended
    if row.get("queue"):
        wait_s = row["queue"]["expected_wait_s"]
        return f"waits, place {row['queue']['position']}" + (f", ~{age(wait_s)}" if wait_s else "")
    if row.get("moving_to"):
        return f"{row['phase']} to {row['moving_to']}"
    return f"{row['phase']}, to move" if row.get("move_wanted") else str(row["phase"])


def last_move(row: Json) -> str:
    """Why a session last moved, how long ago, and for how long its picture stood."""
    if not row.get("moves"):
        return ""
    move = row["moves"][-1]
    ago_s = (datetime.now(UTC) - datetime.fromisoformat(move["at"])).total_seconds()
    return f"{move['why']} {age(max(0.0, ago_s))} ago, {move['freeze_ms'] / 1000:.2f} s"


def age(seconds: float) -> str:
    """A length of time in its two largest units, short: `1m27s`."""
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part}{smaller}"
    return f"{whole}s"


def when(iso: str) -> str:
    """A server's time as a person here reads it: the clock, and the day if it is another one."""
    moment = datetime.fromisoformat(iso).astimezone()
    today = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def runners(answer: Json) -> Table:
    """One line per runner, its slots counted by their state."""
    table = _table("runner", "pipelines", "region", "GPU", "heard", "slots")
    for row in answer["data"]:
        states = Counter(slot["state"] for slot in row["slots"])
        heard = row["heartbeat_age_ms"]
        table.add_row(
            row["runner"],
            ", ".join(row["pipelines"]),
            row["region"],
            row["gpu_class"],
            "never" if heard is None else f"{heard / 1000:.1f} s ago",
            ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            + (", quarantined" if row.get("penalty", 0) >= QUARANTINED_FROM else ""),
        )
    return table


def usage(answer: Json, currency: str) -> Table:
    """One line per session, and below them what is left."""
    table = _table("session", "pipeline", "delivered", "paused", "cost", "since")
    for row in answer["data"]:
        table.add_row(
            row["session"],
            row["pipeline"],
            f"{row['delivered_ms'] / 1000:.1f} s",
            f"{row['paused_ms'] / 1000:.1f} s",
            ("" if row["final"] else "~") + money(row["cost_micro"], currency),
            when(row["opened_at"]),
        )
    table.caption = f"balance {money(answer['balance_micro'], currency)}"
    if answer["available_micro"] != answer["balance_micro"]:
        table.caption += f", available {money(answer['available_micro'], currency)}"
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column in {"session", "runner"})
    return table
