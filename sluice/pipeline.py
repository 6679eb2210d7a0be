"""What the author of a pipeline imports: the class to write, its parameters, its frames. No torch, no numpy.

A pipeline is a class with a name, declared parameters and one method that turns a frame into a frame:

    class Invert(Pipeline):
        name, version, description = "invert", "1.0", "The negative of the picture."
        params = {"amount": Param(default=1.0, help="0 keeps the picture.", minimum=0, maximum=1)}

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            amount = params["amount"]
            return frame.with_rgb(cv2.addWeighted(frame.rgb, 1 - amount, ~frame.rgb, amount, 0))

Parameters come as a mapping with each call, not as attributes of the pipeline: a frame sees one coherent set,
which changes between frames and never within one; the pipeline holds no second copy to go stale; and the keys
are those of the JSON that a client sends, so there is one spelling to search for. The mapping has every
declared parameter, validated against `schema()`, so its values are `Any` and need no checks in `process`.

Sound goes round a pipeline and meets its picture again behind it. One that says so gets the sound as well:

    class Night(Pipeline):
        name, version, description = "night", "1.0", "Darker and quieter."
        processes_audio = True

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            return frame.with_rgb(frame.rgb // 4)

        def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
            return frame.with_samples(frame.samples * np.float32(0.25))

What else it finds out it says, and every client that listens is told with the time of the frame:

    class Faces(Pipeline):
        name, version, description = "faces", "1.0", "Says where faces are."

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            self.say({"faces": [[float(side) for side in box] for box in find(frame.rgb)]})
            return frame

A mistake in the class body is a `TypeError` where the class is defined; not at the first stream.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TICKS_PER_SECOND: Final = 90_000  # the unit of a frame's pts, as in MPEG-TS and in RTP video
SAMPLE_RATE: Final = 48_000  # of all sound, whatever its source's was

_NAME: Final = re.compile(r"(?=.{1,64}\Z)[a-z0-9]+(?:[-_.][a-z0-9]+)*")
_VERSION: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*(?:[-+][0-9A-Za-z.-]+)?")
_PARAM_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_JSON_TYPES: Final[Mapping[type, str]] = {bool: "boolean", int: "integer", float: "number", str: "string"}
_WEIGHTED_TEXTS_MAX: Final = 32


class Apply(enum.StrEnum):
    """How a changed parameter takes effect."""

    LIVE = "live"  # from the next frame on
    WARM = "warm"  # once the pipeline has prepared for it, while frames go on as before
    RELOAD = "reload"  # after a new `load`, during which frames stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Param:
    """A parameter; the type of `default` is its type: bool, int, float or str.

    `minimum` and `maximum` are for numbers and inclusive; `max_length` is for text, in characters.
    """

    default: bool | float | str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[bool | float | str, ...] = ()
    max_length: int | None = None
    apply: Apply = Apply.LIVE

    def problem(self) -> str | None:
        """Say what is wrong with this declaration, or None."""
        kind = type(self.default)
        if kind not in _JSON_TYPES:
            return f"default {self.default!r} is neither bool, int, float nor str"
        if not self.help.strip():
            return "help is empty"
        if self.choices and any(type(choice) is not kind for choice in self.choices):
            return f"choices {self.choices!r} are not all {kind.__name__}, as the default is"
        if self.choices and self.default not in self.choices:
            return f"default {self.default!r} is not among the choices {self.choices!r}"
        return self._problem_with_limits()

    def _problem_with_limits(self) -> str | None:
        limits = [limit for limit in (self.minimum, self.maximum) if limit is not None]
        numbers = [number for number in (self.default, *limits, *self.choices) if isinstance(number, float)]
        if not all(math.isfinite(number) for number in numbers):
            return "a number is infinite or not a number, which JSON cannot say"
        if isinstance(self.default, bool | str):
            if limits:
                return f"minimum and maximum are for numbers, and default {self.default!r} is none"
        else:
            if self.minimum is not None and self.default < self.minimum:
                return f"default {self.default!r} is below minimum {self.minimum!r}"
            if self.maximum is not None and self.default > self.maximum:
                return f"default {self.default!r} is above maximum {self.maximum!r}"
        if self.max_length is not None:
            if not isinstance(self.default, str):
                return f"max_length is for text, and default {self.default!r} is none"
            if len(self.default) > self.max_length:
                return f"default has {len(self.default)} characters, above max_length {self.max_length}"
        return None

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema property that says all this to a client."""
        return {
            **self.accepts(),
            "default": self.default,
            "description": self.help,
            "x-apply": self.apply.value,
        }

    def accepts(self) -> dict[str, Any]:
        """Return the part of `json_schema` that a value must satisfy."""
        limits = {"minimum": self.minimum, "maximum": self.maximum, "maxLength": self.max_length}
        return {
            "type": _JSON_TYPES[type(self.default)],
            **({"enum": list(self.choices)} if self.choices else {}),
            **{keyword: limit for keyword, limit in limits.items() if limit is not None},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Param):
    """A text, or up to 32 weighted texts: each `[text, weight]` or `{"text": ..., "weight": ...}`.

    `weighted_texts` reads all of these. A weight is 0..1000, and 1 where an object has none.
    """

    def problem(self) -> str | None:
        if not isinstance(self.default, str):
            return f"default {self.default!r} of a prompt is not text"
        if self.choices:
            return "a prompt is free text and has no choices"
        return Param.problem(self)

    def accepts(self) -> dict[str, Any]:
        text = Param.accepts(self)
        weight = {"type": "number", "minimum": 0, "maximum": 1000}
        pair = {"type": "array", "prefixItems": [text, weight], "items": False, "minItems": 2}
        named = {
            "type": "object",
            "properties": {"text": text, "weight": weight},
            "required": ["text"],
            "additionalProperties": False,
        }
        several = {"type": "array", "items": {"anyOf": [pair, named]}, "maxItems": _WEIGHTED_TEXTS_MAX}
        return {"anyOf": [text, several]}


