from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.pipeline import RESULTS, ComfyUI
from services.inference.engine.pipelines.comfyui.refusals import NodeFailedError, WorkflowError
from services.inference.engine.pipelines.comfyui.static_results import StaticResults
from sluice.conformance import Plan, check
from sluice.pipeline import ParamError, Setup, VideoFrame, defaults

NIGHT = json.loads(Path("tests/data/workflows/night.json").read_text())
LOAD = {"class_type": "LoadTensor", "inputs": {}}
INVERTED = {
    "1": LOAD,
    "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
    "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
}


class Stream:
    """A pipeline as an engine uses it."""

    def __init__(self, setup: Setup | None = None, **params: Any) -> None:
        self.pipeline = ComfyUI()
        self.said: list[Mapping[str, Any]] = []
        self.pipeline.hear = self.said.append
        self.params: Mapping[str, Any] = {**defaults(ComfyUI), **params}
        self.pipeline.load(setup or Setup.plain(), self.params)
        self._pts = 0

    def frame(self, rgb: NDArray[np.uint8] | None = None, **changes: Any) -> NDArray[np.uint8]:
        self.params = {**self.params, **changes}
        self._pts += 3000
        made = self.pipeline.process(VideoFrame(rgb if rgb is not None else scene(), self._pts), self.params)
        assert made.pts == self._pts
        return made.rgb

    def switch(self, **changes: Any) -> None:
        prepared = self.pipeline.prepare({**self.params, **changes})
        self.params = {**self.params, **changes}
        self.pipeline.adopt(prepared)

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [said for said in self.said if said["type"] == kind]


def scene(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    rng = np.random.default_rng(5)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def opened() -> Iterator[list[Stream]]:
    streams: list[Stream] = []
    yield streams
    for stream in streams:
        stream.pipeline.close()


def opening(opened: list[Stream], setup: Setup | None = None, **params: Any) -> Stream:
    stream = Stream(setup, **params)
    opened.append(stream)
    return stream


def test_it_keeps_what_the_platform_relies_on() -> None:
    quick = Plan(sizes=((64, 64), (97, 16), (320, 241)), work_size=(64, 64), leak_frames=200, patience_s=1)
    sixteen_megapixels = {"values", "changes", "effect"}  # tried by those: slow, and right
    report = check(
        ComfyUI,
        params={"workflow": NIGHT},
        plan=quick,
        only=lambda name: name not in sixteen_megapixels,
    )
    assert report.passed, str(report)


@pytest.mark.parametrize(("width", "height", "field"), [(1, 0, "width"), (64, 15, "height")])
def test_a_size_that_is_next_to_nothing_is_refused(
    opened: list[Stream], width: int, height: int, field: str
) -> None:
    stream = opening(opened)
    with pytest.raises(ParamError, match="0, or at least 16") as refused:
        stream.frame(width=width, height=height)
    assert refused.value.field == field


def test_without_a_workflow_frames_pass_to_the_level_and_this_is_said(opened: list[Stream]) -> None:
    stream = opening(opened)
    assert np.array_equal(stream.frame(), scene())
    assert stream.of("workflow") == [{"type": "workflow", "backend": "own", "nodes": 1, "default": True}]


def test_a_workflow_changes_every_frame(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=INVERTED)
    assert np.array_equal(stream.frame(), 255 - scene())
    assert np.array_equal(stream.frame(scene(30, 22)), 255 - scene(30, 22))


@pytest.mark.parametrize("name", ["workflow", "prompts", "prompt"])
@pytest.mark.parametrize("sent", [INVERTED, [INVERTED], json.dumps(INVERTED)])
def test_comfystreams_names_and_shapes_are_taken(opened: list[Stream], name: str, sent: object) -> None:
    sent_so: dict[str, Any] = {name: sent}
    stream = opening(opened, **sent_so)
    assert np.array_equal(stream.frame(), 255 - scene())


def test_two_names_at_once_are_refused(opened: list[Stream]) -> None:
    stream = opening(opened)
    with pytest.raises(ParamError, match="workflow and prompt are names of one thing") as refused:
        stream.switch(workflow=INVERTED, prompt=INVERTED)
    assert refused.value.field == "prompt"


def test_a_refused_workflow_is_blamed_on_the_name_that_it_came_by(opened: list[Stream]) -> None:
    stream = opening(opened)
    with pytest.raises(WorkflowError) as refused:
        stream.switch(prompts={"1": {"class_type": "Foo"}, **INVERTED, "9": {"class_type": "Foo"}})
    assert refused.value.field == "prompts"


def test_a_workflow_that_is_refused_leaves_the_one_before_and_clients_get_comfyuis_answer(
    opened: list[Stream],
) -> None:
    stream = opening(opened, workflow=INVERTED)
    with pytest.raises(WorkflowError, match=r"unknown nodes.*node Foo does not exist"):
        stream.switch(workflow={**INVERTED, "7": {"class_type": "Foo", "inputs": {}}})
    assert np.array_equal(stream.frame(), 255 - scene())
    (told,) = stream.of("error")
    assert told["error"]["type"] == "invalid_prompt"
    assert told["node_errors"]["7"]["class_type"] == "Foo"


def test_nodes_that_are_nowhere_are_refused_with_where_they_might_be(opened: list[Stream]) -> None:
    stream = opening(opened)
    diffusion = json.loads(Path("tests/data/workflows/diffusion.json").read_text())
    with pytest.raises(WorkflowError, match="no ComfyUI is set up here that may have them") as refused:
        stream.switch(workflow=diffusion)
    for name in ("CheckpointLoaderSimple", "CLIPTextEncode", "VAEEncode", "KSampler", "VAEDecode"):
        assert name in refused.value.message


def test_a_comfyui_that_is_not_set_up_cannot_be_asked_for(opened: list[Stream]) -> None:
    stream = opening(opened)
    with pytest.raises(ParamError, match="no ComfyUI is set up here") as refused:
        stream.switch(backend="comfyui")
    assert refused.value.field == "backend"


def test_a_workflow_is_exchanged_between_frames(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=INVERTED)
    prepared = stream.pipeline.prepare({**stream.params, "workflow": [{}]})
    assert np.array_equal(stream.frame(), 255 - scene())
    stream.pipeline.adopt(prepared)
    assert np.array_equal(stream.frame(), scene())


def test_steering_is_in_the_next_frame(opened: list[Stream]) -> None:
    blend = {
        "1": LOAD,
        "2": {
            "class_type": "EmptyImage",
            "inputs": {"width": 64, "height": 48, "batch_size": 1, "color": 0xFFFFFF},
        },
        "3": {
            "class_type": "ImageBlend",
            "inputs": {"image1": ["1", 0], "image2": ["2", 0], "blend_factor": 0.0, "blend_mode": "normal"},
        },
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    stream = opening(opened, workflow=blend)
    assert np.array_equal(stream.frame(), scene())
    assert (stream.frame(inputs={"3": {"blend_factor": 1.0}}) == 255).all()
    assert (stream.frame(inputs={"3": {"blend_factor": 1.0}, "2": {"color": 0}}) == 0).all()
    assert np.array_equal(stream.frame(inputs=None), scene())


def test_steering_that_is_refused_names_its_place_and_the_workflow_goes_on(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=NIGHT)
    before = stream.frame()
    with pytest.raises(ParamError, match="Value 99 bigger than max of 31") as refused:
        stream.frame(inputs={"2": {"blur_radius": 99}})
    assert refused.value.field == "inputs.2.blur_radius"
    assert np.array_equal(stream.frame(inputs={}), before)


def test_a_workflow_whose_steering_does_not_fit_is_refused_with_what_to_change(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=NIGHT, inputs={"8": {"sigma": 1.0}})
    with pytest.raises(ParamError, match="the workflow has no node 8") as refused:
        stream.switch(workflow=[INVERTED])
    assert refused.value.field == "inputs.8"
    stream.switch(workflow=[INVERTED], inputs={})
    assert np.array_equal(stream.frame(), 255 - scene())


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(32, 24, (24, 32)), (32, 0, (24, 32)), (0, 24, (24, 32)), (40, 40, (40, 40))],
)
def test_frames_are_made_to_fit_before_the_workflow(
    opened: list[Stream], width: int, height: int, shape: tuple[int, int]
) -> None:
    stream = opening(opened)
    assert stream.frame(width=width, height=height).shape == (*shape, 3)


