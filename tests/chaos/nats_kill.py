"""SIGKILL of NATS, again and again: no live stream notices, and starts work again within seconds."""

from __future__ import annotations

import time
from typing import Final

from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import Scene
from tests.chaos.harness.summary import Summary, summary
from tests.chaos.harness.unnoticed import unnoticed

WATCHED_S: Final = 3.0


def nats_kill(here: Scene, trials: int) -> Summary:
    live = here.live()
    done, back_s = [], []

    def fault() -> None:
        here.kill_again("nats")
        time.sleep(WATCHED_S)

    for number in range(1, trials + 1):
        trial, took_s = unnoticed(live, f"nats killed {number}", fault)
        done.append(trial)
        back_s.append(took_s)
    return summary("nats_kill", done, here.books(), starts_back_max_s=round(max(back_s), 2))


if __name__ == "__main__":
    run_on(nats_kill, trials=10, doc=__doc__)
