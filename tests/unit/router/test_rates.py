"""How often something happened lately."""

from __future__ import annotations

import pytest

from services.router.rates import WINDOW_S, Rate


@pytest.mark.parametrize("every_s", [0.1, 2.0, 60.0])
def test_a_steady_rate_is_told_from_early_on(every_s: float) -> None:
    rate = Rate(0.0)
    now_s = 0.0
    for _ in range(10):
        now_s += every_s
        rate.add(now_s)
    assert rate.per_s(now_s) == pytest.approx(1 / every_s, rel=0.2)


def test_what_is_long_ago_counts_no_more() -> None:
    rate = Rate(0.0)
    assert rate.per_s(0.0) == 0
    for second in range(100):
        rate.add(float(second))
    assert rate.per_s(100.0) > 0.5
    assert rate.per_s(100.0 + 10 * WINDOW_S) < 0.001
