"""Each check of the conformance suite, with a pipeline that it must find."""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.errors import InvalidError
from sluice.authoring.targets import find
from sluice.conformance import Outcome, Plan, Report, check
from sluice.conformance.suite import CHECKS
from sluice.pipeline import (
    Apply,
    AudioFrame,
    Json,
    Param,
    ParamError,
    Pipeline,
    Prompt,
    Setup,
    VideoFrame,
)

QUICK = Plan(
    sizes=((64, 64), (97, 16)), work_size=(64, 64), frames=6, settle_frames=10, leak_frames=400, chances=10
)


def checked(pipeline: type[Pipeline], *names: str, plan: Plan = QUICK, **params: Any) -> Report:
    return check(pipeline, plan=plan, params=params, only=lambda name: not names or name in names)


def failure(pipeline: type[Pipeline], name: str, plan: Plan = QUICK) -> str:
    """The note of the one check that has to fail."""
    (found,) = checked(pipeline, name, plan=plan).findings
    assert found.outcome is Outcome.FAILED, found
    return found.note


class Whole(Pipeline):
    """Uses all that there is, and rightly: a fading trail, tinted, with a table that is prepared."""

    name, version, description = "whole", "1.0", "A trail."
    processes_audio = True
    slots_per_engine = 2
    params: ClassVar = {
        "fade": Param(default=0.5, help="Of the trail.", minimum=0, maximum=0.9),
        "gamma": Param(default=1.0, help="Of the picture.", minimum=0.2, maximum=3, apply=Apply.WARM),
        "step": Param(default=2, help="Between lines.", choices=(1, 2, 4), apply=Apply.RELOAD),
        "seed": Param(default=1, help="Of the grain.", minimum=0, maximum=1 << 31),
        "prompt": Prompt(default="", help="Is said."),
        "tint": Json(
            default=[1, 1, 1],
            help="Of each colour.",
            schema={
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 2},
                "minItems": 3,
                "maxItems": 3,
            },
        ),
    }

    def __init__(self) -> None:
        self._trail: NDArray[np.float32] | None = None
        self._count = 0
        self._table = np.zeros(256, np.float32)
        self._step = 1

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._table = self._table_for(params["gamma"])
        self._step = params["step"]

    def prepare(self, params: Mapping[str, Any]) -> object:
        return self._table_for(params["gamma"])

    def adopt(self, prepared: object) -> None:
        assert isinstance(prepared, np.ndarray)
        self._table = prepared

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        now = self._table[frame.rgb] * np.float32(params["tint"])
        now += np.random.default_rng([params["seed"], self._count]).integers(0, 4, frame.rgb.shape)
        now[:: self._step] *= 0.9
        self._count += 1
        if self._trail is not None and self._trail.shape == now.shape:
            now += (self._trail - now) * np.float32(params["fade"])
        self._trail = now.round(1)
        self.say({"prompt": params["prompt"]})
        return frame.with_rgb(np.clip(now, 0, 255).astype(np.uint8))

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        return frame.with_samples(frame.samples.mean(axis=0, keepdims=True, dtype=np.float32))

    def snapshot(self) -> bytes | None:
        if self._trail is None:
            return None
        height, width = self._trail.shape[:2]
        head = json.dumps({"count": self._count, "height": height, "width": width}).encode()
        return len(head).to_bytes(4) + head + self._trail.astype(np.float32).tobytes()

    def restore(self, snapshot: bytes) -> None:
        size = int.from_bytes(snapshot[:4])
        head = json.loads(snapshot[4 : 4 + size] or b"null")
        if not isinstance(head, dict) or not {"count", "height", "width"} <= set(head):
            raise ValueError("no snapshot")
        trail = np.frombuffer(snapshot[4 + size :], np.float32)
        self._trail, self._count = trail.reshape(head["height"], head["width"], 3), head["count"]

    def _table_for(self, gamma: float) -> NDArray[np.float32]:
        return (255 * (np.arange(256) / 255) ** gamma).astype(np.float32)


class Plain(Whole):
    """What most broken ones are made of: no parameters, no memory."""

    name, version, description = "plain", "1.0", "As it was."
    processes_audio = False
    params: ClassVar = {}
    process_audio = Pipeline.process_audio
    snapshot = Pipeline.snapshot
    restore = Pipeline.restore

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None: ...

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame


