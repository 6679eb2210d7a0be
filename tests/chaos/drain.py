"""A stream is moved back and forth, make-before-break: by hand, by a drain, by SIGTERM of its runner."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import grpc

from protos.sessions.v1 import sessions_pb2
from tests.chaos.harness.failing import FLOWING_S, shown, told, watched
from tests.chaos.harness.passed import Seams, seams
from tests.chaos.harness.running import run_on
from tests.chaos.harness.scene import PICK, Live, Scene, process_of
from tests.chaos.harness.summary import Summary, Trial, summary

MOVED_S: Final = 20.0
AFTER_S: Final = 1.0


def drain(here: Scene, trials: int) -> Summary:
    ways: tuple[Callable[[Scene, Live, str], None], ...] = (_moved, _drained, _terminated)
    live = here.live()
    done, moves, passed, steady_lost = [], list[sessions_pb2.Move](), list[Seams](), 0
    for number in range(1, trials + 1):
        way = ways[number % len(ways)]
        here.until_spare()
        live.set_mark(number % 256)
        live.until_steady()
        time.sleep(AFTER_S + PICK.random())
        before = live.record()
        asked_s = time.monotonic()
        steady_lost += live.seen(asked_s - AFTER_S, asked_s).lost  # so much the machine loses anyway
        way(here, live, before.runner)
        done.append(shown(f"{way.__name__.strip('_')} {number}", _seam(live, asked_s, before)))
        moves += live.record().moves[-1:]
        passed.append(seams([one for one in live.passed() if one.at_s >= asked_s]))
        if way is _drained:
            path = f"/v1/runners/{before.runner}/drain"
            here.stack.request("POST", path, json={"cancel": True})
        if not done[-1].recovered:
            live = here.live()
    extra = {
        "steady_frames_lost": steady_lost,
        "not_returned": sum(move.lost for move in moves),  # by the runner that was left, at a seam
        "runners_dropped": sum(each.dropped for each in passed),
        "platform_lost": sum(each.lost for each in passed),
        "platform_repeated": sum(each.repeated for each in passed),
    }
    return summary("drain", done, here.books(), **extra)


def _moved(here: Scene, live: Live, runner: str) -> None:
    here.stack.request("POST", f"/v1/sessions/{live.session}/move", 202)


def _drained(here: Scene, live: Live, runner: str) -> None:
    here.stack.request("POST", f"/v1/runners/{runner}/drain", json={"cancel": False})


def _terminated(here: Scene, live: Live, runner: str) -> None:
    here.stack.processes()[process_of(runner)].send_signal(signal.SIGTERM)


def _seam(live: Live, asked_s: float, before: sessions_pb2.Session) -> Trial:
    """Wait until the session is elsewhere, and a while longer."""
    give_up_s = time.monotonic() + MOVED_S
    record = before
    while record.epoch == before.epoch or record.HasField("next"):
        if time.monotonic() > give_up_s:
            return replace(watched(live, asked_s), recovered=False, why=f"it did not move: {told(live)}")
        time.sleep(0.05)
        with contextlib.suppress(grpc.RpcError):
            record = live.record()
    time.sleep(AFTER_S)
    trial = watched(live, asked_s)
    newest = live.newest()
    assert newest is not None
    return replace(
        trial,
        recovered=trial.recovered and len(trial.seen.makers) > 1,
        params_kept=newest.mark == live.mark,
        memory_kept=newest.carried > AFTER_S / FLOWING_S,
    )


if __name__ == "__main__":
    run_on(drain, trials=21, doc=__doc__)
