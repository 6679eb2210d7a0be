from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from sluice.pipeline import (
    SAMPLE_RATE,
    Apply,
    AudioFrame,
    Json,
    Param,
    Pipeline,
    Prompt,
    Setup,
    VideoFrame,
    defaults,
    schema,
    weighted_texts,
)


class Tuned(Pipeline):
    name = "tuned-1"
    version = "1.2.0-rc.1"
    description = "One parameter of each kind."
    params: ClassVar[Mapping[str, Param]] = {
        "on": Param(default=True, help="Whether."),
        "steps": Param(default=4, help="How many.", minimum=1, maximum=50, apply=Apply.WARM),
        "guidance": Param(default=1.5, help="How strongly.", minimum=0, maximum=20),
        "size": Param(default="512", help="How large.", choices=("512", "768"), apply=Apply.RELOAD),
        "note": Param(default="", help="Anything.", max_length=10),
        "prompt": Prompt(default="a cat", help="What.", max_length=20),
    }

    def prepare(self, params: Mapping[str, Any]) -> object:
        return params["steps"]

    def adopt(self, prepared: object) -> None:
        pass

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame


def accepts(**params: object) -> bool:
    return bool(Draft202012Validator(schema(Tuned)).is_valid(params))


def define(**attributes: object) -> type[Pipeline]:
    body = {"name": "made", "version": "1", "description": "Made.", "process": Tuned.process, **attributes}
    return type("Made", (Pipeline,), body)


def test_the_schema_is_valid_and_the_defaults_satisfy_it() -> None:
    Draft202012Validator.check_schema(schema(Tuned))
    Draft202012Validator(schema(Tuned)).validate(defaults(Tuned))


def test_every_property_says_its_default_its_meaning_and_how_it_applies() -> None:
    properties = schema(Tuned)["properties"]
    assert {name: property_["default"] for name, property_ in properties.items()} == defaults(Tuned)
    assert all(property_["description"] for property_ in properties.values())
    assert [property_["x-apply"] for property_ in properties.values()] == [
        "live", "warm", "live", "reload", "live", "live",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("on", False, 0),
        ("steps", 50, 51),
        ("steps", 1, 1.5),
        ("guidance", 20, -0.1),
        ("guidance", 0.5, "0.5"),
        ("size", "768", "640"),
        ("note", "x" * 10, "x" * 11),
        ("prompt", "x" * 20, "x" * 21),
        ("prompt", [["a cat", 1], ["a dog", 0.5]], [["a cat"]]),
        ("prompt", [{"text": "a cat", "weight": 2}, {"text": "a dog"}], [{"weight": 2}]),
        ("prompt", [["a cat", 0], {"text": "a dog"}], [["a cat", -1]]),
        ("prompt", [], [["a cat", 1, 2]]),
        ("prompt", [["x", 1]] * 32, [["x", 1]] * 33),
    ],
)
def test_the_schema_takes_what_fits_and_refuses_what_does_not(name: str, good: object, bad: object) -> None:
    assert accepts(**{name: good})
    assert not accepts(**{name: bad})


def test_an_unknown_parameter_is_refused() -> None:
    with pytest.raises(ValidationError, match="strenght"):
        Draft202012Validator(schema(Tuned)).validate({"strenght": 1})


