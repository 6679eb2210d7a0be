"""The pipeline `comfyui`: a ComfyUI workflow on every frame, exchanged and steered while it runs.

A workflow is prepared beside the frames: read, checked, its static part run; in the operator's ComfyUI, run
once. Only then it takes the place of the one before, which stays when it cannot. Never is a frame passed on
as it came because something failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Protocol

import numpy as np
import structlog

from services.inference.engine.pipelines.comfyui import schema as schemas
from services.inference.engine.pipelines.comfyui.bridge.connection import ComfyUIError
from services.inference.engine.pipelines.comfyui.bridge.remote import Remote, RemoteRun
from services.inference.engine.pipelines.comfyui.checking import unknown
from services.inference.engine.pipelines.comfyui.conversion import Converted, convert
from services.inference.engine.pipelines.comfyui.execution import Outcome, Picture
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.own import Bench, OwnRun
from services.inference.engine.pipelines.comfyui.refusals import NodeFailedError, WorkflowError
from services.inference.engine.pipelines.comfyui.settings import ComfyUISettings
from services.inference.engine.pipelines.comfyui.static_results import StaticResults
from services.inference.engine.pipelines.comfyui.workflow import parse
from sluice.pipeline import (
    TICKS_PER_SECOND,
    Apply,
    Json,
    Param,
    ParamError,
    Pipeline,
    Setup,
    Shared,
    VideoFrame,
    fit,
    schema,
)

log = structlog.get_logger()

AUTO, OWN, COMFYUI = "auto", "own", "comfyui"
RESULTS: Final = "results of comfyui's static nodes"
TIMINGS_EVERY: Final = 5 * TICKS_PER_SECOND
TIMINGS_MAX: Final = 20  # the slowest nodes are named; what is said may have 16 KB
UNSAID_MAX: Final = 8
SIDE_MIN: Final = 16
SIDE_MAX: Final = 4096
GREY: Final = 127
TRY_SIDE: Final = 512  # of the picture that a workflow is tried with, while none has come yet
NAMES: Final = ("workflow", "prompts", "prompt")
INPUTS: Final = {
    "type": ["object", "null"],
    "additionalProperties": {"type": ["object", "null"]},
}


class Run(Protocol):
    """A workflow at work."""

    @property
    def nodes(self) -> int: ...
    def frame(self, rgb: Picture) -> Outcome: ...
    def steered(self, changes: Mapping[str, Any]) -> Run: ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A workflow that can take over, with the `inputs` that it has."""

    run: Run
    inputs: Mapping[str, Any]
    backend: str
    is_default: bool


