"""Which pipelines this engine offers: found by name, with the defaults of this runner, each with its schema.

The rule it keeps: a pipeline that cannot be offered costs the others nothing, and somebody says why.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from services.common.errors import InvalidError
from services.common.param_schema import validate
from sluice.pipeline import Pipeline, Setup, defaults

ENTRY_POINTS: Final = "sluice.pipelines"
NVIDIA: Final = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class Offering:
    """A pipeline, and the value of each parameter that a stream does not set."""

    pipeline: type[Pipeline]
    complete: Mapping[str, Any]

    def described(self, setup: Setup) -> dict[str, Any]:
        """What the supervisor is told of it. Raises InvalidError when a default of this runner cannot be."""
        pipeline = self.pipeline
        schema = with_defaults(pipeline.offered(setup), self.complete)
        own = defaults(pipeline)
        validate({name: value for name, value in self.complete.items() if value != own[name]}, schema)
        return {
            "name": pipeline.name,
            "version": pipeline.version,
            "description": pipeline.description,
            "params_schema": schema,
            "processes_audio": pipeline.processes_audio,
            "slots_per_engine": pipeline.slots_per_engine,
        }


def offering(name: str, here: Mapping[str, Mapping[str, Any]]) -> Offering:
    """The pipeline that is called `name`; `here` has this runner's defaults, by the pipeline's own name.

    Raises InvalidError, and what importing it raises.
    """
    pipeline = find(name)
    own, replaced = defaults(pipeline), here.get(pipeline.name, {})
    if unknown := sorted(replaced.keys() - own.keys()):
        raise InvalidError(f"{pipeline.name} has no parameter {unknown[0]!r} that could have a default")
    return Offering(pipeline, {**own, **replaced})


def find(name: str) -> type[Pipeline]:
    """The pipeline of an installed package, ours too, by its name, or an author's by `module:Class`.

    Raises InvalidError, and what importing it raises.
    """
    module, _, attribute = name.partition(":")
    if attribute:
        found = getattr(importlib.import_module(module), attribute, None)
    else:
        installed = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in installed:
            there = ", ".join(sorted(installed))
            raise InvalidError(f"no pipeline {name!r} is installed: there are {there}, and module:Class")
        found = installed[name].load()
    if not isinstance(found, type) or not issubclass(found, Pipeline):
        raise InvalidError(f"{name!r} is no class of a Pipeline")
    return found


def with_defaults(schema: Mapping[str, Any], complete: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with the defaults that streams get here."""
    properties = {
        name: {**told, "default": complete[name]} if name in complete else told
        for name, told in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties}


def device_for(wanted: str) -> str:
    """The device that `wanted` means here: auto, cpu or cuda. Raises InvalidError when it is not there."""
    if wanted == "cpu" or (wanted == "auto" and not (NVIDIA.exists() and find_spec("torch"))):
        return "cpu"
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InvalidError("device cuda needs torch, which is not installed") from error
    if torch.cuda.is_available():
        return "cuda:0"
    if wanted == "cuda":
        raise InvalidError("device cuda is not there: torch sees none")
    return "cpu"
