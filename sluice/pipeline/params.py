"""What a client may set: declared parameters, and the JSON Schema that says so to everybody else. Pure."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_JSON_TYPES: Final[Mapping[type, str]] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_WEIGHTED_TEXTS_MAX: Final = 32


class ParamError(Exception):
    """A value that a pipeline cannot take, though its schema allows it; the pipeline itself is well.

    `field` is the parameter, such as "lora_dict" or "controlnets.0.model_id"; `message` says what would be
    right. `load`, `prepare` and `process` raise it: the value is refused and those before it stay.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Apply(enum.StrEnum):
    """How a changed parameter takes effect."""

    LIVE = "live"  # from the next frame on
    WARM = "warm"  # once the pipeline has prepared for it, while frames go on as before
    RELOAD = "reload"  # after a new `load`, during which frames stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter; the type of `default` is its type: bool, int, float or str.

    `minimum` and `maximum` are for numbers and inclusive; `max_length` is for text, in characters.
    """

    default: bool | float | str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[bool | float | str, ...] = ()
    max_length: int | None = None
    apply: Apply = Apply.LIVE

    def problem(self) -> str | None:
        """Say what is wrong with this declaration, or None."""
        kind = type(self.default)
        if kind not in _JSON_TYPES:
            return f"default {self.default!r} is neither bool, int, float nor str"
        if not self.help.strip():
            return "help is empty"
        if self.choices and any(type(choice) is not kind for choice in self.choices):
            return f"choices {self.choices!r} are not all {kind.__name__}, as the default is"
        if self.choices and self.default not in self.choices:
            return f"default {self.default!r} is not among the choices {self.choices!r}"
        return self._problem_with_limits()

    def _problem_with_limits(self) -> str | None:
        limits = [limit for limit in (self.minimum, self.maximum) if limit is not None]
        numbers = [number for number in (self.default, *limits, *self.choices) if isinstance(number, float)]
        if not all(math.isfinite(number) for number in numbers):
            return "a number is infinite or not a number, which JSON cannot say"
        if isinstance(self.default, bool | str):
            if limits:
                return f"minimum and maximum are for numbers, and default {self.default!r} is none"
        else:
            if self.minimum is not None and self.default < self.minimum:
                return f"default {self.default!r} is below minimum {self.minimum!r}"
            if self.maximum is not None and self.default > self.maximum:
                return f"default {self.default!r} is above maximum {self.maximum!r}"
        if self.max_length is not None:
            if not isinstance(self.default, str):
                return f"max_length is for text, and default {self.default!r} is none"
            if len(self.default) > self.max_length:
                return f"default has {len(self.default)} characters, above max_length {self.max_length}"
        return None

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema property that says all this to a client."""
        return {
            **self.accepts(),
            "default": self.default,
            "description": self.help,
            "x-apply": self.apply.value,
        }

    def accepts(self) -> dict[str, Any]:
        """Return the part of `json_schema` that a value must satisfy."""
        limits = {"minimum": self.minimum, "maximum": self.maximum, "maxLength": self.max_length}
        return {
            "type": _JSON_TYPES[type(self.default)],
            **({"enum": list(self.choices)} if self.choices else {}),
            **{keyword: limit for keyword, limit in limits.items() if limit is not None},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Param):
    """A text, or up to 32 weighted texts: each `[text, weight]` or `{"text": ..., "weight": ...}`.

    `weighted_texts` reads all of these. A weight is 0..1000, and 1 where an object has none.
    """

    def problem(self) -> str | None:
        if not isinstance(self.default, str):
            return f"default {self.default!r} of a prompt is not text"
        if self.choices:
            return "a prompt is free text and has no choices"
        return Param.problem(self)

    def accepts(self) -> dict[str, Any]:
        text = Param.accepts(self)
        weight = {"type": "number", "minimum": 0, "maximum": 1000}
        pair = {"type": "array", "prefixItems": [text, weight], "items": False, "minItems": 2}
        named = {
            "type": "object",
            "properties": {"text": text, "weight": weight},
            "required": ["text"],
            "additionalProperties": False,
        }
        several = {"type": "array", "items": {"anyOf": [pair, named]}, "maxItems": _WEIGHTED_TEXTS_MAX}
        return {"anyOf": [text, several]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Json(Param):
    """A list, an object or null: whatever `schema`, a JSON Schema (draft 2020-12), accepts."""

    default: Any
    schema: Mapping[str, Any] = field(default_factory=dict)

    def problem(self) -> str | None:
        if not self.help.strip():
            return "help is empty"
        if (
            self.choices
            or self.minimum is not None
            or self.maximum is not None
            or self.max_length is not None
        ):
            return "choices, minimum, maximum and max_length go into its schema"
        try:
            json.dumps([self.default, self.schema], allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"default or schema is no JSON: {error}"
        return None

    def accepts(self) -> dict[str, Any]:
        return dict(self.schema)


def weighted_texts(prompt: Any) -> list[tuple[str, float]]:
    """Read the value of a `Prompt`; a plain text weighs 1."""
    if isinstance(prompt, str):
        return [(prompt, 1.0)]
    return [
        (item["text"], float(item.get("weight", 1)))
        if isinstance(item, Mapping)
        else (item[0], float(item[1]))
        for item in prompt
    ]
