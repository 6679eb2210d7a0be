"""How a scenario is run by hand: `python -m tests.chaos.kill --trials 50`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from tests.chaos.harness.scene import Scene, scene
from tests.chaos.harness.summary import Summary


def run(scenario: Callable[[int], Summary], *, trials: int, doc: str) -> None:
    """Run it as often as was asked and print its line."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--trials", type=int, default=trials)
    sys.stdout.write(f"{scenario(parser.parse_args().trials).line()}\n")


def run_on(scenario: Callable[[Scene, int], Summary], *, trials: int, doc: str, **options: Any) -> None:
    """The same, of one that needs nothing but a platform, with these `options`."""

    def alone(asked: int) -> Summary:
        with scene(**options) as here:
            return scenario(here, asked)

    run(alone, trials=trials, doc=doc)
