"""A workflow in ComfyUI's API format as nodes and links; what is not in that format is refused. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.refusals import NodeProblem, WorkflowError, shown

NODES_MAX: Final = 1000
TEXT_MAX: Final = 4_000_000  # characters of a workflow that comes as text
DEFAULT: Final[Mapping[str, Any]] = {
    "1": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    "2": {"class_type": "LoadTensor", "inputs": {}},
}
NOT_API: Final = (
    "this is a workflow as ComfyUI's editor saves it, with positions and widgets in place of named inputs; "
    "export it with Workflow > Export (API), in older ones Save (API Format)"
)
BAD_LINK: Final = "Bad linked input, must be a length-2 list of [node_id, slot_index]"


@dataclass(frozen=True, slots=True)
class Link:
    """The output of another node."""

    node: str
    slot: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it was sent: constants and links by the names of its inputs."""

    id: str
    class_type: str
    inputs: Mapping[str, Any]

    def links(self) -> dict[str, Link]:
        return {name: value for name, value in self.inputs.items() if isinstance(value, Link)}


@dataclass(frozen=True, slots=True)
class Workflow:
    """Nodes by id, in the order in which they were sent."""

    nodes: Mapping[str, Node]
    is_default: bool = False

    def of_class(self, *class_types: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.class_type in class_types]

    def with_nodes(self, *changed: Node) -> Workflow:
        return replace(self, nodes={**self.nodes, **{node.id: node for node in changed}})

    def api(self) -> dict[str, dict[str, Any]]:
        """The workflow in the format in which it came."""
        return {
            node.id: {
                "class_type": node.class_type,
                "inputs": {name: _sent(value) for name, value in node.inputs.items()},
            }
            for node in self.nodes.values()
        }


def parse(value: object) -> Workflow:
    """Read a workflow: an object, a list of one, or the text of either; nothing is the default workflow.

    Raises WorkflowError.
    """
    graph = _graph(value)
    if not graph:
        return replace(_nodes(DEFAULT), is_default=True)
    return _nodes(graph)


def _graph(value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return _graph(_read(value))
    if isinstance(value, list):
        if len(value) > 1:
            raise WorkflowError(f"{len(value)} workflows; a stream runs one")
        return _graph(value[0]) if value else {}
    if not isinstance(value, Mapping):
        raise WorkflowError(f"a workflow is an object of nodes, not {shown(value)}")
    if isinstance(value.get("nodes"), list):
        raise WorkflowError(NOT_API)
    inner = value.get("prompt")
    if isinstance(inner, Mapping) and "class_type" not in inner:  # the body of ComfyUI's own POST /prompt
        return _graph(inner)
    return value


def _read(text: str) -> object:
    if not text.strip():
        return None
    if len(text) > TEXT_MAX:
        raise WorkflowError(f"a workflow of {len(text)} characters; {TEXT_MAX} are enough for any")
    try:
        value: object = json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise WorkflowError(f"the text of the workflow is not JSON: {error}") from None
    except RecursionError:
        raise WorkflowError("the workflow is nested too deeply") from None
    if isinstance(value, str):
        raise WorkflowError(f"a workflow is an object of nodes, not {shown(value)}")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _nodes(graph: Mapping[str, Any]) -> Workflow:
    if len(graph) > NODES_MAX:
        raise WorkflowError(f"{len(graph)} nodes; at most {NODES_MAX} are run")
    problems: list[NodeProblem] = []
    nodes: dict[str, Node] = {}
    for key, body in graph.items():
        if not isinstance(body, Mapping):
            raise WorkflowError(f"node {key} is no object with class_type and inputs but {shown(body)}")
        class_type, inputs = body.get("class_type"), body.get("inputs", {})
        if not isinstance(class_type, str) or not class_type:
            message = "Cannot execute because a node is missing the class_type property."
            problems.append(NodeProblem(key, "", "invalid_prompt", message, f"Node ID '#{key}'"))
            continue
        if not isinstance(inputs, Mapping):
            problems.append(
                NodeProblem(key, class_type, "invalid_prompt", f"inputs is no object but {shown(inputs)}")
            )
            continue
        read: dict[str, Any] = {}
        for name, value in inputs.items():
            if _is_broken(value):
                problems.append(NodeProblem(key, class_type, "bad_linked_input", BAD_LINK, name, name))
            else:
                read[name] = _received(value)
        nodes[key] = Node(key, class_type, read)
    if problems:
        raise WorkflowError("the workflow cannot be read", problems)
    return Workflow(nodes)


def _is_broken(value: object) -> bool:
    """Whether it is a list that is no link; as a value, a list is wrapped as `{"__value__": [...]}`."""
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, list) and not _is_link(value)


def _is_link(value: list[Any]) -> bool:
    if len(value) != 2 or not isinstance(value[0], str):
        return False
    slot = value[1]
    return isinstance(slot, int | float) and not isinstance(slot, bool) and slot == int(slot)


def _received(value: object) -> object:
    if isinstance(value, list):
        return Link(value[0], int(value[1]))
    if isinstance(value, Mapping) and set(value) == {"__value__"}:
        return value["__value__"]
    return value


def _sent(value: object) -> object:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
