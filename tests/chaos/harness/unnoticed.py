"""A fault of the control plane that no live stream may notice, and how soon starts work behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from sluice.client import SluiceClient
from tests.chaos.harness.failing import shown, watched
from tests.chaos.harness.scene import FaultyStack, Live
from tests.chaos.harness.starts import start
from tests.chaos.harness.summary import Trial

BACK_S: Final = 25.0
ATTEMPT_S: Final = 8.0
AGAIN_S: Final = 0.3


def unnoticed(live: Live, what: str, fault: Callable[[], object]) -> tuple[Trial, float]:
    """Watch `live` during `fault`; the trial, and after how many seconds behind it a start was live."""
    live.until_steady()
    began_s = time.monotonic()
    fault()
    ended_s = time.monotonic()
    trial = watched(live, began_s)
    works = asyncio.run(until_works(live.stack, BACK_S))
    if not works:
        trial = replace(trial, recovered=False, why=f"no start works {BACK_S:g} s after")
    return shown(what, trial), time.monotonic() - ended_s


async def until_works(stack: FaultyStack, within_s: float) -> bool:
    """Try to start streams until one is live; whether one was."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        async with SluiceClient(stack.url, stack.key) as client, start(client, ATTEMPT_S) as outcome:
            if outcome.live:
                return True
        await asyncio.sleep(AGAIN_S)
    return False