class ComfyUI(Pipeline):
    """A ComfyUI workflow on every frame."""

    name = "comfyui"
    version = "1.0"
    description = (
        "Runs a ComfyUI workflow (API format) on every frame: fifty of ComfyUI's own nodes for images and "
        "masks here, any other in a ComfyUI of the operator's, where one is set up."
    )
    params: ClassVar[Mapping[str, Param]] = {
        "workflow": Json(
            default={},
            help="A workflow in API format: the object, a list of it, or its text. Empty: no change.",
            schema=schemas.accepted(),
            apply=Apply.WARM,
        ),
        "inputs": Json(
            default={},
            help='Other values for inputs of nodes, by node and name: {"12": {"blend_factor": 0.3}}.',
            schema=INPUTS,
        ),
        "backend": Param(
            default=AUTO,
            help="own: built-in nodes. comfyui: the operator's ComfyUI. auto: own, if it has all nodes.",
            choices=(AUTO, OWN, COMFYUI),
            apply=Apply.WARM,
        ),
        "width": Param(
            default=0,
            help="Frames are scaled and cut to this before the workflow sees them; 0: as they come, or in "
            "proportion to the height.",
            minimum=0,
            maximum=SIDE_MAX,
        ),
        "height": Param(default=0, help="As width.", minimum=0, maximum=SIDE_MAX),
        "prompts": Json(
            default=None,
            help="ComfyStream's name of workflow; in place of it.",
            schema={**schemas.accepted(), "type": [*schemas.SHAPES, "null"]},
            apply=Apply.WARM,
        ),
        "prompt": Json(
            default=None,
            help="As prompts.",
            schema={**schemas.accepted(), "type": [*schemas.SHAPES, "null"]},
            apply=Apply.WARM,
        ),
    }
    slots_per_engine = 4  # it costs nothing while it is free, and OpenCV lets others run while it computes

    def __init__(self) -> None:
        self._settings = ComfyUISettings()
        self._kinds = catalogue(Gallery(self._settings.pictures))
        self._setup = Setup.plain()
        self._shared: Shared[StaticResults] | None = None
        self._remote: Remote | None = None
        self._now: Prepared | None = None
        self._unsaid: deque[Mapping[str, Any]] = deque(maxlen=UNSAID_MAX)  # from `prepare`'s thread as well
        self._said: dict[str, str] = {}
        self._timed_pts: int | None = None
        self._last: Picture | None = None

    @classmethod
    def offered(cls, setup: Setup) -> dict[str, Any]:
        """With the names of all nodes that there are, so that another one is refused where it is sent."""
        settings = ComfyUISettings()
        own = catalogue(Gallery(settings.pictures))
        known: set[str] | None = set(own)
        if settings.url:
            theirs = _nodes_of(settings)
            known = {*own, *theirs} if theirs is not None else None
        offered = schema(cls)
        properties = offered["properties"]
        # Ranges are those of the nodes here; a ComfyUI of another version may have others.
        offered["$defs"] = {"workflow": schemas.accepted(known, own if not settings.url else None)}
        for name in NAMES:
            told = {key: properties[name][key] for key in ("type", "default", "description", "x-apply")}
            several = {"if": {"type": schemas.SHAPES}, "then": {"$ref": "#/$defs/workflow"}}
            properties[name] = {**told, **several}
        if not settings.url:
            properties["backend"]["enum"] = [AUTO, OWN]
        return offered

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._setup = setup
        self._shared = setup.share(RESULTS, StaticResults)
        self.adopt(self.prepare(params))

    def prepare(self, params: Mapping[str, Any]) -> Prepared:
        name = _name_of(params)
        try:
            return self._made(params[name], params)
        except WorkflowError as error:
            self._unsaid.append({"type": "error", **error.answer})
            raise error.about(name) from None
        except NodeFailedError as error:
            self._unsaid.append(_failure(error))
            raise ParamError(name, str(error)) from error

    def adopt(self, prepared: object) -> None:
        assert isinstance(prepared, Prepared)
        self._now = prepared
        self._said.clear()
        self._timed_pts = None
        self._unsaid.append(
            {
                "type": "workflow",
                "backend": prepared.backend,
                "nodes": prepared.run.nodes,
                "default": prepared.is_default,
            }
        )

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        assert self._now is not None
        rgb = self._last = _sized(frame.rgb, params["width"], params["height"])
        inputs = params["inputs"] or {}
        if inputs != self._now.inputs:
            self._now = _steered(self._now, inputs)
        while self._unsaid:
            self.say(self._unsaid.popleft())
        try:
            outcome = self._now.run.frame(rgb)
        except NodeFailedError as error:
            self.say(_failure(error))
            raise
        self._say_texts(outcome.texts)
        self._say_timings(self._now.run, frame.pts)
        # A workflow that only says something leaves pictures as they are: that is what it is for.
        return frame.with_rgb(outcome.picture if outcome.picture is not None else rgb)

    def close(self) -> None:
        remote, self._remote = self._remote, None
        shared, self._shared = self._shared, None
        if remote is not None:
            remote.close()
        if shared is not None:
            shared.close()

    def _made(self, workflow: object, params: Mapping[str, Any]) -> Prepared:
        parsed = parse(workflow)
        converted = convert(parsed)
        inputs, backend = params["inputs"] or {}, params["backend"]
        missing = unknown(converted.workflow, self._kinds)
        if backend == OWN or (backend == AUTO and not missing):
            assert self._shared is not None
            bench = Bench(self._kinds, self._shared.value)
            run: Run = OwnRun(bench, converted, inputs, self._setup.progress)
            return Prepared(run, inputs, OWN, parsed.is_default)
        if not self._settings.url:
            if backend == COMFYUI:
                raise ParamError("backend", "no ComfyUI is set up here")
            raise WorkflowError("unknown nodes, and no ComfyUI is set up here that may have them", missing)
        run = self._run_there(converted, params)
        return Prepared(run, inputs, COMFYUI, parsed.is_default)

    def _run_there(self, converted: Converted, params: Mapping[str, Any]) -> RemoteRun:
        if self._remote is None:
            self._remote = Remote(self._settings, self._setup.progress)
        self._setup.progress("asking ComfyUI for its nodes", 0.0)
        kinds = self._remote.kinds(self._settings.return_within_s)
        run = RemoteRun(self._remote, converted, kinds, params["inputs"] or {})
        self._setup.progress("first run in ComfyUI", 0.1)
        trial = self._last
        if trial is None:
            grey = np.full((TRY_SIDE, TRY_SIDE, 3), GREY, np.uint8)
            trial = _sized(grey, params["width"], params["height"])
        run.warm(trial)
        return run

    def _say_texts(self, texts: Mapping[str, str]) -> None:
        for node, text in texts.items():
            if self._said.get(node) != text:
                self._said[node] = text
                self.say({"type": "text", "node": node, "data": text})

    def _say_timings(self, run: Run, pts: int) -> None:
        if self._timed_pts is None:
            self._timed_pts = pts
        if not isinstance(run, OwnRun) or pts - self._timed_pts < TIMINGS_EVERY:
            return
        self._timed_pts = pts
        slowest = sorted(run.execution.node_ms.items(), key=lambda one: -one[1])[:TIMINGS_MAX]
        self.say({"type": "timings", "node_ms": {node: round(ms, 3) for node, ms in slowest}})


