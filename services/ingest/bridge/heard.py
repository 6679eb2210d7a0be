"""What a session's runner has said: how it is, and what became of each revision of the parameters. Pure.

The rule it keeps: of a state the newest is kept, of happenings the last few, and a flood is counted instead.
Times are passed in.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client import Counter

from services.ingest.allowance import Allowance
from services.ingest.bridge.events import (
    APPLIES,
    DONE,
    Applied,
    Health,
    Loading,
    Moved,
    Problem,
    Refused,
)

UNHEARD: Final = Counter(
    "sluice_runner_events_unheard_total",
    "Events of runners that were not passed on because there were too many, by kind.",
    ["kind"],
)
EVENTS_PER_S: Final = 20.0  # of a type; revisions that are in a picture are as many as there were changes
REVISIONS: Final = 256  # whose fate is known; who asks for one asks within seconds
NEWS: Final = 256  # for those who follow; who is so many behind misses the oldest
PROBLEMS: Final = 10
READY: Final = frozenset({"idle", "online", "error"})  # in these states nothing loads
LOADS: Final = frozenset({"load", "prepare"})  # the stages of a problem that ends a loading

Said: TypeAlias = Applied | Refused | Loading | Problem | Health
News: TypeAlias = Said | Moved
BESIDE: Final = "warm"  # why a pipeline loads that shows pictures meanwhile
PROGRESS_S: Final = 25.0  # a runner that loads says so every ten seconds


@dataclass(frozen=True, slots=True)
class Happened:
    """A problem, and when it was said: milliseconds since 1970."""

    problem: Problem
    unix_ms: int


class Heard:
    """Of one runner, over one session. One event loop owns it."""

    def __init__(self, now_s: float, unix_ms: Callable[[], int]) -> None:
        self.applied_revision = 0  # the newest that a picture had
        self.applied_pts = 0
        self.loading: Loading | None = None  # while it loads
        self._progress_s: float | None = None  # when it last said so
        self.health: Health | None = None
        self.health_unix_ms = 0  # since when
        self.problems: deque[Happened] = deque(maxlen=PROBLEMS)
        self.restart_count = 0  # of its engine
        self.restarted_unix_ms: int | None = None
        self.count = 0  # of all news, for those who follow
        self._unix_ms = unix_ms
        kinds: tuple[type[Said], ...] = (Refused, Loading, Problem, Health)
        self._allowances = {kind: Allowance(EVENTS_PER_S, now_s) for kind in kinds}
        self._news: deque[News] = deque(maxlen=NEWS)
        self._applied: OrderedDict[int, Applied] = OrderedDict()
        self._refused: OrderedDict[int, Refused] = OrderedDict()
        self._newest: dict[str, Applied] = {}  # by way: of those that took it or a slower one
        self._late: dict[type[News], Loading | Health] = {}

    def take(self, event: Said, now_s: float) -> bool:
        """Take in what was said; False if it was too much, and is passed on later or not at all."""
        if isinstance(event, Loading):
            self._progress_s = now_s
        if not isinstance(event, Applied) and not self._allowances[type(event)].take(now_s):
            if isinstance(event, Loading | Health):  # a state: the newest is the one that counts
                if self._late.pop(type(event), None) is not None:
                    UNHEARD.labels(_name(event)).inc()
                self._late[type(event)] = event
            else:
                UNHEARD.labels(_name(event)).inc()
            return False
        self._late.pop(type(event), None)
        self._keep(event)
        return True

    def take_over(self, other: Heard, moved: Moved) -> None:
        """The session goes on with another runner, of which `other` was heard so far.

        How it is, is how that one is. What is known to be in a picture, or refused, stays known. That one
        began with the parameters as they were then: the first revision that it shows has all before it.
        """
        loading = self.loading
        self.health = None
        self._late.clear()
        self._progress_s = other._progress_s
        self._keep(moved)
        if loading is not None and other.loading is None:
            self._keep(Loading(loading.why, loading.stage, DONE))
        first = True
        for event in other.since(0):
            if isinstance(event, Applied):
                if event.revision > self.applied_revision:
                    self._keep(Applied(event.revision, event.pts, APPLIES[-1]) if first else event)
                first = False
            else:
                self._keep(event)

    def tick(self, now_s: float) -> bool:
        """Pass on the newest states that were too much before; whether there were any."""
        late, self._late = list(self._late.values()), {}
        passed = [self.take(event, now_s) for event in late]
        return any(passed)

    def _keep(self, event: News) -> None:
        now_ms = self._unix_ms()
        self._news.append(event)
        self.count += 1
        if isinstance(event, Applied):
            self._keep_applied(event)
        elif isinstance(event, Refused):
            self._refused[event.revision] = event
            if len(self._refused) > REVISIONS:
                self._refused.popitem(last=False)
        elif isinstance(event, Problem):
            self.problems.append(Happened(event, now_ms))
            if event.action == "restarting":
                self.restart_count += 1
                self.restarted_unix_ms = now_ms
        elif isinstance(event, Health):
            self.health, self.health_unix_ms = event, now_ms
        if isinstance(event, Loading):
            self.loading = None if event.done else event
        elif _ends_loading(event):
            self.loading = None

    def _keep_applied(self, event: Applied) -> None:
        self.applied_revision = max(self.applied_revision, event.revision)
        self.applied_pts = max(self.applied_pts, event.pts)
        self._applied[event.revision] = event
        if len(self._applied) > REVISIONS:
            self._applied.popitem(last=False)
        for way in APPLIES[: APPLIES.index(event.applies) + 1]:
            before = self._newest.get(way)
            if before is None or before.revision <= event.revision:
                self._newest[way] = event

    def shown(self, revision: int, applies: str) -> Applied | None:
        """How `revision`, which was said to take effect by `applies`, came into a picture; None: not yet.

        A later one that took as slow a way has it in it, for changes that come together are made together.
        One that was quicker says nothing of it: it has overtaken what is still being prepared.
        """
        exactly = self._applied.get(revision)
        if exactly is not None:
            return exactly
        later = self._newest.get(applies if applies in APPLIES else APPLIES[0])
        return later if later is not None and later.revision >= revision else None

    def refusal(self, revision: int) -> Refused | None:
        return self._refused.get(revision)

    @property
    def refused_revisions(self) -> Sequence[int]:
        return tuple(self._refused)

    def progress_age_ms(self, now_s: float) -> int | None:
        """Since it last said that it loads; None: it never did."""
        return None if self._progress_s is None else round((now_s - self._progress_s) * 1000)

    def loads(self, now_s: float) -> bool:
        """Whether it says that it loads, and shows nothing meanwhile. Who fell silent does not."""
        if self.loading is None or self._progress_s is None or self.loading.why == BESIDE:
            return False
        return now_s - self._progress_s <= PROGRESS_S

    def since(self, count: int) -> Sequence[News]:
        """The news after the first `count`, as far as they are kept."""
        missed = min(self.count - count, len(self._news))
        return [self._news[place] for place in range(len(self._news) - missed, len(self._news))]


def unix_ms() -> int:
    return time.time_ns() // 1_000_000


def _name(event: Said) -> str:
    return type(event).__name__.lower()


def _ends_loading(event: News) -> bool:
    if isinstance(event, Applied):
        return event.applies != APPLIES[0]
    if isinstance(event, Problem):
        return event.stage in LOADS
    return isinstance(event, Refused) or (isinstance(event, Health) and event.state in READY)
