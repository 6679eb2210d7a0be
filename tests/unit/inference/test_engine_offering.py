"""Which pipelines are found, and on what they compute."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from services.common.errors import InvalidError
from services.inference.engine import offering as module
from services.inference.engine.offering import device_for, find, offering, with_defaults
from services.inference.engine.pipelines.passthrough import Passthrough
from sluice.pipeline import Setup
from tests.support.pipelines import Moody


def test_pipelines_of_installed_packages_are_found_by_their_names() -> None:
    assert find("passthrough") is Passthrough


def test_an_authors_is_found_by_its_module_and_class() -> None:
    assert find("tests.support.pipelines:Moody") is Moody


@pytest.mark.parametrize("name", ["nothing", "json:loads", "json:nothing", "tests.support.pipelines:np"])
def test_what_is_no_pipeline_is_said_to_be_none(name: str) -> None:
    with pytest.raises(InvalidError):
        find(name)


def test_this_runners_defaults_replace_the_authors_in_the_schema_and_nothing_else() -> None:
    own = offering("tests.support.pipelines:Moody", {}).described(Setup.plain())["params_schema"]
    made = offering("tests.support.pipelines:Moody", {"moody": {"model": "large"}, "other": {"x": 1}})
    schema = made.described(Setup.plain())["params_schema"]
    assert schema["properties"]["model"].pop("default") == "large"
    assert own["properties"]["model"].pop("default") == "small"
    assert schema == own
    assert made.complete == {"level": 40, "style": "plain", "model": "large", "mishap": ""}


def test_a_schema_may_have_less_than_there_are_parameters() -> None:
    assert with_defaults({"type": "object"}, {"level": 1}) == {"type": "object", "properties": {}}


def test_a_machine_without_a_gpu_computes_on_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NVIDIA", Path("/nowhere"))
    assert device_for("cpu") == device_for("auto") == "cpu"


def test_a_gpu_that_is_wanted_and_is_not_there_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("torch") is None:
        with pytest.raises(InvalidError, match="needs torch"):
            device_for("cuda")
        return
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidError, match="torch sees none"):
        device_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for("cuda") == "cuda:0"
