"""Small file systems in memory that can be made as full as a test wants, without root.

They are mounted in namespaces of a process of our own, which whoever is to see them enters. The rule it
keeps: nothing of it is mounted where others could see it, and all of it is gone with that process.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

# NATS wants to see what its streams may need; a file system in memory takes what it holds.
ROOM: Final = "16g"
RUN_S: Final = 20.0
ATTEMPTS: Final = 50  # to catch a moment in which nobody writes
WAYS: Final = (("--user", "--map-root-user", "--mount"), ("--mount",))  # the second one needs root


class NotPermittedError(Exception):
    """The kernel lets us mount nothing, not even for ourselves."""


class Cell:
    """A shell in namespaces of its own. `words` before a command have it run there too."""

    def __init__(self, way: Sequence[str]) -> None:
        self._shell = subprocess.Popen(
            ["unshare", *way, "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        user = ("--user", "--preserve-credentials") if "--user" in way else ()
        self.words = ("nsenter", "--target", str(self._shell.pid), *user, "--mount", "--")

    def root(self, path: Path) -> Path:
        """How `path` in there is reached from outside."""
        return Path(f"/proc/{self._shell.pid}/root{path}")

    def run(self, command: str) -> None:
        """Raises OSError with what the command said."""
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        with suppress(BrokenPipeError):  # it has ended, and said why
            self._shell.stdin.write(f'{command}; echo "status $?"\n')
            self._shell.stdin.flush()
        said = ""
        for line in self._shell.stdout:
            if line.startswith("status "):
                if line.split()[1] == "0":
                    return
                break
            said += line
        raise OSError(said.strip() or "the shell ended")

    def close(self) -> None:
        self._shell.kill()
        self._shell.communicate()


class Disk:
    """A file system that can be made as small as what it holds. `path` is where it is in the cell."""

    def __init__(self, cell: Cell, path: Path) -> None:
        self.path = path
        self._cell = cell

    @property
    def outside(self) -> Path:
        """Where it is seen from outside its cell; not for programs that resolve links, as SQLite does."""
        return self._cell.root(self.path)

    def fill(self) -> None:
        """Leave no room: it shrinks to what is used."""
        there = self.outside
        assert any(there.iterdir()), "nobody writes there, so nobody would notice"
        for _ in range(ATTEMPTS):
            usage = os.statvfs(there)
            try:
                self._resize(str((usage.f_blocks - usage.f_bfree) * usage.f_frsize))
            except OSError:
                continue  # more is used by now
            if os.statvfs(there).f_bavail == 0:
                return
        raise AssertionError("the fault was not reached")

    def empty(self) -> None:
        self._resize(ROOM)

    def run(self, *command: str) -> None:
        """Run a command to its end where the disk is seen."""
        subprocess.run([*self._cell.words, *command], check=True, timeout=RUN_S, capture_output=True)

    def _resize(self, size: str) -> None:
        self._cell.run(f"mount -o remount,size={size} tmpfs {self.path}")


@contextmanager
def disks(*names: str) -> Iterator[tuple[Cell, dict[str, Disk]]]:
    """So many disks, and where they are. Raises NotPermittedError where no way leads there."""
    with ExitStack() as stack:
        cell = _cell(stack)
        made: dict[str, Disk] = {}
        for name in names:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-disk-")))
            try:
                cell.run(f"mount -t tmpfs -o size={ROOM} tmpfs {path}")
            except OSError as error:
                raise NotPermittedError(str(error)) from error
            made[name] = Disk(cell, path)
        yield cell, made


def _cell(stack: ExitStack) -> Cell:
    refusals: list[str] = []
    for way in WAYS:
        cell = Cell(way)
        stack.callback(cell.close)
        try:
            cell.run("true")
        except OSError as error:
            refusals.append(str(error))
        else:
            return cell
    raise NotPermittedError("; ".join(refusals))
