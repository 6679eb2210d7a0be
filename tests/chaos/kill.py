"""SIGKILL of the pod that has a stream, again and again; each time the stream goes on somewhere else."""

from __future__ import annotations

import signal

from tests.chaos.harness.failing import RUNNERS, again, fail
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import Live, Scene
from tests.chaos.harness.summary import Summary, Trial, summary


def kill(here: Scene, trials: int) -> Summary:
    def once(live: Live, number: int) -> Trial:
        return fail(here, live, number, lambda host: here.stack.signal_pod(host, signal.SIGKILL))

    return summary("kill", again(here, "kill", trials, once), here.books())


if __name__ == "__main__":
    run_on(kill, trials=50, doc=__doc__, runners=RUNNERS)
