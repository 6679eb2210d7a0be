from __future__ import annotations

import json
import random
from typing import Any

import pytest

from sluice.conformance.values import accepted, by_chance, edges, shown, strangers
from sluice.pipeline import Json, Param, Prompt

PARAMS = {
    "on": Param(default=True, help="x"),
    "steps": Param(default=4, help="x", minimum=1, maximum=50),
    "any": Param(default=4, help="x"),
    "least": Param(default=1.5, help="x", minimum=0.5),
    "size": Param(default="512", help="x", choices=("512", "768")),
    "title": Param(default="", help="x", max_length=10),
    "prompt": Prompt(default="a cat", help="x", max_length=100),
    "steps_list": Json(
        default=[12, 20],
        help="x",
        schema={"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 49}, "minItems": 1},
    ),
    "weights": Json(
        default=None,
        help="x",
        schema={
            "type": ["object", "null"],
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": 2},
        },
    ),
    "controls": Json(
        default=[],
        help="x",
        schema={
            "type": "array",
            "maxItems": 3,
            "items": {
                "type": "object",
                "required": ["kind"],
                "properties": {
                    "kind": {"enum": ["canny", "blur"]},
                    "scale": {"type": "number", "minimum": 0},
                },
                "additionalProperties": False,
            },
        },
    ),
}


@pytest.mark.parametrize("name", PARAMS)
def test_edges_are_valid_and_different_and_begin_with_the_default(name: str) -> None:
    param = PARAMS[name]
    found = edges(param.accepts(), param.default)
    assert found[0] == param.default
    assert len(found) > 1
    assert all(accepted(param.accepts(), value) for value in found)
    assert len({json.dumps(value, sort_keys=True) for value in found}) == len(found)


def test_limits_choices_and_items_are_among_the_edges() -> None:
    def tried(name: str) -> list[Any]:
        return edges(PARAMS[name].accepts(), PARAMS[name].default)

    assert {1, 50} <= set(tried("steps"))
    assert set(tried("size")) == {"512", "768"}
    assert "x" * 10 in tried("title")
    assert [["a cat", 1000]] not in tried("prompt")
    assert any(isinstance(value, list) and value and value[0][1] == 1000 for value in tried("prompt"))
    assert [0] in tried("steps_list")
    assert [49] in tried("steps_list")
    assert None in tried("weights")
    assert {"x": 2} in tried("weights")
    assert [{"kind": "blur"}] in tried("controls")


@pytest.mark.parametrize("name", PARAMS)
def test_what_is_made_by_chance_is_valid_and_the_same_for_a_seed(name: str) -> None:
    schema = PARAMS[name].accepts()
    found = [by_chance(schema, random.Random(seed)) for seed in range(30)]
    assert all(good for good, _ in found)
    assert all(accepted(schema, value) for _, value in found)
    assert len({json.dumps(value, sort_keys=True) for _, value in found}) > 1
    assert found == [by_chance(schema, random.Random(seed)) for seed in range(30)]


def test_a_schema_that_is_beyond_it_says_that_nothing_was_found() -> None:
    odd = {"type": "string", "pattern": "^[0-9]{7}$"}
    assert by_chance(odd, random.Random(0)) == (False, None)
    assert edges(odd, "1234567") == ["1234567"]


@pytest.mark.parametrize("name", PARAMS)
def test_strangers_are_not_valid(name: str) -> None:
    found = strangers(PARAMS[name])
    assert len(found) > 5
    assert not any(accepted(PARAMS[name].accepts(), value) for value in found)


def test_a_value_is_shown_as_a_client_writes_it_and_not_too_long() -> None:
    assert shown(None) == "null"
    assert shown("a") == '"a"'
    assert shown("x" * 500) == '"' + "x" * 39 + "... (502 characters)"
