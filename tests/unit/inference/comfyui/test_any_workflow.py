"""Whatever is sent, the answer is a picture or a refusal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from services.inference.engine.pipelines.comfyui.bridge.prompt import Prompt
from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.declarations import Input
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.own import Bench, OwnRun
from services.inference.engine.pipelines.comfyui.refusals import NodeFailedError, WorkflowError
from services.inference.engine.pipelines.comfyui.static_results import StaticResults
from services.inference.engine.pipelines.comfyui.workflow import parse

NIGHT = json.loads(Path("tests/data/workflows/night.json").read_text())
KINDS = catalogue(Gallery(None))
FRAME = np.random.default_rng(7).integers(0, 256, (24, 32, 3), dtype=np.uint8)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ids = st.sampled_from([str(number) for number in range(1, 8)])
small = st.integers(-3, 70) | st.floats(-1, 12) | st.sampled_from(["none", "normal", "red", "area", "1"])
# Values are small: what a large one asks for is tested by itself.
values = (
    small
    | st.tuples(ids, st.integers(-1, 2)).map(list)
    | anything.filter(lambda one: not isinstance(one, int))
)


FITTING = {"megapixels": 0.02, "scale_by": 1.5}  # what a few of them in a row can do to a picture is enough


def value_for(declared: Input, name: str) -> st.SearchStrategy[Any]:
    """One that the node takes."""
    if declared.choices:
        return st.sampled_from(declared.choices)
    least, most = declared.minimum, declared.maximum
    match declared.type:
        case "INT":
            return st.integers(max(int(least or 0), -48), min(int(most or 48), 48))
        case "FLOAT":
            return st.floats(max(least or 0, -8), min(FITTING.get(name, 8.0), most or 8))
        case "BOOLEAN":
            return st.booleans()
    return st.text(max_size=5)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """A workflow of known nodes, each linked to some before it that fit."""
    sent: dict[str, Any] = {"0": {"class_type": "PrimaryInputLoadImage", "inputs": {}}}
    given = {"IMAGE": [["0", 0]], "MASK": [["0", 1]]}
    inner = sorted(name for name, kind in KINDS.items() if kind.outputs and not name.startswith("Load"))
    for number in range(1, draw(st.integers(2, 8))):
        kind = KINDS[draw(st.sampled_from(inner))]
        sent[str(number)] = {
            "class_type": kind.class_type,
            "inputs": {
                name: draw(st.sampled_from(given[one.type]) if one.type in given else value_for(one, name))
                for name, one in kind.inputs.items()
            },
        }
        for slot, output in enumerate(kind.outputs):
            given.setdefault(output, []).append([str(number), slot])
    shown = given["IMAGE"][-1]
    return {**sent, "99": {"class_type": "PreviewImage", "inputs": {"images": shown}}}


def outcome(sent: object, changes: Mapping[str, Any] | None = None) -> str:
    try:
        converted = convert(parse(sent))
        Prompt.of(converted)
        run = OwnRun(Bench(KINDS, StaticResults(1 << 20)), converted, changes or {})
        made = run.frame(FRAME).picture
    except WorkflowError as error:
        json.dumps(error.answer)
        return "refused"
    except NodeFailedError:
        return "failed"
    assert made is None or (made.dtype == np.uint8 and made.ndim == 3 and made.shape[2] == 3)
    return "shown"


@given(anything)
def test_any_json_is_a_workflow_or_refused(sent: Any) -> None:
    outcome(sent)


@given(st.text(max_size=40))
def test_any_text_is_a_workflow_or_refused(sent: str) -> None:
    outcome(sent)


@given(st.dictionaries(ids, st.fixed_dictionaries({"class_type": anything, "inputs": anything}), max_size=5))
def test_any_nodes_are_a_workflow_or_refused(sent: Any) -> None:
    outcome(sent)


@given(graphs())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_graph_of_known_nodes_runs_or_says_why_not(sent: dict[str, Any]) -> None:
    event(outcome(sent))


@given(st.dictionaries(st.sampled_from([*NIGHT, "77"]), anything, max_size=3))
def test_any_steering_is_taken_or_refused(changes: Any) -> None:
    outcome(NIGHT, changes)


@given(st.sampled_from(sorted(NIGHT)), st.text(max_size=6), values)
def test_any_change_of_a_workflow_that_runs_leaves_it_running_or_is_refused(
    node: str, name: str, value: Any
) -> None:
    changed = {**NIGHT[node], "inputs": {**NIGHT[node]["inputs"], name: value}}
    outcome({**NIGHT, node: changed})


def test_some_of_all_this_is_shown() -> None:
    assert outcome(NIGHT) == "shown"
