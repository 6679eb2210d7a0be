"""One fault, and what the viewer of a stream saw of it.

The rule it keeps: what was there before the fault is noted before it, so that nothing is judged by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import grpc

from services.session_manager.failover import BREAKER
from tests.chaos.harness.history import Shown
from tests.chaos.harness.scene import PICK, Live, Scene, say
from tests.chaos.harness.summary import Trial

RUNNERS: Final = 4  # two with a stream, one spare, one that starts again
GIVE_UP_S: Final = 15.0
AFTER_S: Final = 1.0  # how long it must flow again
REST_S: Final = 10.0  # of output, with AFTER_S above what makes a stream no breaker of runners
FLOWING_S: Final = 0.5  # since the newest picture, of a stream that flows


def again(
    scene: Scene, what: str, trials: int, once: Callable[[Live, int], Trial], *, streams: int = 2
) -> list[Trial]:
    """So many trials, with streams in turns: one that breaks runner after runner is rightly stopped."""
    lives = [scene.live() for _ in range(streams)]
    rested_s = [0.0] * streams
    rest_s = REST_S if trials > streams * (BREAKER - 1) else 0.0
    done: list[Trial] = []
    for number in range(1, trials + 1):
        turn = number % streams
        time.sleep(max(0.0, rested_s[turn] - time.monotonic()))
        trial = once(lives[turn], number)
        done.append(shown(f"{what} {number}", trial))
        rested_s[turn] = time.monotonic() + rest_s
        if not trial.recovered:
            scene.retire(lives[turn])
            lives[turn] = scene.live()
    return done


def fail(scene: Scene, live: Live, number: int, break_it: Callable[[str], object]) -> Trial:
    """Let `break_it` break the process that has the session; it is to go on in another engine."""
    scene.until_spare()
    live.set_mark(number % 256)
    time.sleep(PICK.random())  # at any place within a group of pictures
    host, newest = live.host(), live.newest()
    assert newest is not None
    broken_s = time.monotonic()
    break_it(host)
    first = live.until_shown(lambda shown: shown.maker != newest.maker, since_s=broken_s, within_s=GIVE_UP_S)
    if first is None:
        why = f"no picture of another engine within {GIVE_UP_S:g} s: {told(live)}"
        return Trial(recovered=False, connected=live.connected, why=why)
    time.sleep(AFTER_S)
    trial = watched(live, broken_s)
    after = [shown for shown in live.recording.since(first.at_s) if shown.maker != newest.maker]
    return replace(
        trial,
        params_kept=all(shown.mark == live.mark for shown in after),
        memory_kept=first.carried > 1,
    )


def watched(live: Live, from_s: float) -> Trial:
    """What was seen since then; recovered if pictures flow now."""
    now_s = time.monotonic()
    newest: Shown | None = live.newest()
    flows = newest is not None and now_s - newest.at_s < FLOWING_S
    return Trial(
        recovered=flows,
        seen=live.seen(from_s, now_s),
        sound_s=live.silence_s(from_s, now_s),
        connected=live.connected,
        why="" if flows else f"nothing flows: {told(live)}",
    )


def told(live: Live) -> str:
    """What the platform says of the session, for the log."""
    try:
        record = live.record()
    except grpc.RpcError as error:
        return f"no answer, {error}"
    return f"phase {record.phase}, {record.end_reason} {record.end_message}, at {record.runner}"


def shown(what: str, trial: Trial) -> Trial:
    """The same trial, told on the way."""
    seen = trial.seen
    parts = [f"freeze {seen.freeze_s:.2f} s", f"lost {seen.lost}", f"repeated {seen.repeated}"]
    parts.append(f"sound {trial.sound_s:.2f} s")
    if not trial.recovered:
        parts.append(f"NOT RECOVERED: {trial.why}")
    if not trial.connected:
        parts.append("DISCONNECTED")
    if not trial.params_kept:
        parts.append("PARAMETERS LOST")
    if not trial.memory_kept:
        parts.append("memory lost")
    if seen.zombies:
        parts.append(f"{seen.zombies} ZOMBIE FRAMES")
    say(f"{what}: {', '.join(parts)}")
    return trial
