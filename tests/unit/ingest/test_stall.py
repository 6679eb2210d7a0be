"""When a runner's silence is a stall, and when it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.ingest.bridge.stall import FIRST_S, GAPS, GRACE_S, MARKS_S, Stall


class Clock:
    """A source and a runner on one clock; `returns` says when the answer to a picture comes, None: never."""

    def __init__(self) -> None:
        self.stall = Stall()
        self.now_s = 100.0
        self.worst_ms = 0
        self._coming: list[tuple[float, int]] = []
        self._sent = 0

    def run(self, seconds: float, *, fps: float, returns: Callable[[int], float | None]) -> None:
        begin_s = self.now_s
        sent = 0
        while self.now_s < begin_s + seconds - 1e-9:
            if self.now_s >= begin_s + sent / fps - 1e-9:
                self.stall.went(self.now_s)
                delay_s = returns(sent)
                if delay_s is not None:
                    self._coming.append((self.now_s + delay_s, self._sent + 1))
                sent += 1
                self._sent += 1
            self._return()
            self.pass_(0.005)

    def rest(self, seconds: float) -> None:
        """Nothing is sent; what is under way comes back."""
        begin_s = self.now_s
        while self.now_s < begin_s + seconds:
            self._return()
            self.pass_(0.005)

    def _return(self) -> None:
        while self._coming and self._coming[0][0] <= self.now_s:
            _, number = self._coming.pop(0)
            self.stall.came(self.now_s, all_back=number == self._sent)

    def pass_(self, seconds: float) -> None:
        self.now_s += seconds
        self.worst_ms = max(self.worst_ms, self.stall.stalled_ms(self.now_s))

    @property
    def stalled_ms(self) -> int:
        return self.stall.stalled_ms(self.now_s)


def every(count: int, delay_s: float) -> Callable[[int], float | None]:
    return lambda number: delay_s if number % count == 0 else None


def never(_: int) -> None:
    return None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("fps", "count", "delay_s"),
    [
        pytest.param(30, 1, 0.03, id="as fast as it comes"),
        pytest.param(30, 3, 0.2, id="every third"),
        pytest.param(30, 100, 3.4, id="0.3 a second"),
        pytest.param(1, 1, 0.1, id="a source of one a second"),
        pytest.param(12, 1, 0.8, id="late, but steadily"),
    ],
)
def test_what_comes_at_its_usual_pace_does_not_stall(
    clock: Clock, fps: float, count: int, delay_s: float
) -> None:
    clock.run(60, fps=fps, returns=every(count, delay_s))
    assert clock.worst_ms == 0


def test_a_runner_that_dies_stalls_from_its_last_picture_on(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(1, 0.03))
    clock.run(0.2, fps=30, returns=never)
    assert clock.stalled_ms == 0, "a hiccup"
    clock.run(0.85, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(1000, abs=60)
    clock.run(2, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(3000, abs=60)
    clock.run(0.1, fps=30, returns=every(1, 0.0))
    assert clock.stalled_ms == 0


def test_a_source_that_stops_is_no_stall(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(3, 0.2))
    clock.rest(60)
    assert clock.worst_ms == 0
    clock.run(5, fps=30, returns=every(3, 0.2))
    assert clock.worst_ms == 0


def test_a_still_screen_that_sends_a_picture_now_and_then_is_no_stall(clock: Clock) -> None:
    clock.run(3, fps=30, returns=every(1, 0.05))
    for _ in range(10):
        clock.run(0.01, fps=100, returns=every(1, 0.05))
        clock.rest(7)
    assert clock.worst_ms == 0


def test_a_runner_that_dies_while_the_source_rests_stalls_when_it_goes_on(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(1, 0.03))
    clock.rest(20)
    clock.run(1.5, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(1470, abs=100)


def test_a_stall_rests_while_nothing_is_sent_and_goes_on_after_that(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(1, 0.03))
    clock.run(1.5, fps=30, returns=never)
    assert clock.stalled_ms > 1000
    clock.rest(1)
    assert clock.stalled_ms == 0
    clock.run(0.5, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(2000, abs=100)


def test_before_the_first_picture_nothing_is_a_stall_unless_there_were_some_elsewhere(clock: Clock) -> None:
    clock.run(60, fps=30, returns=never)
    assert clock.worst_ms == 0
    clock.stall.begin(clock.now_s)
    clock.run(2 * FIRST_S + GRACE_S - 0.1, fps=30, returns=never)
    assert clock.worst_ms == 0
    clock.run(0.3, fps=30, returns=never)
    assert clock.stalled_ms > 1000


def test_after_a_few_pictures_its_cadence_is_known(clock: Clock) -> None:
    clock.run((GAPS + 2) / 30, fps=30, returns=every(1, 0.01))
    clock.run(1.05, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(1000, abs=60)


def test_what_is_silent_while_it_loads_is_excused_and_counts_from_the_end_of_that(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(1, 0.03))
    for _ in range(100):
        clock.run(0.1, fps=30, returns=never)
        clock.stall.excuse(clock.now_s)
    assert clock.worst_ms == 0
    clock.run(1.05, fps=30, returns=never)
    assert clock.stalled_ms == pytest.approx(1000, abs=60)


def test_a_slow_pipeline_that_dies_stalls_as_well_though_later(clock: Clock) -> None:
    clock.run(60, fps=30, returns=every(100, 3.4))
    clock.run(20, fps=30, returns=never)
    assert clock.stalled_ms > MARKS_S[-1] * 1000


def test_each_mark_is_announced_to_the_millisecond(clock: Clock) -> None:
    clock.run(5, fps=30, returns=every(1, 0.03))
    seen, last_s = [clock.stall.mark(clock.now_s)], clock.now_s
    passed_s: list[float] = []
    while clock.stall.mark(clock.now_s) < 1 + len(MARKS_S):
        clock.stall.went(clock.now_s)
        due_s = clock.stall.until_mark_s(clock.now_s)
        assert due_s is not None
        step_s = min(0.033, due_s + 0.001)
        clock.pass_(step_s)
        if clock.stall.mark(clock.now_s) != seen[-1]:
            seen.append(clock.stall.mark(clock.now_s))
            passed_s.append(clock.now_s - last_s)
    assert seen == list(range(2 + len(MARKS_S)))
    assert passed_s[1:] == pytest.approx(MARKS_S, abs=0.07)
    clock.stall.went(clock.now_s)
    assert clock.stall.until_mark_s(clock.now_s) is None