def test_a_pipeline_that_uses_everything_rightly_passes_every_check() -> None:
    report = checked(Whole)
    assert report.passed, str(report)
    assert [one.outcome for one in report.findings] == [Outcome.PASSED] * len(CHECKS)
    assert json.loads(json.dumps(report.as_json()))["passed"] is True
    assert "another seed makes others" in report["determinism"].note


@pytest.mark.parametrize("name", ["passthrough", "effects"])
def test_what_is_built_in_passes(name: str) -> None:
    report = checked(find(name), plan=replace(QUICK, leak_frames=100))
    assert report.passed, str(report)


def test_what_does_not_apply_says_why() -> None:
    report = checked(Plain)
    assert report.passed, str(report)
    notes = {one.check: one.note for one in report.findings if one.outcome is Outcome.NOT_APPLICABLE}
    assert notes == {
        "refusal": "it has no parameter that could be set wrong; unknown ones are refused",
        "values": "it has no parameters",
        "changes": "it has no parameters",
        "effect": "it has no live or warm parameter with a second value",
        "snapshot": "it has no snapshot: after a failure a stream begins anew",
        "sound": "processes_audio is False",
    }


class Needy(Plain):
    name = "needy"

    def __init__(self, path: str) -> None:
        super().__init__()


class Unsettled(Plain):
    name = "unsettled"
    params: ClassVar = {
        "ids": Json(default=["a"], help="x", schema={"type": "array", "items": {"type": "integer"}})
    }


class Ruled(Plain):
    name = "ruled"
    params: ClassVar = {"low": Param(default=5, help="x"), "on": Param(default=True, help="x")}
    rules = (
        {"if": {"properties": {"on": {"const": True}}}, "then": {"properties": {"low": {"maximum": 3}}}},
    )


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (Needy, "Needy() cannot be made without arguments"),
        (Unsettled, "the defaults do not satisfy the schema: ids.0"),
        (Ruled, "the defaults do not satisfy the schema: low"),
    ],
)
def test_a_wrong_declaration_is_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "declaration")


def test_a_class_that_cannot_be_found_by_its_name_is_found() -> None:
    hidden = type("Plain", (Plain,), {"__module__": __name__, "__qualname__": "Plain"})
    assert "cannot be found by its name" in failure(hidden, "declaration")


class Careless(Plain):
    name = "careless"
    params: ClassVar = {"radius": Param(default=1, help="x", minimum=0, maximum=9)}

    @classmethod
    def offered(cls, setup: Setup) -> dict[str, Any]:
        return {"type": "object", "properties": {"radius": {"type": "integer", "minimum": 0}}}


def test_a_schema_that_lets_wrong_values_through_is_found() -> None:
    assert failure(Careless, "refusal") == "the schema that is offered accepts radius=10"


class Shrinking(Plain):
    name = "shrinking"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._count += 1
        return frame.with_rgb(frame.rgb[self._count :])


class Square(Plain):
    name = "square"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.with_rgb(np.swapaxes(frame.rgb, 0, 1) // 2 + frame.rgb // 2)


class Flat(Plain):
    name = "flat"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.rgb  # type: ignore[return-value]


class Bright(Plain):
    name = "bright"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.with_rgb(frame.rgb * 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (Shrinking, "each new size is a new encoder"),
        (Square, "could not be broadcast"),
        (Flat, "process returned ndarray, not a VideoFrame"),
        (Bright, "a frame's rgb is uint8 (H, W, 3), not float64"),
    ],
)
def test_pictures_of_a_wrong_shape_or_kind_are_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "sizes")


class Late(Plain):
    name = "late"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return replace(frame, pts=frame.pts - 3000)


def test_another_time_is_found() -> None:
    assert "a picture keeps its time" in failure(Late, "times")


class Scribbler(Plain):
    name = "scribbler"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        frame.rgb[0] = 0
        return frame


def test_writing_into_what_was_given_is_found() -> None:
    assert "process wrote into the picture" in failure(Scribbler, "input")


