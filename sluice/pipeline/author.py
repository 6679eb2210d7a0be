"""The class that an author writes, and what is checked of it where it is defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import MappingProxyType
from typing import Any, ClassVar, Final

from sluice.pipeline.frames import AudioFrame, VideoFrame
from sluice.pipeline.params import Apply, Param
from sluice.pipeline.setup import Setup

_NAME: Final = re.compile(r"(?=.{1,64}\Z)[a-z0-9]+(?:[-_.][a-z0-9]+)*")
_VERSION: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*(?:[-+][0-9A-Za-z.-]+)?")
_PARAM_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class Pipeline:
    """What an author writes. One instance serves one stream, from one thread, and may remember its frames."""

    name: ClassVar[str]  # lower case, such as "depth-anything"
    version: ClassVar[str]  # such as "1.0"
    description: ClassVar[str]
    params: ClassVar[Mapping[str, Param]] = MappingProxyType({})
    rules: ClassVar[
        Sequence[Mapping[str, Any]]
    ] = ()  # between parameters: JSON Schema, all of which must hold
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
        if (cls.snapshot is Pipeline.snapshot) is not (cls.restore is Pipeline.restore):
            raise TypeError(f"{cls.__qualname__}: snapshot and restore are of use only together")
        for name, param in cls.params.items():
            if problem := _problem_with(name, param):
                raise TypeError(f"{cls.__qualname__}.params[{name!r}]: {problem}")
        warm = sorted(name for name, param in cls.params.items() if param.apply is Apply.WARM)
        if warm and (cls.prepare is Pipeline.prepare or cls.adopt is Pipeline.adopt):
            raise TypeError(
                f"{cls.__qualname__}: prepare and adopt are needed, for {', '.join(warm)} is warm"
            )
        cls.params = MappingProxyType(dict(cls.params))

    @classmethod
    def offered(cls, setup: Setup) -> dict[str, Any]:
        """The JSON Schema that clients of this machine see; to be narrowed to what it has, such as models."""
        return schema(cls)

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        """Prepare for frames: read weights, allocate. Called once, before the first frame.

        `params` is complete. Those that apply by reload stay as they are here for as long as this instance
        lives; with another value of one of them a new instance is loaded. Raises ParamError for a value that
        cannot be had.
        """

    def prepare(self, params: Mapping[str, Any]) -> object:
        """Build what the pipeline needs for new values of `warm` parameters; `adopt` gets it.

        Called on a thread of its own while `process` goes on with the values before. Raises ParamError for a
        value that cannot be had.
        """
        raise NotImplementedError

    def adopt(self, prepared: object) -> None:
        """Take over what `prepare` built: between two frames; the next `process` has the new values."""
        raise NotImplementedError

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

    def snapshot(self) -> bytes | None:
        """What this instance remembers of its stream, 1 MiB at most; None while that is nothing.

        Called between frames, about once a second; it should take a few milliseconds.
        """
        return None

    def restore(self, snapshot: bytes) -> None:
        """Go on where `snapshot` was made, perhaps by another process: after `load`, before the first frame.

        Raises ValueError for what it cannot use; the stream then begins without.
        """
        raise NotImplementedError

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
        **({"allOf": [dict(rule) for rule in pipeline.rules]} if pipeline.rules else {}),
        "additionalProperties": False,
    }


def defaults(pipeline: type[Pipeline]) -> dict[str, Any]:
    """Return the value of every parameter that a stream does not set."""
    return {name: deepcopy(param.default) for name, param in pipeline.params.items()}