@pytest.mark.parametrize(
    ("param", "problem"),
    [
        (Param(default=2.0, help="x", maximum=1), "default 2.0 is above maximum 1"),
        (Param(default=-1, help="x", minimum=0), "default -1 is below minimum 0"),
        (Param(default=None, help="x"), "neither bool, int, float nor str"),  # type: ignore[arg-type]
        (Param(default=1, help=" "), "help is empty"),
        (Param(default="a", help="x", choices=("b",)), "not among the choices"),
        (Param(default=1, help="x", choices=(1, 2.0)), "not all int"),
        (Param(default="a", help="x", minimum=0), "minimum and maximum are for numbers"),
        (Param(default=True, help="x", maximum=1), "minimum and maximum are for numbers"),
        (Param(default=1, help="x", max_length=3), "max_length is for text"),
        (Param(default="long", help="x", max_length=3), "default has 4 characters"),
        (Param(default=float("nan"), help="x"), "JSON cannot say"),
        (Param(default=1.0, help="x", maximum=float("inf")), "JSON cannot say"),
        (Prompt(default=1, help="x"), "not text"),
        (Prompt(default="a", help="x", choices=("a",)), "has no choices"),
        (Json(default=[], help=" "), "help is empty"),
        (Json(default=[], help="x", choices=("a",)), "go into its schema"),
        (Json(default={1, 2}, help="x"), "is no JSON"),
        (Json(default=[float("inf")], help="x"), "is no JSON"),
        ("just text", "is not a Param"),
    ],
)
def test_a_wrong_parameter_fails_where_the_class_is_defined_and_is_named(param: object, problem: str) -> None:
    with pytest.raises(TypeError, match=r"Made\.params\['tempo'\]") as raised:
        define(params={"tempo": param})
    assert problem in str(raised.value)


@pytest.mark.parametrize("name", ["Tempo", "a b", "", "1st"])
def test_a_parameter_with_a_bad_name_fails_where_the_class_is_defined(name: str) -> None:
    with pytest.raises(TypeError, match="the name does not match"):
        define(params={name: Param(default=1, help="x")})


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("name", "Has Spaces"),
        ("name", "x" * 65),
        ("version", "latest"),
        ("description", " "),
        ("slots_per_engine", 0),
        ("slots_per_engine", True),
        ("process", Pipeline.process),
        ("processes_audio", 1),
    ],
)
def test_a_wrong_attribute_fails_where_the_class_is_defined_and_is_named(
    attribute: str, value: object
) -> None:
    with pytest.raises(TypeError, match=rf"Made\.{attribute}"):
        define(**{attribute: value})


def test_a_list_or_an_object_is_declared_by_a_schema_of_its_own() -> None:
    indices = {"type": "array", "items": {"type": "integer"}, "maxItems": 4}
    made = define(params={"steps": Json(default=[12, 20], help="Which.", schema=indices, apply=Apply.RELOAD)})
    steps = schema(made)["properties"]["steps"]
    assert steps == {**indices, "default": [12, 20], "description": "Which.", "x-apply": "reload"}
    assert not Draft202012Validator(schema(made)).is_valid({"steps": [1.5]})


def test_nobody_changes_the_defaults_of_others() -> None:
    made = define(params={"steps": Json(default=[12], help="Which.", schema={"type": "array"})})
    defaults(made)["steps"].append(20)
    assert defaults(made) == {"steps": [12]}


def test_rules_between_parameters_are_part_of_the_schema() -> None:
    low = {"if": {"properties": {"steps": {"maximum": 2}}}, "then": {"properties": {"index": {"maximum": 1}}}}
    params = {"steps": Param(default=4, help="x"), "index": Param(default=0, help="x")}
    validator = Draft202012Validator(schema(define(params=params, rules=(low,))))
    assert validator.is_valid({"steps": 4, "index": 3})
    assert not validator.is_valid({"steps": 2, "index": 3})
    assert "allOf" not in schema(define(params=params))


def test_a_warm_parameter_needs_somebody_who_prepares_and_adopts() -> None:
    with pytest.raises(TypeError, match="prepare and adopt are needed, for tempo is warm"):
        define(params={"tempo": Param(default=1, help="x", apply=Apply.WARM)})


def test_a_snapshot_that_cannot_be_restored_fails_where_the_class_is_defined() -> None:
    with pytest.raises(TypeError, match="only together"):
        define(snapshot=lambda _: b"")


