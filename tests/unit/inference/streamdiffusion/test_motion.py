from __future__ import annotations

import numpy as np
import pytest

from services.inference.engine.pipelines.streamdiffusion.motion import Motion
from services.inference.engine.pipelines.streamdiffusion.schedule import Schedule

SCHEDULE = Schedule.of({})
STEPS = SCHEDULE.steps(50, [12, 32])
GREY = np.full((48, 64, 3), 128, np.uint8)


def checkers(phase: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rows, columns = np.indices((48, 64)) // 16
    bright = (rows + columns + phase) % 2 == 0
    return np.where(bright[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2)


def test_a_still_picture_starts_at_the_first_step() -> None:
    motion = Motion()
    assert [motion.first_step(GREY, SCHEDULE, STEPS, 1.0) for _ in range(5)] == [STEPS[0]] * 5


def test_motion_lowers_the_start_and_stillness_raises_it_again() -> None:
    motion = Motion()
    moving = [motion.first_step(checkers(index), SCHEDULE, STEPS, 1.0).timestep for index in range(6)]
    still = [motion.first_step(checkers(5), SCHEDULE, STEPS, 1.0).timestep for _ in range(12)]
    assert moving[0] == 759
    assert min(moving) == pytest.approx(659, abs=2)  # a tenth of the range
    assert still[-1] == 759
    assert sorted(still) == still


def test_the_start_is_lowered_by_the_amount_that_is_wanted() -> None:
    half, none = Motion(), Motion()
    lowered = [half.first_step(checkers(index), SCHEDULE, STEPS, 0.5).timestep for index in range(6)]
    assert min(lowered) == pytest.approx(709, abs=2)
    assert {none.first_step(checkers(index), SCHEDULE, STEPS, 0.0) for index in range(6)} == {STEPS[0]}


def test_the_start_is_never_as_clean_as_the_second_step() -> None:
    motion = Motion()
    close = SCHEDULE.steps(50, [12, 13])
    starts = [motion.first_step(checkers(index), SCHEDULE, close, 1.0).timestep for index in range(8)]
    assert min(starts) == close[1].timestep + 1
    equal = SCHEDULE.steps(50, [12, 12])
    assert motion.first_step(checkers(9), SCHEDULE, equal, 1.0) == equal[0]


def test_grain_is_little_motion() -> None:
    random = np.random.default_rng(1)
    motion = Motion()
    grains = [random.normal(128, 10, (512, 512, 3)).clip(0, 255).astype(np.uint8) for _ in range(4)]
    assert max(motion.see(grain) for grain in grains) < 0.1
