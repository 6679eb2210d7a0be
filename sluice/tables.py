"""The server's lists as tables for people. Pure: JSON in, a rich table out."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from rich.table import Table

from sluice.client import Json
from sluice.money import money


def sessions(answer: Json, currency: str) -> Table:
    """One line per session, as the server has them: newest first."""
    table = _table("session", "pipeline", "phase", "fps", "latency", "cost", "runner", "since")
    for row in answer["data"]:
        phase = row["end_reason"] or row["phase"]  # an end has a reason, and the reason says that it ended
        cost = row.get("cost_micro")
        table.add_row(
            row["session"],
            row["pipeline"],
            phase,
            f"{row['fps_out']:.1f}" if "fps_out" in row else "",
            f"{row['latency_ms']:.0f} ms" if "latency_ms" in row else "",
            "" if cost is None else f"~{money(cost, currency)}",
            row["runner"] or "",
            when(row["created_at"]),
        )
    return table


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
            ", ".join(f"{count} {state}" for state, count in sorted(states.items())),
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
