"""How far sound is from its picture: by the order in which they were written, by what is seen and heard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import numpy as np

from services.common.media.mpegts import CLOCK_HZ

MS = CLOCK_HZ / 1000
Order = Sequence[tuple[int, bool]]
"""PTS of what was written, in the order in which it was, and whether it is sound."""


def aheads_ms(order: Order) -> list[float]:
    """By how much, of media time, each sound was before a picture that came after it."""
    found: list[float] = []
    to_come: int | None = None
    for pts, sound in reversed(order):
        if not sound:
            to_come = pts if to_come is None else min(pts, to_come)
        elif to_come is not None:
            found.append(max(0, pts - to_come) / MS)
    return found


def ahead_ms(order: Order) -> float:
    return max(aheads_ms(order), default=0.0)


def behind_ms(order: Order) -> float:
    """By how much sound was after a picture that came before it."""
    most = shown = 0
    for pts, sound in order:
        if not sound:
            shown = max(shown, pts)
        elif shown:
            most = max(most, shown - pts)
    return most / MS


def flashes_s(path: Path, *, negative: bool = False) -> list[float]:
    """When the picture turns white; in a `negative`, when it turns black."""
    found: list[float] = []
    white = True  # what begins so turned so before
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            was, white = white, (float(frame.to_ndarray(format="gray").mean()) > 128) is not negative
            if white and not was:
                found.append(float(frame.time or 0.0))
    return found


def beeps_s(path: Path, level: float = 0.1) -> list[float]:
    """When the sound sets in, after at least a tenth of a second of silence."""
    found: list[float] = []
    loud_s = -1.0
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            samples = np.abs(frame.to_ndarray().astype(np.float32)).reshape(-1, frame.samples).max(axis=0)
            for place in np.flatnonzero(samples > level):
                at_s = float(frame.time or 0.0) + float(place) / frame.sample_rate
                if at_s - loud_s > 0.1:
                    found.append(at_s)
                loud_s = at_s
    return found


def offsets_ms(flashes: Iterable[float], beeps: Sequence[float]) -> list[float]:
    """Each flash's nearest beep: how much later it is."""
    return [1000 * min((beep - flash for beep in beeps), key=abs) for flash in flashes]
