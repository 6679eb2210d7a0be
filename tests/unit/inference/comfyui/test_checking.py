from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from services.inference.engine.pipelines.comfyui.checking import CheckedNode, check, steered, unknown
from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.refusals import WorkflowError
from services.inference.engine.pipelines.comfyui.workflow import Workflow, parse

KINDS = catalogue(Gallery(None))
LOAD = {"class_type": "LoadTensor", "inputs": {}}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def shows(id_: str, **others: Any) -> dict[str, Any]:
    return {"1": LOAD, "99": node("PreviewImage", images=[id_, 0]), **others}


def checked(sent: Mapping[str, Any]) -> dict[str, CheckedNode]:
    return check(convert(parse(sent)), KINDS)


def refusal(sent: Mapping[str, Any]) -> WorkflowError:
    with pytest.raises(WorkflowError) as refused:
        checked(sent)
    return refused.value


def test_nodes_come_after_what_they_need_and_only_those_that_an_output_needs() -> None:
    found = checked(
        shows(
            "3",
            **{
                "3": node("ImageInvert", image=["2", 0]),
                "2": node("ImageInvert", image=["1", 0]),
                "5": node("ImageInvert"),  # nobody needs it, so nobody minds
            },
        )
    )
    assert list(found) == ["1", "2", "3", "99"]


@pytest.mark.parametrize(
    ("inputs", "type_", "words"),
    [
        ({"blur_radius": 1, "sigma": 1}, "required_input_missing", "image: Required input is missing"),
        (
            {"image": ["1", 0], "blur_radius": 0, "sigma": 1},
            "value_smaller_than_min",
            "blur_radius: Value 0 smaller than min of 1",
        ),
        (
            {"image": ["1", 0], "blur_radius": 1, "sigma": 11},
            "value_bigger_than_max",
            "sigma: Value 11.0 bigger than max of 10.0",
        ),
        (
            {"image": ["1", 0], "blur_radius": "many", "sigma": 1},
            "invalid_input_type",
            "Failed to convert an input value to a INT value",
        ),
        ({"image": ["1", 0], "blur_radius": None, "sigma": 1}, "invalid_input_type", "None is no number"),
        ({"image": ["1", 7], "blur_radius": 1, "sigma": 1}, "bad_linked_input", "which has 2 outputs"),
        ({"image": ["1", -1], "blur_radius": 1, "sigma": 1}, "bad_linked_input", "output -1 of node 1"),
        ({"image": ["8", 0], "blur_radius": 1, "sigma": 1}, "bad_linked_input", "node 8, which is not there"),
        ({"image": "a.png", "blur_radius": 1, "sigma": 1}, "bad_linked_input", "takes the output of a node"),
        (
            {"image": ["1", 1], "blur_radius": 1, "sigma": 1},
            "return_type_mismatch",
            r"received_type(MASK) mismatch input_type(IMAGE)",
        ),
    ],
)
def test_each_wrong_input_is_refused_as_comfyui_does(inputs: dict[str, Any], type_: str, words: str) -> None:
    error = refusal(shows("2", **{"2": node("ImageBlur", **inputs)}))
    assert words in error.message
    assert "node 2 (ImageBlur)" in error.message
    answer = error.answer
    assert answer["node_errors"]["2"]["errors"][0]["type"] == type_
    assert answer["node_errors"]["2"]["dependent_outputs"] == ["99"]
    assert answer["error"]["type"] == "prompt_outputs_failed_validation"


def test_a_value_that_is_no_choice_is_refused_with_the_choices() -> None:
    blend = node("ImageBlend", image1=["1", 0], image2=["1", 0], blend_factor=0.5, blend_mode="darken")
    error = refusal(shows("2", **{"2": blend}))
    assert "blend_mode: 'darken' not in ['normal', 'multiply', 'screen'" in error.message


def test_all_that_is_wrong_is_said_at_once() -> None:
    sent = shows(
        "2",
        **{
            "2": node("ImageBlur", image=["3", 0], blur_radius=99, sigma=0),
            "3": node("ImageInvert"),
        },
    )
    error = refusal(sent)
    assert set(error.answer["node_errors"]) == {"2", "3"}
    assert len(error.answer["node_errors"]["2"]["errors"]) == 2


def test_all_unknown_classes_are_named_also_where_nobody_needs_them() -> None:
    error = refusal(shows("1", **{"7": node("Foo"), "8": node("Bar")}))
    assert "node Foo does not exist" in error.message
    assert "node Bar does not exist" in error.message
    assert error.answer["error"]["type"] == "invalid_prompt"
    assert [problem.node for problem in unknown(parse({"7": node("Foo"), "1": LOAD}), KINDS)] == ["7"]


