from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.refusals import WorkflowError
from services.inference.engine.pipelines.comfyui.workflow import DEFAULT, Link, parse

WORKFLOWS = Path("tests/data/workflows")
LOAD = {"class_type": "LoadTensor", "inputs": {}}
SAVE = {"class_type": "SaveTensor", "inputs": {"images": ["1", 0]}}
PLAIN = {"1": LOAD, "2": SAVE}


def image(name: str = "a.png") -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def shown(node: str = "1", class_type: str = "PreviewImage") -> dict[str, Any]:
    return {"class_type": class_type, "inputs": {"images": [node, 0]}}


@pytest.mark.parametrize("nothing", [None, "", "  ", {}, [], "{}", "[]", "null", [None], [{}]])
def test_nothing_is_the_workflow_that_changes_nothing(nothing: object) -> None:
    workflow = parse(nothing)
    assert workflow.is_default
    assert workflow.api() == DEFAULT


@pytest.mark.parametrize(
    "sent", [PLAIN, [PLAIN], json.dumps(PLAIN), json.dumps([PLAIN]), [json.dumps(PLAIN)], {"prompt": PLAIN}]
)
def test_all_ways_to_send_a_workflow_are_one(sent: object) -> None:
    workflow = parse(sent)
    assert workflow.api() == PLAIN
    assert not workflow.is_default


def test_a_node_may_be_called_prompt() -> None:
    assert set(parse({"prompt": LOAD, "2": SAVE}).nodes) == {"prompt", "2"}


def test_links_and_constants_are_told_apart_as_comfyui_does() -> None:
    inputs = {"a": ["1", 0], "b": ["1", 1.0], "c": {"__value__": [1, 2]}, "d": 3, "e": "x", "f": {"k": 1}}
    node = parse({"9": {"class_type": "X", "inputs": inputs, "_meta": {"title": "t"}}}).nodes["9"]
    assert node.inputs["a"] == Link("1", 0)
    assert node.inputs["b"] == Link("1", 1)
    assert node.inputs["c"] == [1, 2]
    assert (node.inputs["d"], node.inputs["e"], node.inputs["f"]) == (3, "x", {"k": 1})


def test_a_workflow_goes_out_as_it_came_in() -> None:
    sent = {"9": {"class_type": "X", "inputs": {"a": ["1", 0], "c": {"__value__": ["1", 0]}}}}
    assert parse(sent).api() == sent


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ([PLAIN, PLAIN], "2 workflows; a stream runs one"),
        ("{", "the text of the workflow is not JSON"),
        ('{"1": NaN}', "the text of the workflow is not JSON: NaN is no number"),
        ('"again"', "a workflow is an object of nodes, not 'again'"),
        (7, "a workflow is an object of nodes, not 7"),
        ({"1": 5}, "node 1 is no object with class_type and inputs but 5"),
        ({"1": {"inputs": {}}}, "a node is missing the class_type property"),
        ({"1": {"class_type": "X", "inputs": []}}, r"node 1 \(X\): inputs is no object but \[\]"),
        ({"1": {"class_type": "X", "inputs": {"a": [1, 2, 3]}}}, "Bad linked input, must be a length-2 list"),
        ({"1": {"class_type": "X", "inputs": {"a": [1, 0]}}}, "Bad linked input"),
        ({"1": {"class_type": "X", "inputs": {"a": ["1", True]}}}, "Bad linked input"),
        ({str(n): LOAD for n in range(1001)}, "1001 nodes; at most 1000 are run"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ("x" * 4_000_001, "4000001 characters"),
    ],
)
def test_what_is_no_workflow_is_refused_with_words(sent: object, words: str) -> None:
    with pytest.raises(WorkflowError, match=words) as refused:
        parse(sent)
    assert refused.value.field == "workflow"


def test_the_editors_own_format_is_refused_with_how_to_export_the_other() -> None:
    with pytest.raises(WorkflowError, match=r"export it with Workflow > Export \(API\)"):
        parse((WORKFLOWS / "editor.json").read_text())


