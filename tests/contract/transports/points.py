"""At which awaits of a connection's life the suite breaks it off."""

from __future__ import annotations

import random
from typing import Final

import pytest

POINTS: Final = 12
LONG: Final = pytest.mark.timeout(120)


def points(count: int, wanted: int = POINTS) -> list[int]:
    """The first few of `count`, where most begins, and some of the others."""
    first = range(1, min(count, wanted // 2) + 1)
    rest = range(len(first) + 1, count + 1)
    return [*first, *sorted(random.Random(count).sample(rest, min(len(rest), wanted // 2)))]
