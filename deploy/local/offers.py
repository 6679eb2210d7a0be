"""Which pipelines this machine offers without being told: what needs nothing more, and what is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from sluice.pipeline import ModelCache

LIGHT: Final = ("effects", "comfyui", "passthrough")
DIFFUSION: Final = ("torch", "diffusers", "transformers")  # of the extra `diffusion`


def offered(models: ModelCache) -> str:
    """What a runner here loads, as its setting takes it."""
    names = [*LIGHT]
    if models.names() and all(find_spec(package) for package in DIFFUSION):
        names.append("streamdiffusion")
    return ",".join(names)
