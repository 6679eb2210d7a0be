"""Noise that a seed makes: the same for the same seed on every device. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from services.inference.engine.pipelines.streamdiffusion.blending import blend_noises

_STRIDE = 1_000_003  # a prime: the seeds of one stream's fresh noise and of the next's hardly meet
_SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Seeds:
    """Which noises, and how they are mixed."""

    weighted: tuple[tuple[int, float], ...]
    method: str
    normalize: bool

    def noise(self, shape: Sequence[int], *, fresh: int = 0) -> torch.Tensor:
        """Return noise of steps, float32 (K, C, h, w), on the CPU: step by step, so that K changes none.

        fresh: another number for other noise of the same seeds; 0 is the one that a stream keeps.
        """
        steps, *rest = shape
        drawn = [_draw(seed, fresh, steps, rest) for seed, _ in self.weighted]
        weights = [weight for _, weight in self.weighted]
        return torch.stack(
            [
                blend_noises([noises[step] for noises in drawn], weights, self.method, self.normalize)
                for step in range(steps)
            ]
        )


def _draw(seed: int, fresh: int, steps: int, shape: Sequence[int]) -> list[torch.Tensor]:
    # On the CPU: a GPU draws other numbers from the same seed.
    generator = torch.Generator().manual_seed((seed + fresh * _STRIDE) % _SEEDS)
    return [torch.randn(tuple(shape), generator=generator) for _ in range(steps)]
