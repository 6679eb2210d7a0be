"""What of a workflow runs once and what with each frame, and when a result is needed no more. Pure.

A node that no frame reaches is static: its result is known by the *key* of all that it was made of, so that
another plan, or another stream, that needs the same finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.inference.engine.pipelines.comfyui.checking import CheckedNode
from services.inference.engine.pipelines.comfyui.conversion import FRAME, Converted
from services.inference.engine.pipelines.comfyui.workflow import Link

KEYS: Final = b"1"  # changes when nodes come to mean something else


@dataclass(frozen=True, slots=True)
class Step:
    """A node to run; after it the results `frees` are needed no more."""

    node: CheckedNode
    key: bytes
    frees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The nodes of a workflow in the order in which they run.

    keeps: the static nodes whose results are needed with each frame. picture: what is shown, None where the
    frame is. texts: what is said, with the constants of the node that says it.
    """

    static: tuple[Step, ...]
    dynamic: tuple[Step, ...]
    keeps: tuple[str, ...]
    picture: Link | None
    texts: tuple[tuple[str, Link | str, bool], ...]

    @property
    def nodes(self) -> int:
        return len(self.static) + len(self.dynamic)


def compiled(converted: Converted, checked: Mapping[str, CheckedNode]) -> Plan:
    """The plan of a workflow whose nodes were checked."""
    outputs = set(converted.outputs)
    running = [node for node in checked.values() if node.id not in outputs]
    moving = _moving(running)
    keys: dict[str, bytes] = {}
    static = [Step(node, _key(node, keys)) for node in running if node.id not in moving]
    dynamic = [node for node in running if node.id in moving]
    picture = checked[converted.picture].links["images"] if converted.picture is not None else None
    texts = tuple(_text(checked[id_]) for id_ in converted.texts)
    shown = {link.node for link in (picture, *(link for _, link, _ in texts)) if isinstance(link, Link)}
    wanted = shown | {link.node for node in dynamic for link in node.links.values()}
    keeps = tuple(step.node.id for step in static if step.node.id in wanted)
    return Plan(
        _freeing([step.node for step in static], set(keeps), {step.node.id: step.key for step in static}),
        _freeing(dynamic, shown | set(keeps), {}),
        keeps,
        picture,
        texts,
    )


def _moving(running: list[CheckedNode]) -> set[str]:
    """What a frame reaches; `running` is in the order of need."""
    moving: set[str] = set()
    for node in running:
        if node.kind.class_type == FRAME or any(link.node in moving for link in node.links.values()):
            moving.add(node.id)
    return moving


def _key(node: CheckedNode, keys: dict[str, bytes]) -> bytes:
    """Ids do not matter: two nodes that do the same with the same have one key."""
    fingerprint = node.kind.fingerprint(node.constants) if node.kind.fingerprint is not None else ""
    said = json.dumps(
        [
            node.kind.class_type,
            fingerprint,
            {name: node.constants[name] for name in sorted(node.constants)},
            {name: [keys[link.node].hex(), link.slot] for name, link in sorted(node.links.items())},
        ],
        sort_keys=True,
    )
    keys[node.id] = hashlib.sha256(KEYS + said.encode()).digest()
    return keys[node.id]


def _freeing(nodes: list[CheckedNode], kept: set[str], keys: Mapping[str, bytes]) -> tuple[Step, ...]:
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        last[node.id] = index  # where nobody needs a result it goes at once
        for link in node.links.values():
            last[link.node] = index
    own = {node.id for node in nodes} - kept
    frees: dict[int, list[str]] = {}
    for id_, index in last.items():
        if id_ in own:
            frees.setdefault(index, []).append(id_)
    return tuple(
        Step(node, keys.get(node.id, b""), tuple(frees.get(index, ()))) for index, node in enumerate(nodes)
    )


def _text(node: CheckedNode) -> tuple[str, Link | str, bool]:
    constants: Mapping[str, Any] = node.constants
    source: Link | str = node.links["data"] if "data" in node.links else constants["data"]
    return node.id, source, bool(constants.get("remove_linebreaks", True))
