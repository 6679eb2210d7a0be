"""Router, session-manager, billing and NATS are killed in random order, under load.

No live stream notices; a start meanwhile works or is told clearly why not.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

from sluice.client import SluiceClient
from tests.chaos.harness.failing import shown, watched
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import PICK, FaultyStack, Live, Scene, say
from tests.chaos.harness.starts import Outcome, start
from tests.chaos.harness.summary import Summary, Trial, summary
from tests.chaos.harness.unnoticed import BACK_S, until_works

VICTIMS: Final = ("router", "session-manager", "billing", "nats")
WITHIN_S: Final = 12.0  # a start is live or refused
BETWEEN_S: Final = (0.0, 2.0)  # kills overlap: the next comes while the one before starts again


def control_plane(here: Scene, trials: int) -> Summary:
    live = here.live()
    done, starts = [], []
    for number in range(1, trials + 1):
        trial, tried = _round(here, live, number)
        done.append(trial)
        starts += tried
        if not trial.recovered:
            live = here.live()
    extra = {
        "starts": len(starts),
        "starts_live": sum(each.live for each in starts),
        "starts_refused": sum(each.clear and not each.live for each in starts),
        "starts_unclear": sum(not each.clear for each in starts),
    }
    return summary("control_plane", done, here.books(), **extra)


def _round(here: Scene, live: Live, number: int) -> tuple[Trial, list[Outcome]]:
    """Kill all four in some order while clients start streams."""
    live.until_steady()
    order = PICK.sample(VICTIMS, len(VICTIMS))
    began_s = time.monotonic()

    async def both() -> list[Outcome]:
        starting = asyncio.ensure_future(_starts(here.stack))
        for victim in order:
            await asyncio.to_thread(here.kill_again, victim)
            await asyncio.sleep(PICK.uniform(*BETWEEN_S))
        return await starting

    outcomes = asyncio.run(both())
    trial = watched(live, began_s)
    works = asyncio.run(until_works(here.stack, BACK_S))
    if not works:
        trial = replace(trial, recovered=False, why=f"no start works {BACK_S:g} s after")
    for each in outcomes:
        if not each.clear:
            say(f"unclear: {each}")
    return shown(f"{', '.join(order)}, {number}", trial), outcomes


async def _starts(stack: FaultyStack) -> list[Outcome]:
    """Three clients, a second apart."""

    async def one(after_s: float) -> Outcome:
        await asyncio.sleep(after_s)
        async with SluiceClient(stack.url, stack.key) as client, start(client, WITHIN_S) as outcome:
            return outcome

    return [*await asyncio.gather(*(one(after_s) for after_s in (0.5, 1.5, 2.5)))]


if __name__ == "__main__":
    run_on(control_plane, trials=10, doc=__doc__)
