"""Mixing prompts, seeds and what was with what comes: between tensors along a line or an arc. Pure.

A mean of two embeddings or of two noises is shorter than either, and a model takes the shorter one for
something else: a mean of two independent noises has 0.71 of their length, and pictures of it are flat. An
arc keeps the length. Of more than two there is no arc; there the weighted mean is, and of noises it is made
as long as they are.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch

from sluice.pipeline import TICKS_PER_SECOND

SMALLEST_ANGLE = 1e-6  # below it, in radians, an arc is its chord


class Method(enum.StrEnum):
    """Which way from one tensor to another."""

    LINEAR = "linear"
    SLERP = "slerp"


def slerp(before: torch.Tensor, after: torch.Tensor, share: float) -> torch.Tensor:
    """Go `share` of the way, 0..1, along the arc between two tensors taken as vectors."""
    flat, other = before.flatten().double(), after.flatten().double()
    lengths = flat.norm() * other.norm()
    cosine = float(torch.dot(flat, other) / lengths) if float(lengths) else 1.0
    angle = torch.arccos(torch.tensor(min(1.0, max(-1.0, cosine)), dtype=torch.float64))
    # At half a turn there is no one arc, and its sine is 0 as well.
    if float(torch.sin(angle)) < SMALLEST_ANGLE:
        return torch.lerp(before, after, share)
    parts = torch.sin((1 - share) * angle) / torch.sin(angle), torch.sin(share * angle) / torch.sin(angle)
    return float(parts[0]) * before + float(parts[1]) * after


def towards(before: torch.Tensor, after: torch.Tensor, share: float, method: str) -> torch.Tensor:
    """Go `share` of the way from one tensor to another."""
    return slerp(before, after, share) if method == Method.SLERP else torch.lerp(before, after, share)


def blend(
    tensors: Sequence[torch.Tensor], weights: Sequence[float], method: str, normalize: bool
) -> torch.Tensor:
    """Mix prompts' embeddings. Weights count relative to each other if `normalize`, and else as they are.

    An arc is between two; of more the weighted sum is made. If all weights are 0, all are 1.
    """
    total = sum(weights)
    if not total:
        weights, total = [1.0] * len(weights), float(len(weights))
    length = 1.0 if normalize else total
    if len(tensors) == 2 and method == Method.SLERP:
        return length * slerp(tensors[0], tensors[1], weights[1] / total)
    mixed = torch.zeros_like(tensors[0])
    for tensor, weight in zip(tensors, weights, strict=True):
        mixed = mixed + (weight / total) * tensor
    return length * mixed


def blend_noises(
    noises: Sequence[torch.Tensor], weights: Sequence[float], method: str, normalize: bool
) -> torch.Tensor:
    """Mix noises as `blend` does; a mean gets the mean length of what it was made of."""
    mixed = blend(noises, weights, method, normalize)
    if len(noises) == 1 or (len(noises) == 2 and method == Method.SLERP):
        return mixed
    wanted = sum(float(noise.norm()) for noise in noises) / len(noises)
    if not normalize:
        wanted *= sum(weights) or len(weights)
    return mixed * (wanted / max(float(mixed.norm()), 1e-12))


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a stream asks a model for.

    prompt and negative: the texts' embeddings (tokens, width). pooled, negative_pooled: SDXL's of the whole
    texts (width,), or None.
    """

    prompt: torch.Tensor
    negative: torch.Tensor
    pooled: torch.Tensor | None = None
    negative_pooled: torch.Tensor | None = None

    def towards(self, after: Conditioning, share: float, method: str) -> Conditioning:
        """Go `share` of the way to another."""

        def between(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
            return None if one is None or other is None else towards(one, other, share, method)

        return Conditioning(
            towards(self.prompt, after.prompt, share, method),
            towards(self.negative, after.negative, share, method),
            between(self.pooled, after.pooled),
            between(self.negative_pooled, after.negative_pooled),
        )

    def same(self, other: Conditioning) -> bool:
        """Whether the other asks for exactly this."""
        if self is other:
            return True
        mine, others = self.tensors(), other.tensors()
        return self.alike(other) and all(torch.equal(mine[name], others[name]) for name in mine)

    def alike(self, other: Conditioning) -> bool:
        """Whether the other is of as many tokens and numbers."""
        mine, others = self.tensors(), other.tensors()
        return {name: tensor.shape for name, tensor in mine.items()} == {
            name: tensor.shape for name, tensor in others.items()
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those that are there, by their names."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Conditioning | None:
        """As `tensors` gave it; None if it lacks what each has."""
        return cls(**tensors) if "prompt" in tensors and "negative" in tensors else None


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of what is asked for, over media time, gently at both ends."""

    before: Conditioning
    after: Conditioning
    start_pts: int
    seconds: float
    method: str

    def share(self, pts: int) -> float:
        """How much of it has passed; a time before the start is of another clock, where it is over."""
        elapsed_s = (pts - self.start_pts) / TICKS_PER_SECOND
        if elapsed_s < 0 or elapsed_s >= self.seconds:
            return 1.0
        passed = elapsed_s / self.seconds
        return passed * passed * (3 - 2 * passed)

    def at(self, pts: int) -> Conditioning:
        share = self.share(pts)
        return self.after if share >= 1 else self.before.towards(self.after, share, self.method)
