"""Parameters against the JSON Schema that a pipeline advertises: complete, right, how they apply. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from services.common.errors import InvalidError

SLOWEST_LAST: Final = ("live", "warm", "reload")


def with_defaults(params: Mapping[str, object], schema: Mapping[str, object]) -> dict[str, object]:
    """The complete parameters: the schema's defaults under what the client sent."""
    properties = schema.get("properties")
    known: Mapping[str, object] = properties if isinstance(properties, Mapping) else {}
    defaults = {
        name: fact["default"]
        for name, fact in known.items()
        if isinstance(fact, Mapping) and "default" in fact
    }
    return {**defaults, **params}


def validate(params: Mapping[str, object], schema: Mapping[str, object]) -> None:
    """Raise InvalidError that names the first parameter that is wrong and says what would be right."""
    error = best_match(Draft202012Validator(schema).iter_errors(params))
    if error is None:
        return
    while error.parent is not None:  # of alternatives, the one that names the parameter
        error = error.parent
    where = ".".join(["params", *(str(part) for part in error.absolute_path)])
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        properties = error.schema.get("properties") if isinstance(error.schema, Mapping) else None
        known = sorted(properties) if isinstance(properties, Mapping) else []
        unknown = min(set(error.instance) - set(known))
        owner = "this pipeline" if where == "params" else where
        raise InvalidError(
            f"unknown parameter {unknown!r}; {owner} has: {', '.join(known) or 'none'}",
            field=f"{where}.{unknown}",
        )
    expected = error.schema.get("description", "") if isinstance(error.schema, Mapping) else ""
    message = f"{where}: {error.message}"[:500] + (f" ({expected})" if expected else "")
    raise InvalidError(message, field=where)


def applies(patch: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """How `patch` takes effect: as the slowest of its parameters does."""
    properties = schema.get("properties", {})
    ways = [properties.get(name, {}).get("x-apply", SLOWEST_LAST[0]) for name in patch]
    return max(ways, key=SLOWEST_LAST.index, default=SLOWEST_LAST[0])
