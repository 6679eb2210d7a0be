"""How many pictures were lost between two runners, by what the one before used to return."""

from __future__ import annotations

import pytest

from services.ingest.bridge.under_way import Departure, UnderWay


@pytest.mark.parametrize(("every", "between", "lost"), [(1, 0, 0), (1, 5, 5), (3, 2, 0), (3, 7, 2)])
def test_lost_is_what_would_have_come_back_at_the_usual_pace(every: int, between: int, lost: int) -> None:
    under_way = UnderWay()
    for number in range(1, 31):
        under_way.went(Departure(number, 0.0, 0.0))
        if number % every == 0:
            under_way.returned(number, 0.1)
    for number in range(31, 60):
        under_way.went(Departure(number, 0.0, 0.0))
    assert under_way.lost_before(31 + between) == lost
