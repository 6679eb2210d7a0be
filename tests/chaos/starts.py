"""A hundred starts at once for a few slots: as many as there are slots go live, the others are told clearly.

None of the others costs anything.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from sluice.client import SluiceClient
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import FaultyStack, Scene, say
from tests.chaos.harness.starts import Outcome, start
from tests.chaos.harness.summary import Summary, Trial, summary
from tests.support.stack import until

AT_ONCE: Final = 100
LIMITS: Final = {"SLUICE_INGEST_MAX_STREAMS_PER_TENANT": str(2 * AT_ONCE)}  # all are one tenant's
WITHIN_S: Final = 30.0
LOOK_S: Final = 1.0  # each; a hundred clients that look more often are a load of their own
BILLED_S: Final = 1.0


def starts(here: Scene, trials: int, at_once: int = AT_ONCE) -> Summary:
    """A trial is good where exactly as many went live as there are slots and all others were refused."""
    done, live, refused, unclear, slowest_s = [], 0, 0, 0, 0.0
    slots = here.stack.runners
    charged: set[str] = set()
    ever_live = _charged(here.stack)  # others, before
    for number in range(1, trials + 1):
        until(lambda: len(here.stack.free_runners()) == slots, 30, "every slot is free")
        outcomes = asyncio.run(_rush(here.stack, at_once))
        went_live = [each.session for each in outcomes if each.live]
        ever_live |= {*went_live}
        charged |= _charged(here.stack) - ever_live
        live += len(went_live)
        refused += sum(each.clear and not each.live for each in outcomes)
        unclear += sum(not each.clear for each in outcomes)
        slowest_s = max(slowest_s, *(each.took_s for each in outcomes))
        good = len(went_live) == slots and all(each.clear for each in outcomes)
        why = "" if good else f"{len(went_live)} live of {slots}"
        say(f"starts {number}: {len(went_live)} live, {len(outcomes) - len(went_live)} not {why}")
        for each in {(each.status, each.code) for each in outcomes if not each.clear}:
            say(f"unclear: {each}")
        done.append(Trial(recovered=good, why=why))
    extra = {
        "at_once": at_once,
        "slots": slots,
        "live": live,
        "refused": refused,
        "unclear": unclear,
        "charged_without_slot": len(charged),
        "answered_max_s": round(slowest_s, 2),
    }
    return summary("starts", done, here.books(), **extra)


async def _rush(stack: FaultyStack, at_once: int) -> list[Outcome]:
    """All at once; those that went live stay until every one has its answer."""
    answered = asyncio.Event()
    outcomes: list[Outcome] = []

    async def one(client: SluiceClient) -> None:
        async with start(client, WITHIN_S, look_s=LOOK_S) as outcome:
            outcomes.append(outcome)
            if len(outcomes) == at_once:
                answered.set()
            await answered.wait()

    async with SluiceClient(stack.url, stack.key) as client, asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(one(client))
    return outcomes


def _charged(stack: FaultyStack) -> set[str]:
    """The sessions that cost something."""
    time.sleep(BILLED_S)
    lines = stack.request("GET", "/v1/usage", params={"limit": 1000})["data"]
    return {line["session"] for line in lines if line["cost_micro"]}


if __name__ == "__main__":
    run_on(starts, trials=50, doc=__doc__, **LIMITS)
