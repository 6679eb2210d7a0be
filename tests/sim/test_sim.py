"""Short seeds of the simulated world, and the proof that it finds what is wrong.

Each test is a process of its own: there every clock, every dice and every hash is the seed's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.sim.planted import FOUND_BY, PLANTED

ROOT: Final = Path(__file__).parents[2]
SEEDS: Final = 10
MOST_S: Final = 280  # on a busy machine; alone it is a tenth of that
pytestmark = pytest.mark.timeout(300)

# Without these the seeds would prove little: what was done to the world, and what it did about it.
REACHED: Final = (
    "NATS did it and the answer was lost",
    "a call was carried out and nobody heard",
    "a connection to NATS broke",
    "a session ended: no_capacity",
    "a session ended: stopped",
    "a session moved: asked",
    "a session was adopted",
    "a watch lagged",
    "a watcher went stale",
    "a wall clock jumped",
    "parameters were changed",
)


def worlds(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sim", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=MOST_S, check=False)


# Drawn evils seldom take a session's ingest and its runner in one stroke: what follows is judged here.
REACHED_BY_KILLS: Final = (
    "a session moved: runner_lost",
    "a session was adopted",
    "a session went on at another ingest",
    "an ingest died under its publisher",
    "ingest was killed",
)


@pytest.mark.parametrize(
    ("evils", "reached"), [("", REACHED), ("kill", REACHED_BY_KILLS)], ids=["drawn", "kills"]
)
def test_nothing_is_given_twice_lost_or_billed_wrongly_whatever_fails(
    evils: str, reached: tuple[str, ...]
) -> None:
    done = worlds("--seeds", str(SEEDS), "--only", evils)
    assert done.returncode == 0, done.stdout + done.stderr
    summary, *counted = done.stdout.splitlines()
    assert json.loads(summary)["seeds"] == SEEDS
    met = {line.split(maxsplit=1)[1] for line in counted}
    assert met.issuperset(reached), set(reached) - met


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_planted_bug_is_found(bug: str) -> None:
    evils, seeds = FOUND_BY[bug]
    done = worlds("--seeds", str(seeds), "--plant", bug, "--only", evils)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "VIOLATED" in done.stdout
    assert "python -m tests.sim --seed" in done.stdout


def test_a_seed_means_the_same_world_each_time() -> None:
    first, second = (history(worlds("--seed", "3", "--trace").stdout) for _ in range(2))
    assert first == second
    assert len(first) > 100


def history(told: str) -> list[str]:
    """All of it but the summary, which says how long it took."""
    return [line for line in told.splitlines() if not line.startswith("{")]
