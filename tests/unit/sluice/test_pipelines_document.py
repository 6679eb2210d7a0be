"""What docs/pipelines.md shows works, and what it lists is what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sluice.conformance import Plan, check
from sluice.conformance.suite import CHECKS
from sluice.pipeline import Pipeline

TEXT = (Path(__file__).parents[3] / "docs" / "pipelines.md").read_text()
QUICK = Plan(sizes=((64, 64), (97, 16)), work_size=(64, 64), leak_frames=80, chances=10, patience_s=5)


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def pipelines(example: str) -> list[type[Pipeline]]:
    space: dict[str, Any] = {"__name__": "example"}
    exec(compile(example, "docs/pipelines.md", "exec"), space)  # what the project's own document says
    found = [one for one in space.values() if isinstance(one, type) and issubclass(one, Pipeline)]
    return [one for one in found if one is not Pipeline]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.split("class ")[-1][:12])
def test_every_example_runs_and_every_class_in_it_is_a_good_pipeline(example: str) -> None:
    for pipeline in pipelines(example):
        report = check(pipeline, plan=QUICK, only=lambda name: name != "declaration")
        assert report.passed, str(report)


def test_every_check_and_every_setting_of_a_plan_is_listed() -> None:
    table = TEXT.split("| check | what it tries |")[1]
    listed = re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert listed == [one.name for one in CHECKS]
    assert {field.name for field in fields(Plan)} <= set(re.findall(r"`([a-z_]+)`", table))


def test_every_method_and_attribute_of_the_class_is_described() -> None:
    ours = {name for name in vars(Pipeline) if not name.startswith("_")} | set(Pipeline.__annotations__)
    missing = {name for name in ours if f"`{name}" not in TEXT and f".{name}(" not in TEXT}
    assert missing == {"hear"}, "the engine's"
