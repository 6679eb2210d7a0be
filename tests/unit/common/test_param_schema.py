"""A refused parameter is named, wherever it is, and told what would be right."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidError
from services.common.param_schema import validate, with_defaults
from services.inference.engine.pipelines.effects import Effects
from sluice import pipeline

EFFECTS = pipeline.schema(Effects)
NESTED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "blur": {
            "type": "object",
            "description": "How soft.",
            "properties": {"radius": {"type": "integer", "minimum": 1, "description": "In pixels."}},
            "required": ["radius"],
            "additionalProperties": False,
        },
        "points": {"type": "array", "items": {"type": "number"}},
    },
    "additionalProperties": False,
}


def refusal(params: dict[str, Any], schema: dict[str, Any] = EFFECTS) -> InvalidError:
    with pytest.raises(InvalidError) as refused:
        validate(params, schema)
    return refused.value


def test_the_defaults_make_any_parameters_complete() -> None:
    complete = with_defaults({"prompt": "neon"}, EFFECTS)
    assert set(complete) == set(EFFECTS["properties"])
    assert complete["prompt"] == "neon"
    validate(complete, EFFECTS)


def test_a_schema_without_properties_has_no_defaults() -> None:
    assert with_defaults({"a": 1}, {}) == {"a": 1}
    assert with_defaults({}, {"properties": {"a": {"type": "string"}, "b": True}}) == {}


@pytest.mark.parametrize(
    "prompt",
    [
        "neon",
        [["neon", 1], ["sketch", 0.5]],
        [{"text": "neon"}, {"text": "sketch", "weight": 2}],
    ],
)
def test_a_prompt_may_be_a_text_or_weighted_texts(prompt: object) -> None:
    validate(with_defaults({"prompt": prompt}, EFFECTS), EFFECTS)


@pytest.mark.parametrize("prompt", [7, [["neon"]], [["neon", "heavy"]], [{"weight": 1}], {"text": "neon"}])
def test_a_wrong_prompt_is_named_as_the_prompt(prompt: object) -> None:
    assert refusal({"prompt": prompt}).details["field"] == "params.prompt"


def test_a_value_out_of_range_is_named_and_explained() -> None:
    error = refusal({"strength": 7})
    assert error.details["field"] == "params.strength"
    assert error.message.startswith("params.strength: 7 is greater than the maximum")
    assert EFFECTS["properties"]["strength"]["description"] in error.message


def test_an_unknown_parameter_is_answered_with_those_that_exist() -> None:
    error = refusal({"prompt": "neon", "colour": 1})
    assert error.details["field"] == "params.colour"
    assert "unknown parameter 'colour'" in error.message
    for known in EFFECTS["properties"]:
        assert known in error.message


def test_a_pipeline_without_parameters_says_so() -> None:
    error = refusal({"a": 1}, {"type": "object", "properties": {}, "additionalProperties": False})
    assert "none" in error.message


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"blur": {"radius": 0}}, "params.blur.radius"),
        ({"blur": {"radius": "x"}}, "params.blur.radius"),
        ({"points": [1, "two"]}, "params.points.1"),
        ({"blur": {}}, "params.blur"),
        ({"blur": {"radius": 1, "angle": 2}}, "params.blur.angle"),
    ],
)
def test_a_nested_parameter_is_named_by_its_whole_path(params: dict[str, Any], field: str) -> None:
    assert refusal(params, NESTED).details["field"] == field


def test_an_unknown_nested_parameter_is_answered_with_its_siblings() -> None:
    error = refusal({"blur": {"radius": 1, "angle": 2}}, NESTED)
    assert "radius" in error.message
    assert "points" not in error.message


def test_a_missing_parameter_is_a_sentence_about_the_whole() -> None:
    error = refusal({}, {"type": "object", "required": ["seed"]})
    assert error.details["field"] == "params"
    assert error.message == "params: 'seed' is a required property"


def test_a_long_value_is_not_repeated_at_length() -> None:
    assert len(refusal({"prompt": "x" * 100_000}).message) < 1000
