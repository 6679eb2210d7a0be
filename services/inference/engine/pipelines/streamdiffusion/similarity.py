"""Whether a picture is worth a run of the model: the stochastic similarity filter. Pure but for its memory.

The more a picture is like the last one that was processed, the more probably it is skipped; never more than
so many in a row. The chance is drawn from a counter, so a stream that is restored draws what it would have
drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch


def likeness(picture: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine between two pictures of any one shape, -1..1."""
    return float(torch.nn.functional.cosine_similarity(picture.flatten(), other.flatten(), dim=0, eps=1e-12))


def skip_probability(likeness: float, threshold: float) -> float:
    """How probably a picture so like the last one is skipped: 0 at the threshold, 1 for the same picture."""
    if threshold >= 1:
        return 0.0
    return max(0.0, 1 - (1 - likeness) / (1 - threshold))


class Draws:
    """Numbers from 0 to 1, the same for the same seed and count."""

    def __init__(self, seed: int = 0, count: int = 0) -> None:
        self.seed = seed
        self.count = count

    def __call__(self) -> float:
        self.count += 1
        return random.Random(f"{self.seed}/{self.count}").random()  # noqa: S311 - no secret hangs on it


class SimilarityFilter:
    """Remembers the last picture that was processed."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self._draw = draw
        self._processed: torch.Tensor | None = None
        self._skipped = 0

    def skips(self, picture: torch.Tensor, threshold: float, most: int) -> bool:
        """Say whether to skip this picture, float (3, H, W) or alike; `most` at most are skipped in a row."""
        before = self._processed
        if before is not None and before.shape == picture.shape and self._skipped < most:
            probability = skip_probability(likeness(picture, before), threshold)
            if probability > self._draw():
                self._skipped += 1
                return True
        self._processed, self._skipped = picture, 0
        return False

    def forget(self) -> None:
        """The next picture is processed, whatever it is like."""
        self._processed, self._skipped = None, 0
