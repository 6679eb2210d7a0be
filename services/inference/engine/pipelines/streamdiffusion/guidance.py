"""How much more of the prompt a prediction gets: classifier-free guidance, whole or residual. Pure.

Guidance pushes a prediction away from one that was made without the prompt: e = u + scale * (c - u). The
kinds differ in where u is from, and so in what they cost for K steps:

    none        no guidance                                                              K rows of the U-Net
    full        from the negative prompt, for each step                                  2K
    self        from the noise that went in and what the steps before made of it         K
    initialize  from the negative prompt at the first step, then as self                 K + 1

Self and initialize are the residual guidance of StreamDiffusion: the noise that went in (`stock`) travels
with its frame from step to step, corrected by each estimate, and `delta` says how much of it counts.
Whatever the kind, a scale of 1 or less means none: then u has no weight, or a harmful one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch


class Guidance(enum.StrEnum):
    """Where the prediction without the prompt is from."""

    NONE = "none"
    FULL = "full"
    SELF = "self"
    INITIALIZE = "initialize"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the U-Net's batch: a step, with the prompt or with the negative one."""

    step: int
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Guide:
    """A kind of guidance and its strength."""

    kind: Guidance
    scale: float
    delta: float

    @classmethod
    def of(cls, kind: str, scale: float, delta: float) -> Guide:
        return cls(Guidance(kind) if scale > 1 else Guidance.NONE, scale, delta)

    @property
    def residual(self) -> bool:
        """Whether `stock` travels with the frames."""
        return self.kind in {Guidance.SELF, Guidance.INITIALIZE}

    @property
    def negative(self) -> bool:
        """Whether the negative prompt is asked."""
        return self.kind in {Guidance.FULL, Guidance.INITIALIZE}

    def rows(self, steps: int, *, first: bool = True) -> tuple[Row, ...]:
        """What the U-Net is asked for `steps` steps, of which the first is a frame's `first` one, or not."""
        prompted = tuple(Row(step) for step in range(steps))
        if self.kind is Guidance.FULL:
            return (*(Row(step, negative=True) for step in range(steps)), *prompted)
        if self.kind is Guidance.INITIALIZE and first:
            return (Row(0, negative=True), *prompted)
        return prompted

    def guided(
        self, predicted: torch.Tensor, stock: torch.Tensor, *, first: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the guided prediction (K, C, h, w) and the stock noise that it was guided by.

        predicted: what the U-Net answered to `rows`. stock: (K, C, h, w).
        """
        steps = len(stock)
        prompted = predicted[len(predicted) - steps :]
        if self.kind is Guidance.NONE:
            return prompted, stock
        if self.kind is Guidance.FULL:
            without = predicted[:steps]
        else:
            if self.kind is Guidance.INITIALIZE and first:
                stock = torch.cat([predicted[:1], stock[1:]])
            without = self.delta * stock
        return without + self.scale * (prompted - without), stock
