"""`sluice move`, `sluice drain` and `sluice sessions --watch`, against a server that plays along."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sluice import watching
from sluice.cli import app
from sluice.commands import moving
from sluice.settings import Access
from tests.support.platform import KEY, Platform, platform
from tests.unit.sluice.test_cli_lists import MOVE, session


@pytest.fixture(scope="module")
def serving() -> Iterator[Platform]:
    with platform() as at:
        yield at


@pytest.fixture
def at(serving: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    for module in (moving, watching):
        monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(moving, "MOVE_LOOK_S", 0.01)
    serving.refuse.clear()
    serving.drains.clear()
    serving.left.clear()
    serving.moving.clear()
    serving.sessions[:] = [live()]
    return serving


def live(**facts: Any) -> dict[str, Any]:
    return session("ses_live", **{"phase": "live", "end_reason": None, **facts})


def asked(at: Platform, *arguments: str) -> Result:
    environment = {"SLUICE_URL": at.url, "SLUICE_API_KEY": KEY, "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(app, list(arguments))


# --- move


def test_a_move_is_followed_to_its_end_and_its_freeze_is_said(at: Platform) -> None:
    at.moving = [live(move_wanted="asked"), live(phase="migrating"), live(moves=[MOVE])]
    result = asked(at, "move", "ses_live")
    assert result.stdout == "ses_live moved from r0 to r1: froze 0.04 s, 0 pictures lost\n"
    assert result.exit_code == 0


def test_an_earlier_move_is_not_taken_for_this_one(at: Platform) -> None:
    at.sessions[:] = [live(moves=[MOVE])]
    at.moving = [live(moves=[MOVE]), live(moves=[MOVE, {**MOVE, "to": "r2"}])]
    assert "to r2" in asked(at, "move", "ses_live").stdout


def test_a_session_that_ends_instead_is_a_failure(at: Platform) -> None:
    at.moving = [live(phase="ended", end_reason="stopped")]
    result = asked(at, "move", "ses_live")
    assert (result.exit_code, result.stderr) == (1, "ses_live ended before it moved: stopped\n")


def test_a_session_for_which_there_is_no_room_is_said_to_stay(at: Platform) -> None:
    result = asked(at, "move", "ses_live", "--timeout", "1")
    assert result.exit_code == 1
    assert result.stderr == "ses_live is still on runner-1; it moves when another runner has room\n"


def test_a_move_that_is_refused_is_a_sentence(at: Platform) -> None:
    at.refuse["POST /v1/sessions/ses_live/move"] = (409, "SLUICE/MOVING", "it moves already")
    result = asked(at, "move", "ses_live")
    assert (result.exit_code, result.stderr) == (2, "sluice: it moves already\n")


# --- drain


def test_a_drain_says_what_is_left_until_nothing_is(at: Platform) -> None:
    at.left = [3, 3, 1, 0]
    result = asked(at, "drain", "r0")
    assert result.stdout.splitlines() == [
        "r0: 3 sessions left",
        "r0: 1 session left",
        "r0 is empty and takes no session; `sluice drain r0 --cancel` ends that",
    ]
    assert at.drains == [("r0", False)] * 4


def test_a_runner_that_leaves_once_it_is_empty_was_drained(at: Platform) -> None:
    at.left = [1, None]
    result = asked(at, "drain", "r0")
    assert result.stdout.splitlines() == ["r0: 1 session left", "r0 has left"]
    assert result.exit_code == 0
    at.left = [None]
    result = asked(at, "drain", "r0")
    assert (result.exit_code, result.stderr) == (2, "sluice: there is no runner r0\n")


def test_a_drain_is_taken_back(at: Platform) -> None:
    assert asked(at, "drain", "r0", "--cancel").stdout == "r0 takes sessions again\n"
    assert at.drains == [("r0", True)]


def test_a_drain_that_takes_too_long_is_a_failure_and_goes_on(at: Platform) -> None:
    at.left = [2] * 1000
    result = asked(at, "drain", "r0", "--timeout", "1")
    assert result.exit_code == 1
    assert result.stderr == "r0 still has 2 sessions after 1 s; it goes on draining\n"


def test_who_may_not_drain_is_told_so(at: Platform) -> None:
    at.refuse["POST /v1/runners/r0/drain"] = (
        403,
        "SLUICE/NOT_AN_OPERATOR",
        "only an operator drains runners",
    )
    result = asked(at, "drain", "r0")
    assert (result.exit_code, result.stderr) == (2, "sluice: only an operator drains runners\n")


# --- watch


def test_without_a_terminal_a_session_is_said_again_when_it_changed() -> None:
    said: list[str] = []
    lines = watching.Lines(said.append)
    for rows in ([live()], [live(age_s=3726.0)], [live(phase="migrating")], [live(moves=[MOVE])], []):
        lines.show({"data": rows})
    assert [line.split("  ")[2] for line in said[:-1]] == ["live", "migrating", "live"]
    assert "drain " in said[2]
    assert said[-1] == "ses_live  gone"


class EnoughError(Exception):
    """The test has seen what it wanted."""


def test_watching_goes_on_over_a_server_that_is_away(at: Platform) -> None:
    seen: list[str] = []

    def show(answer: dict[str, Any]) -> None:
        seen.append(answer["data"][0]["phase"])
        if len(seen) > 2:
            raise EnoughError
        at.refuse["GET /v1/sessions"] = (503, "SLUICE/UNAVAILABLE", "restarting")

    def away(text: str) -> None:
        seen.append(text)
        at.refuse.clear()

    with pytest.raises(EnoughError):
        asyncio.run(watching.look(Access(at.url, KEY), show, away))
    assert seen == ["live", "no answer: restarting", "live"]


def test_watching_what_one_may_not_see_ends_with_a_sentence(at: Platform) -> None:
    at.refuse["GET /v1/sessions"] = (403, "SLUICE/NOT_AN_OPERATOR", "only an operator sees that")
    result = asked(at, "sessions", "--all", "--watch")
    assert (result.exit_code, result.stderr) == (2, "sluice: only an operator sees that\n")
