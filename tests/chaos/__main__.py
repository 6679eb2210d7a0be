"""`python -m tests.chaos`: every scenario one after the other, a JSON line each; `--short`: a few trials.

A scenario that breaks off is said and does not keep the others from running; then the exit status is 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Final

from tests.chaos.harness.scene import say
from tests.support.stack import ROOT

# How many trials each has by itself, and where a few minutes are to do for all.
SCENARIOS: Final = {
    "kill": (50, 4),
    "engine": (20, 2),
    "freeze": (20, 2),
    "drain": (21, 3),
    "publisher": (5, 1),
    "control_plane": (10, 1),
    "nats_kill": (10, 1),
    "nats_freeze": (5, 1),
    "network": (10, 4),
    "disk_full": (2, 2),
    "clock": (6, 2),
    "breaker": (3, 1),
    "starts": (50, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--short", action="store_true")
    short = parser.parse_args().short
    broken = []
    for name, trials in SCENARIOS.items():
        say(f"--- {name}")
        # A process each, so that nothing of one is in the next.
        words = [sys.executable, "-m", f"tests.chaos.{name}", "--trials", str(trials[short])]
        if subprocess.run(words, cwd=ROOT, check=False).returncode:
            broken.append(name)
    if broken:
        sys.exit(f"broke off: {', '.join(broken)}")


if __name__ == "__main__":
    main()
