"""What ComfyUI says on its WebSocket, as values; what is of no use here is None. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PREVIEW: Final = 1  # u32 event, u32 format, picture
PREVIEW_WITH_METADATA: Final = 4  # u32 event, u32 length of a JSON object, the object, picture
_U32: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Executing:
    """A node's turn; `node` None: nothing more comes of this prompt."""

    prompt: str
    node: str | None


@dataclass(frozen=True, slots=True)
class Stepped:
    """A node says how far it is."""

    prompt: str
    node: str
    fraction: float


@dataclass(frozen=True, slots=True)
class Executed:
    """What a node has to show."""

    prompt: str
    node: str
    output: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A node raised."""

    prompt: str
    node: str
    class_type: str
    exception: str
    message: str


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Somebody pressed cancel."""

    prompt: str


Said = Executing | Stepped | Executed | Failed | Interrupted


def said(text: str) -> Said | None:
    """A text message."""
    try:
        body = json.loads(text)
    except ValueError:
        return None
    if not isinstance(body, Mapping) or not isinstance(data := body.get("data"), Mapping):
        return None
    prompt, node = data.get("prompt_id"), data.get("node")
    if not isinstance(prompt, str):
        return None
    match body.get("type"):
        case "executing":
            return Executing(prompt, None if node is None else str(node))
        case "progress":
            value, most = data.get("value"), data.get("max")
            if not isinstance(value, int | float) or not isinstance(most, int | float) or most <= 0:
                return None
            return Stepped(prompt, str(node), min(1.0, value / most))
        case "executed":
            output = data.get("output")
            return Executed(prompt, str(node), output if isinstance(output, Mapping) else {})
        case "execution_error":
            exception = str(data.get("exception_type", "Exception")).rpartition(".")[2]
            message = str(data.get("exception_message", "")).strip()
            return Failed(prompt, str(data.get("node_id")), str(data.get("node_type")), exception, message)
        case "execution_interrupted":
            return Interrupted(prompt)
    return None


def picture(message: bytes) -> bytes | None:
    """The picture of a binary message, encoded as it is."""
    if len(message) < 2 * _U32.size:
        return None
    (event,), (following,) = _U32.unpack_from(message), _U32.unpack_from(message, _U32.size)
    if event == PREVIEW:
        return message[2 * _U32.size :]
    if event == PREVIEW_WITH_METADATA:
        return message[2 * _U32.size + following :]
    return None
