"""What a node accepts and gives: inputs with type, range, default, as in ComfyUI's `/object_info`. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.refusals import shown

ANY: Final = "*"
SCALARS: Final = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
SIDE_MAX: Final = 16_384  # ComfyUI's MAX_RESOLUTION


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input. `choices` is for a COMBO; None there: whoever runs it knows them."""

    type: str
    required: bool = True
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] | None = None

    def accepts_link(self, given: str) -> bool:
        """Whether an output of type `given` fits; both may be unions, with commas."""
        wanted = set(self.type.split(","))
        return given == self.type or ANY in {self.type, given} or bool(wanted & set(given.split(",")))

    def coerced(self, value: object) -> Any:
        """The value as the node gets it. Raises ValueError that says what is wrong with it."""
        match self.type:
            case "INT":
                return _whole(value)
            case "FLOAT":
                return _number(value)
            case "STRING":
                return _text(value)
            case "BOOLEAN":
                return _truth(value)
        return value

    def beyond(self, value: Any) -> tuple[str, str] | None:
        """Of a coerced value the limit that it does not keep: ComfyUI's type and message for it."""
        if self.minimum is not None and value < self.minimum:
            return "value_smaller_than_min", f"Value {value} smaller than min of {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return "value_bigger_than_max", f"Value {value} bigger than max of {self.maximum}"
        return None

    def object_info(self) -> list[Any]:
        options = {
            name: value
            for name, value in (("default", self.default), ("min", self.minimum), ("max", self.maximum))
            if value is not None
        }
        return [list(self.choices) if self.choices is not None else self.type, options]


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of nodes. `run` gets the inputs by name and returns the outputs in order."""

    class_type: str
    inputs: Mapping[str, Input]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Any, ...]]
    # What else its result depends on, beyond its inputs: such as what is in a file.
    fingerprint: Callable[[Mapping[str, Any]], str] | None = None
    # What is wrong with constants that are right one by one: (input, words).
    objection: Callable[[Mapping[str, Any]], tuple[str, str] | None] | None = None
    is_output: bool = field(default=False)

    def object_info(self) -> dict[str, Any]:
        """As ComfyUI describes its nodes."""
        required = {name: one.object_info() for name, one in self.inputs.items() if one.required}
        optional = {name: one.object_info() for name, one in self.inputs.items() if not one.required}
        return {
            "input": {"required": required, **({"optional": optional} if optional else {})},
            "output": list(self.outputs),
            "name": self.class_type,
            "output_node": self.is_output,
        }


IMAGE: Final = Input(type="IMAGE")
MASK: Final = Input(type="MASK")
OPTIONAL_MASK: Final = Input(type="MASK", required=False)


def integer(default: int, minimum: int, maximum: int = SIDE_MAX, *, required: bool = True) -> Input:
    return Input(type="INT", default=default, minimum=minimum, maximum=maximum, required=required)


def number(default: float, minimum: float, maximum: float) -> Input:
    return Input(type="FLOAT", default=default, minimum=minimum, maximum=maximum)


def flag(*, default: bool, required: bool = True) -> Input:
    return Input(type="BOOLEAN", default=default, required=required)


def text(default: str = "", *, required: bool = True) -> Input:
    return Input(type="STRING", default=default, required=required)


def choice(*choices: str) -> Input:
    return Input(type="COMBO", default=choices[0], choices=choices)


def _whole(value: object) -> int:
    if isinstance(value, str):
        return int(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return int(value)
    raise ValueError(f"{shown(value)} is no number")


def _number(value: object) -> float:
    if isinstance(value, str | int | float):
        number = float(value)
        if math.isfinite(number):
            return number
    raise ValueError(f"{shown(value)} is no number")


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(f"{shown(value)} is no text")


def _truth(value: object) -> bool:
    if isinstance(value, bool | int | float):
        return bool(value)
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    raise ValueError(f"{shown(value)} is neither true nor false")
