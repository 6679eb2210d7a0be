"""A supervisor for one machine: starts processes, prefixes what they say, restarts what dies, stops all.

Every process has a session of its own, so that Ctrl-C reaches only the supervisor, and it dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

LINE_BYTES: Final = 1 << 20
BACKOFF_S: Final = (0.2, 5.0)  # before a restart: the first, and the longest after doubling
HEALTHY_AFTER_S: Final = 60.0  # a process that ran for so long starts over with the shortest back-off
PR_SET_PDEATHSIG: Final = 1
COLOURS: Final = (36, 32, 33, 35, 34, 96, 92, 93)
LIBC: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, under which name its lines appear. `ending`: the signal at which it leaves."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    ending: signal.Signals = signal.SIGTERM


class Supervisor:
    """Owns every child. `say` prints a line of its own."""

    def __init__(self, stop_within_s: float) -> None:
        self._stop_within_s = stop_within_s
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._order: list[Program] = []
        self._stopping = asyncio.Event()
        self._coloured = sys.stdout.isatty()

    def say(self, text: str, name: str = "sluice") -> None:
        label = f"{name:<16}"
        if self._coloured:
            colour = COLOURS[sum(name.encode()) % len(COLOURS)]
            label = f"\033[{colour}m{label}\033[0m"
        sys.stdout.write(f"{label} {text}\n")
        sys.stdout.flush()

    async def keep(self, program: Program, group: asyncio.TaskGroup) -> None:
        """Start `program` and keep it running until the block ends."""
        self._order.append(program)
        child = await self._spawn(program)
        group.create_task(self._keep(program, child), name=program.name)

    async def _keep(self, program: Program, child: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        wait_s = BACKOFF_S[0]
        while True:
            started_s = loop.time()
            await self._relay(program.name, child)
            status = await child.wait()
            if self._stopping.is_set():
                return
            if loop.time() - started_s > HEALTHY_AFTER_S:
                wait_s = BACKOFF_S[0]
            self.say(f"{program.name} {died(status)}; starting it again in {wait_s:g} s")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopping.wait()
                    return
            wait_s = min(wait_s * 2, BACKOFF_S[1])
            child = await self._spawn(program)

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            *program.command,
            env={**os.environ, **program.environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_BYTES,
            start_new_session=True,
            preexec_fn=partial(_die_with_parent, program.ending),
        )
        self._children[program.name] = child
        if self._stopping.is_set():
            _signal_group(child, signal.SIGKILL)
        return child

    async def _relay(self, name: str, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        while True:
            try:
                line = await child.stdout.readline()
            except ValueError:  # a line beyond the limit; what is left of it comes as lines of its own
                continue
            if not line:
                return
            self.say(line.decode(errors="replace").rstrip(), name)

    async def stop(self) -> None:
        """End every child, the last started first; one that does not end in time is killed."""
        self._stopping.set()
        for program in reversed(self._order):
            name, child = program.name, self._children.get(program.name)
            if child is None or child.returncode is not None:
                continue
            _signal_group(child, program.ending)
            try:
                async with asyncio.timeout(self._stop_within_s):
                    await child.wait()
            except TimeoutError:
                self.say(f"{name} did not end within {self._stop_within_s:g} s; killed")
            _signal_group(child, signal.SIGKILL)  # also whatever it left behind


def died(status: int) -> str:
    """What an exit status means to a person."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def _signal_group(child: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _die_with_parent(number: signal.Signals) -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, number)


@asynccontextmanager
async def supervised(stop_within_s: float) -> AsyncIterator[tuple[Supervisor, asyncio.TaskGroup]]:
    """The supervisor as a block: when it ends, for whatever reason, no child is left."""
    supervisor = Supervisor(stop_within_s)
    async with asyncio.TaskGroup() as group:
        try:
            yield supervisor, group
        finally:
            await asyncio.shield(supervisor.stop())
