"""The U-Net that several streams share: rows of whoever waits, in one call.

A row is one step of one stream, with its own timestep, texts and control pictures; streams with different
numbers of steps go into the same call. What a row comes out as does not depend on what else is in the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration, padded, padding
from sluice.pipeline import Batcher


class Controller:
    """A ControlNet, which several streams may share."""

    def __init__(self, net: Any, acceleration: Acceleration) -> None:
        acceleration.place(net)
        self.width = int(net.config.cross_attention_dim)  # of the texts that it reads
        self.calls = 0
        # Its residuals go into the U-Net's graph as any other input does.
        self._run = acceleration.compile(net, graphs=False)

    def __call__(self, rows: Rows, pictures: torch.Tensor) -> list[torch.Tensor]:
        """Return the residuals of `rows`, the last of them that of the middle block."""
        self.calls += 1
        down, middle = self._run(
            rows.latents,
            rows.timesteps,
            rows.texts,
            controlnet_cond=pictures.to(rows.latents),
            added_cond_kwargs=rows.added(),
            return_dict=False,
        )
        return [*down, middle]


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """What a ControlNet makes of some rows.

    pictures: (R, 3, H, W), 0..1. scales: (R,), how much of it counts in each row.
    """

    controller: Controller
    pictures: torch.Tensor
    scales: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What one stream asks at once.

    latents: (R, 4, h, w). timesteps: (R,). texts: (R, tokens, width). pooled (R, width) and sizes (R, 6):
    SDXL's.
    """

    latents: torch.Tensor
    timesteps: torch.Tensor
    texts: torch.Tensor
    pooled: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    controls: tuple[Control, ...] = ()

    def added(self) -> dict[str, torch.Tensor] | None:
        """As diffusers passes it."""
        if self.pooled is None or self.sizes is None:
            return None
        return {"text_embeds": self.pooled, "time_ids": self.sizes}

    def at(self, indices: Sequence[int]) -> Rows:
        """Some of the rows, without controls."""
        rows = list(indices)
        return Rows(
            self.latents[rows],
            self.timesteps[rows],
            self.texts[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.sizes is None else self.sizes[rows],
        )


class Denoiser:
    """A U-Net and its batcher. `calls` and `rows` count what it was asked."""

    def __init__(self, unet: Any, acceleration: Acceleration, *, streams: int) -> None:
        acceleration.place(unet)
        self._acceleration = acceleration
        self._unet = acceleration.compile(unet, graphs=True)
        self.calls = 0
        self.rows = 0
        self.batcher: Batcher[Rows, torch.Tensor] = Batcher(self._run, largest=streams)

    def __call__(self, rows: Rows) -> torch.Tensor:
        """Return the noise in `rows`, (R, 4, h, w), float32; waits for the batch."""
        dtype = self._acceleration.dtype
        half = replace(
            rows,
            latents=rows.latents.to(dtype),
            texts=rows.texts.to(dtype),
            pooled=None if rows.pooled is None else rows.pooled.to(dtype),
            sizes=None if rows.sizes is None else rows.sizes.to(dtype),
        )
        return self.batcher(half).float()

    def close(self) -> None:
        self.batcher.close()

    @torch.inference_mode()
    def _run(self, asked: Sequence[Rows]) -> list[torch.Tensor]:
        """On the batcher's thread."""
        shapes: dict[torch.Size, list[int]] = {}
        for index, rows in enumerate(asked):
            shapes.setdefault(rows.latents.shape[1:], []).append(index)
        answers: dict[int, torch.Tensor] = {}
        for indices in shapes.values():
            parts = self._predict([asked[index] for index in indices])
            answers.update(zip(indices, parts, strict=True))
        if self._acceleration.device.type == "cuda":  # the batcher measures how long it takes
            torch.cuda.current_stream(self._acceleration.device).synchronize()
        return [answers[index] for index in range(len(asked))]

    def _predict(self, parts: Sequence[Rows]) -> list[torch.Tensor]:
        counts = [len(part.latents) for part in parts]
        rows = _together(parts)
        residuals = self._residuals(rows, parts)
        self.calls += 1
        self.rows += sum(counts)
        size = padded(sum(counts)) if self._acceleration.compiled else sum(counts)
        rows = Rows(*(None if column is None else padding(column, size) for column in _columns(rows)))  # type: ignore[arg-type]
        graphs = self._acceleration.compiled and self._acceleration.device.type == "cuda"
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        predicted = self._unet(
            rows.latents,
            rows.timesteps,
            rows.texts,
            added_cond_kwargs=rows.added(),
            down_block_additional_residuals=(
                tuple(padding(residual, size) for residual in residuals[:-1]) if residuals else None
            ),
            mid_block_additional_residual=padding(residuals[-1], size) if residuals else None,
            return_dict=False,
        )[0]
        if graphs:
            predicted = predicted.clone()  # the next call of the graph writes into what this one returned
        return list(predicted[: sum(counts)].split(counts))

    @staticmethod
    def _residuals(rows: Rows, parts: Sequence[Rows]) -> list[torch.Tensor]:
        """Return the sum of what all ControlNets make of their rows, nothing if there are none."""
        wanted: dict[Controller, list[tuple[int, torch.Tensor, float]]] = {}
        start = 0
        for part in parts:
            for control in part.controls:
                wanted.setdefault(control.controller, []).extend(
                    (start + index, control.pictures[index], scale)
                    for index, scale in enumerate(control.scales)
                    if scale > 0
                )
            start += len(part.latents)
        total: list[torch.Tensor] = []
        for controller, items in wanted.items():
            if not items:
                continue
            indices = [index for index, _, _ in items]
            made = controller(rows.at(indices), torch.stack([picture for _, picture, _ in items]))
            at = torch.tensor(indices, device=rows.latents.device)
            scales = torch.tensor([scale for _, _, scale in items]).to(rows.latents).view(-1, 1, 1, 1)
            if not total:
                total = [torch.zeros(start, *one.shape[1:]).to(one) for one in made]
            for whole, one in zip(total, made, strict=True):
                whole.index_add_(0, at, scales * one)
        return total


def _columns(rows: Rows) -> tuple[torch.Tensor | None, ...]:
    return rows.latents, rows.timesteps, rows.texts, rows.pooled, rows.sizes


def _together(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return replace(parts[0], controls=())
    columns = zip(*map(_columns, parts), strict=True)
    return Rows(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]