def weighted_texts(prompt: Any) -> list[tuple[str, float]]:
    """Read the value of a `Prompt`; a plain text weighs 1."""
    if isinstance(prompt, str):
        return [(prompt, 1.0)]
    return [
        (item["text"], float(item.get("weight", 1)))
        if isinstance(item, Mapping)
        else (item[0], float(item[1]))
        for item in prompt
    ]


@dataclass(frozen=True, slots=True, eq=False)
class VideoFrame:
    """A picture and its time.

    rgb: uint8 (H, W, 3), RGB, 0..255. pts: presentation time in ticks of 1/90000 s.
    Whoever receives a frame may keep it, so nobody writes into its picture.
    """

    rgb: NDArray[np.uint8]
    pts: int

    def __post_init__(self) -> None:
        shape, dtype = self.rgb.shape, self.rgb.dtype.name
        if dtype != "uint8" or len(shape) != 3 or shape[2] != 3:
            raise TypeError(f"a frame's rgb is uint8 (H, W, 3), not {dtype} {shape}")

    def with_rgb(self, rgb: NDArray[np.uint8]) -> VideoFrame:
        """Return another picture for the same time."""
        return replace(self, rgb=rgb)


@dataclass(frozen=True, slots=True, eq=False)
class AudioFrame:
    """Some sound, about a fiftieth of a second, and its time.

    samples: float32 (2, N), left and right, -1..1, `SAMPLE_RATE` a second; (1, N) is the same on both sides.
    pts: presentation time of the first sample in ticks of 1/90000 s.
    Whoever receives a frame may keep it, so nobody writes into its samples.
    """

    samples: NDArray[np.float32]
    pts: int

    def __post_init__(self) -> None:
        shape, dtype = self.samples.shape, self.samples.dtype.name
        if dtype != "float32" or len(shape) != 2 or shape[0] not in {1, 2}:
            raise TypeError(f"a frame's samples are float32 (2, N) or (1, N), not {dtype} {shape}")

    @property
    def rate(self) -> int:
        return SAMPLE_RATE

    def with_samples(self, samples: NDArray[np.float32]) -> AudioFrame:
        """Return other sound for the same time."""
        return replace(self, samples=samples)


