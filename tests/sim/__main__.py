"""`python -m tests.sim`: many worlds, or one seed again with its whole history."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from contextlib import nullcontext

HASH_SEED = "PYTHONHASHSEED"

if __name__ == "__main__" and os.environ.get(HASH_SEED) != "0":
    # Sets of text are walked in the order of their hashes: a seed must mean the same world everywhere.
    os.execve(
        sys.executable, [sys.executable, "-m", "tests.sim", *sys.argv[1:]], {**os.environ, HASH_SEED: "0"}
    )

from tests.sim import chance, clock  # noqa: E402 - after the hashes are settled

clock.take_over()
chance.take_over()

from tests.sim.living import live  # noqa: E402 - after the clocks are ours
from tests.sim.plan import Plan  # noqa: E402
from tests.sim.planted import PLANTED  # noqa: E402
from tests.sim.world import Outcome  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many worlds")
    parser.add_argument("--seed", type=int, default=None, help="this one only")
    parser.add_argument("--first", type=int, default=1, help="where to begin to count")
    parser.add_argument("--trace", action="store_true", help="tell everything")
    parser.add_argument("--only", default="", help="evils, comma-separated, in place of drawn ones")
    parser.add_argument("--keep-going", action="store_true", help="go on after a seed that fails")
    parser.add_argument("--plant", choices=sorted(PLANTED), help="with this bug, which is to be found")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    evils = tuple(filter(None, arguments.only.split(",")))
    gc.disable()
    met: dict[str, int] = {}
    failed: list[int] = []
    freezes: list[tuple[str, int]] = []
    started_s, steps, sessions = time.perf_counter(), 0, 0
    for seed in seeds:
        with PLANTED[arguments.plant]() if arguments.plant else nullcontext():
            outcome = live(seed, Plan.drawn(seed, evils), say if arguments.trace else None)
        if arguments.seeds > 1:
            sys.stderr.write(f"{seed} ")
            sys.stderr.flush()
        steps += outcome.steps
        freezes += outcome.freezes
        sessions += outcome.sessions
        for what, times in outcome.met.items():
            met[what] = met.get(what, 0) + times
        if outcome.violations:
            failed.append(seed)
            tell(outcome, history=not arguments.keep_going)
            if not arguments.keep_going:
                return 1
        gc.collect()
    summary = {
        "name": "sim",
        "seeds": len(seeds),
        "sessions": sessions,
        "steps": steps,
        "failed": failed,
        "freeze_ms": {why: quantiles([ms for word, ms in freezes if word == why]) for why in whys(freezes)},
        "seconds": round(time.perf_counter() - started_s, 1),
    }
    say(json.dumps(summary))
    for what, times in sorted(met.items()):
        say(f"{times:6}  {what}")
    return 1 if failed else 0


def say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def whys(freezes: list[tuple[str, int]]) -> list[str]:
    return sorted({why for why, _ in freezes})


def quantiles(values: list[int]) -> dict[str, int]:
    """What was usual, and the worst, of so many."""
    ordered = sorted(values)
    return {"trials": len(ordered), "p50": ordered[len(ordered) // 2], "max": ordered[-1]}


def tell(outcome: Outcome, *, history: bool) -> None:
    """What went wrong, after what, and how to see it again."""
    if history:
        say(*outcome.last)
    for violation in outcome.violations:
        say(f"VIOLATED  {violation}")
    say(f"seed {outcome.seed} fails: python -m tests.sim --seed {outcome.seed} --trace")


if __name__ == "__main__":
    sys.exit(main())
