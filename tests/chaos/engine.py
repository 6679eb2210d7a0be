"""SIGKILL of the engine that has a stream, while its pod lives."""

from __future__ import annotations

from tests.chaos.harness.failing import RUNNERS, again, fail
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import Live, Scene
from tests.chaos.harness.summary import Summary, Trial, summary


def engine(here: Scene, trials: int) -> Summary:
    def once(live: Live, number: int) -> Trial:
        return fail(here, live, number, lambda host: here.stack.engine(host).kill())

    return summary("engine", again(here, "engine", trials, once), here.books())


if __name__ == "__main__":
    run_on(engine, trials=20, doc=__doc__, runners=RUNNERS)
