"""One world lived through, from its seed to its outcome."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from tests.sim.clock import SpinningError, VirtualLoop
from tests.sim.plan import Plan
from tests.sim.staging import staged
from tests.sim.world import Outcome, World


def live(seed: int, plan: Plan, trace: Callable[[str], None] | None = None) -> Outcome:
    """Live one world through, in this thread."""
    loop = VirtualLoop()
    worlds: list[World] = []
    shm = Path("/dev/shm")  # a disk that costs nothing
    directory = Path(tempfile.mkdtemp(prefix="sluice-sim-", dir=shm if shm.is_dir() else None))
    try:
        return loop.run_until_complete(_live(loop, seed, plan, directory, trace, worlds))
    except SpinningError as error:
        worlds[0].checks.violations.append(str(error))
        return worlds[0].outcome(seed, loop.steps)
    finally:
        loop.close()
        shutil.rmtree(directory)


async def _live(
    loop: VirtualLoop,
    seed: int,
    plan: Plan,
    directory: Path,
    trace: Callable[[str], None] | None,
    worlds: list[World],
) -> Outcome:
    world = World(seed, plan, directory, trace=trace)
    worlds.append(world)
    configuration = structlog.get_config()
    structlog.configure(processors=[world.log], cache_logger_on_first_use=False)
    async with AsyncExitStack() as stack:
        stack.callback(lambda: structlog.configure(**configuration))
        staged(world, stack)
        failed = asyncio.Event()

        def look() -> None:
            if world.checks.violations and not failed.is_set():
                failed.set()

        loop.after_step = look
        life = asyncio.ensure_future(world.run())
        first = asyncio.ensure_future(failed.wait())
        try:
            await asyncio.wait({life, first}, return_when=asyncio.FIRST_COMPLETED)
            if life.done():
                life.result()
            outcome = world.outcome(seed, loop.steps)
        finally:
            world.over = True
            for process in world.processes.values():
                if not process.dead:
                    process.kill()
            await loop.end()
    return outcome
