"""Values that a JSON Schema accepts, at its limits and by chance, and values that it does not. Pure.

It knows the keywords that parameters are written with; what a schema demands beyond them is found by trying,
and a schema for which no try succeeds has no values here but its default.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jsonschema import Draft202012Validator

from sluice.pipeline import Param

UNBOUNDED: Final = 1000  # how far from 0 a number without limits is tried
LONGEST_TEXT: Final = 500
TRIES: Final = 20
DEEPEST: Final = 4
TEXTS: Final = ("", " ", "a cat", "ünï çødé 🦊", "two\nlines", "%s {0} <b>'\"\\", "word " * 90)
STRANGERS: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 0.5, 10**9, -(10**9), "", "x", "x" * 100_000, [], [[]], [None], {}, {"x": 1},
)  # fmt: skip


def accepted(schema: Mapping[str, Any], value: object) -> bool:
    return bool(Draft202012Validator(schema).is_valid(value))


def edges(schema: Mapping[str, Any], default: object) -> list[Any]:
    """Values worth trying one by one: the default, limits, choices, awkward texts, few and many items."""
    found = [default, *_edges(schema, 0)]
    return _distinct(value for value in found if accepted(schema, value))


def strangers(param: Param) -> list[Any]:
    """Values that the declaration of `param` does not accept."""
    schema = param.accepts()
    near: list[Any] = []
    for keyword, beyond in (("minimum", -1), ("maximum", 1)):
        if keyword in schema:
            near.append(schema[keyword] + beyond)
    if "maxLength" in schema:
        near.append("x" * (schema["maxLength"] + 1))
    near += [f"{choice}?" for choice in schema.get("enum", [])]
    return _distinct(value for value in (*near, *STRANGERS) if not accepted(schema, value))


def by_chance(schema: Mapping[str, Any], chance: random.Random) -> tuple[bool, Any]:
    """Whether a value was found, and the value."""
    for _ in range(TRIES):
        value = _made(schema, chance, 0)
        if accepted(schema, value):
            return True, value
    return False, None


def shown(value: object) -> str:
    """`value` as a client would write it, not too long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _edges(schema: Mapping[str, Any], depth: int) -> list[Any]:
    if "const" in schema:
        return [schema["const"]]
    if "enum" in schema:
        return list(schema["enum"])
    found: list[Any] = []
    for one in _alternatives(schema):
        found += _edges(one, depth)
    for kind in _kinds(schema):
        match kind:
            case "boolean":
                found += [False, True]
            case "integer" | "number":
                low, high = _limits(schema)
                found += [low, high, 0, 1] if kind == "integer" else [low, high, 0, (low + high) / 2]
            case "string":
                found += [*TEXTS, "x" * min(schema.get("maxLength", LONGEST_TEXT), LONGEST_TEXT)]
            case "null":
                found.append(None)
            case "array" if depth < DEEPEST:
                found += _array_edges(schema, depth)
            case "object" if depth < DEEPEST:
                found += _object_edges(schema, depth)
    return found


def _array_edges(schema: Mapping[str, Any], depth: int) -> list[Any]:
    if "prefixItems" in schema:
        columns = [_edges(item, depth + 1) or [None] for item in schema["prefixItems"]]
        longest = max(map(len, columns))
        return [[column[row % len(column)] for column in columns] for row in range(longest)]
    items = schema.get("items")
    values = _edges(items, depth + 1) if isinstance(items, Mapping) else []
    few, many = schema.get("minItems", 0), min(schema.get("maxItems", 4), 32)
    found: list[Any] = [[]]
    if values:
        found += [[values[index % len(values)] for index in range(count)] for count in {few, 1, many}]
        found += [[value] * max(few, 1) for value in values]
    return found


def _object_edges(schema: Mapping[str, Any], depth: int) -> list[Any]:
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    values = {name: _edges(one, depth + 1) or [None] for name, one in properties.items()}
    smallest = {name: values[name][0] for name in required if name in values}
    found: list[Any] = [{}, smallest]
    for name, several in values.items():
        found += [{**smallest, name: value} for value in several]
    extra = schema.get("additionalProperties")
    if isinstance(extra, Mapping):
        found += [{**smallest, "x": value} for value in _edges(extra, depth + 1)]
    return found


def _made(schema: Mapping[str, Any], chance: random.Random, depth: int) -> Any:
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chance.choice(list(schema["enum"]))
    several = _alternatives(schema)
    if several:
        return _made(chance.choice(several), chance, depth)
    kinds = _kinds(schema)
    match chance.choice(kinds) if kinds else "null":
        case "boolean":
            return chance.random() < 0.5
        case "integer":
            low, high = _limits(schema)
            return chance.randint(int(low), int(high))
        case "number":
            low, high = _limits(schema)
            return round(chance.uniform(low, high), 6)
        case "string":
            return chance.choice(TEXTS)[: schema.get("maxLength", LONGEST_TEXT)]
        case "array" if depth < DEEPEST:
            if "prefixItems" in schema:
                return [_made(item, chance, depth + 1) for item in schema["prefixItems"]]
            items = schema.get("items")
            count = chance.randint(schema.get("minItems", 0), min(schema.get("maxItems", 4), 8))
            return [
                _made(items if isinstance(items, Mapping) else {}, chance, depth + 1) for _ in range(count)
            ]
        case "object" if depth < DEEPEST:
            required = schema.get("required", [])
            return {
                name: _made(one, chance, depth + 1)
                for name, one in schema.get("properties", {}).items()
                if name in required or chance.random() < 0.5
            }
        case _:
            return None


def _alternatives(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found = schema.get("anyOf") or schema.get("oneOf") or ()
    return [one for one in found if isinstance(one, Mapping)]


def _kinds(schema: Mapping[str, Any]) -> list[str]:
    kind = schema.get("type", [])
    return [kind] if isinstance(kind, str) else list(kind)


def _limits(schema: Mapping[str, Any]) -> tuple[float, float]:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        low = -UNBOUNDED if high is None else high - UNBOUNDED
    if high is None:
        high = low + UNBOUNDED if "minimum" in schema else UNBOUNDED
    return low, high


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Without repetitions; 1, 1.0 and true are three."""
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(json.dumps(value, sort_keys=True), value)
    return list(found.values())
