"""A plan at work: what is static was run when it was made, the rest runs with each frame.

A node that raises is named with what it raised; results go as soon as nothing needs them any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.arrays import Image, read_only
from services.inference.engine.pipelines.comfyui.checking import CheckedNode
from services.inference.engine.pipelines.comfyui.conversion import FRAME
from services.inference.engine.pipelines.comfyui.declarations import SCALARS, Input
from services.inference.engine.pipelines.comfyui.plan import Plan, Step
from services.inference.engine.pipelines.comfyui.refusals import NodeFailedError
from services.inference.engine.pipelines.comfyui.static_results import Outputs, StaticResults
from services.inference.engine.pipelines.comfyui.workflow import Link

Picture = NDArray[np.uint8]
SMOOTHING: Final = 0.1  # of a node's milliseconds
CHANNELS: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a frame: its picture, None where the workflow has none, and texts by node."""

    picture: Picture | None
    texts: Mapping[str, str]


class Execution:
    """One stream's, called from its thread. `of` runs what is static, which may take its time."""

    def __init__(self, plan: Plan, kept: Mapping[str, Outputs]) -> None:
        self.plan = plan
        self.node_ms: dict[str, float] = {}
        self.most_held = 0  # results of nodes at a time, without the static ones
        self._kept = kept

    @classmethod
    def of(
        cls,
        plan: Plan,
        results: StaticResults,
        progress: Callable[[str, float], None] = lambda _stage, _done: None,
    ) -> Execution:
        """Raises NodeFailedError."""
        held: dict[str, Outputs] = {}
        for index, step in enumerate(plan.static):
            progress(f"node {step.node.id} ({step.node.kind.class_type})", index / len(plan.static))
            held[step.node.id] = results.get(step.key, partial(_ran, step, held))
            for id_ in step.frees:
                del held[id_]
        return cls(plan, {id_: held[id_] for id_ in plan.keeps})

    def frame(self, rgb: Picture) -> Outcome:
        """Run the workflow on a picture, uint8 (H, W, 3). Raises NodeFailedError."""
        held: dict[str, Outputs] = dict(self._kept)
        image: Image = read_only(np.divide(rgb, np.float32(255), dtype=np.float32)[None])  # (1, H, W, 3)
        for step in self.plan.dynamic:
            started_s = time.perf_counter()
            held[step.node.id] = _ran(step, held, image)
            self._measure(step.node.id, 1000 * (time.perf_counter() - started_s))
            self.most_held = max(self.most_held, len(held) - len(self._kept))
            for id_ in step.frees:
                del held[id_]
        picture = None
        if self.plan.picture is not None:
            picture = as_picture(held[self.plan.picture.node][self.plan.picture.slot])
        return Outcome(
            picture, {id_: _text(source, held, one_line) for id_, source, one_line in self.plan.texts}
        )

    def _measure(self, id_: str, milliseconds: float) -> None:
        was = self.node_ms.get(id_, milliseconds)
        self.node_ms[id_] = was + SMOOTHING * (milliseconds - was)


def as_picture(image: Image) -> Picture:
    """The first image of a batch as uint8 (H, W, 3): rounded, cut at 0 and 1, without alpha."""
    first = np.ascontiguousarray(image[0][..., :CHANNELS])
    if first.shape[-1] == 1:
        first = np.repeat(first, CHANNELS, axis=-1)
    return np.asarray(cv2.addWeighted(first, 255, first, 0, 0, dtype=cv2.CV_8U), np.uint8)


def _ran(step: Step, held: Mapping[str, Outputs], image: Image | None = None) -> Outputs:
    node = step.node
    try:
        return _outputs(node, held, image)
    except MemoryError:
        raise  # whoever runs the engine knows what to do about it
    except Exception as error:
        raise NodeFailedError(node.id, node.kind.class_type, type(error).__name__, str(error)) from error


def _outputs(node: CheckedNode, held: Mapping[str, Outputs], image: Image | None) -> Outputs:
    declared = node.kind.inputs
    arguments = {name: _given(declared[name], name, link, held) for name, link in node.links.items()}
    if node.kind.class_type == FRAME:
        arguments["frame"] = image
    outputs = node.kind.run(**node.constants, **arguments)
    return tuple(_kept(output) if isinstance(output, np.ndarray) else output for output in outputs)


def _kept(picture: Image) -> Image:
    if not picture.size:
        raise ValueError(f"it made a picture of {picture.shape[2]}x{picture.shape[1]} pixels")
    return read_only(picture)


def _given(declared: Input, name: str, link: Link, held: Mapping[str, Outputs]) -> Any:
    """What a link brings; a number may be beyond what the node takes, which nobody could know before."""
    value = held[link.node][link.slot]
    if declared.type not in SCALARS:
        return value
    value = declared.coerced(value)
    if (beyond := declared.beyond(value)) is not None:
        raise ValueError(f"{name}: {beyond[1]}")
    return value


def _text(source: Link | str, held: Mapping[str, Outputs], one_line: bool) -> str:
    text = source if isinstance(source, str) else str(held[source.node][source.slot])
    return " ".join(text.splitlines()) if one_line else text
