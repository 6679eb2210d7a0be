"""Whether a workflow can run with the nodes that there are; all that is wrong with it is said at once. Pure.

As ComfyUI does it, unknown classes are looked for everywhere, the rest only in what an output needs; inputs
that a node does not declare are ignored; scalars are coerced before their range is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.conversion import Converted
from services.inference.engine.pipelines.comfyui.declarations import SCALARS, Input, Kind
from services.inference.engine.pipelines.comfyui.refusals import (
    Dependents,
    NodeProblem,
    WorkflowError,
    shown,
)
from services.inference.engine.pipelines.comfyui.workflow import BAD_LINK, Link, Node, Workflow

FAILED: Final = "prompt_outputs_failed_validation"
UNLISTED: Final = 20  # choices that a message names


@dataclass(frozen=True, slots=True)
class CheckedNode:
    """A node that can run: coerced constants, and links, each by the name of a declared input."""

    id: str
    kind: Kind
    constants: Mapping[str, Any]
    links: Mapping[str, Link]


def steered(workflow: Workflow, changes: Mapping[str, Any] | None, kinds: Mapping[str, Kind]) -> Workflow:
    """The workflow with other constants, such as `{"12": {"blend_factor": 0.3}}`. Raises WorkflowError."""
    nodes: list[Node] = []
    for id_, values in (changes or {}).items():
        node = workflow.nodes.get(id_)
        if node is None:
            known = ", ".join(list(workflow.nodes)[:UNLISTED])
            raise WorkflowError(f"the workflow has no node {id_}; it has {known}", at=f"inputs.{id_}")
        if not isinstance(values, Mapping):
            raise WorkflowError(
                f"values by the names of inputs are wanted, not {shown(values)}", at=f"inputs.{id_}"
            )
        kind = kinds.get(node.class_type)
        for name, value in values.items():
            at = f"inputs.{id_}.{name}"
            if kind is None:
                raise WorkflowError(f"{node.class_type} is not known here", at=at)
            declared = kind.inputs.get(name)
            scalars = [one for one, its in kind.inputs.items() if its.type in SCALARS]
            if declared is None or declared.type not in SCALARS:
                raise WorkflowError(
                    f"node {id_} ({kind.class_type}) has no value of this name; it has "
                    f"{', '.join(scalars) or 'none'}",
                    at=at,
                )
            problem = _problem_with(declared, value, node, name)
            if problem is not None:
                raise WorkflowError("refused", [problem], at=at, type=FAILED)
        nodes.append(Node(id_, node.class_type, {**node.inputs, **values}))
    return workflow.with_nodes(*nodes)


def unknown(workflow: Workflow, kinds: Mapping[str, Kind]) -> list[NodeProblem]:
    """All nodes of classes that are not among `kinds`."""
    return [
        NodeProblem(
            node.id,
            node.class_type,
            "invalid_prompt",
            f"Cannot execute because node {node.class_type} does not exist.",
            f"Node ID '#{node.id}'",
        )
        for node in workflow.nodes.values()
        if node.class_type not in kinds
    ]


def dangling(workflow: Workflow) -> list[NodeProblem]:
    """All links to nodes that are not there."""
    return [
        _dangling(node, name, link)
        for node in workflow.nodes.values()
        for name, link in node.links().items()
        if link.node not in workflow.nodes
    ]


def check(converted: Converted, kinds: Mapping[str, Kind]) -> dict[str, CheckedNode]:
    """The nodes that the outputs need, each after those that it needs itself. Raises WorkflowError."""
    workflow = converted.workflow
    if missing := unknown(workflow, kinds):
        raise WorkflowError("unknown nodes", missing)
    declared = {
        node.id: {name: link for name, link in node.links().items() if name in kinds[node.class_type].inputs}
        for node in workflow.nodes.values()
    }
    needed = [_order(output, declared) for output in converted.outputs]
    problems: list[NodeProblem] = []
    for ring in (order for order in needed if isinstance(order, _Ring)):
        node = workflow.nodes[ring.nodes[0]]
        words = f"it needs its own result: {' -> '.join(ring.nodes)}"
        problems.append(NodeProblem(node.id, node.class_type, "dependency_cycle", "Dependency cycle", words))
    dependents: dict[str, list[str]] = {}
    checked: dict[str, CheckedNode] = {}
    for output, order in zip(converted.outputs, needed, strict=True):
        for id_ in order.nodes if not isinstance(order, _Ring) else ():
            dependents.setdefault(id_, []).append(output)
            if id_ in checked or id_ not in workflow.nodes:
                continue
            node = workflow.nodes[id_]
            found, wrong = _checked(node, kinds[node.class_type], workflow, kinds)
            checked[id_] = found
            problems += wrong
    if problems:
        raise WorkflowError(
            "the workflow cannot run",
            _once(problems),
            type="dependency_cycle" if problems[0].type == "dependency_cycle" else FAILED,
            dependents=Dependents(dependents),
        )
    return checked


@dataclass(frozen=True, slots=True)
class _Line:
    """Nodes, each after those that it needs."""

    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Ring(_Line):
    """Nodes that need one another, the first of them once more at the end."""


def _order(output: str, links: Mapping[str, Mapping[str, Link]]) -> _Line:
    """By depth first, without recursion: a workflow may be a chain of a thousand nodes."""
    done: dict[str, None] = {}
    path: dict[str, Iterator[Link]] = {output: iter(links.get(output, {}).values())}
    while path:
        node, following = next(reversed(path.items()))
        link = next(following, None)
        if link is None:
            path.popitem()
            done[node] = None
        elif link.node in path:
            ring = list(path)[list(path).index(link.node) :]
            return _Ring((*ring, link.node))
        elif link.node not in done:
            path[link.node] = iter(links.get(link.node, {}).values())
    return _Line(tuple(done))


def _checked(
    node: Node, kind: Kind, workflow: Workflow, kinds: Mapping[str, Kind]
) -> tuple[CheckedNode, list[NodeProblem]]:
    constants: dict[str, Any] = {}
    links: dict[str, Link] = {}
    problems: list[NodeProblem] = []
    for name, declared in kind.inputs.items():
        if name not in node.inputs:
            if declared.required:
                problems.append(
                    _problem(node, name, "required_input_missing", "Required input is missing", name)
                )
            continue
        value = node.inputs[name]
        if isinstance(value, Link):
            problem = _problem_with_link(declared, value, node, name, workflow, kinds)
            links[name] = value
        else:
            problem = _problem_with(declared, value, node, name)
            if problem is None:
                constants[name] = declared.coerced(value)
        if problem is not None:
            problems.append(problem)
    if not problems and kind.objection is not None and (objection := kind.objection(constants)) is not None:
        name, words = objection
        message = "Custom validation failed for node"
        problems.append(_problem(node, name, "custom_validation_failed", message, f"{name} - {words}"))
    return CheckedNode(node.id, kind, constants, links), problems


def _problem_with_link(
    declared: Input, link: Link, node: Node, name: str, workflow: Workflow, kinds: Mapping[str, Kind]
) -> NodeProblem | None:
    source = workflow.nodes.get(link.node)
    if source is None:
        return _dangling(node, name, link)
    outputs = kinds[source.class_type].outputs
    if not 0 <= link.slot < len(outputs):
        has = f"has {len(outputs)} outputs" if outputs else "has no outputs"
        words = (
            f"{name} is linked to output {link.slot} of node {link.node} ({source.class_type}), which {has}"
        )
        return _problem(node, name, "bad_linked_input", BAD_LINK, words)
    given = outputs[link.slot]
    if not declared.accepts_link(given):
        words = f"{name}, received_type({given}) mismatch input_type({declared.type})"
        return _problem(
            node, name, "return_type_mismatch", "Return type mismatch between linked nodes", words
        )
    return None


def _dangling(node: Node, name: str, link: Link) -> NodeProblem:
    words = f"{name} is linked to node {link.node}, which is not there"
    return _problem(node, name, "bad_linked_input", BAD_LINK, words)


def _problem_with(declared: Input, value: object, node: Node, name: str) -> NodeProblem | None:
    if declared.type not in SCALARS:
        words = f"{name} takes the output of a node, not {shown(value)}"
        return _problem(node, name, "bad_linked_input", BAD_LINK, words)
    try:
        coerced = declared.coerced(value)
    except ValueError as error:
        message = f"Failed to convert an input value to a {declared.type} value"
        return _problem(node, name, "invalid_input_type", message, f"{name}, {shown(value)}, {error}")
    if (beyond := declared.beyond(coerced)) is not None:
        return _problem(node, name, *beyond, name)
    if declared.choices is not None and coerced not in declared.choices:
        listed = shown(list(declared.choices)[:UNLISTED])
        if len(declared.choices) <= UNLISTED:
            listed = str(list(declared.choices))
        words = f"{name}: {shown(coerced)} not in {listed}"
        return _problem(node, name, "value_not_in_list", "Value not in list", words)
    return None


def _problem(node: Node, name: str, type_: str, message: str, details: str) -> NodeProblem:
    return NodeProblem(node.id, node.class_type, type_, message, details, name)


def _once(problems: list[NodeProblem]) -> list[NodeProblem]:
    return list(dict.fromkeys(problems))
