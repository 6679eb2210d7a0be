from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from sluice import tables
from sluice.cli import app
from sluice.money import money
from tests.support.platform import KEY, Platform, platform


@pytest.fixture(scope="module")
def serving() -> Iterator[Platform]:
    with platform() as at:
        yield at


@pytest.fixture
def at(serving: Platform) -> Platform:
    serving.calls.clear()
    serving.keys.clear()
    serving.refuse.clear()
    serving.sessions[:] = [
        session("ses_live", phase="live", end_reason=None, cost_micro=1500, fps_out=29.97, latency_ms=41.6),
        session("ses_gone", phase="ended", end_reason="stopped"),
    ]
    return serving


def session(name: str, **facts: Any) -> dict[str, Any]:
    common = {
        "stream": "str_1",
        "pipeline": "effects",
        "runner": "runner-1",
        "created_at": "2026-01-01T00:00:00Z",
        "age_s": 3725.0,
        "queue": None,
        "move_wanted": None,
        "moving_to": None,
        "moves": [],
    }
    return {"session": name, **common, **facts}


MOVE = {
    "at": "2026-01-01T00:00:00.000Z",
    "from": "r0",
    "to": "r1",
    "why": "drain",
    "freeze_ms": 40,
    "lost": 0,
    "repeated": 0,
}


def span(key: str, at_ms: int, took_ms: int, parent: str | None = None, name: str = "") -> dict[str, Any]:
    return {
        "id": key,
        "parent": parent,
        "service": "sluice-ingest",
        "name": name or key,
        "start_unix_ns": 1_700_000_000_000_000_000 + at_ms * 1_000_000,
        "duration_ns": took_ms * 1_000_000,
        "attributes": {},
        "error": False,
    }


def sluice(*arguments: str, **environment: str) -> Result:
    known: dict[str, str | None] = {"SLUICE_URL": None, "SLUICE_API_KEY": None, "COLUMNS": "200"}
    return CliRunner(env={**known, **environment}).invoke(app, list(arguments))


def asked(at: Platform, *arguments: str) -> Result:
    return sluice(*arguments, SLUICE_URL=at.url, SLUICE_API_KEY=KEY)


def test_sessions_are_a_table(at: Platform) -> None:
    shown = asked(at, "sessions").stdout
    assert "ses_live" in shown
    assert "30.0" in shown
    assert "ses_gone" not in shown
    assert "1h2m" in shown
    assert "stopped" in asked(at, "sessions", "--ended").stdout
    assert "tenant" not in shown
    assert "acme" in asked(at, "sessions", "--all").stdout


def test_a_session_says_where_it_waits_where_it_goes_and_why_it_last_moved() -> None:
    row = session("ses_a", phase="allocating", end_reason=None)
    assert tables.phase(row) == "allocating"
    waiting = {"position": 2, "expected_wait_s": 90.0, "waited_s": 1.0}
    assert tables.phase({**row, "queue": waiting}) == "waits, place 2, ~1m30s"
    assert tables.phase({**row, "queue": {**waiting, "expected_wait_s": None}}) == "waits, place 2"
    live = {**row, "phase": "live", "move_wanted": "drain"}
    assert tables.phase(live) == "live, to move"
    assert tables.phase({**live, "phase": "migrating", "moving_to": "r2"}) == "migrating to r2"
    assert tables.last_move(row) == ""
    moved = {**row, "moves": [MOVE, {**MOVE, "why": "stalled", "freeze_ms": 1240}]}
    assert tables.last_move(moved).startswith("stalled ")
    assert tables.last_move(moved).endswith(" ago, 1.24 s")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59, "59s"), (61, "1m1s"), (7260, "2h1m"), (90_000, "1d1h")],
)
def test_a_length_of_time_is_said_in_two_units(seconds: float, words: str) -> None:
    assert tables.age(seconds) == words


def test_latency_is_a_table_of_the_newest_session_or_of_the_one_that_is_named(at: Platform) -> None:
    newest = asked(at, "latency").stdout
    assert "ses_live  effects  the newest 900 pictures" in newest
    assert "infer" in newest
    assert "ses_gone  effects" in asked(at, "latency", "ses_gone").stdout
    at.sessions.clear()
    none = asked(at, "latency")
    assert (none.exit_code, none.stderr) == (2, "sluice: you have no session yet: publish a stream first\n")


def test_a_trace_is_a_tree_of_the_newest_session_or_of_the_one_that_is_named(at: Platform) -> None:
    at.spans = [span("session.open", 0, 40), span("sluice.router.v1.Router/Grant", 10, 20, "session.open")]
    newest = asked(at, "trace")
    assert newest.exit_code == 0
    assert "ses_live  trace 0af7651916cd43dd8448eb211c80319c  40.0 ms, 2 spans" in newest.stdout
    assert "  Router/Grant" in newest.stdout
    assert "still running" in newest.stdout
    named = asked(at, "trace", "ses_gone").stdout
    assert "still running" not in named
    assert len(json.loads(asked(at, "trace", "--json").stdout)["spans"]) == 2


