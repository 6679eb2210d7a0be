"""What a container says on its channels, as events and remarks of ours. Pure.

A container is somebody else's: what cannot be read means nothing, and nothing it says can be more than words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

LONGEST_REMARK_BYTES: Final = 16 * 1024  # what our own pipelines may say at once
LONGEST_MESSAGE: Final = 500
HEALTH: Final[Mapping[str, str]] = {
    "LOADING": "loading",
    "OFFLINE": "idle",
    "ONLINE": "online",
    "DEGRADED_INPUT": "degraded_input",
    "DEGRADED_INFERENCE": "degraded_inference",
    "ERROR": "error",
}


def event(text: bytes) -> dict[str, Any] | None:
    """One segment of `events` as an event of ours; None for what we have no word for."""
    said = _parsed(text)
    if isinstance(said, dict) and isinstance(said.get("event"), dict):
        said = said["event"]
    match said:
        case {"type": "status", "state": str(state)} if state in HEALTH:
            return {"type": "health", "state": HEALTH[state], "cause": "the container says so"}
        case {"type": "error", "message": message}:
            return _problem("pipeline_error", message, "held")
        case {"type": "restart"}:
            return _problem("crash", "the container restarted its pipeline", "restarting")
    return None


def _problem(kind: str, message: object, action: str) -> dict[str, Any]:
    return {
        "type": "problem",
        "stage": "process",
        "kind": kind,
        "error": "",
        "message": str(message)[:LONGEST_MESSAGE],
        "action": action,
    }


def remarks(text: bytes) -> Iterator[str]:
    """What a segment of `data` says, each a JSON object; PyTrickle writes arrays of strings, a line each."""
    for line in text.splitlines():
        said = _parsed(line)
        for one in said if isinstance(said, list) else () if said is None else (said,):
            remark = json.dumps(_object(one))
            if len(remark) <= LONGEST_REMARK_BYTES:
                yield remark


def _object(said: object) -> dict[str, Any]:
    inner = _parsed(said.encode(errors="replace")) if isinstance(said, str) else said
    if isinstance(inner, dict):
        return inner
    return {"text": said} if isinstance(said, str) else {"value": said}


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
