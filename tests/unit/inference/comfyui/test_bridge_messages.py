from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from services.inference.engine.pipelines.comfyui.bridge import messages, object_info
from services.inference.engine.pipelines.comfyui.bridge.messages import (
    Executed,
    Executing,
    Failed,
    Interrupted,
    Stepped,
    picture,
    said,
)


def told(type_: str, **data: Any) -> messages.Said | None:
    return said(json.dumps({"type": type_, "data": data}))


def test_what_comfyui_says_of_a_prompt() -> None:
    assert told("executing", node="3", display_node="3", prompt_id="p") == Executing("p", "3")
    assert told("executing", node=None, prompt_id="p") == Executing("p", None)
    assert told("progress", value=1, max=4, prompt_id="p", node="3") == Stepped("p", "3", 0.25)
    assert told("executed", node="4", output={"text": ["x"]}, prompt_id="p") == Executed(
        "p", "4", {"text": ["x"]}
    )
    assert told("executed", node="4", output=None, prompt_id="p") == Executed("p", "4", {})
    assert told("execution_interrupted", prompt_id="p", node_id="3") == Interrupted("p")


def test_an_exception_is_told_by_its_name_without_its_module() -> None:
    failed = told(
        "execution_error",
        prompt_id="p",
        node_id="5",
        node_type="KSampler",
        exception_type="torch.OutOfMemoryError",
        exception_message="CUDA out of memory\n",
        traceback=["..."],
    )
    assert failed == Failed("p", "5", "KSampler", "OutOfMemoryError", "CUDA out of memory")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        '{"type": "status", "data": {"status": {}}}',
        '{"type": "executing"}',
        '{"type": "progress", "data": {"prompt_id": "p", "value": 1, "max": 0}}',
        '{"type": "crystools.monitor", "data": {"prompt_id": "p"}}',
    ],
)
def test_what_others_say_is_passed_over(text: str) -> None:
    assert said(text) is None


def test_a_picture_is_what_comes_after_its_head() -> None:
    assert picture(struct.pack(">II", 1, 2) + b"png") == b"png"
    assert picture(struct.pack(">II", 4, 2) + b"{}" + b"jpg") == b"jpg"
    assert picture(struct.pack(">II", 3, 2) + b"text") is None
    assert picture(b"short") is None


def test_a_nodes_declaration_is_read_in_the_old_way_and_in_the_new() -> None:
    kinds = object_info.kinds(
        {
            "Old": {
                "input": {
                    "required": {
                        "mode": [["a", "b"], {"default": "a"}],
                        "seed": ["INT", {"min": 0, "max": 9}],
                    }
                },
                "output": ["IMAGE", ["a", "b"]],
            },
            "New": {"input": {"optional": {"mode": ["COMBO", {"options": ["c"]}]}}, "output": None},
            "Odd": {"input": None},
            "None": 5,
        }
    )
    assert kinds["Old"].inputs["mode"].choices == ("a", "b")
    assert (kinds["Old"].inputs["seed"].minimum, kinds["Old"].inputs["seed"].maximum) == (0, 9)
    assert kinds["Old"].outputs == ("IMAGE", "COMBO")
    assert kinds["New"].inputs["mode"].choices == ("c",)
    assert not kinds["New"].inputs["mode"].required
    assert kinds["Odd"].inputs == {}
    assert "None" not in kinds
    assert {"LoadTensor", "SaveTensor", "SaveTextTensor"} <= set(kinds)


def test_a_list_of_files_is_not_taken_for_all_that_there_will_be() -> None:
    load = {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}}
    assert object_info.kinds({"LoadImage": load})["LoadImage"].inputs["image"].choices is None
