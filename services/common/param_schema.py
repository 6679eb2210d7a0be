"""Parameters against the JSON Schema that a pipeline advertises: complete, right, how they apply. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match

from services.common.errors import InvalidError

SLOWEST_LAST: Final = ("live", "warm", "reload")
LONGEST_MESSAGE: Final = 480  # characters of a validator's; the rest of the value says nothing more
CHOICES_NAMED: Final = 32  # of more, only those that resemble what was sent
ALIKE_NAMED: Final = 10  # values that are wrong in the same way


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
    errors = list(Draft202012Validator(schema).iter_errors(params))
    error = best_match(errors)
    if error is None:
        return
    while error.parent is not None:  # of alternatives, the one that names the parameter
        error = error.parent
    where = _where(error)
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
    # Begins with the value, which may be long, and ends with what is wrong with it.
    wrong = _no_choice(error, errors) if error.validator == "enum" else error.message
    if len(wrong) > LONGEST_MESSAGE:
        wrong = f"{wrong[: LONGEST_MESSAGE // 2]} ... {wrong[-LONGEST_MESSAGE // 2 :]}"
    raise InvalidError(f"{where}: {wrong}" + (f" ({expected})" if expected else ""), field=where)


def _where(error: ValidationError) -> str:
    return ".".join(["params", *(str(part) for part in error.absolute_path)])


def _no_choice(error: ValidationError, errors: Sequence[ValidationError]) -> str:
    """What is said of a value that is none of those allowed, and of others that this is said of as well."""
    choices = error.validator_value if isinstance(error.validator_value, list) else []
    words = error.message
    if len(choices) > CHOICES_NAMED:
        names = [choice for choice in choices if isinstance(choice, str)]
        near = get_close_matches(str(error.instance), names)
        words = f"{error.instance!r} is none of the {len(choices)} that there are"
        words += f"; near it: {', '.join(near)}" if near else ""
    rule = error.absolute_schema_path
    alike = [one for one in errors if one is not error and one.absolute_schema_path == rule]
    named = [f"{one.instance!r} ({_where(one)})" for one in alike[:ALIKE_NAMED]]
    if len(alike) > ALIKE_NAMED:
        named.append(f"{len(alike) - ALIKE_NAMED} more")
    return f"{words}; nor is {', '.join(named)}" if named else words


def applies(patch: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """How `patch` takes effect: as the slowest of its parameters does."""
    properties = schema.get("properties", {})
    ways = [properties.get(name, {}).get("x-apply", SLOWEST_LAST[0]) for name in patch]
    return max(ways, key=SLOWEST_LAST.index, default=SLOWEST_LAST[0])
