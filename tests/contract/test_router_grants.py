"""Two routers in processes of their own under load: however fast they grant, no slot is given twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.grants import WHOLE, Held, doubles, measure

SHORT = replace(WHOLE, runners=60, slots=2, callers=6, fast_s=2, steady_s=1, steady_per_s=50, held=20)


async def test_no_slot_is_given_twice_and_every_caller_is_answered() -> None:
    measured = await measure(SHORT)
    assert measured.double == 0
    assert measured.grants > 2 * SHORT.held
    assert set(measured.refused) <= {"nothing_free"}


@pytest.mark.parametrize(
    ("second", "double"),
    [
        (Held("a.0", 2, from_s=2.0, to_s=3.0), 0),
        (Held("a.0", 2, from_s=1.9, to_s=3.0), 1),  # before the first one gave it back
        (Held("a.0", 1, from_s=2.5, to_s=3.0), 1),  # an epoch that was there before
        (Held("a.1", 1, from_s=1.0, to_s=3.0), 0),  # another slot
    ],
)
def test_the_history_shows_a_slot_that_two_had(second: Held, double: int) -> None:
    assert doubles([second, Held("a.0", 1, from_s=1.0, to_s=2.0)]) == double
