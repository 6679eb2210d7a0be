"""What a pipeline is given to load with: a device, this machine's models, somebody to tell of progress."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from sluice.pipeline.models import ModelCache
from sluice.pipeline.sharing import Shared, Sharing

T = TypeVar("T")
MODELS: Final = "SLUICE_MODELS"


def models_root() -> Path:
    """Where models lie unless somebody says otherwise."""
    return Path(os.environ.get(MODELS) or Path.home() / ".cache" / "sluice" / "models")


def _nobody(stage: str, fraction: float) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What `load` may use.

    device: "cpu", or a CUDA device such as "cuda:0". progress: called with a stage, such as "weights", and
    how much of it is done, 0..1; what it is called with is shown to whoever waits.
    """

    device: str
    models: ModelCache
    progress: Callable[[str, float], None] = _nobody
    sharing: Sharing = field(default_factory=Sharing)

    @classmethod
    def plain(cls, device: str = "cpu") -> Setup:
        """With this machine's models, nobody who listens, and nothing shared with anybody else."""
        return cls(device, ModelCache(models_root()))

    def share(self, key: Hashable, make: Callable[[], T]) -> Shared[T]:
        """Something that the streams of this engine have in common, such as a loaded model: see `Sharing`."""
        return self.sharing.share(key, make)
