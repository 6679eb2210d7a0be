from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.bridge.connection import (
    ComfyUIError,
    LostError,
    SlowError,
)
from services.inference.engine.pipelines.comfyui.pipeline import ComfyUI
from services.inference.engine.pipelines.comfyui.refusals import WorkflowError
from sluice.pipeline import ParamError, Setup, VideoFrame, defaults
from tests.support.comfyui import OBJECT_INFO, ComfyUIStandIn

FRAME = {"class_type": "LoadTensor", "inputs": {}}
MODEL = {"class_type": "LoadModel", "inputs": {"name": "a.safetensors"}}
BRIGHTEN = {"class_type": "Brighten", "inputs": {"image": ["1", 0], "amount": 10, "model": ["9", 0]}}
BRIGHTER = {
    "1": FRAME,
    "9": MODEL,
    "2": BRIGHTEN,
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ComfyUIStandIn]:
    with ComfyUIStandIn() as standing_in:
        monkeypatch.setenv("SLUICE_COMFYUI_URL", standing_in.url)
        monkeypatch.setenv("SLUICE_COMFYUI_RETURN_WITHIN_S", "5")
        yield standing_in


class Stream:
    """A pipeline as an engine uses it."""

    def __init__(self, workflow: object = None, **params: Any) -> None:
        self.params: Mapping[str, Any] = {**defaults(ComfyUI), "workflow": workflow or BRIGHTER, **params}
        self.pipeline = ComfyUI()
        self.said: list[Mapping[str, Any]] = []
        self.stages: list[tuple[str, float]] = []
        self.pipeline.hear = self.said.append

    def __enter__(self) -> Stream:
        setup = Setup.plain()
        noting = Setup(setup.device, setup.models, lambda stage, done: self.stages.append((stage, done)))
        try:
            self.pipeline.load(noting, self.params)
        except BaseException:
            self.pipeline.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.pipeline.close()

    def frame(self, level: int = 100, **changes: Any) -> NDArray[np.uint8]:
        self.params = {**self.params, **changes}
        rgb = np.full((48, 64, 3), level, np.uint8)
        rgb[..., 0] = 7
        return self.pipeline.process(VideoFrame(rgb, 3000), self.params).rgb

    def switch(self, **changes: Any) -> None:
        self.params = {**self.params, **changes}
        self.pipeline.adopt(self.pipeline.prepare(self.params))


