"""Several frames at once, each at another of its steps: the stream batch; and one after the other. Pure.

With K steps a stream batch holds K frames. A call takes a new one in at the first step, moves every other
to its next, asks the U-Net once for all of them and gives out the estimate of the oldest: one call of the
U-Net a frame, for K - 1 frames of delay. The noise of each step is drawn once and kept, so a still picture
stays still. What comes out is exactly what the steps one after the other make of a frame with the same
noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from services.inference.engine.pipelines.streamdiffusion.guidance import Guide
from services.inference.engine.pipelines.streamdiffusion.schedule import Step


@dataclass(frozen=True, slots=True)
class Asked:
    """What the U-Net is asked to predict the noise of.

    Of each of R rows: latents (R, C, h, w); its timestep; which of its frame's steps that is; whether with
    the negative prompt; how many frames ago its frame came.
    """

    latents: torch.Tensor
    timesteps: tuple[int, ...]
    steps: tuple[int, ...]
    negative: tuple[bool, ...]
    ages: tuple[int, ...]


Ask = Callable[[Asked], torch.Tensor]  # returns the predicted noise, (R, C, h, w)


class Denoising(Protocol):
    """A way to take a stream's frames through their steps."""

    @property
    def delay(self) -> int:
        """How many calls later a frame comes out."""

    def denoise(
        self, latent: torch.Tensor, guide: Guide, ask: Ask, first: Step | None = None
    ) -> torch.Tensor:
        """Take in a frame (1, C, h, w), and give out the estimate of one (1, C, h, w).

        first: another first step than usual, for this frame.
        """


class Levels:
    """The coefficients of some steps as tensors (K, 1, 1, 1)."""

    def __init__(self, steps: Sequence[Step], like: torch.Tensor) -> None:
        def column(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)

        self.timesteps = tuple(step.timestep for step in steps)
        self.a = column([step.a for step in steps])
        self.b = column([step.b for step in steps])
        self.c_skip = column([step.c_skip for step in steps])
        self.c_out = column([step.c_out for step in steps])

    def noised(self, latent: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.a * latent + self.b * noise

    def estimate(self, noisy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The picture in `noisy`, if that is its noise."""
        return self.c_out * (noisy - self.b * noise) / self.a + self.c_skip * noisy


class StreamBatch:
    """The frames of one stream that are under way.

    noise: (K, C, h, w), of each step. add_noise: whether a frame gets noise again between two steps.
    """

    def __init__(self, steps: Sequence[Step], noise: torch.Tensor, *, add_noise: bool = True) -> None:
        assert len(steps) == len(noise), (len(steps), noise.shape)
        self.steps = tuple(steps)
        self.noise = noise
        self.add_noise = add_noise
        self.under_way = torch.zeros_like(noise[1:])  # noisy, before steps 1..K-1
        self.stock = torch.zeros_like(noise)  # what a residual guidance takes for the noise in each frame
        self._levels = Levels(self.steps, noise)

    @property
    def delay(self) -> int:
        return len(self.steps) - 1

    def renoise(self, noise: torch.Tensor) -> None:
        """Go on with other noise; the stock of the old is void."""
        self.noise = noise
        self.stock = torch.zeros_like(noise)

    def denoise(
        self, latent: torch.Tensor, guide: Guide, ask: Ask, first: Step | None = None
    ) -> torch.Tensor:
        levels = self._levels
        if first is not None and first != self.steps[0]:
            levels = Levels((first, *self.steps[1:]), self.noise)
        entering = levels.a[:1] * latent + levels.b[:1] * self.noise[:1]
        noisy = torch.cat([entering, self.under_way])  # (K, C, h, w)
        stock = torch.cat([self.noise[:1], self.stock[:-1]])
        rows = guide.rows(len(self.steps))
        at = [row.step for row in rows]
        predicted = ask(
            Asked(
                noisy if len(rows) == len(noisy) else noisy[at],
                tuple(levels.timesteps[step] for step in at),
                tuple(at),
                tuple(row.negative for row in rows),
                tuple(at),
            )
        )
        predicted, stock = guide.guided(predicted, stock)
        estimated = levels.estimate(noisy, predicted)
        a, b, noise = levels.a[1:], levels.b[1:], self.noise[1:]
        added = b * noise if self.add_noise else torch.zeros_like(noise)
        self.under_way = a * estimated[:-1] + added
        if guide.residual:
            # What the next step would have to call noise, had the frame come out as it went in.
            correction = levels.estimate(levels.b * stock, predicted)[:-1]
            self.stock = torch.cat([(added + a * correction) / b, stock[-1:]])
        return estimated[-1:]


class Sequential:
    """One frame after the other through all of its steps: K calls of the U-Net a frame, and no delay.

    fresh: noise for a step (1, C, h, w), asked for at each one but the first, whose noise is `noise`.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        noise: torch.Tensor,
        fresh: Callable[[int], torch.Tensor],
        *,
        add_noise: bool = True,
    ) -> None:
        self.steps = tuple(steps)
        self.noise = noise
        self.add_noise = add_noise
        self._fresh = fresh

    @property
    def delay(self) -> int:
        return 0

    def renoise(self, noise: torch.Tensor) -> None:
        """Go on with other noise for the first step."""
        self.noise = noise

    def denoise(
        self, latent: torch.Tensor, guide: Guide, ask: Ask, first: Step | None = None
    ) -> torch.Tensor:
        stock = self.noise[:1]
        steps = (first or self.steps[0], *self.steps[1:])
        level = Levels(steps[:1], latent)
        noisy, estimated, predicted = level.noised(latent, stock), latent, stock
        for index in range(len(steps)):
            if index:
                correction = level.estimate(level.b * stock, predicted)
                level = Levels(steps[index : index + 1], latent)
                noise = self._fresh(index) if self.add_noise else torch.zeros_like(latent)
                noisy = level.noised(estimated, noise)
                stock = noise + level.a / level.b * correction
            rows = guide.rows(1, first=index == 0)
            asked = Asked(
                noisy.expand(len(rows), -1, -1, -1),
                level.timesteps * len(rows),
                (index,) * len(rows),
                tuple(row.negative for row in rows),
                (0,) * len(rows),
            )
            predicted, stock = guide.guided(ask(asked), stock, first=index == 0)
            estimated = level.estimate(noisy, predicted)
        return estimated
