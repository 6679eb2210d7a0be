"""Parameters against the schema that a pipeline offers. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from services.common.errors import InvalidError

SLOWEST_LAST: Final = ("live", "warm", "reload")


def parse_object(text: str, *, field: str) -> dict[str, Any]:
    """The JSON object in `text`; nothing is an empty one. Raises InvalidError that names `field`."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"{field} is no JSON", field=field) from error
    if not isinstance(value, dict):
        raise InvalidError(f"{field} is no JSON object", field=field)
    return value


def check(params: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raise InvalidError that names the parameter which is wrong."""
    error = best_match(Draft202012Validator(schema).iter_errors(params))
    if error is None:
        return
    while error.parent is not None:  # of alternatives, what they are alternatives for
        error = error.parent
    path = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        path = min(set(params) - set(schema.get("properties", {})), default=path)
    raise InvalidError(f"{path or 'params'}: {error.message}"[:500], field=path or "params")


def applies(patch: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """How `patch` takes effect: as the slowest of its parameters does."""
    properties = schema.get("properties", {})
    ways = [properties.get(name, {}).get("x-apply", SLOWEST_LAST[0]) for name in patch]
    return max(ways, key=SLOWEST_LAST.index, default=SLOWEST_LAST[0])
