"""A stream that kills every engine it meets is stopped with the reason, and the fleet is there for others.

Each trial is one such stream, beside one that does no harm and is not to notice.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import httpx

from tests.chaos.harness import publisher
from tests.chaos.harness.failing import shown, watched
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import PIPELINE, Live, Scene, say
from tests.chaos.harness.summary import Summary, Trial, summary
from tests.support.stack import until

STOPPED_S: Final = 90.0
FREE_S: Final = 40.0


def breaker(here: Scene, trials: int) -> Summary:
    live = here.live()
    done, reasons, stopped_s = [], [], []
    for number in range(1, trials + 1):
        began_s = time.monotonic()
        reason = _fatal(here, began_s)
        stopped_s.append(time.monotonic() - began_s)
        reasons.append(reason)
        trial = watched(live, began_s)
        done.append(shown(f"breaker {number}, {reason}", _free(here, live, trial)))
    extra = {"reasons": sorted(set(reasons)), "stopped_max_s": round(max(stopped_s), 1)}
    return summary("breaker", done, here.books(), **extra)


def _fatal(here: Scene, began_s: float) -> str:
    """Publish a stream that kills its engine with the first picture; why it ended."""
    body = {"pipeline": PIPELINE, "params": {"fatal": 1}}
    stream = here.stack.request("POST", "/v1/streams", 201, json=body)
    log = here.stack.directory / "fatal.log"
    process = publisher.start(stream["publish_url"], log, begun_s=began_s)

    def ended() -> str | None:
        found = here.stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
        if not found:
            return None
        record = here.stack.session(found)
        return str(record["end_reason"]) if record["end_reason"] else None

    try:
        return until(ended, STOPPED_S, "the stream that kills engines was stopped")
    finally:
        process.kill()
        process.wait(20)
        try:
            here.stack.http.delete(f"/v1/streams/{stream['id']}")
        except httpx.HTTPError as error:
            say(f"not deleted: {error}")


def _free(here: Scene, live: Live, trial: Trial) -> Trial:
    """The same trial; not recovered where the fleet is not whole again soon."""

    def whole() -> bool:
        return len(here.stack.free_runners()) >= here.stack.runners - len(here.lives)

    try:
        until(whole, FREE_S, "every other runner is free again")
    except AssertionError as error:
        return replace(trial, recovered=False, why=str(error))
    return trial


if __name__ == "__main__":
    run_on(breaker, trials=3, doc=__doc__)