class Thrifty(Plain):
    name = "thrifty"
    _buffer: NDArray[np.uint8] | None = None

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if self._buffer is None or self._buffer.shape != frame.rgb.shape:
            self._buffer = np.empty_like(frame.rgb)
        np.copyto(self._buffer, frame.rgb)
        return frame.with_rgb(self._buffer)


def test_one_buffer_for_all_pictures_is_found() -> None:
    assert "changed after it was returned" in failure(Thrifty, "output")


class Brittle(Plain):
    name = "brittle"
    params: ClassVar = {
        "radius": Param(default=1, help="x", minimum=0, maximum=9),
        "title": Param(default="a", help="x", max_length=20),
        "model": Param(default="a", help="x", choices=("a", "b"), apply=Apply.RELOAD),
    }

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        if params["model"] == "b":
            raise ParamError("model", "not here")

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        params["title"].encode("ascii")
        return frame.with_rgb(frame.rgb // params["radius"])


def test_values_that_break_it_are_found_and_named() -> None:
    said = failure(Brittle, "values")
    assert "radius=0: " in said
    assert 'title="ünï çødé 🦊": UnicodeEncodeError' in said
    assert "model" not in said, "a ParamError is an answer"


class Jumpy(Plain):
    name = "jumpy"
    params: ClassVar = {"count": Param(default=4, help="x", minimum=1, maximum=64)}
    _weights: NDArray[np.float64] | None = None

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        if self._weights is None:
            self._weights = np.ones(params["count"])
        _ = self._weights * np.arange(params["count"])
        return frame


def test_a_change_between_two_pictures_that_breaks_it_is_found() -> None:
    said = failure(Jumpy, "changes")
    assert said.startswith("with count=")
    assert "could not be broadcast" in said


class Stale(Plain):
    name = "stale"
    params: ClassVar = {"amount": Param(default=10, help="x", minimum=0, maximum=200)}
    _amount = 0

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._amount = params["amount"]

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.with_rgb(frame.rgb // 2 + np.uint8(self._amount // 2))


class Forgetful(Whole):
    name = "forgetful"

    def adopt(self, prepared: object) -> None: ...


class Hasty(Whole):
    name = "hasty"

    def prepare(self, params: Mapping[str, Any]) -> object:
        self._table = self._table_for(params["gamma"])
        return self._table


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (Stale, "amount=0, set in mid-stream, shows other pictures than from the start"),
        (Forgetful, "gamma=0.2, set in mid-stream, shows other pictures than from the start"),
        (Hasty, "preparing for another gamma is to be seen before `adopt`"),
    ],
)
def test_a_value_that_takes_no_effect_or_too_early_is_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "effect")


class Dice(Plain):
    name = "dice"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame.with_rgb(frame.rgb ^ np.random.default_rng().integers(0, 9, frame.rgb.shape, np.uint8))


def test_chance_without_a_seed_is_found() -> None:
    assert "two instances, the same pictures and parameters" in failure(Dice, "determinism")


class Crowd(Plain):
    name = "crowd"
    last: ClassVar[dict[str, NDArray[np.uint8]]] = {}

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self.last.clear()

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        before = self.last.get("rgb", frame.rgb)
        self.last["rgb"] = frame.rgb
        return frame.with_rgb(np.maximum(before, frame.rgb) if before.shape == frame.rgb.shape else frame.rgb)


def test_what_instances_have_in_common_is_found() -> None:
    assert checked(Crowd, "determinism").passed
    assert "another stream's instance beside it" in failure(Crowd, "apart")


class Hurried(Plain):
    """Streams at the same time share what they compute in."""

    name = "hurried"
    slots_per_engine = 2
    desk: ClassVar[dict[str, NDArray[np.uint8]]] = {}

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self.desk["rgb"] = frame.rgb
        time.sleep(0.002)
        return frame.with_rgb(~self.desk["rgb"])


def test_what_streams_at_the_same_time_have_in_common_is_found() -> None:
    assert "another stream at the same time" in failure(Hurried, "apart", replace(QUICK, frames=30))


class Amnesiac(Whole):
    name = "amnesiac"

    def restore(self, snapshot: bytes) -> None:
        super().restore(snapshot)
        self._count = 0


class Huge(Whole):
    name = "huge"

    def snapshot(self) -> bytes | None:
        return bytes((1 << 20) + 1)


