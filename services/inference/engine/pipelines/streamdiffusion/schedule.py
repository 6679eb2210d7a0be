"""Which noise levels a stream's steps are at: latent consistency timesteps and their coefficients. Pure.

Of the 50 timesteps on which latent consistency models are distilled (999, 979, ..., 19), `count` are chosen
evenly, and of these the steps that a stream takes, by index. `a` and `b` are how much of a picture and how
much noise is in a latent at a step; `c_skip` and `c_out` how its estimate is made of the latent and the
prediction.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ORIGINAL_STEPS: Final = 50  # LCMScheduler's original_inference_steps: how latent consistency is distilled
TIMESTEP_SCALING: Final = 10.0  # LCMScheduler's, in front of the timestep in both of its scalings
SIGMA_DATA: Final = 0.5  # LCMScheduler's


@dataclass(frozen=True, slots=True)
class Step:
    """One step: x = a * picture + b * noise at `timestep`."""

    timestep: int
    a: float
    b: float
    c_skip: float
    c_out: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """How noisy the training of a model was at each timestep.

    kept: for each timestep, the share of the variance that is still the picture (cumulative alpha), falling.
    """

    kept: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Schedule:
        """Of a model's `scheduler_config.json`. Raises ValueError for a schedule that is none of ours."""
        count = int(config.get("num_train_timesteps", 1000))
        first, last = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
        kind = config.get("beta_schedule", "scaled_linear")
        if config.get("trained_betas"):
            raise ValueError("it has a list of betas of its own, which is not supported")
        if config.get("rescale_betas_zero_snr"):
            raise ValueError("its noise is rescaled to no signal at the end, which is not supported")
        if kind == "scaled_linear":
            betas = [beta * beta for beta in _evenly(math.sqrt(first), math.sqrt(last), count)]
        elif kind == "linear":
            betas = _evenly(first, last, count)
        else:
            raise ValueError(f"its beta_schedule is {kind!r}; scaled_linear and linear are supported")
        return cls(tuple(itertools.accumulate((1 - beta for beta in betas), lambda kept, one: kept * one)))

    def timesteps(self, count: int) -> tuple[int, ...]:
        """`count` of the 50 timesteps, evenly, from the noisiest on. Raises ValueError beyond 50."""
        if not 1 <= count <= ORIGINAL_STEPS:
            raise ValueError(f"{count} steps of {ORIGINAL_STEPS}")
        stride = len(self.kept) // ORIGINAL_STEPS
        return tuple(
            (ORIGINAL_STEPS - ORIGINAL_STEPS * index // count) * stride - 1 for index in range(count)
        )

    def step(self, timestep: int) -> Step:
        """The coefficients at a timestep."""
        scaled = TIMESTEP_SCALING * timestep
        square = scaled * scaled + SIGMA_DATA * SIGMA_DATA
        return Step(
            timestep,
            math.sqrt(self.kept[timestep]),
            math.sqrt(1 - self.kept[timestep]),
            SIGMA_DATA * SIGMA_DATA / square,
            scaled / math.sqrt(square),
        )

    def steps(self, count: int, indices: Sequence[int]) -> tuple[Step, ...]:
        """The steps at `indices` of `timesteps(count)`. Raises ValueError for an index beyond them."""
        timesteps = self.timesteps(count)
        if not indices or not all(0 <= index < count for index in indices):
            raise ValueError(f"t_index_list {list(indices)} has no place in {count} steps")
        return tuple(self.step(timesteps[index]) for index in indices)


def _evenly(first: float, last: float, count: int) -> list[float]:
    return [first + (last - first) * index / (count - 1) for index in range(count)]
