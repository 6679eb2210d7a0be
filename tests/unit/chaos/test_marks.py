"""Numbers in pictures survive an encoder; what was damaged is not taken for a number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.codec import VideoDecoder, VideoEncoder
from tests.chaos.harness import marks
from tests.chaos.harness.pipeline import stamp, unstamped
from tests.chaos.harness.publisher import grounds, picture


@given(value=st.integers(0, marks.LARGEST), row=st.integers(0, marks.ROWS - 1))
def test_a_number_is_read_as_it_was_drawn(value: int, row: int) -> None:
    rgb = np.full((marks.SIZE[1], marks.SIZE[0], 3), marks.DARK, np.uint8)
    marks.write(rgb, row, value)
    assert marks.read(rgb[..., 0], row) == value


def test_numbers_survive_a_low_bit_rate() -> None:
    encoder, decoder = VideoEncoder(*marks.SIZE, 300_000), VideoDecoder()
    (ground,) = grounds(film=False)
    read = []
    for number in range(1000, 1060):
        rgb = picture(number, ground)
        marks.write(rgb, marks.STAMPED, stamp(54321, 77))
        for unit in encoder.encode(rgb, number * 3000, keyframe=number == 1000):
            for frame in decoder.decode(unit.data, unit.pts):
                grey = np.asarray(frame.frame.to_ndarray(format="gray"), np.uint8)
                read.append(
                    (marks.read(grey, marks.PUBLISHED), unstamped(marks.read(grey, marks.STAMPED) or 0))
                )
    assert read == [(number, (54321, 77)) for number in range(1000, 1060)]


@pytest.mark.parametrize("grey", [np.zeros((240, 320)), np.full((240, 320), 255), np.zeros((60, 80))])
def test_a_picture_without_numbers_has_none(grey: np.ndarray) -> None:
    assert marks.read(grey.astype(np.uint8), marks.PUBLISHED) is None


def test_a_damaged_number_is_none() -> None:
    rgb = np.full((marks.SIZE[1], marks.SIZE[0], 3), marks.DARK, np.uint8)
    marks.write(rgb, marks.PUBLISHED, 4711)
    rgb[:, marks.LEFT : marks.LEFT + marks.SIDE] = 255 - rgb[:, marks.LEFT : marks.LEFT + marks.SIDE]
    assert marks.read(rgb[..., 0], marks.PUBLISHED) is None
