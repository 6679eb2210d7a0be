"""Numbers and texts that other nodes take, and what a workflow says to the stream's clients."""

from __future__ import annotations

import sys
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.declarations import Input, Kind, flag, integer, text

NUMBER_MAX: Final = sys.maxsize


def _same(value: Any) -> tuple[Any]:
    return (value,)


def concatenate(string_a: str, string_b: str, delimiter: str) -> tuple[str]:
    return (delimiter.join((string_a, string_b)),)


def nothing(**_inputs: Any) -> tuple[()]:
    """What an output is for is done where the stream's ends are."""
    return ()


KINDS: Final = (
    Kind("PrimitiveString", {"value": text()}, ("STRING",), _same),
    Kind("PrimitiveStringMultiline", {"value": text()}, ("STRING",), _same),
    Kind("PrimitiveInt", {"value": integer(0, -NUMBER_MAX, NUMBER_MAX)}, ("INT",), _same),
    Kind(
        "PrimitiveFloat",
        {"value": Input(type="FLOAT", default=0.0, minimum=-NUMBER_MAX, maximum=NUMBER_MAX)},
        ("FLOAT",),
        _same,
    ),
    Kind("PrimitiveBoolean", {"value": flag(default=False)}, ("BOOLEAN",), _same),
    Kind(
        "StringConcatenate",
        {"string_a": text(), "string_b": text(), "delimiter": text()},
        ("STRING",),
        concatenate,
    ),
    Kind(
        "SaveTextTensor",
        {"data": text(), "remove_linebreaks": flag(default=True, required=False)},
        (),
        nothing,
        is_output=True,
    ),
)