class Pipeline:
    """What an author writes. One instance serves one stream, from one thread, and may remember its frames."""

    name: ClassVar[str]  # lower case, such as "depth-anything"
    version: ClassVar[str]  # such as "1.0"
    description: ClassVar[str]
    params: ClassVar[Mapping[str, Param]] = MappingProxyType({})
    slots_per_engine: ClassVar[int] = 1  # how many streams one engine can serve at once
    processes_audio: ClassVar[bool] = False  # with it, a stream's sound is what `process_audio` returns

    hear: Callable[[Mapping[str, Any]], None] | None = None  # the engine's, while it serves a stream

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for attribute, pattern in (
            ("name", _NAME),
            ("version", _VERSION),
            ("description", re.compile(r"(?s).*\S.*")),
        ):
            value = getattr(cls, attribute, None)
            if not isinstance(value, str) or not pattern.fullmatch(value):
                raise TypeError(f"{cls.__qualname__}.{attribute}: {value!r} does not match {pattern.pattern}")
        if type(cls.slots_per_engine) is not int or cls.slots_per_engine < 1:
            raise TypeError(
                f"{cls.__qualname__}.slots_per_engine: {cls.slots_per_engine!r} is not a positive int"
            )
        if cls.process is Pipeline.process:
            raise TypeError(f"{cls.__qualname__}.process: missing; it makes a frame of a frame")
        if type(cls.processes_audio) is not bool:
            raise TypeError(f"{cls.__qualname__}.processes_audio: {cls.processes_audio!r} is not a bool")
        if cls.processes_audio and cls.process_audio is Pipeline.process_audio:
            raise TypeError(f"{cls.__qualname__}.process_audio: missing, for processes_audio is True")
        if not cls.processes_audio and cls.process_audio is not Pipeline.process_audio:
            raise TypeError(f"{cls.__qualname__}.process_audio: never called, for processes_audio is False")
        for name, param in cls.params.items():
            if problem := _problem_with(name, param):
                raise TypeError(f"{cls.__qualname__}.params[{name!r}]: {problem}")
        cls.params = MappingProxyType(dict(cls.params))

    def load(self) -> None:
        """Prepare for frames: read weights, allocate. Called once, before the first frame."""

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        """Return a new picture for the same pts. `params` has a value for each of the declared parameters."""
        raise NotImplementedError

    def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
        """Return other sound for the same pts, as many samples; `params` as for `process`.

        Called on the same thread, with what is heard before a picture before `process` is called with that
        picture. What is returned is held until its picture is shown: sound may be quick, but not early.
        """
        raise NotImplementedError

    def say(self, data: Mapping[str, Any]) -> None:
        """Tell the stream's clients something: a JSON object of at most 16 KB, at most 50 times a second.

        Call it from `process` or `process_audio`; it does not wait. Clients get `{"pts": ..., "data": ...}`,
        with the time of that frame, before its picture. What is larger, more often or not JSON (a number of
        numpy is not) is dropped, counted, and told once in the log; outside of a stream nobody hears it.
        """
        if self.hear is not None:
            self.hear(data)

    def close(self) -> None:
        """Let go of what `load` took. Called once, after the last frame, whether or not `load` succeeded."""


def _problem_with(name: object, param: object) -> str | None:
    if not isinstance(name, str) or not _PARAM_NAME.fullmatch(name):
        return f"the name does not match {_PARAM_NAME.pattern}"
    if not isinstance(param, Param):
        return f"{param!r} is not a Param"
    return param.problem()


def schema(pipeline: type[Pipeline]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the parameters; `x-apply` says how each takes effect."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": pipeline.name,
        "description": pipeline.description,
        "type": "object",
        "properties": {name: param.json_schema() for name, param in pipeline.params.items()},
        "additionalProperties": False,
    }


def defaults(pipeline: type[Pipeline]) -> dict[str, Any]:
    """Return the value of every parameter that a stream does not set."""
    return {name: param.default for name, param in pipeline.params.items()}
