"""SIGSTOP of the pod that has a stream; woken later, it shows no picture and bills nothing."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from typing import Final

from tests.chaos.harness.failing import RUNNERS, again, fail, watched
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import Live, Scene
from tests.chaos.harness.summary import Summary, Trial, summary

AWAKE_S: Final = 2.0  # for a zombie to do what it would


def freeze(here: Scene, trials: int) -> Summary:
    def once(live: Live, number: int) -> Trial:
        return _frozen(here, live, number)

    return summary("freeze", again(here, "freeze", trials, once), here.books())


def _frozen(here: Scene, live: Live, number: int) -> Trial:
    began_s = time.monotonic()
    stopped: list[str] = []

    def stop(host: str) -> None:
        stopped.append(host)
        here.stack.signal_pod(host, signal.SIGSTOP)

    try:
        trial = fail(here, live, number, stop)
    finally:
        for host in stopped:
            here.stack.signal_pod(host, signal.SIGCONT)
    time.sleep(AWAKE_S)
    if not trial.recovered:
        return trial
    return replace(trial, seen=replace(trial.seen, zombies=watched(live, began_s).seen.zombies))


if __name__ == "__main__":
    run_on(freeze, trials=20, doc=__doc__, runners=RUNNERS)
