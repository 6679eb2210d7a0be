"""When key frames come, and how many bits a second of pictures has."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import cv2
import numpy as np
import pytest

from services.common.media.codec import Rgb, bit_rate_for
from services.common.media.mpegts import CLOCK_HZ, AccessUnit
from services.inference.engine.pictures import GENEROUS, JITTER, BitRates, Pace, PictureEncoder
from tests.support.engine import FRAME, START

SIDE = 256
OWN = bit_rate_for(SIDE, SIDE, 30)
ALLOWED = BitRates(100_000, 8_000_000)
TINY: Rgb = np.zeros((16, 16, 3), np.uint8)
SCENE = cv2.GaussianBlur(
    np.random.default_rng(1).integers(0, 256, (1024, 1024, 3), dtype=np.uint8), (0, 0), 1.5
)


def view(index: int) -> Rgb:
    """A camera that pans over a scene of more detail than the bits can hold."""
    x, y = index * 5 % (1024 - SIDE), index * 3 % (1024 - SIDE)
    return np.asarray(SCENE[y : y + SIDE, x : x + SIDE], np.uint8)


class Camera:
    """Encodes a view after the other, each `step` ticks after the one before."""

    def __init__(self, allowed: BitRates = ALLOWED) -> None:
        self.encoder = PictureEncoder(allowed)
        self.units: list[AccessUnit] = []
        self.pts = START

    def film(self, seconds: float, *, fps: float = 30.0) -> list[AccessUnit]:
        """Returns what is new."""
        first = len(self.units)
        for _ in range(round(seconds * fps)):
            self.units += self.encoder.encode(view(len(self.units)), self.pts)
            self.pts += round(CLOCK_HZ / fps)
        return self.units[first:]


def bit_rate(units: Iterable[AccessUnit], seconds: float) -> float:
    return sum(8 * len(unit.data) for unit in units) / seconds


def keys(times: Iterable[int]) -> list[int]:
    """At which of `times` a key frame comes."""
    encoder = PictureEncoder(ALLOWED)
    return [unit.pts for pts in times for unit in encoder.encode(TINY, pts) if unit.keyframe]


def test_the_pace_is_that_of_the_last_pictures_and_a_pause_does_not_change_it() -> None:
    pace = Pace()
    for index in range(20):
        pace.count(index * 9000)
    assert pace.fps == pytest.approx(10)
    pace.count(300 * CLOCK_HZ)
    assert pace.fps == pytest.approx(10)
    for index in range(1, 20):
        pace.count(300 * CLOCK_HZ + index * 1500)
    assert pace.fps == pytest.approx(60)


@pytest.mark.parametrize("step_s", [1 / 60, 1 / 30, 1 / 24, 1 / 7, 0.3, 0.7, 0.9, 1.0, 1.5])
def test_key_frames_are_no_more_than_two_seconds_apart_at_any_pace(step_s: float) -> None:
    step = round(step_s * CLOCK_HZ)
    found = keys(range(START, START + 20 * CLOCK_HZ, step))
    assert found[0] == START
    gaps = [after - before for before, after in pairwise(found[2:])]  # the pace is known by then
    assert max(gaps) <= 2 * CLOCK_HZ + JITTER * step
    assert min(gaps) > 2 * CLOCK_HZ - 1.1 * step


def test_times_that_tremble_do_not_move_key_frames() -> None:
    found = keys(START + index * FRAME + (90 if index % 3 else -45) for index in range(200))
    assert [round((pts - START) / FRAME) for pts in found] == [0, 60, 120, 180]


def test_pictures_further_apart_than_key_frames_are_all_key_frames() -> None:
    times = range(START, START + 10 * 3 * CLOCK_HZ, 3 * CLOCK_HZ)
    assert keys(times) == list(times)


def test_a_pause_or_another_clock_begins_with_a_key_frame() -> None:
    later, earlier = START + 300 * CLOCK_HZ, START - 60 * FRAME
    times = [base + index * FRAME for base in (START, later, earlier) for index in range(30)]
    assert keys(times) == [START, later, earlier]


def test_a_key_frame_that_is_asked_for_is_the_next_picture_and_the_next_one_counts_from_there() -> None:
    encoder = PictureEncoder(ALLOWED)
    found = []
    for index in range(120):
        if index == 40:
            encoder.ask_keyframe()
            encoder.ask_keyframe()
        found += [index for unit in encoder.encode(TINY, START + index * FRAME) if unit.keyframe]
    assert found == [0, 40, 100]


def test_a_lower_bit_rate_holds_within_a_second_without_a_key_frame() -> None:
    camera = Camera()
    camera.encoder.ask_bit_rate(2 * OWN)
    camera.film(4.5)
    before = camera.film(1)
    camera.encoder.ask_bit_rate(OWN // 2)
    camera.film(0.2)
    after = camera.film(0.3)  # up to the key frame at six seconds
    assert not any(unit.keyframe for unit in before[15:] + after)
    assert bit_rate(after, 0.3) < 0.45 * bit_rate(before[15:], 0.5)
    assert bit_rate(camera.film(4), 4) == pytest.approx(OWN / 2, rel=0.25)


def test_a_higher_bit_rate_comes_with_the_next_key_frame_and_makes_none() -> None:
    camera = Camera()
    camera.film(3)
    camera.encoder.ask_bit_rate(2 * OWN)
    assert not any(unit.keyframe for unit in camera.film(1 - 1 / 60))
    assert bit_rate(camera.film(4), 4) == pytest.approx(2 * OWN, rel=0.25)


def test_what_is_asked_for_is_used_up_to_twice_our_own_bit_rate_and_until_nobody_asks() -> None:
    camera = Camera()
    camera.encoder.ask_bit_rate(100 * OWN)
    assert bit_rate(camera.film(6), 6) == pytest.approx(GENEROUS * OWN, rel=0.25)
    camera.encoder.ask_bit_rate(None)
    camera.film(2)
    assert bit_rate(camera.film(4), 4) == pytest.approx(OWN, rel=0.25)


def test_the_settings_bound_our_own_bit_rate_too() -> None:
    camera = Camera(BitRates(100_000, 200_000))
    camera.film(1)
    assert bit_rate(camera.film(4), 4) == pytest.approx(200_000, rel=0.25)


@pytest.mark.parametrize("fps", [10.0, 60.0])
def test_a_bit_rate_is_of_time_at_any_pace(fps: float) -> None:
    camera = Camera()
    camera.encoder.ask_bit_rate(OWN)
    camera.film(4, fps=fps)
    assert bit_rate(camera.film(4, fps=fps), 4) == pytest.approx(OWN, rel=0.25)


def test_a_pace_that_changes_keeps_the_bit_rate() -> None:
    camera = Camera()
    camera.encoder.ask_bit_rate(OWN)
    camera.film(4, fps=15)
    camera.film(1, fps=60)
    assert bit_rate(camera.film(2, fps=60), 2) == pytest.approx(OWN, rel=0.25)
    camera.film(2, fps=15)
    assert bit_rate(camera.film(4, fps=15), 4) == pytest.approx(OWN, rel=0.25)


def test_the_first_picture_at_a_time_that_was_asked_for_is_a_key_frame() -> None:
    encoder = PictureEncoder(ALLOWED)
    times = [START + n * FRAME for n in range(50)]
    found: list[int] = []
    for n, pts in enumerate(times):
        if n == 3:
            encoder.ask_keyframe(START + 5 * FRAME)
            encoder.ask_keyframe(START + 10 * FRAME - 1)  # takes its place
        if n == 20:
            encoder.ask_keyframe(START + 15 * FRAME)  # has passed, so the next one is
        if n == 30:
            encoder.ask_keyframe(START)  # which there was
        found += [unit.pts for unit in encoder.encode(TINY, pts) if unit.keyframe]
    assert found == [START, START + 10 * FRAME, START + 20 * FRAME]
