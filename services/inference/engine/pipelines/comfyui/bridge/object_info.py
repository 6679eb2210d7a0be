"""The nodes of a ComfyUI as its `/object_info` describes them: as much as is needed to steer them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.inference.engine.pipelines.comfyui.conversion import FRAME, PICTURE, TEXT
from services.inference.engine.pipelines.comfyui.declarations import Input, Kind, flag, text
from services.inference.engine.pipelines.comfyui.nodes.values import nothing

# What the bridge replaces by nodes of ComfyUI's own before it sends a workflow.
ENDS = (
    Kind(FRAME, {}, ("IMAGE", "MASK"), nothing),
    Kind(PICTURE, {"images": Input(type="IMAGE")}, (), nothing, is_output=True),
    Kind(TEXT, {"data": text(), "remove_linebreaks": flag(default=True, required=False)}, (), nothing),
)


def kinds(described: Mapping[str, Any]) -> Mapping[str, Kind]:
    """By `class_type`, with the stream's ends."""
    found = {name: _kind(name, body) for name, body in described.items() if isinstance(body, Mapping)}
    return {**found, **{kind.class_type: kind for kind in ENDS}}


def _kind(name: str, body: Mapping[str, Any]) -> Kind:
    sections = body.get("input")
    inputs: dict[str, Input] = {}
    for section in ("required", "optional"):
        declared = sections.get(section) if isinstance(sections, Mapping) else None
        if isinstance(declared, Mapping):
            inputs |= {key: _input(one, required=section == "required") for key, one in declared.items()}
    outputs = body.get("output")
    types = tuple(one if isinstance(one, str) else "COMBO" for one in outputs or ())
    return Kind(name, inputs, types, nothing, is_output=bool(body.get("output_node")))


def _input(declared: Any, *, required: bool) -> Input:
    """A type's name, or the list of choices, then options; a newer ComfyUI has the choices there."""
    said = declared if isinstance(declared, list) and declared else ["*"]
    type_: Any = said[0]
    options: Mapping[str, Any] = said[1] if len(said) > 1 and isinstance(said[1], Mapping) else {}
    choices = type_ if isinstance(type_, list) else options.get("options") if type_ == "COMBO" else None
    # A list of files changes while it runs; whether a name is right ComfyUI looks up itself.
    if not isinstance(choices, list) or options.get("image_upload") or options.get("remote"):
        choices = None
    return Input(
        type="COMBO" if isinstance(type_, list) else str(type_),
        required=required,
        default=options.get("default"),
        minimum=_limit(options.get("min")),
        maximum=_limit(options.get("max")),
        choices=tuple(choices) if choices is not None else None,
    )


def _limit(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None
