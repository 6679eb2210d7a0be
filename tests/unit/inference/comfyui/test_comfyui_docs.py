from __future__ import annotations

import json
import re
from pathlib import Path

from services.inference.engine.pipelines.comfyui.checking import check
from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.schema import ENDS
from services.inference.engine.pipelines.comfyui.settings import ComfyUISettings
from services.inference.engine.pipelines.comfyui.workflow import parse

PAGE = Path("docs/comfyui.md").read_text()
KINDS = catalogue(Gallery(None))


def section(title: str) -> str:
    return PAGE.split(f"## {title}")[1].split("\n## ")[0]


def test_the_page_names_every_node_and_no_other() -> None:
    table = section("Built-in nodes").split("\n\n")[1]
    assert set(re.findall(r"`(\w+)`", table)) == {*KINDS, *ENDS}


def test_the_page_names_every_setting_with_its_default() -> None:
    table = section("Your own ComfyUI")
    said = dict(re.findall(r"\| `SLUICE_COMFYUI_(\w+)` \| (\S*) ?\|", table))
    assert set(said) == {name.upper() for name in ComfyUISettings.model_fields}
    for name, field in ComfyUISettings.model_fields.items():
        if isinstance(field.default, float):
            assert float(said[name.upper()]) == field.default


def test_the_pages_workflow_runs_and_its_steering_fits() -> None:
    (path,) = set(re.findall(r"tests/data/workflows/\w+\.json", PAGE))
    workflow = json.loads(Path(path).read_text())
    assert check(convert(parse(workflow)), KINDS)
    for steering in re.findall(r'\{"6".*?\}\}', PAGE):
        for node, values in json.loads(steering).items():
            assert set(values) <= set(workflow[node]["inputs"])
