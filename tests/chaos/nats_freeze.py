"""SIGSTOP of NATS for longer than any time-out: no live stream notices, nothing is granted twice after it."""

from __future__ import annotations

import signal
import time
from typing import Final

from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import PICK, Scene
from tests.chaos.harness.summary import Summary, summary
from tests.chaos.harness.unnoticed import unnoticed

FROZEN_S: Final = (6.0, 10.0)  # above the pings' three seconds


def nats_freeze(here: Scene, trials: int) -> Summary:
    live = here.live()
    done, back_s = [], []

    def fault() -> None:
        here.stack.signal_pod("nats", signal.SIGSTOP)
        try:
            time.sleep(PICK.uniform(*FROZEN_S))
        finally:
            here.stack.signal_pod("nats", signal.SIGCONT)

    for number in range(1, trials + 1):
        trial, took_s = unnoticed(live, f"nats frozen {number}", fault)
        done.append(trial)
        back_s.append(took_s)
    return summary("nats_freeze", done, here.books(), starts_back_max_s=round(max(back_s), 2))


if __name__ == "__main__":
    run_on(nats_freeze, trials=5, doc=__doc__)