class Trusting(Whole):
    name = "trusting"

    def restore(self, snapshot: bytes) -> None:
        size = int.from_bytes(snapshot[:4])
        head = json.loads(snapshot[4 : 4 + size] or b"{}")
        self._count = head["count"]
        self._trail = np.frombuffer(snapshot[4 + size :], np.float32).reshape(
            head["height"], head["width"], 3
        )


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (Amnesiac, "goes on otherwise than the original"),
        (Huge, "1048577 bytes, of at most 1048576"),
        (Trusting, "restore raises KeyError for what is no snapshot"),
    ],
)
def test_a_snapshot_that_does_not_restore_is_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "snapshot")


class Short(Whole):
    name = "short"

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        return frame.with_samples(frame.samples[:, 1:])


class Loud(Whole):
    name = "loud"

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        with np.errstate(divide="ignore"):
            return frame.with_samples(np.log(np.maximum(frame.samples, 0)))


class Shifted(Whole):
    name = "shifted"

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        return replace(frame, pts=frame.pts + 1)


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (Short, "process_audio returned 959 samples for 960"),
        (Loud, "what is no number"),
        (Shifted, "sound keeps its time"),
    ],
)
def test_wrong_sound_is_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "sound")


class Bold(Plain):
    name = "bold"

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._model: object = "loaded"

    def close(self) -> None:
        del self._model


class Once(Plain):
    name = "once"
    _closed = False

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        self._loaded = True

    def close(self) -> None:
        if self._closed and hasattr(self, "_loaded"):
            raise RuntimeError("closed already")
        self._closed = True


@pytest.mark.parametrize(
    ("pipeline", "said"), [(Bold, "AttributeError without a load"), (Once, "RuntimeError twice")]
)
def test_a_close_that_fails_is_found(pipeline: type[Pipeline], said: str) -> None:
    assert said in failure(pipeline, "closing")


class Hoarder(Plain):
    name = "hoarder"

    def __init__(self) -> None:
        self._kept: list[NDArray[np.uint8]] = []

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        self._kept.append(frame.rgb[:8].copy())
        return frame


class Secret(Plain):
    name = "secret"

    def __init__(self) -> None:
        self._kept: list[mmap.mmap] = []

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        pages = mmap.mmap(-1, 1 << 14)
        pages[:] = bytes([1]) * (1 << 14)
        self._kept.append(pages)
        return frame


def test_memory_that_grows_is_found_with_the_line_that_keeps_it() -> None:
    said = failure(Hoarder, "leaks")
    assert "more bytes a frame" in said
    assert "test_conformance.py:" in said
    assert "outside of Python and numpy" in failure(Secret, "leaks", replace(QUICK, leak_frames=800))


class Crashing(Plain):
    name = "crashing"

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        raise RuntimeError("my own mistake")


def test_a_failure_is_told_with_the_authors_lines_and_stops_no_other_check() -> None:
    report = checked(Crashing, plan=replace(QUICK, leak_frames=4))
    assert not report.passed
    assert len(report.findings) == len(CHECKS)
    said = report["sizes"].note
    assert "my own mistake" in said
    assert "test_conformance.py" in said
    assert "rehearsal.py" not in said
    assert report["closing"].outcome is Outcome.FAILED
    assert report["declaration"].outcome is Outcome.PASSED
    assert "FAIL sizes" in str(report)


class Slow(Plain):
    name = "slow"
    params: ClassVar = {"amount": Param(default=10, help="x", minimum=0, maximum=200)}


def test_a_check_that_ran_out_of_patience_says_what_it_left_out() -> None:
    report = checked(Slow, "values", plan=replace(QUICK, patience_s=0.0))
    assert report["values"].note.endswith("(stopped when 0 s were over, at 1 of 4)")


def test_parameters_replace_the_defaults_in_every_check() -> None:
    assert check(Stale, plan=QUICK, params={"amount": 30}, only=lambda name: name == "declaration").passed
    wrong = check(Stale, plan=QUICK, params={"amount": 300}, only=lambda name: name == "declaration")
    assert "the parameters of this check do not satisfy the schema: amount" in wrong["declaration"].note
    with pytest.raises(InvalidError, match="unknown parameter 'amuont'; stale has: amount"):
        check(Stale, params={"amuont": 1})
