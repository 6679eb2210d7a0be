"""What a viewer saw, and what can be said of it: freezes, lost and repeated pictures, zombies. Pure.

The rule it keeps: a picture is known by the number that its publisher drew into it, not by any time stamp of
the platform's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

LONGEST_DELIVERY_S: Final = 1.0  # between two pictures that is still delivery, as the meter counts
UNSURE_S: Final = 0.15  # about that bound: what is near it here may be on the other side of it there


@dataclass(frozen=True, slots=True)
class Shown:
    """A decoded picture. `maker` is 0 where the pipeline signs nothing, `number` -1 where unread."""

    at_s: float
    pts: int
    number: int
    mark: int = 0
    maker: int = 0
    carried: int = 0


@dataclass(frozen=True, slots=True)
class Heard:
    """A packet of sound as it arrived."""

    at_s: float
    pts: int


@dataclass(frozen=True, slots=True)
class View:
    """What there is to say of a while. Gaps count from the last picture before it."""

    pictures: int = 0
    freeze_s: float = 0.0  # wall time between two pictures in a row, the longest
    gap_ms: float = 0.0  # media time between two pictures in a row, the longest
    lost: int = 0  # numbers between the first and the last that were not shown
    repeated: int = 0
    backwards: int = 0  # pictures whose time stamp is not above the one before
    seam_lost: int = 0  # of those, between the last of one maker and the first of the next
    zombies: int = 0  # pictures of a maker that another one had taken over from
    unread: int = 0
    makers: tuple[int, ...] = ()  # in the order in which they took over


def between(pictures: Sequence[Shown], from_s: float, to_s: float) -> list[Shown]:
    """The pictures of a while, with the last one before it."""
    inside = [shown for shown in pictures if from_s <= shown.at_s <= to_s]
    before = [shown for shown in pictures if shown.at_s < from_s]
    return [*before[-1:], *inside]


def view(pictures: Sequence[Shown]) -> View:
    numbers = [shown.number for shown in pictures if shown.number >= 0]
    distinct = set(numbers)
    makers, zombies = _makers(pictures)
    return View(
        pictures=len(pictures),
        freeze_s=max((b.at_s - a.at_s for a, b in pairwise(pictures)), default=0.0),
        gap_ms=max((b.pts - a.pts for a, b in pairwise(pictures)), default=0) / 90,
        lost=max(distinct) - min(distinct) + 1 - len(distinct) if distinct else 0,
        repeated=len(numbers) - len(distinct),
        backwards=sum(b.pts <= a.pts for a, b in pairwise(pictures)),
        seam_lost=sum(b.number - a.number - 1 for a, b in pairwise(pictures) if _takes_over(a, b)),
        zombies=zombies,
        unread=len(pictures) - len(numbers),
        makers=makers,
    )


def _takes_over(a: Shown, b: Shown) -> bool:
    return a.maker != b.maker and 0 <= a.number < b.number


def _makers(pictures: Sequence[Shown]) -> tuple[tuple[int, ...], int]:
    """Who took over from whom, and how many pictures came from one that had been taken over from."""
    order: list[int] = []
    zombies = 0
    for shown in pictures:
        if not order or shown.maker != order[-1]:
            if shown.maker in order:
                zombies += 1
            else:
                order.append(shown.maker)
    return tuple(order), zombies


def longest_silence_s(sounds: Sequence[Heard], from_s: float, to_s: float) -> float:
    """Wall time between two packets of sound in a row, the longest within a while."""
    inside = [heard.at_s for heard in sounds if from_s <= heard.at_s <= to_s]
    return max((b - a for a, b in pairwise([from_s, *inside, to_s])), default=0.0)


def delivered_ms(times_s: Sequence[float], unsure_s: float) -> tuple[float, float]:
    """At least and at most what may be billed for pictures that passed then, one after the other.

    They differ by the gaps that are so near to the meter's bound.
    """
    least = most = 0.0
    for a, b in pairwise(times_s):
        gap_s = b - a
        if gap_s <= LONGEST_DELIVERY_S - unsure_s:
            least += gap_s
        if gap_s <= LONGEST_DELIVERY_S + unsure_s:
            most += gap_s
    return least * 1000, most * 1000


def difference_ms(billed_ms: float, delivered: Sequence[tuple[float, float]]) -> float:
    """How far a bill is from what each bridge delivered: positive for too much, negative for too little."""
    least, most = sum(least for least, _ in delivered), sum(most for _, most in delivered)
    if billed_ms > most:
        return billed_ms - most
    return min(0.0, billed_ms - least)
