"""The JSON Schema of a workflow: what the way in refuses before anything runs, by naming the nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.conversion import PICTURES, PRIMARY
from services.inference.engine.pipelines.comfyui.declarations import SCALARS, Input, Kind
from services.inference.engine.pipelines.comfyui.workflow import NOT_API

# What `convert` makes others of; sound is not among them, for it is not processed.
ENDS: Final = (PRIMARY, *PICTURES)
ONE: Final = "a list of one workflow, for a stream runs one"
SHAPES: Final = ["object", "array", "string"]


def accepted(known: Iterable[str] | None = None, kinds: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """A workflow: an object of nodes, a list of one, or the text of either.

    known: the classes that there are; None: that cannot be said now. kinds: those whose ranges are known.
    Conditions in place of alternatives, so that what is wrong is found at the node and not around it all.
    """
    class_type: dict[str, Any] = {"type": "string"}
    if known is not None:
        class_type["enum"] = sorted({*known, *ENDS})
    node: dict[str, Any] = {
        "type": "object",
        "properties": {"class_type": class_type, "inputs": {"type": "object"}},
        "required": ["class_type"],
    }
    if ranges := [_of_class(kind) for kind in (kinds or {}).values() if _has_limits(kind)]:
        node["allOf"] = ranges
    graph = {"type": "object", "additionalProperties": node}
    wrapped = {"properties": {"prompt": graph}}  # the body of ComfyUI's own POST /prompt
    is_body = {"properties": {"prompt": {"type": "object", "not": {"required": ["class_type"]}}}}
    as_editor = {"properties": {"nodes": {"type": "array"}}, "required": ["nodes"]}
    as_object = {
        "if": {**is_body, "required": ["prompt"]},
        "then": wrapped,
        "else": {
            "if": as_editor,
            "then": {"properties": {"nodes": {"type": "object", "description": NOT_API}}},
            "else": graph,
        },
    }
    return {
        "type": SHAPES,
        "allOf": [
            {"if": {"type": "object"}, "then": as_object},
            {
                "if": {"type": "array"},
                "then": {"maxItems": 1, "description": ONE, "items": {"type": ["object", "string"]}},
            },
            {
                "if": {"type": "array", "prefixItems": [{"type": "object"}], "minItems": 1},
                "then": {"prefixItems": [as_object]},
            },
        ],
    }


def _has_limits(kind: Kind) -> bool:
    return any(_limits(one) for one in kind.inputs.values())


def _of_class(kind: Kind) -> dict[str, Any]:
    inputs = {name: limits for name, one in kind.inputs.items() if (limits := _limits(one))}
    return {
        "if": {"properties": {"class_type": {"const": kind.class_type}}, "required": ["class_type"]},
        "then": {"properties": {"inputs": {"properties": inputs}}},
    }


def _limits(one: Input) -> dict[str, Any]:
    """Of numbers and of texts only: in their place there may be a link, which is a list."""
    if one.type not in SCALARS:
        return {}
    ends = (("minimum", one.minimum), ("maximum", one.maximum))
    limits: dict[str, Any] = {keyword: limit for keyword, limit in ends if limit is not None}
    if one.choices is not None:
        limits |= {"if": {"type": "string"}, "then": {"enum": list(one.choices)}}
    return limits