def test_a_frame_comes_back_changed_with_its_colours_in_their_places(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        out = stream.frame(100)
    assert out.shape == (48, 64, 3)
    assert out[0, 0].tolist() == [17, 110, 110]


def test_every_frame_gets_the_result_of_itself(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        assert [int(stream.frame(level)[0, 0, 1]) for level in (20, 50, 50, 90)] == [30, 60, 60, 100]


def test_what_no_frame_reaches_runs_once_in_sixty_frames(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        for level in range(60):
            stream.frame(level)
    assert server.runs["LoadModel"] == 1
    assert server.runs["Brighten"] == 61  # and the trial


def test_the_stream_is_a_load_image_of_an_upload_and_the_result_goes_over_the_socket(
    server: ComfyUIStandIn,
) -> None:
    with Stream() as stream:
        stream.frame()
    sent = server.prompts[-1]
    assert sent["1"]["class_type"] == "LoadImage"
    assert sent["1"]["inputs"]["image"].startswith("sluice/")
    assert sent["1"]["inputs"]["image"].endswith(" [temp]")
    assert sent["3"]["class_type"] == "SaveImageWebsocket"


def test_only_what_the_stream_needs_is_sent(server: ComfyUIStandIn) -> None:
    files = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["2", 0]}}
    explode = {"class_type": "Explode", "inputs": {"image": ["1", 0]}}
    with Stream({**BRIGHTER, "3": files, "7": explode}) as stream:
        stream.frame()
    assert set(server.prompts[-1]) == {"1", "2", "3", "9"}


def test_one_file_is_uploaded_over_and_over(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        for level in range(5):
            stream.frame(level)
        assert len(server.uploads) == 1


def test_a_picture_that_was_sent_along_is_uploaded_once(server: ComfyUIStandIn) -> None:
    red = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAAMBAQD3A0FDAAAAAElFTkSu"
        "QmCC"
    )
    workflow = {
        "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "x.png"}},
        "4": {"class_type": "LoadImage", "inputs": {"image": red}},
        "9": MODEL,
        "2": {**BRIGHTEN, "inputs": {**BRIGHTEN["inputs"], "image": ["4", 0]}},  # type: ignore[dict-item]
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    with Stream(workflow) as stream:
        assert stream.frame()[0, 0].tolist() == [255, 10, 10]
        stream.frame()
        assert len(server.uploads) == 1


def test_steering_changes_the_next_frame_and_loads_nothing_again(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        stream.frame(50)
        assert stream.frame(50, inputs={"2": {"amount": 100}})[0, 0, 1] == 150
        assert server.runs["LoadModel"] == 1


@pytest.mark.parametrize(
    ("inputs", "field", "words"),
    [
        ({"2": {"amount": 500}}, "inputs.2.amount", "Value 500 bigger than max of 200"),
        ({"2": {"how": "divide"}}, "inputs.2.how", "'divide' not in ['add', 'multiply']"),
        ({"2": {"model": "x"}}, "inputs.2.model", "has no value of this name; it has amount, how"),
        ({"77": {"amount": 5}}, "inputs.77", "the workflow has no node 77"),
    ],
)
def test_steering_is_checked_against_what_comfyui_says_of_the_node(
    server: ComfyUIStandIn, inputs: Any, field: str, words: str
) -> None:
    with Stream() as stream:
        stream.frame()
        with pytest.raises(ParamError) as refused:
            stream.frame(inputs=inputs)
        assert refused.value.field == field
        assert words in refused.value.message


def test_nodes_that_the_comfyui_does_not_have_are_all_named(server: ComfyUIStandIn) -> None:
    unknown = {"4": {"class_type": "Foo", "inputs": {}}, "5": {"class_type": "Bar", "inputs": {}}}
    with (
        pytest.raises(WorkflowError, match=r"node Foo does not exist.*node Bar does not exist"),
        Stream({**BRIGHTER, **unknown}),
    ):
        pass


def test_a_link_to_nowhere_is_refused_with_both_ends(server: ComfyUIStandIn) -> None:
    broken = {**BRIGHTER, "3": {"class_type": "PreviewImage", "inputs": {"images": ["77", 0]}}}
    with pytest.raises(WorkflowError, match=r"node 3 \(SaveTensor\).*linked to node 77, which is not there"):
        Stream(broken).__enter__()
    assert not server.prompts


def test_what_comfyui_refuses_is_refused_with_its_words_before_the_first_frame(
    server: ComfyUIStandIn,
) -> None:
    broken = {**BRIGHTER, "2": {**BRIGHTEN, "inputs": {"image": ["1", 0], "model": ["9", 0]}}}
    with Stream() as stream:
        before = stream.frame()
        with pytest.raises(WorkflowError) as refused:
            stream.switch(workflow=broken)
        assert "node 2 (Brighten), amount: Required input is missing" in refused.value.message
        assert refused.value.answer["node_errors"]["2"]["errors"][0]["type"] == "required_input_missing"
        stream.params = {**stream.params, "workflow": BRIGHTER}
        assert np.array_equal(stream.frame(), before)
    assert any(said["type"] == "error" and "2" in said["node_errors"] for said in stream.said)


def test_a_node_that_raises_is_an_exception_with_its_words(server: ComfyUIStandIn) -> None:
    explode = {**BRIGHTER, "3": {"class_type": "SaveTensor", "inputs": {"images": ["8", 0]}}}
    explode["8"] = {"class_type": "Explode", "inputs": {"image": ["2", 0]}}
    with (
        pytest.raises(ParamError, match=r"node 8 \(Explode\): ZeroDivisionError: division by zero"),
        Stream(explode),
    ):
        pass


def test_a_node_that_raises_later_fails_its_frame_and_is_told(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        stream.frame()
        server.answers.append((500, "<h1>Internal Server Error</h1>"))
        with pytest.raises(ComfyUIError, match="ComfyUI answered 500 to POST /prompt: <h1>Internal"):
            stream.frame()
        assert stream.frame(10)[0, 0, 1] == 20


def test_a_sampler_that_shows_its_steps_is_not_taken_for_the_result(server: ComfyUIStandIn) -> None:
    server.sends_samples = True
    with Stream() as stream:
        assert stream.frame(100)[0, 0, 1] == 110


def test_texts_are_said_when_they_change(server: ComfyUIStandIn) -> None:
    workflow = {
        **BRIGHTER,
        "5": {"class_type": "Describe", "inputs": {"image": ["2", 0]}},
        "6": {"class_type": "SaveTextTensor", "inputs": {"data": ["5", 0]}},
    }
    with Stream(workflow) as stream:
        for level in (40, 40, 90):
            stream.frame(level)
    texts = [said for said in stream.said if said["type"] == "text"]
    assert [text["data"] for text in texts] == ["mean 39", "mean 72"]
    assert texts[0]["node"] == "6"


def test_a_workflow_without_a_picture_leaves_pictures_as_they_are(server: ComfyUIStandIn) -> None:
    workflow = {
        "1": FRAME,
        "5": {"class_type": "Describe", "inputs": {"image": ["1", 0]}},
        "6": {"class_type": "SaveTextTensor", "inputs": {"data": ["5", 0]}},
    }
    with Stream(workflow) as stream:
        assert stream.frame(33)[0, 0].tolist() == [7, 33, 33]
        stream.frame(33)
    assert [said["data"] for said in stream.said if said["type"] == "text"] == ["mean 24"]


def test_a_comfyui_that_is_not_there_yet_is_waited_for(server: ComfyUIStandIn) -> None:
    server.die()
    returning = threading.Timer(0.7, server.live)
    returning.start()
    try:
        with Stream() as stream:
            assert stream.frame(100)[0, 0, 1] == 110
    finally:
        returning.join()
    assert "waiting for ComfyUI" in [stage for stage, _ in stream.stages]


def test_a_comfyui_that_stays_away_is_said_so_and_not_where_it_is(
    server: ComfyUIStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_COMFYUI_RETURN_WITHIN_S", "0.2")
    server.die()
    with pytest.raises(LostError, match="ComfyUI cannot be reached") as away, Stream():
        pass
    assert str(server.port) not in str(away.value)


def test_a_comfyui_that_dies_fails_frames_at_once_and_never_passes_them_on(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        stream.frame()
        server.die()
        started_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(LostError):
                stream.frame()
        assert time.monotonic() - started_s < 5


def test_a_comfyui_that_was_started_anew_is_given_the_workflow_anew(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        stream.frame()
        server.die()
        server.live()
        with pytest.raises(LostError):
            stream.frame()
        with pytest.raises(LostError, match="has to load the workflow again"):
            stream.frame()
    with Stream() as stream:  # which is what the engine does about it
        assert stream.frame(100)[0, 0, 1] == 110
    assert server.runs["LoadModel"] == 2


def test_a_frame_that_takes_too_long_is_given_up_there_as_well(
    server: ComfyUIStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_COMFYUI_FRAME_TIMEOUT_S", "0.3")
    with Stream() as stream:
        stream.frame()
        server.slow.set()
        with pytest.raises(SlowError, match=r"did not finish within 0.3 s: it is at node 2"):
            stream.frame(1)
        assert len(server.interrupted) == 1
        server.slow.clear()
        assert stream.frame(100)[0, 0, 1] == 110  # the late end of the other is nobody's result


def test_while_the_next_workflow_loads_the_picture_before_stays(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        before = stream.frame(100)
        server.slow.set()
        beside = threading.Thread(target=stream.switch, kwargs={"inputs": {"2": {"amount": 90}}})
        beside.start()
        while not server.runs["Brighten"] >= 3:
            time.sleep(0.01)
        assert stream.frame(30) is before or np.array_equal(stream.frame(30), before)
        server.slow.clear()
        beside.join()
        assert stream.frame(100)[0, 0, 1] == 190


def test_slow_loading_is_told_with_the_node(server: ComfyUIStandIn) -> None:
    server.slow.set()
    server.sends_samples = True
    ending = threading.Timer(1.5, server.slow.clear)
    ending.start()
    try:
        with Stream() as stream:
            pass
    finally:
        ending.join()
    assert ("ComfyUI, node 2", 0.25) in stream.stages
    assert ("ComfyUI", 1.0) in stream.stages


def test_records_of_prompts_are_deleted_there(server: ComfyUIStandIn) -> None:
    with Stream() as stream:
        for level in range(55):
            stream.frame(level)
        assert len(server.forgotten) == 50
    assert len(server.forgotten) == 56


def test_a_comfyui_without_the_node_that_sends_pictures_is_told_apart(
    server: ComfyUIStandIn,
) -> None:
    server.object_info = {name: info for name, info in OBJECT_INFO.items() if name != "SaveImageWebsocket"}
    with pytest.raises(ComfyUIError, match=r"no SaveImageWebsocket.*websocket_image_save.py"), Stream():
        pass


def test_a_known_workflow_runs_here_though_there_is_a_comfyui(server: ComfyUIStandIn) -> None:
    inverted = {
        "1": FRAME,
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveTensor", "inputs": {"images": ["2", 0]}},
    }
    with Stream(inverted) as stream:
        assert stream.frame(100)[0, 0].tolist() == [248, 155, 155]
        assert not server.prompts
        stream.switch(backend="comfyui")
        assert stream.frame(100)[0, 0].tolist() == [248, 155, 155]
        assert server.prompts
    assert [said["backend"] for said in stream.said if said["type"] == "workflow"] == ["own", "comfyui"]
