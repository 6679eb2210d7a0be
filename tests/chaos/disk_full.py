"""The disk of NATS is full, then ingest's, where usage waits: streams go on, and every second is billed once.

Both are small file systems in memory of their own, so that this needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.chaos.harness.running import run
from tests.chaos.harness.scene import Scene, scene
from tests.chaos.harness.summary import Summary, summary
from tests.chaos.harness.unnoticed import unnoticed

FULL_S: Final = 12.0  # above two windows of usage
ROOM: Final = (
    "16g"  # NATS wants to see what its streams may need; a file system in memory takes what it holds
)


class NotPermittedError(Exception):
    """This machine lets us mount nothing."""


class Disk:
    """A file system in memory that can be made as small as what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room: it shrinks to what is used."""
        usage = os.statvfs(self.path)
        self._resize(str((usage.f_blocks - usage.f_bfree) * usage.f_frsize))
        assert os.statvfs(self.path).f_bavail == 0, "the fault was not reached"

    def empty(self) -> None:
        self._resize(ROOM)

    def _resize(self, size: str) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self.path))


@contextmanager
def disk() -> Iterator[Disk]:
    """A disk of our own. Raises NotPermittedError where that is not allowed."""
    if os.geteuid() != 0:
        raise NotPermittedError("a file system of our own needs root")
    with tempfile.TemporaryDirectory(prefix="sluice-disk-") as directory:
        _run("mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", directory)
        try:
            yield Disk(Path(directory))
        finally:
            _run("umount", "-l", directory)


def _run(program: str, *words: str) -> None:
    path = shutil.which(program)
    if path is None:
        raise NotPermittedError(f"there is no {program}")
    done = subprocess.run([path, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPermittedError(done.stderr.strip())


def disk_full(trials: int) -> Summary:
    with disk() as broker, disk() as outbox:
        settings = {"ingest": {"outbox_path": str(outbox.path / "outbox.sqlite3")}}

        def put_there(directory: Path) -> None:
            (directory / "state").mkdir()
            (directory / "state" / "nats").symlink_to(broker.path)

        with scene(prepare=put_there, told=lambda _: settings) as here:
            return _filled(here, {"nats": broker, "outbox": outbox}, trials)


def _filled(here: Scene, disks: dict[str, Disk], trials: int) -> Summary:
    live = here.live()
    done, back_s = [], []
    for number in range(trials):
        name = [*disks][number % len(disks)]

        def fault(full: Disk = disks[name], name: str = name) -> None:
            full.fill()
            try:
                time.sleep(FULL_S)
            finally:
                full.empty()
            if name == "nats":  # its streams stay broken until it starts again; a probe restarts it
                here.stack.kill("nats")

        trial, took_s = unnoticed(live, f"the disk of {name} is full", fault)
        done.append(trial)
        back_s.append(took_s)
    return summary("disk_full", done, here.books(), starts_back_max_s=round(max(back_s), 2))


if __name__ == "__main__":
    try:
        run(disk_full, trials=2, doc=__doc__)
    except NotPermittedError as refusal:
        sys.exit(f"disk_full: {refusal}")
