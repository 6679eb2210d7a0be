"""What is said on a data channel: one JSON object a message, each answered, and nothing wrong passed over.

A client sends Scope's parameters (`parameters.py`) or, with a `type`, what is ours:

    {"type": "update", "id": "7", "params": {"prompt": "neon"}, "apply_at_ms": 2000}
    {"type": "subscribe", "status": true, "data": true}

It hears `parameters_accepted` at once, then `parameters_applied` when a picture has the change or
`parameters_refused` when none will; `parameters_updated` when somebody else changed something; `loading`,
`health` and `problem` of the runner; `stream_stopped`, `data`, `status`, `subscribed` and `error`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.common.errors import InvalidError, SluiceError, TooLargeError
from services.common.json_objects import json_object
from services.ingest.transports.webrtc import parameters
from services.ingest.transports.webrtc.parameters import ScopeParameters

MessageId: TypeAlias = str | int
ID_MAX: Final = 200
TYPES: Final = ("update", "subscribe")


class Update(BaseModel):
    """Some of the pipeline's own parameters; `apply_at_ms` is media time, 0 the first picture."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    params: dict[str, Any]
    apply_at_ms: Annotated[int, Field(ge=0, le=7 * 86_400_000)] | None = None


class Subscribe(BaseModel):
    """What is to be told unasked: `status` once a second, `data` as the pipeline says it, `events` of it."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    status: bool | None = None
    data: bool | None = None
    events: bool | None = None


Message: TypeAlias = Update | Subscribe | ScopeParameters


def message_object(data: str | bytes, most_bytes: int) -> dict[str, Any]:
    """The JSON object that a message is. Raises InvalidError, TooLargeError."""
    size = len(data) if isinstance(data, bytes) else len(data.encode(errors="surrogatepass"))
    if size > most_bytes:
        raise TooLargeError(f"a message has at most {most_bytes} bytes, not {size}")
    try:
        text = data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError:
        raise InvalidError("the message is not UTF-8 text", field="message") from None
    if not text.strip():
        raise InvalidError("the message is empty", field="message")
    fields = json_object(text, "message")
    if not parameters.plain(fields):
        raise InvalidError(f"more than {parameters.DEPTH_MAX} objects in each other", field="message")
    return fields


def message_id(fields: Mapping[str, Any]) -> MessageId | None:
    """What its answers are to repeat. Raises InvalidError."""
    found = fields.get("id")
    if found is None or (isinstance(found, int) and not isinstance(found, bool) and abs(found) < 2**53):
        return found
    if isinstance(found, str) and len(found) <= ID_MAX:
        return found
    raise InvalidError(f"id: a number, or text of at most {ID_MAX} characters", field="id")


def read(fields: Mapping[str, Any]) -> Message:
    """What a message means. Raises InvalidError that names what is wrong."""
    rest = {name: value for name, value in fields.items() if name not in {"id", "type"}}
    kind = fields.get("type")
    if kind is None:
        return parameters.read(rest)
    try:
        if kind == "update":
            return Update.model_validate(rest)
        if kind == "subscribe":
            return Subscribe.model_validate(rest)
    except ValidationError as error:
        raise parameters.wrong_field(error) from None
    raise InvalidError(
        f"type: there is {', '.join(TYPES)}, or none for Scope's parameters; not {str(kind)[:50]!r}",
        field="type",
    )


def strange(message: Update | Subscribe) -> tuple[str, ...]:
    """The keys that mean nothing in it."""
    return tuple(message.model_extra or ())


def said(kind: str, message: MessageId | None = None, /, **fields: Any) -> str:
    """A message to the client; `id` is of the one that it answers."""
    return json.dumps({"type": kind, **({} if message is None else {"id": message}), **fields})


def refused(error: SluiceError, message: MessageId | None = None) -> str:
    field = {"field": error.details["field"]} if error.details.get("field") else {}
    return said("error", message, error=error.message[:1000], code=error.reason, **field)


def changed(before: Mapping[str, Any], after: Mapping[str, Any], but: Iterable[str] = ()) -> dict[str, Any]:
    """What is other in `after`, without the names in `but`."""
    return {
        name: value
        for name, value in after.items()
        if name not in set(but) and (name not in before or before[name] != value)
    }
