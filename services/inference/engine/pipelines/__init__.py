"""The pipelines that come with the engine and need no weights."""

from __future__ import annotations

from collections.abc import Mapping

from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.passthrough import Passthrough
from sluice.pipeline import Pipeline


def builtin() -> Mapping[str, type[Pipeline]]:
    """Return the built-in pipelines by name."""
    return {pipeline.name: pipeline for pipeline in (Passthrough, Effects)}