def test_a_long_list_of_problems_is_cut_in_words_and_whole_in_the_answer() -> None:
    error = refusal(shows("1", **{str(n): node(f"Foo{n}") for n in range(10, 30)}))
    assert "and 14 more" in error.message
    assert len(error.answer["node_errors"]) == 20


def test_a_cycle_is_refused_with_its_nodes() -> None:
    sent = shows("2", **{"2": node("ImageInvert", image=["3", 0]), "3": node("ImageInvert", image=["2", 0])})
    error = refusal(sent)
    assert "it needs its own result: 2 -> 3 -> 2" in error.message
    assert error.type == "dependency_cycle"


def test_a_chain_of_a_thousand_nodes_is_no_trouble() -> None:
    chain = {str(n): node("ImageInvert", image=[str(n - 1), 0]) for n in range(2, 990)}
    assert len(checked({"1": LOAD, **chain, "999": node("SaveImage", images=["989", 0])})) == 990


def test_surplus_inputs_are_ignored_and_scalars_become_what_is_declared() -> None:
    sent = shows(
        "2",
        **{"2": node("ImageBlur", image=["1", 0], blur_radius="3", sigma=1, wheel=["nobody", 0])},
    )
    constants = checked(sent)["2"].constants
    assert constants == {"blur_radius": 3, "sigma": 1.0}
    assert [type(constants[name]) for name in ("blur_radius", "sigma")] == [int, float]


@pytest.mark.parametrize(("sent", "meant"), [(True, True), (0, False), ("false", False), ("True", True)])
def test_truth_is_read_as_people_write_it(sent: object, meant: bool) -> None:
    grow = node("GrowMask", mask=["1", 1], expand=1, tapered_corners=sent)
    found = checked(shows("3", **{"2": grow, "3": node("MaskToImage", mask=["2", 0])}))
    assert found["2"].constants["tapered_corners"] is meant


def test_thresholds_that_are_the_wrong_way_round_are_refused() -> None:
    error = refusal(shows("2", **{"2": node("Canny", image=["1", 0], low_threshold=0.5, high_threshold=0.1)}))
    assert "low_threshold - 0.5 is above high_threshold, 0.1" in error.message
    assert error.answer["node_errors"]["2"]["errors"][0]["type"] == "custom_validation_failed"


def blurred() -> Workflow:
    return parse(shows("2", **{"2": node("ImageBlur", image=["1", 0], blur_radius=3, sigma=1)}))


def test_steering_takes_the_place_of_constants_and_leaves_the_rest() -> None:
    changed = steered(blurred(), {"2": {"sigma": 2.5}}, KINDS)
    assert changed.nodes["2"].inputs["sigma"] == 2.5
    assert changed.nodes["2"].inputs["blur_radius"] == 3
    assert blurred().nodes["2"].inputs["sigma"] == 1


@pytest.mark.parametrize("nothing", [None, {}])
def test_steering_with_nothing_changes_nothing(nothing: Any) -> None:
    assert steered(blurred(), nothing, KINDS) == blurred()


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"3": {"sigma": 1}}, "inputs.3", "the workflow has no node 3; it has 1, 99, 2"),
        ({"2": 5}, "inputs.2", "values by the names of inputs are wanted, not 5"),
        ({"2": {"radius": 1}}, "inputs.2.radius", "has no value of this name; it has blur_radius, sigma"),
        ({"2": {"image": 1}}, "inputs.2.image", "has no value of this name"),
        ({"2": {"sigma": 100}}, "inputs.2.sigma", "Value 100.0 bigger than max of 10.0"),
        ({"2": {"sigma": [1, 2]}}, "inputs.2.sigma", "is no number"),
    ],
)
def test_steering_that_a_node_does_not_take_is_refused_with_its_place(
    changes: Any, field: str, words: str
) -> None:
    with pytest.raises(WorkflowError) as refused:
        steered(blurred(), changes, KINDS)
    assert refused.value.field == field
    assert words in refused.value.message


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_every_node_describes_itself_and_its_defaults_are_right(kind: Any) -> None:
    info = kind.object_info()
    assert info["name"] == kind.class_type
    for declared in kind.inputs.values():
        if declared.default is None:
            continue
        value = declared.coerced(declared.default)
        assert declared.minimum is None or value >= declared.minimum
        assert declared.maximum is None or value <= declared.maximum
        assert declared.choices is None or value in declared.choices
