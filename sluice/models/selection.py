"""Which files of a model are wanted: its weights as safetensors, and what describes them. Pure.

A pickle runs code when it is read, so it is taken only by those who ask for it, and only where there is
nothing else.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Final

from sluice.pipeline.models import ModelUnsafeError

WEIGHTS: Final = ".safetensors"
PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
DESCRIPTIONS: Final = frozenset({".json", ".txt", ".model", ".md"})  # .model: tokenizers of SentencePiece
INDEX: Final = "model_index.json"  # of diffusers: a model in parts, each in a directory
UNUSED_PARTS: Final = frozenset({"safety_checker"})

# unet/diffusion_pytorch_model.fp16.safetensors, or .fp16-00001-of-00002.safetensors
_VARIANT: Final = re.compile(r"\.(fp16|bf16|fp8|ema|non_ema)(?=[.-])")


class NoWeightsError(Exception):
    """What has no weights is no model."""


class BadPathError(Exception):
    """A path that leads out of the model's directory."""


def wanted(paths: Iterable[str], name: str, *, variant: str | None = None, unsafe: bool = False) -> list[str]:
    """Return which of a model's `paths` to keep, in order.

    Of each part's weights one variant: `variant` where there is such, else the plain one, else what there
    is. Whole checkpoints beside a model in parts are left out.

    Raises ModelUnsafeError for a part that is there only as pickles, NoWeightsError, BadPathError.
    """
    parts: dict[PurePosixPath, list[PurePosixPath]] = defaultdict(list)
    for path in sorted(set(paths)):
        part = _inside(path)
        if not any(directory.startswith(".") for directory in part.parts):
            parts[part.parent].append(part)
    in_parts = any(path.name == INDEX for path in parts[PurePosixPath()])
    kept: list[PurePosixPath] = []
    pickled: list[PurePosixPath] = []
    weights = 0
    for directory, files in parts.items():
        kept += [path for path in files if path.suffix in DESCRIPTIONS]
        if in_parts and directory == PurePosixPath():
            continue
        safe = [path for path in files if path.suffix == WEIGHTS]
        if not safe and directory.name not in UNUSED_PARTS:
            pickled += [path for path in files if path.suffix in PICKLES]
        chosen = _one_variant(safe, variant)
        weights += len(chosen)
        kept += chosen
    if pickled and not unsafe:
        raise ModelUnsafeError(
            f"{name} has weights only as pickles ({_some(pickled)}), which run code when they are read; "
            "--unsafe takes them all the same"
        )
    if not weights and not pickled:
        raise NoWeightsError(f"{name} has no weights: no {WEIGHTS} file")
    return sorted(str(path) for path in (*kept, *pickled))


def has_pickles(paths: Iterable[str]) -> bool:
    return any(PurePosixPath(path).suffix in PICKLES for path in paths)


def _inside(path: str) -> PurePosixPath:
    part = PurePosixPath(path)
    if not path or part.is_absolute() or ".." in part.parts or "\\" in path or "\0" in path:
        raise BadPathError(f"{path[:200]!r} leads out of the model's directory")
    return part


def _one_variant(files: list[PurePosixPath], variant: str | None) -> list[PurePosixPath]:
    by_variant: dict[str | None, list[PurePosixPath]] = defaultdict(list)
    for path in files:
        match = _VARIANT.search(path.name)
        by_variant[match[1] if match else None].append(path)
    for choice in (variant, None):
        if choice in by_variant:
            return by_variant[choice]
    return files


def _some(paths: list[PurePosixPath]) -> str:
    return ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
