"""What `sluice --help` and the help of every command below it say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from sluice.cli import app

# With exit codes of their own, which scripts go by.
ENDINGS = {"transform", "pipeline run", "pipeline check"}


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


EVERY = dict(commands(get_command(app)))


def test_the_commands_are_there() -> None:
    assert set(EVERY) >= {
        *("transform", "publish", "play", "sessions", "runners", "usage", "latency", "trace", "stop"),
        *("move", "drain"),
        *("pipeline run", "pipeline new", "pipeline check", "models fetch", "models list"),
    }


@pytest.mark.parametrize("name", EVERY)
def test_a_command_and_each_of_its_options_is_explained(name: str) -> None:
    command = EVERY[name]
    assert command.help.strip().split("\n")[0].endswith(".")
    for option in command.params:
        if "--help" not in option.opts:
            assert option.help, f"{name} {option.opts}"


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_exit_codes_are_in_the_help(name: str) -> None:
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*name.split(), "--help"])
    assert shown.exit_code == 0
    assert "Exit codes: 0 " in shown.stdout
