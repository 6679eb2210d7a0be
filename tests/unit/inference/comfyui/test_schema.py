from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from services.common.errors import InvalidError
from services.common.param_schema import validate
from services.inference.engine.pipelines.comfyui.pipeline import ComfyUI
from sluice.pipeline import Setup, defaults, schema
from tests.support.comfyui import ComfyUIStandIn

LOAD = {"class_type": "LoadTensor", "inputs": {}}
WORKFLOWS = Path("tests/data/workflows")


@pytest.fixture(scope="module")
def offered() -> dict[str, Any]:
    return ComfyUI.offered(Setup.plain())


def refusal(workflow: object, offered: dict[str, Any], name: str = "workflow") -> InvalidError:
    with pytest.raises(InvalidError) as refused:
        validate({name: workflow}, offered)
    return refused.value


def test_what_is_offered_is_a_schema_that_its_defaults_satisfy(offered: dict[str, Any]) -> None:
    for one in (offered, schema(ComfyUI)):
        Draft202012Validator.check_schema(one)
        Draft202012Validator(one).validate(defaults(ComfyUI))


def test_it_fits_into_an_advert(offered: dict[str, Any]) -> None:
    assert len(json.dumps(offered)) < 64_000


@pytest.mark.parametrize("name", ["workflow", "prompts", "prompt"])
def test_unknown_classes_are_all_named_where_the_stream_is_created(
    offered: dict[str, Any], name: str
) -> None:
    workflow = {"1": LOAD, "5": {"class_type": "KSampler"}, "7": {"class_type": "VAEDecode", "inputs": {}}}
    error = refusal(workflow, offered, name)
    assert "is none of the" in str(error)
    for unknown, node in (("'KSampler'", 5), ("'VAEDecode'", 7)):
        assert unknown in str(error)
        assert f"params.{name}.{node}.class_type" in str(error)


def test_a_misspelt_class_is_told_what_is_near(offered: dict[str, Any]) -> None:
    assert "near it: ImageBlur" in str(refusal({"1": {"class_type": "ImageBlurr"}}, offered))


@pytest.mark.parametrize(
    "sent",
    [
        [{"1": {"class_type": "Foo"}}],
        {"prompt": {"1": {"class_type": "Foo"}}},
    ],
)
def test_they_are_found_however_the_workflow_is_sent(offered: dict[str, Any], sent: object) -> None:
    assert "'Foo' is none of the" in str(refusal(sent, offered))


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"blur_radius": 99}, "blur_radius", "99 is greater than the maximum of 31"),
        ({"sigma": 0}, "sigma", "0 is less than the minimum of 0.1"),
    ],
)
def test_values_beyond_a_nodes_range_are_refused_with_their_place(
    offered: dict[str, Any], inputs: Any, field: str, words: str
) -> None:
    error = refusal({"2": {"class_type": "ImageBlur", "inputs": inputs}}, offered)
    assert words in str(error)
    assert error.details["field"] == f"params.workflow.2.inputs.{field}"


def test_a_link_stands_where_a_value_may(offered: dict[str, Any]) -> None:
    validate({"workflow": {"2": {"class_type": "ImageBlur", "inputs": {"blur_radius": ["3", 0]}}}}, offered)


def test_the_editors_format_is_refused_with_how_to_export_the_other(offered: dict[str, Any]) -> None:
    error = refusal(json.loads((WORKFLOWS / "editor.json").read_text()), offered)
    assert "export it with Workflow > Export (API)" in str(error)


def test_two_workflows_are_refused(offered: dict[str, Any]) -> None:
    assert "a stream runs one" in str(refusal([{"1": LOAD}, {"1": LOAD}], offered))


@pytest.mark.parametrize("sent", [5, True, {"1": 5}, {"1": {}}, {"1": {"class_type": 7}}, [[]]])
def test_what_is_no_workflow_is_refused(offered: dict[str, Any], sent: object) -> None:
    refusal(sent, offered)


@pytest.mark.parametrize("sent", [{}, [], "", "{}", [{}], {"1": LOAD}, ["text"]])
def test_what_may_be_one_is_not(offered: dict[str, Any], sent: object) -> None:
    validate({"workflow": sent}, offered)


def test_without_a_comfyui_there_is_no_such_backend(offered: dict[str, Any]) -> None:
    assert "'comfyui' is not one of ['auto', 'own']" in str(refusal("comfyui", offered, "backend"))


def test_with_a_comfyui_its_nodes_are_known_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    with ComfyUIStandIn() as server:
        monkeypatch.setenv("SLUICE_COMFYUI_URL", server.url)
        offered = ComfyUI.offered(Setup.plain())
    validate({"workflow": {"1": {"class_type": "Brighten"}, "2": {"class_type": "ImageBlur"}}}, offered)
    validate({"backend": "comfyui"}, offered)
    assert "'Foo' is none of the" in str(refusal({"1": {"class_type": "Foo"}}, offered))


def test_while_a_comfyui_is_away_no_class_is_refused_that_it_may_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ComfyUIStandIn() as server:
        monkeypatch.setenv("SLUICE_COMFYUI_URL", server.url)
        server.die()
        offered = ComfyUI.offered(Setup.plain())
    validate({"workflow": {"1": {"class_type": "Foo"}}}, offered)


def test_an_address_that_is_none_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_COMFYUI_URL", "file:///etc/passwd")
    with pytest.raises(ValueError, match="url"):
        ComfyUI.offered(Setup.plain())
