from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.declarations import IMAGE, Input, Kind
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.own import Bench, OwnRun
from services.inference.engine.pipelines.comfyui.refusals import NodeFailedError
from services.inference.engine.pipelines.comfyui.static_results import StaticResults
from services.inference.engine.pipelines.comfyui.workflow import parse

LOAD = {"class_type": "LoadTensor", "inputs": {}}
PAPER = {"class_type": "Paper", "inputs": {"level": 0.5}}
MIX = {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["3", 0]}}
SENT = {
    "1": LOAD,
    "2": PAPER,
    "3": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
    "4": {
        "class_type": "ImageBlend",
        "inputs": {"image1": ["1", 0], "image2": ["3", 0], "blend_factor": 0.5, "blend_mode": "normal"},
    },
    "9": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
}


class Paper:
    """A node that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, level: float) -> tuple[Any]:
        self.runs += 1
        return (np.full((1, 4, 4, 3), level, np.float32),)


@pytest.fixture
def paper() -> Paper:
    return Paper()


@pytest.fixture
def bench(paper: Paper) -> Bench:
    level = Input(type="FLOAT", default=0.5, minimum=0, maximum=1)
    fails = Kind("Fails", {"image": IMAGE}, ("IMAGE",), _fails)
    kinds = {
        **catalogue(Gallery(None)),
        "Fails": fails,
        "Paper": Kind("Paper", {"level": level}, ("IMAGE",), paper),
    }
    return Bench(kinds, StaticResults())


def _fails(image: Any) -> tuple[Any]:
    raise KeyError("what is missing")


def run(bench: Bench, sent: Mapping[str, Any], **changes: Any) -> OwnRun:
    return OwnRun(bench, convert(parse(sent)), changes)


def frame(level: int = 200) -> Any:
    return np.full((4, 4, 3), level, np.uint8)


def test_what_no_frame_reaches_runs_once_in_sixty_frames(bench: Bench, paper: Paper) -> None:
    running = run(bench, SENT)
    for level in range(60):
        running.frame(frame(level))
    assert paper.runs == 1


def test_a_changed_constant_runs_what_depends_on_it_exactly_once_more(bench: Bench, paper: Paper) -> None:
    running = run(bench, SENT)
    before = running.frame(frame()).picture
    steered = running.steered({"2": {"level": 0.0}})
    after = [steered.frame(frame()).picture for _ in range(60)]
    assert paper.runs == 2
    assert before is not None
    assert after[-1] is not None
    assert (int(before[0, 0, 0]), int(after[-1][0, 0, 0])) == (164, 228)


def test_a_constant_of_what_runs_with_each_frame_runs_nothing_again(bench: Bench, paper: Paper) -> None:
    running = run(bench, SENT).steered({"4": {"blend_factor": 1.0}})
    assert running.frame(frame()).picture is not None
    assert paper.runs == 1


def test_streams_and_workflows_share_what_is_the_same_whatever_its_node_is_called(
    bench: Bench, paper: Paper
) -> None:
    run(bench, SENT)
    renamed = {
        "20": PAPER,
        "30": {"class_type": "ImageInvert", "inputs": {"image": ["20", 0]}},
        "1": LOAD,
        "40": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["30", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["40", 0]}},
    }
    run(bench, renamed)
    assert paper.runs == 1
    assert bench.results.hits == 2


def test_a_default_that_is_said_is_not_told_from_another_constant(bench: Bench, paper: Paper) -> None:
    run(bench, SENT)
    run(bench, {**SENT, "2": {"class_type": "Paper", "inputs": {"level": 0.25}}})
    assert paper.runs == 2


def test_results_go_as_soon_as_nothing_needs_them(bench: Bench) -> None:
    chain = {
        str(n): {"class_type": "ImageInvert", "inputs": {"image": [str(n - 1), 0]}} for n in range(2, 40)
    }
    last = {"99": {"class_type": "PreviewImage", "inputs": {"images": ["39", 0]}}}
    running = run(bench, {"1": LOAD, **chain, **last})
    running.frame(frame())
    assert running.execution.most_held == 2  # what a node is given, and what it gives


def test_static_results_that_only_static_nodes_need_are_not_held(bench: Bench) -> None:
    assert run(bench, SENT).execution.plan.keeps == ("3",)


def test_a_result_may_be_static_as_a_whole(bench: Bench, paper: Paper) -> None:
    sent = {"1": LOAD, "2": PAPER, "9": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}}
    running = run(bench, sent)
    pictures = [running.frame(frame(level)).picture for level in (1, 2)]
    assert all(picture is not None and int(picture[0, 0, 0]) == 128 for picture in pictures)
    assert paper.runs == 1


def test_a_node_that_raises_is_named_with_what_it_raised(bench: Bench) -> None:
    sent = {
        "1": LOAD,
        "5": {"class_type": "Fails", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    with pytest.raises(NodeFailedError, match=r"node 5 \(Fails\): KeyError: 'what is missing'") as failed:
        run(bench, sent).frame(frame())
    assert (failed.value.node, failed.value.class_type) == ("5", "Fails")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "width: Value 0 smaller than min of 1"), (10**9, "width: Value 1000000000 bigger")],
)
def test_a_number_that_is_linked_is_held_to_the_range_as_well(bench: Bench, value: int, words: str) -> None:
    sent = {
        "1": LOAD,
        "2": {"class_type": "PrimitiveInt", "inputs": {"value": value}},
        "5": {
            "class_type": "ImageCrop",
            "inputs": {"image": ["1", 0], "width": ["2", 0], "height": 4, "x": 0, "y": 0},
        },
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    with pytest.raises(NodeFailedError, match=words):
        run(bench, sent).frame(frame())


def test_a_picture_of_nothing_is_a_failure_of_the_node_that_made_it(bench: Bench) -> None:
    nothing = Kind("Fails", {"image": IMAGE}, ("IMAGE",), lambda image: (image[:, :0],))
    sent = {
        "1": LOAD,
        "5": {"class_type": "Fails", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    with pytest.raises(NodeFailedError, match=r"node 5 \(Fails\): ValueError: it made a picture of 4x0"):
        run(Bench({**bench.kinds, "Fails": nothing}, bench.results), sent).frame(frame())


def test_memory_that_runs_out_is_not_a_nodes_failure(bench: Bench) -> None:
    def greedy(image: Any) -> tuple[Any]:
        raise MemoryError

    kinds = {**bench.kinds, "Fails": Kind("Fails", {"image": IMAGE}, ("IMAGE",), greedy)}
    sent = {
        "1": LOAD,
        "5": {"class_type": "Fails", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    with pytest.raises(MemoryError):
        run(Bench(kinds, bench.results), sent).frame(frame())


def test_nobody_writes_into_what_others_may_hold(bench: Bench) -> None:
    def careless(image: Any) -> tuple[Any]:
        image += 1
        return (image,)

    kinds = {**bench.kinds, "Fails": Kind("Fails", {"image": IMAGE}, ("IMAGE",), careless)}
    sent = {
        "1": LOAD,
        "5": {"class_type": "Fails", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
    }
    with pytest.raises(NodeFailedError, match="read-only"):
        run(Bench(kinds, bench.results), sent).frame(frame())


def test_time_is_kept_by_node(bench: Bench) -> None:
    running = run(bench, SENT)
    running.frame(frame())
    assert set(running.execution.node_ms) == {"1", "4"}


def test_a_picture_passes_unchanged_through_the_default_workflow(bench: Bench) -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(run(bench, {}).frame(every).picture, every)  # type: ignore[arg-type]


@pytest.mark.parametrize(("one_line", "said"), [(True, "a b"), (False, "a\nb")])
def test_texts_come_from_constants_and_from_nodes(bench: Bench, one_line: bool, said: str) -> None:
    sent = {
        "1": LOAD,
        "2": {"class_type": "PrimitiveString", "inputs": {"value": "a\nb"}},
        "3": {"class_type": "SaveTextTensor", "inputs": {"data": ["2", 0], "remove_linebreaks": one_line}},
        "4": {"class_type": "SaveTextTensor", "inputs": {"data": "plain"}},
    }
    outcome = run(bench, sent).frame(frame())
    assert outcome.picture is None
    assert outcome.texts == {"3": said, "4": "plain"}


def test_results_beyond_their_bytes_go_oldest_first() -> None:
    results = StaticResults(bytes_max=3 * 1024)
    kilobyte = (np.zeros(1024, np.uint8),)
    for key in (b"a", b"b", b"c"):
        results.get(key, lambda: kilobyte)
    results.get(b"a", lambda: pytest.fail("it is there"))
    results.get(b"d", lambda: kilobyte)
    results.get(b"a", lambda: pytest.fail("it was used last but one"))
    misses = results.misses
    results.get(b"b", lambda: kilobyte)
    assert results.misses == misses + 1
    assert results.bytes == 3 * 1024


def test_a_result_that_is_larger_than_all_room_is_given_and_not_kept() -> None:
    results = StaticResults(bytes_max=10)
    assert results.get(b"a", lambda: (np.zeros(20, np.uint8),))[0].nbytes == 20
    assert results.bytes == 0


def test_two_streams_that_want_the_same_make_it_once() -> None:
    results = StaticResults()
    began, go_on, made, got = threading.Event(), threading.Event(), [], []

    def make() -> tuple[Any, ...]:
        began.set()
        assert go_on.wait(10)
        made.append(1)
        return (1,)

    threads = [threading.Thread(target=lambda: got.append(results.get(b"a", make))) for _ in range(2)]
    threads[0].start()
    assert began.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert (made, got) == ([1], [(1,), (1,)])


def test_what_cannot_be_made_is_tried_again_by_the_next() -> None:
    results = StaticResults()
    with pytest.raises(ZeroDivisionError):
        results.get(b"a", lambda: (1 // 0,))
    assert results.get(b"a", lambda: (5,)) == (5,)