def test_a_refusal_has_comfyuis_own_shape() -> None:
    with pytest.raises(WorkflowError) as refused:
        parse({"1": {"class_type": "X", "inputs": {"a": [1, 2, 3]}}})
    answer = refused.value.answer
    assert answer["error"]["type"] == "invalid_prompt"
    assert answer["node_errors"] == {
        "1": {
            "errors": [
                {
                    "type": "bad_linked_input",
                    "message": "Bad linked input, must be a length-2 list of [node_id, slot_index]",
                    "details": "a",
                    "extra_info": {"input_name": "a"},
                }
            ],
            "dependent_outputs": [],
            "class_type": "X",
        }
    }


def test_the_primary_input_is_the_stream_and_other_pictures_stay() -> None:
    sent = {
        "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "a.png"}},
        "2": image(),
        "3": image(),
    }
    converted = convert(parse({**sent, "4": shown()}))
    assert converted.frames == ("1",)
    assert converted.workflow.nodes["1"].class_type == "LoadTensor"
    assert converted.workflow.nodes["1"].inputs == {}
    assert converted.workflow.nodes["2"].class_type == "LoadImage"


def test_a_single_load_image_is_the_stream() -> None:
    converted = convert(parse({"1": image(), "2": shown()}))
    assert converted.frames == ("1",)
    assert (
        converted.workflow.nodes["2"].class_type
        == converted.workflow.nodes[converted.picture or ""].class_type
    )


def test_a_load_image_beside_a_load_tensor_is_no_stream() -> None:
    assert convert(parse({"1": LOAD, "2": image(), "3": shown()})).frames == ("1",)


@pytest.mark.parametrize("name", ["SaveTensor", "PreviewImage", "SaveImage", "SaveImageWebsocket"])
def test_any_picture_that_is_shown_is_the_result(name: str) -> None:
    converted = convert(parse({"1": LOAD, "2": shown("1", name)}))
    assert converted.picture == "2"
    assert converted.workflow.nodes["2"].class_type == "SaveTensor"


def test_a_workflow_may_only_say_something() -> None:
    text = {"class_type": "SaveTextTensor", "inputs": {"data": "x"}}
    converted = convert(parse({"1": LOAD, "2": text}))
    assert (converted.picture, converted.texts) == (None, ("2",))


PRIMARY = {"class_type": "PrimaryInputLoadImage", "inputs": {}}
SOUND = {"class_type": "LoadAudioTensor", "inputs": {}}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"1": PRIMARY, "2": PRIMARY, "3": shown()}, "too many primary inputs in prompt"),
        ({"1": image(), "2": image(), "3": image(), "4": shown()}, "too many inputs in prompt"),
        ({"1": LOAD, **{str(n): shown() for n in range(2, 6)}}, "too many outputs in prompt"),
        ({"1": LOAD, "2": shown(), "3": shown()}, r"too many outputs in prompt: 2 \(PreviewImage\), 3"),
        ({"2": shown()}, "missing input"),
        ({"1": LOAD}, "missing output"),
        (
            {"1": image(), "2": image(), "3": shown()},
            "none of them is said to be the stream; make it a Primary",
        ),
        ({"1": LOAD, "2": SOUND, "3": shown()}, r"sound is not processed: node 2 \(LoadAudioTensor\)"),
    ],
)
def test_what_comfystream_would_not_run_or_not_right_is_refused(sent: object, words: str) -> None:
    with pytest.raises(WorkflowError, match=words):
        convert(parse(sent))


def test_a_workflow_of_diffusion_keeps_its_other_nodes_as_they_are() -> None:
    sent = json.loads((WORKFLOWS / "diffusion.json").read_text())
    converted = convert(parse(sent))
    changed = {
        id_ for id_, node in converted.workflow.api().items() if node["class_type"] != sent[id_]["class_type"]
    }
    assert changed == {"1", "7"}
