"""What a runner says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.presence import DIGITS, rounded


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, 0), (0.3, 1), (7.4, 7), (99.6, 100), (123.0, 120), (12_345.6, 12_000), (99_900.0, 100_000)],
)
def test_what_a_frame_takes_is_said_to_two_digits(value: float, said: int) -> None:
    assert rounded(value) == said


@given(st.floats(min_value=1, max_value=1e9))
def test_what_is_said_is_near_what_was_measured(value: float) -> None:
    assert rounded(value) == pytest.approx(value, rel=0.5 if value < 10 else 0.06)
    assert len(str(rounded(value)).rstrip("0")) <= DIGITS