def _steered(was: Prepared, inputs: Mapping[str, Any]) -> Prepared:
    try:
        return replace(was, run=was.run.steered(inputs), inputs=inputs)
    except NodeFailedError as error:
        raise ParamError("inputs", str(error)) from error


def _name_of(params: Mapping[str, Any]) -> str:
    """By which of its names the workflow was sent."""
    sent = [name for name in NAMES if params[name] not in (None, "", {}, [])]
    if len(sent) > 1:
        names = " and ".join(sent)
        raise ParamError(sent[1], f"{names} are names of one thing; set all but one of them to null")
    return sent[0] if sent else NAMES[0]


def _failure(error: NodeFailedError) -> dict[str, Any]:
    """As ComfyUI's `execution_error` has it."""
    return {
        "type": "execution_error",
        "node_id": error.node,
        "node_type": error.class_type,
        "exception_type": error.exception,
        "exception_message": error.message[:1000],
    }


def _sized(rgb: Picture, width: int, height: int) -> Picture:
    if not width and not height:
        return rgb
    for name, side in (("width", width), ("height", height)):
        if 0 < side < SIDE_MIN:
            raise ParamError(name, f"{side} pixels; 0, or at least {SIDE_MIN}")
    was_height, was_width = rgb.shape[:2]
    wide = width or max(SIDE_MIN, round(was_width * height / was_height))
    high = height or max(SIDE_MIN, round(was_height * width / was_width))
    return fit(rgb, wide, high)


def _nodes_of(settings: ComfyUISettings) -> set[str] | None:
    """The names of the nodes of the operator's ComfyUI; None while it is away."""
    remote = Remote(settings, lambda _stage, _fraction: None)
    try:
        return set(remote.kinds(0))
    except ComfyUIError as error:
        log.warning("the nodes of ComfyUI are not known", error=str(error))
        return None
    finally:
        remote.close()
