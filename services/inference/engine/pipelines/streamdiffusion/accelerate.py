"""How a model runs on this machine's device: its numbers, its memory layout, whether it is compiled.

Compiled models and CUDA graphs are for one shape each, so batches are padded up to a few sizes (`padded`).
Everything here that needs a GPU has been written against the documentation of PyTorch 2.13 and not run on
one.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

BATCHES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32)  # rows for which a compiled model is made
MEMINFO: Final = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What holds for each model of a pipeline.

    half: with 16 bits a number. compiled: by torch.compile, with CUDA graphs.
    """

    device: torch.device
    half: bool
    compiled: bool

    @classmethod
    def of(cls, wanted: str, device: str) -> Acceleration:
        """`wanted` is auto, none or compile. Raises ValueError where it cannot be had."""
        on = torch.device(device)
        cuda = on.type == "cuda"
        if wanted == "compile" and not cuda:
            raise ValueError("compile is for CUDA, and this machine computes on its CPU; use auto")
        return cls(on, half=cuda, compiled=cuda and wanted != "none")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float16 if self.half else torch.float32

    @property
    def wide_dtype(self) -> torch.dtype:
        """For what overflows in float16, as SDXL's own autoencoder does."""
        return torch.bfloat16 if self.half and torch.cuda.is_bf16_supported() else torch.float32

    def place(self, module: torch.nn.Module) -> None:
        """Put the module where it is to run, without gradients."""
        module.to(self.device).eval().requires_grad_(False)
        if self.half:  # its convolutions read the channels of a point together; on a CPU it does not pay
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def compile(self, module: torch.nn.Module, *, graphs: bool) -> Callable[..., Any]:
        """Return what to call instead of the module.

        graphs: recorded as a CUDA graph, which must always be called from the same thread.
        """
        if not self.compiled:
            return module
        if graphs:
            recorded: Callable[..., Any] = torch.compile(module, mode="reduce-overhead", dynamic=False)
            return recorded
        made: Callable[..., Any] = torch.compile(module)
        return made

    def free_bytes(self) -> int:
        """How much memory is left where models go."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what PyTorch keeps of models that are gone is free as well
            return int(torch.cuda.mem_get_info(self.device)[0])
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{MEMINFO} has no MemAvailable")


def padded(rows: int) -> int:
    """How many rows a compiled model is called with for so many."""
    at = bisect.bisect_left(BATCHES, rows)
    return BATCHES[at] if at < len(BATCHES) else rows


def padding(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the tensor with its last row repeated until it has so many."""
    lacking = rows - len(tensor)
    return tensor if lacking <= 0 else torch.cat([tensor, tensor[-1:].expand(lacking, *tensor.shape[1:])])
