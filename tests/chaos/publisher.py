"""A publisher is unplugged for 5 and for 25 s, and comes back through the same or another ingest process.

Meanwhile its viewers have to be told. The freeze is from the publisher's return, its process's start
included, to the next picture; the still that they see is none. The last one stays away: its slot is free soon
after the grace.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Final

import httpx

from tests.chaos.harness.failing import shown, told, watched
from tests.chaos.harness.history import view
from tests.chaos.harness.running import run
from tests.chaos.harness.scene import Scene, process_of, say, scene
from tests.chaos.harness.summary import Summary, Trial, summary
from tests.chaos.harness.viewer import Viewer
from tests.support.stack import until

BACK_S: Final = 15.0
AFTER_S: Final = 1.5
PATIENCE_S: Final = 3.0  # of a viewer, before it connects anew
GRACE_S: Final = 30
REPLICAS: Final = {"ingest": 1}


@dataclass(frozen=True, slots=True)
class Absence:
    """For how long, and which process it comes back to. `dies`: the one that had it is killed meanwhile."""

    seconds: float
    elsewhere: bool = False
    dies: bool = False

    def __str__(self) -> str:
        where = "another process" if self.elsewhere else "the same process"
        return f"{self.seconds:g} s, {where}{', the first one killed' if self.dies else ''}"


ABSENCES: Final = (
    Absence(5),
    Absence(25),
    Absence(5, elsewhere=True),
    Absence(25, elsewhere=True),
    Absence(5, elsewhere=True, dies=True),
)


def publisher(trials: int, absences: tuple[Absence, ...] = ABSENCES, grace_s: int = GRACE_S) -> Summary:
    with scene(runners=2, replicas=REPLICAS, **settings(grace_s)) as here:
        return away(here, absences, trials, grace_s)


def settings(grace_s: int) -> dict[str, str]:
    return {"SLUICE_INGEST_PUBLISHER_GRACE_S": str(grace_s)}


def away(here: Scene, absences: tuple[Absence, ...], trials: int, grace_s: int) -> Summary:
    done = [_absent(here, absence) for absence in islice(cycle(absences), trials)]
    freed_s = _stays_away(here, grace_s)
    return summary("publisher", done, here.books(), slot_free_after_grace_s=round(freed_s, 2))


def other(here: Scene, url: str) -> str:
    """The same URL at the other ingest process."""
    there = httpx.URL(url)
    return str(there.copy_with(port=here.stack.ports["HTTP"] + 1))


def _absent(here: Scene, absence: Absence) -> Trial:
    live = here.live()
    live.set_mark(7)
    time.sleep(AFTER_S)
    before, newest = live.record(), live.newest()
    assert newest is not None
    live.unplug()
    gone_s = time.monotonic()
    if absence.dies:
        here.stack.kill("ingest")
    time.sleep(absence.seconds)
    back_s = time.monotonic()
    live.publish(other(here, live.stream["publish_url"]) if absence.elsewhere else "")
    first = live.until_shown(
        lambda picture: True, since_s=back_s, within_s=PATIENCE_S if absence.elsewhere else BACK_S
    )
    if absence.elsewhere and (first is None or not live.viewer.connected):  # as a player does
        live.viewer.close()
        live.viewer = Viewer(other(here, live.stream["play_url"]), live.recording)
        first = live.until_shown(lambda picture: True, since_s=back_s, within_s=BACK_S)
    time.sleep(AFTER_S)
    trial = replace(watched(live, back_s), sound_s=0.0)
    after = live.record()
    same = (before.id, before.runner, before.slot, before.slot_epoch) == (
        after.id,
        after.runner,
        after.slot,
        after.slot_epoch,
    )
    if not absence.dies and not any(gone_s < at_s < back_s for at_s in live.recording.stills_s):
        trial = replace(trial, recovered=False, why="viewers were not told that the publisher is away")
    elif first is None or not same:
        trial = replace(trial, recovered=False, why=f"not the same session: {told(live)}")
    else:
        trial = replace(
            trial,
            seen=replace(view(live.recording.since(first.at_s)), freeze_s=first.at_s - back_s),
            params_kept=first.mark == live.mark,
            memory_kept=first.maker == newest.maker and first.carried > newest.carried,
        )
    here.retire(live)
    return shown(str(absence), trial)


def _stays_away(here: Scene, grace_s: int) -> float:
    live = here.live()
    runner = process_of(live.record().runner)
    live.unplug()
    gone_s = time.monotonic()

    def free() -> bool:
        return runner in {process_of(found) for found in here.stack.free_runners()}

    until(free, grace_s + 20, "the slot is free after the grace")
    late_s = time.monotonic() - gone_s - grace_s
    say(f"its slot was free {late_s:.1f} s after the grace")
    return late_s


if __name__ == "__main__":
    run(publisher, trials=len(ABSENCES), doc=__doc__)
