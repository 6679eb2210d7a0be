"""The disk of NATS is full, then ingest's, where usage waits: streams go on, each second is billed once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.chaos.harness.running import run
from tests.chaos.harness.scene import FaultyStack, Scene, scene
from tests.chaos.harness.summary import Summary, summary
from tests.chaos.harness.unnoticed import unnoticed
from tests.support.disk import Disk, NotPermittedError, disks
from tests.support.stack import until

NAMES: Final = ("nats", "outbox")
WINDOW_S: Final = 2.0
FELT_S: Final = 20.0  # what fits into the last block, and a probe every five seconds
FULL_S: Final = 2 * WINDOW_S
OUTBOX: Final = "outbox.sqlite3"
# What SQLite's log has grown to it uses again: without that, the next window needs room.
TRIM: Final = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')"
REFUSED: Final = "sluice_outbox_not_stored_total"
STORING: Final = "sluice_nats_storing"
WRITERS: Final = ("router", "session-manager", "billing", "ingest")
SETTINGS: Final = {"SLUICE_INGEST_WINDOW_S": str(WINDOW_S)}


def disk_full(trials: int) -> Summary:
    with disks(*NAMES) as (cell, made):
        settings = {"ingest": told(made)}
        with scene(prepare=prepared(made), told=lambda _: settings, within=cell.words, **SETTINGS) as here:
            return filled(here, made, trials)


def told(made: Mapping[str, Disk]) -> Mapping[str, str]:
    """What ingest is told, so that its outbox is on its disk."""
    return {"outbox_path": str(made["outbox"].path / OUTBOX)}


def prepared(made: Mapping[str, Disk]) -> Callable[[Path], None]:
    """Have NATS find its disk where its store is to be."""

    def put_there(directory: Path) -> None:
        (directory / "state").mkdir()
        (directory / "state" / "nats").symlink_to(made["nats"].path)

    return put_there


def filled(here: Scene, made: Mapping[str, Disk], trials: int) -> Summary:
    live = here.live()
    done, back_s = [], []
    for number in range(trials):
        name = NAMES[number % len(NAMES)]

        def fault(full: Disk = made[name], name: str = name) -> None:
            refused = here.stack.metric("ingest", REFUSED)
            if name == "outbox":
                full.run(sys.executable, "-c", TRIM, str(full.path / OUTBOX))
            full.fill()
            try:
                until(lambda: _felt(here.stack, name, refused), FELT_S, f"{name} feels its full disk")
                time.sleep(FULL_S)
            finally:
                full.empty()
            if name == "nats":  # its streams stay broken until it starts again; a probe restarts it
                here.stack.kill("nats")

        trial, took_s = unnoticed(live, f"the disk of {name} is full", fault)
        done.append(trial)
        back_s.append(took_s)
    return summary("disk_full", done, here.books(), starts_back_max_s=round(max(back_s), 2))


def _felt(stack: FaultyStack, name: str, refused: float) -> bool:
    if name == "outbox":
        return stack.metric("ingest", REFUSED) > refused
    return not all(stack.metric(service, STORING) for service in WRITERS)


if __name__ == "__main__":
    try:
        run(disk_full, trials=2, doc=__doc__)
    except NotPermittedError as refusal:
        sys.exit(f"disk_full: {refusal}")
