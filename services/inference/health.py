"""How a session is doing, and if not well, on whose side that is. Pure: the clock is the caller's.

The rule it keeps: a stream is compared with itself. One that has always shown 12 pictures a second is well,
one that loads for a minute is loading, and whoever is silent is blamed before whoever waits for it.

The first that is true:

| state                | cause                  | when                                                   |
| -------------------- | ---------------------- | ------------------------------------------------------ |
| `error`              | the reason of its end  | it failed                                              |
| `loading`            | `start`, `reload`, ... | nothing can be shown until that is done                |
| `idle`               | `no_input`             | no picture came for `IDLE_AFTER_S`, or none yet        |
| `degraded_inference` | `pipeline_error`, ...  | a problem was told within `PROBLEM_S`                  |
| `degraded_input`     | `input_silent`         | no picture came for `SILENT_S`, or 3 of its usual gaps |
| `loading`            | `first_picture`        | none came out yet, for `FIRST_S` at most               |
| `degraded_inference` | `no_output`            | none came out for so long while they came in           |
| `degraded_input`     | `input_slow`           | they come in at less than half their usual rate        |
| `degraded_inference` | `slow`                 | they come out at less than half their usual rate       |
| `online`             |                        |                                                        |
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass
from typing import Final

SILENT_S: Final = 2.0
IDLE_AFTER_S: Final = 30.0
FIRST_S: Final = 10.0  # from the first picture in, or the end of loading, to the first one out
PROBLEM_S: Final = 5.0
RATE_OVER_S: Final = 3.0
SLOW: Final = 0.5  # of the usual
STEADY_AFTER_S: Final = 5.0  # a flow that began more recently has no usual rate
LEARNS_S: Final = 20.0  # in which what is usual follows what is
GAP_WEIGHT: Final = 0.2  # of the newest gap between two pictures
LONGEST_GAP_S: Final = 10.0  # a longer one is a pause


class Condition(enum.StrEnum):
    """The values are the wire's."""

    LOADING = "loading"
    IDLE = "idle"
    ONLINE = "online"
    DEGRADED_INPUT = "degraded_input"
    DEGRADED_INFERENCE = "degraded_inference"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Standing:
    """A condition, and a word for why it is that."""

    condition: Condition
    cause: str = ""


class Flow:
    """Pictures that pass a place: when the last one did, how many a second do, and how many usually."""

    def __init__(self) -> None:
        self.newest_s: float | None = None
        self.since_s = 0.0  # without a silence
        self._gap_s = 0.0  # between two, as the last few were
        self._recent: deque[float] = deque(maxlen=1024)
        self._usual = 0.0  # a second
        self._learnt_s = 0.0

    @property
    def patience_s(self) -> float:
        """After which silence is one; a model may take seconds for each picture."""
        return max(SILENT_S, 3 * self._gap_s)

    def count(self, now_s: float) -> None:
        if self.newest_s is None or now_s - self.newest_s > self.patience_s:
            self.since_s = self._learnt_s = now_s
            self._recent.clear()
        if self.newest_s is not None:
            self._gap_s += GAP_WEIGHT * (min(now_s - self.newest_s, LONGEST_GAP_S) - self._gap_s)
        self.newest_s = now_s
        self._recent.append(now_s)

    def unsettle(self, now_s: float) -> None:
        """What was usual is not to be expected any more."""
        self._usual, self.since_s = 0.0, now_s
        self._recent.clear()

    def slow(self, now_s: float) -> bool:
        """Whether it is at less than half of its usual rate; asking is what it learns from."""
        over_s = max(RATE_OVER_S, 8 * self._gap_s)
        while self._recent and now_s - self._recent[0] > over_s:
            self._recent.popleft()
        begins = now_s - self.since_s < max(STEADY_AFTER_S, over_s)
        ends = self.newest_s is None or now_s - self.newest_s > self.patience_s / 2
        if begins or ends:
            return False
        rate = len(self._recent) / over_s
        passed_s, self._learnt_s = now_s - max(self._learnt_s, self.since_s), now_s
        if rate >= self._usual:
            self._usual = rate
        else:
            self._usual += (rate - self._usual) * min(passed_s / LEARNS_S, 1.0)
        return rate < SLOW * self._usual


class Health:
    """One session's. Tell it what happens, and ask for its `standing` now and then."""

    def __init__(self) -> None:
        self._input = Flow()
        self._output = Flow()
        self._loading: str | None = None
        self._loaded_s = 0.0
        self._problem: tuple[float, str] | None = None
        self._failed: str | None = None

    def took(self, now_s: float) -> None:
        """A picture came in."""
        self._input.count(now_s)

    def gave(self, now_s: float) -> None:
        """A picture came out."""
        self._output.count(now_s)

    def loading(self, why: str) -> None:
        """Nothing can be shown until `loaded`."""
        self._loading = why

    def loaded(self, now_s: float) -> None:
        if self._loading is not None:
            self._loading, self._loaded_s = None, now_s
            self._output.unsettle(now_s)

    def changed(self, now_s: float) -> None:
        """Other parameters are in effect; they may take longer."""
        self._output.unsettle(now_s)

    def problem(self, kind: str, now_s: float) -> None:
        self._problem = (now_s, kind)

    def failed(self, reason: str) -> None:
        """For good."""
        self._failed = reason

    def standing(self, now_s: float, *, backlog: bool = False) -> Standing:
        """`backlog`: pictures wait for the engine, so that no more can come in."""
        if self._failed is not None:
            return Standing(Condition.ERROR, self._failed)
        if self._loading is not None:
            return Standing(Condition.LOADING, self._loading)
        if self._input.newest_s is None:
            return Standing(Condition.IDLE, "no_input")
        input_slow, output_slow = self._input.slow(now_s), self._output.slow(now_s)
        read_s = max(self._input.newest_s, self._loaded_s)  # while an engine starts nobody reads
        silent_s = 0.0 if backlog else now_s - read_s
        if silent_s > IDLE_AFTER_S:
            return Standing(Condition.IDLE, "no_input")
        if self._problem is not None and now_s - self._problem[0] < PROBLEM_S:
            return Standing(Condition.DEGRADED_INFERENCE, self._problem[1])
        if silent_s > self._input.patience_s:
            return Standing(Condition.DEGRADED_INPUT, "input_silent")
        if self._output.newest_s is None:
            waited_s = now_s - max(self._input.since_s, self._loaded_s)
            if waited_s < FIRST_S:
                return Standing(Condition.LOADING, "first_picture")
            return Standing(Condition.DEGRADED_INFERENCE, "no_output")
        if now_s - max(self._output.newest_s, self._input.since_s, self._loaded_s) > self._output.patience_s:
            return Standing(Condition.DEGRADED_INFERENCE, "no_output")
        if input_slow and not backlog:
            return Standing(Condition.DEGRADED_INPUT, "input_slow")
        if output_slow and now_s - self._input.since_s > STEADY_AFTER_S:
            return Standing(Condition.DEGRADED_INFERENCE, "slow")
        return Standing(Condition.ONLINE)