def test_many_spans_alike_are_shown_when_asked_for(at: Platform) -> None:
    at.spans = [span(f"{number}", number, 1, name="Billing/ReserveSlice") for number in range(50)]
    assert asked(at, "trace").stdout.count("ReserveSlice") == 3
    assert asked(at, "trace", "--all").stdout.count("ReserveSlice") == 50


@pytest.mark.parametrize("reason", ["TRACE_NOT_FOUND", "TRACES_NOT_CONFIGURED"])
def test_a_trace_that_cannot_be_had_is_a_sentence(at: Platform, reason: str) -> None:
    at.refuse["GET /v1/sessions/ses_live/trace"] = (404, f"SLUICE/{reason}", "trace 0af7 is elsewhere")
    result = asked(at, "trace", "ses_live")
    assert (result.exit_code, result.stderr) == (2, "sluice: trace 0af7 is elsewhere\n")
    at.refuse["GET /v1/sessions/ses_live/trace"] = (503, "SLUICE/TRACES_UNREACHABLE", "no answer")
    assert asked(at, "trace", "ses_live").exit_code == 1


def test_runners_are_a_table(at: Platform) -> None:
    shown = asked(at, "runners").stdout
    assert "1 held, 1 ready" in shown
    assert "0.2 s ago" in shown
    assert "quarantined" not in shown


def test_a_runner_that_failed_lately_is_said_to_be_quarantined() -> None:
    row = {"runner": "r0", "pipelines": [], "region": "", "gpu_class": "", "heartbeat_age_ms": 1, "slots": []}
    for penalty, said in ((0.4, False), (0.58, True)):
        console = Console(width=120, file=io.StringIO())
        console.print(tables.runners({"data": [{**row, "penalty": penalty}]}))
        assert ("quarantined" in cast("io.StringIO", console.file).getvalue()) is said


def test_usage_is_a_table(at: Platform) -> None:
    shown = asked(at, "usage").stdout
    assert "0.001234 EUR" in shown
    assert "12.0 s" in shown
    assert "balance 5.00 EUR, available 4.90 EUR" in shown


@pytest.mark.parametrize("command", ["sessions", "runners", "usage"])
def test_json_is_what_the_server_says(at: Platform, command: str) -> None:
    assert json.loads(asked(at, command, "--json").stdout)["data"]


def test_stop_ends_a_session(at: Platform) -> None:
    assert asked(at, "stop", "ses_live").exit_code == 0
    assert at.calls == ["DELETE /v1/sessions/ses_live"]


def test_the_key_comes_from_the_option_then_the_environment_then_a_file_above(
    at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".sluice").mkdir()
    (tmp_path / ".sluice/credentials.json").write_text(json.dumps({"url": at.url, "key": KEY}))
    below = tmp_path / "a/b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert sluice("sessions").exit_code == 0
    assert at.keys == {KEY}
    at.keys.clear()
    wrong = sluice("sessions", "--key", "sk_other", SLUICE_API_KEY="sk_environment", SLUICE_URL=at.url)
    assert (wrong.exit_code, at.keys) == (2, {"sk_other"})
    assert "there is no such key" in wrong.stderr
    assert "sk_other" not in wrong.output
    at.keys.clear()
    elsewhere = sluice("sessions", SLUICE_API_KEY="sk_environment", SLUICE_URL="http://127.0.0.1:9")
    assert (elsewhere.exit_code, at.keys) == (1, set()), "a key that was given does not go where a file says"


def test_without_a_key_the_places_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sluice("runners")
    assert result.exit_code == 2
    for place in ("--key", "SLUICE_API_KEY", ".sluice/credentials.json"):
        assert place in result.stderr


def test_a_credentials_file_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".sluice").mkdir()
    (tmp_path / ".sluice/credentials.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    result = sluice("runners")
    assert result.exit_code == 2
    assert "`make run` rewrites it" in result.stderr


def test_a_platform_that_is_not_there_is_asked_about() -> None:
    result = sluice("runners", SLUICE_URL="http://127.0.0.1:9", SLUICE_API_KEY=KEY)
    assert result.exit_code == 1
    assert result.stderr == "sluice: nothing answers: is `make run` running? (http://127.0.0.1:9)\n"


@pytest.mark.parametrize(
    ("micro", "shown"),
    [(0, "0.00 EUR"), (1, "0.000001 EUR"), (1_500_000, "1.50 EUR"), (-2_000_010, "-2.00001 EUR")],
)
def test_money_has_the_digits_that_it_needs(micro: int, shown: str) -> None:
    assert money(micro, "EUR") == shown