def halved(_: Pipeline, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
    return frame.with_samples(frame.samples * np.float32(0.5))


def test_a_pipeline_that_processes_sound_says_so_and_has_the_method_or_fails_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Made\.process_audio: missing"):
        define(processes_audio=True)
    with pytest.raises(TypeError, match=r"Made\.process_audio: never called"):
        define(process_audio=halved)
    made = define(processes_audio=True, process_audio=halved)
    frame = AudioFrame(np.ones((2, 960), np.float32), 1800)
    quieter = made().process_audio(frame, {})
    assert (quieter.pts, quieter.rate, quieter.samples.max()) == (1800, SAMPLE_RATE, 0.5)
    assert not define().processes_audio


def test_whoever_inherits_a_pipeline_with_sound_has_it_too() -> None:
    made = define(processes_audio=True, process_audio=halved)
    child = type("Child", (made,), {})
    assert issubclass(child, Pipeline)
    assert child.processes_audio
    with pytest.raises(TypeError, match="never called"):
        type("Child", (made,), {"processes_audio": False})


def test_a_pipeline_without_a_name_fails_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match=r"Nameless\.name"):
        type("Nameless", (Pipeline,), {"version": "1", "description": "x", "process": Tuned.process})


def test_declared_parameters_do_not_change_afterwards() -> None:
    declared = {"tempo": Param(default=1, help="x")}
    made = define(params=declared)
    declared.clear()
    assert defaults(made) == {"tempo": 1}
    with pytest.raises(TypeError):
        made.params["tempo"] = Param(default=2, help="x")  # type: ignore[index]


def test_a_pipeline_need_only_define_process() -> None:
    pipeline = define()()
    frame = VideoFrame(np.zeros((2, 2, 3), np.uint8), 0)
    pipeline.load(Setup.plain(), defaults(type(pipeline)))
    assert pipeline.process(frame, {}) is frame
    pipeline.close()


def test_what_a_pipeline_says_is_heard_where_it_serves_a_stream_and_nowhere_else() -> None:
    class Talkative(Pipeline):
        name, version, description = "talkative", "1.0", "Says what it sees."

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            self.say({"pts": frame.pts})
            return frame

    one, other = Talkative(), Talkative()
    heard: list[Mapping[str, Any]] = []
    frame = VideoFrame(np.zeros((2, 2, 3), np.uint8), 7)
    one.process(frame, {})
    one.hear = heard.append
    one.process(frame, {})
    other.process(frame, {})
    assert heard == [{"pts": 7}]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a cat", [("a cat", 1.0)]),
        ([["a cat", 1], ["a dog", 0.5]], [("a cat", 1.0), ("a dog", 0.5)]),
        ([{"text": "a cat", "weight": 100}, {"text": "a dog"}], [("a cat", 100.0), ("a dog", 1.0)]),
        ([], []),
    ],
)
def test_weighted_texts_reads_every_form_of_a_prompt(prompt: object, texts: list[tuple[str, float]]) -> None:
    assert accepts(prompt=prompt)
    assert weighted_texts(prompt) == texts


def test_a_frame_with_another_picture_keeps_its_time() -> None:
    frame = VideoFrame(np.zeros((2, 4, 3), np.uint8), 3000)
    other = frame.with_rgb(np.ones((2, 4, 3), np.uint8))
    assert (other.pts, other.rgb.max(), frame.rgb.max()) == (3000, 1, 0)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((2, 2, 4), np.uint8)]
)
def test_a_frame_of_another_shape_or_type_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="uint8"):
        VideoFrame(wrong, 0)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 960)), np.zeros(960, np.float32), np.zeros((3, 9), np.float32), np.zeros((2, 9), np.int16)],
)
def test_sound_of_another_shape_or_type_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="float32"):
        AudioFrame(wrong, 0)


def test_importing_the_module_needs_neither_numpy_nor_opencv_nor_torch() -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(('numpy', 'cv2', 'torch')))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import sluice.pipeline"], check=True, timeout=20)