def test_a_node_that_fails_fails_the_frame_and_tells_which(opened: list[Stream]) -> None:
    blur = {
        "1": LOAD,
        "2": {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 1.0}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    stream = opening(opened, workflow=blur)
    stream.frame()
    with pytest.raises(NodeFailedError, match=r"node 2 \(ImageBlur\): ValueError: a radius of 31 wants"):
        stream.frame(scene(20, 20))
    (told,) = stream.of("execution_error")
    assert (told["node_id"], told["node_type"], told["exception_type"]) == ("2", "ImageBlur", "ValueError")


def test_a_static_node_that_fails_refuses_its_workflow(opened: list[Stream]) -> None:
    huge = {
        "1": LOAD,
        "2": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16000, "height": 16000, "batch_size": 1, "color": 0},
        },
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    stream = opening(opened)
    with pytest.raises(ParamError, match=r"node 2 \(EmptyImage\).*are more than 16777216"):
        stream.switch(workflow=huge)


def test_steering_a_static_node_too_far_refuses_the_steering(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=NIGHT)
    with pytest.raises(ParamError, match=r"node 4 \(EmptyImage\)") as refused:
        stream.frame(inputs={"4": {"width": 16384, "height": 16384}})
    assert refused.value.field == "inputs"


def test_a_text_is_said_once_and_again_after_the_workflow_was_exchanged(opened: list[Stream]) -> None:
    text = {"class_type": "SaveTextTensor", "inputs": {"data": "hello"}}
    stream = opening(opened, workflow={**INVERTED, "5": text})
    for _ in range(3):
        stream.frame()
    assert stream.of("text") == [{"type": "text", "node": "5", "data": "hello"}]
    stream.switch()
    stream.frame()
    assert len(stream.of("text")) == 2


def test_the_time_of_each_node_is_said_every_five_seconds(opened: list[Stream]) -> None:
    stream = opening(opened, workflow=NIGHT)
    for _ in range(151):
        stream.frame()
    (told,) = stream.of("timings")
    assert set(told["node_ms"]) == {"1", "2", "3", "5", "7", "8", "9", "10", "12"}
    json.dumps(told)


def test_streams_of_one_engine_share_what_is_static(opened: list[Stream]) -> None:
    setup = Setup.plain()
    one, other = opening(opened, setup, workflow=NIGHT), opening(opened, setup, workflow=NIGHT)
    assert np.array_equal(one.frame(), other.frame())
    with setup.share(RESULTS, StaticResults) as results:
        assert (results.misses, results.hits) == (2, 2)


def test_the_same_frames_make_the_same_pictures(opened: list[Stream]) -> None:
    one, other = opening(opened, workflow=NIGHT), opening(opened, workflow=NIGHT)
    assert np.array_equal(one.frame(), other.frame())
    one.frame(scene(64, 64))
    assert np.array_equal(one.frame(), other.frame())


def test_nothing_is_left_open_by_closing_early_or_twice() -> None:
    stream = Stream(workflow=INVERTED)
    stream.pipeline.close()
    stream.pipeline.close()
    ComfyUI().close()
