"""The JSON Schema of the parameters that are lists and objects: processors in a row, networks, seeds. Pure.

What is switched off (`"enabled": false`) may be anything that clients know; what is on must be built in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.inference.engine.pipelines.streamdiffusion.controls import NEED_WEIGHTS, PROCESSORS
from sluice.pipeline.models import MODEL_NAME

SEED_MAX: Final = 2**32 - 1
SEEDS_MAX: Final = 32
PROCESSORS_MAX: Final = 8
FEEDBACK_STRENGTH: Final = 0.15  # of `latent_feedback`, if none is given

_OFF: Final = {"properties": {"enabled": {"const": False}}, "required": ["enabled"]}
WEIGHTLESS: Final = tuple(PROCESSORS)
_ALL_PROCESSORS: Final = tuple(sorted((*WEIGHTLESS, *NEED_WEIGHTS)))
_SWITCH: Final = {"type": "boolean", "default": True, "description": "True if it is left out."}


def _processor_values(kind: str) -> dict[str, Any]:
    """Of the processor's parameters."""
    return {
        "type": ["object", "null"],
        "properties": {
            name: {**param.accepts(), "default": param.default, "description": param.help}
            for name, param in PROCESSORS[kind].params.items()
        },
        "additionalProperties": False,
    }


def _active_processor(name_of_type: str, name_of_values: str, *also: None) -> dict[str, Any]:
    """What must hold of a processor that is not switched off."""
    return {
        "properties": {
            name_of_type: {
                "enum": [*WEIGHTLESS, *also],
                "description": f"{', '.join(NEED_WEIGHTS)} need models of their own, which are not built in",
            }
        },
        "allOf": [
            {
                "if": {"properties": {name_of_type: {"const": kind}}, "required": [name_of_type]},
                "then": {"properties": {name_of_values: _processor_values(kind)}},
            }
            for kind in WEIGHTLESS
        ],
    }


def _chain(kinds: Sequence[str], active: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of processors in a row; those that are switched off are not looked at."""
    item = {
        "type": "object",
        "properties": {
            "type": {"enum": list(kinds)},
            "enabled": _SWITCH,
            "params": {"type": ["object", "null"]},
        },
        "required": ["type"],
        "additionalProperties": False,
    }
    return {
        "type": ["object", "null"],
        "properties": {
            "enabled": _SWITCH,
            "processors": {"type": "array", "items": item, "maxItems": PROCESSORS_MAX},
        },
        "additionalProperties": False,
        "if": _OFF,
        "else": {"properties": {"processors": {"items": {"if": _OFF, "else": active}}}},
    }


IMAGE_CHAIN: Final = _chain(_ALL_PROCESSORS, _active_processor("type", "params"))
LATENT_CHAIN: Final = _chain(
    ("latent_feedback",),
    {
        "properties": {
            "params": {
                "type": ["object", "null"],
                "properties": {
                    "feedback_strength": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": 1,
                        "default": FEEDBACK_STRENGTH,
                        "description": "Share of the last latent; up to 0.4 is sensible.",
                    }
                },
                "additionalProperties": False,
            }
        }
    },
)

CONTROLNET: Final = {
    "type": "object",
    "properties": {
        "model_id": {
            "type": "string",
            "pattern": MODEL_NAME,
            "description": "A name of this machine's model cache.",
        },
        "conditioning_scale": {
            "type": "number",
            "minimum": 0,
            "maximum": 2,
            "default": 1.0,
            "description": "0 keeps it loaded and without effect; 1 if it is left out.",
        },
        "conditioning_channels": {"type": ["integer", "null"], "minimum": 1, "maximum": 6},
        "preprocessor": {"enum": [*_ALL_PROCESSORS, None]},
        "preprocessor_params": {"type": ["object", "null"], "default": {}},
        "enabled": _SWITCH,
        "control_guidance_start": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 0.0,
            "description": "Share of the steps before which it has no effect.",
        },
        "control_guidance_end": {
            "type": "number",
            "minimum": 0,
            "maximum": 1,
            "default": 1.0,
            "description": "Share of the steps from which it has none.",
        },
    },
    "required": ["model_id"],
    "additionalProperties": False,
    "if": _OFF,
    "else": {
        **_active_processor("preprocessor", "preprocessor_params", None),
        "required": ["model_id"],
    },
}
CONTROLNET["else"]["properties"]["conditioning_channels"] = {  # type: ignore[index]
    "enum": [3, None],
    "description": "more or fewer channels than a picture's 3 are TemporalNet's, which is not built in",
}


def seeds() -> dict[str, Any]:
    seed = {"type": "integer", "minimum": 0, "maximum": SEED_MAX}
    weight = {"type": "number", "minimum": 0, "maximum": 1000}
    pair = {"type": "array", "prefixItems": [seed, weight], "items": False, "minItems": 2}
    return {"anyOf": [seed, {"type": "array", "items": pair, "minItems": 1, "maxItems": SEEDS_MAX}]}
