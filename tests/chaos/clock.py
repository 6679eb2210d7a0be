"""The wall clock of one process after the other jumps by five minutes, forth and back.

Nothing notices: leases, time-outs and bills go by clocks that do not jump.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from tests.chaos.harness.running import run
from tests.chaos.harness.scene import Scene, scene
from tests.chaos.harness.summary import Summary, summary
from tests.chaos.harness.unnoticed import unnoticed

SKEWED: Final = ("ingest", "session-manager", "router", "billing", "runner-0", "runner-1")
JUMP_S: Final = 300.0
LASTS_S: Final = 6.0  # above every lease


def clocks_in(directory: Path) -> dict[str, Path]:
    """A file for each process, that says that its clock is right."""
    files = {name: directory / name for name in SKEWED}
    for file in files.values():
        file.write_text("0")
    return files


def clock(trials: int) -> Summary:
    with tempfile.TemporaryDirectory(prefix="sluice-clocks-") as directory:
        files = clocks_in(Path(directory))
        with scene(runners=2, clocks=files) as here:
            return skewed(here, files, trials)


def skewed(here: Scene, files: Mapping[str, Path], trials: int) -> Summary:
    live = here.live()
    done = []
    for name in islice(cycle(SKEWED), trials):

        def fault(file: Path = files[name]) -> None:
            for jump_s in (JUMP_S, -JUMP_S, 0.0):
                file.write_text(str(jump_s))
                time.sleep(LASTS_S / 2)

        trial, _ = unnoticed(live, f"the clock of {name} jumps", fault)
        done.append(trial)
    moves = sum(len(each.record().moves) for each in here.lives)
    return summary("clock", done, here.books(), moves=moves)


if __name__ == "__main__":
    run(clock, trials=len(SKEWED), doc=__doc__)
