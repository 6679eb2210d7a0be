"""The pipeline under check: its complete parameters, instances of it, and how much a check may spend."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from sluice.authoring.rehearsal import Rehearsal
from sluice.conformance.material import Film
from sluice.conformance.values import by_chance, edges
from sluice.pipeline import Apply, ParamError, Pipeline, Setup, VideoFrame, defaults

T = TypeVar("T")
SIZES: Final = ((64, 64), (512, 512), (640, 360), (360, 640), (1920, 1080), (321, 241), (97, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How thorough a check is.

    sizes: width and height of the pictures tried. work_size: of all other checks. frames: pictures of a
    comparison. leak_frames: of the search for leaks. chances: sets of parameters made by chance. patience_s:
    how long one check goes on to try more. tolerance: levels, of 255, by which two pictures that ought to be
    the same may differ anywhere. seed: of everything made by chance.
    """

    sizes: Sequence[tuple[int, int]] = SIZES
    work_size: tuple[int, int] = (256, 256)
    frames: int = 10
    settle_frames: int = 60
    leak_frames: int = 1000
    chances: int = 40
    patience_s: float = 30.0
    tolerance: int = 0
    seed: int = 0


class NotApplicableError(Exception):
    """The check has nothing to look at; the message says why."""


class FailedError(Exception):
    """The pipeline does not keep the rule; the message says what it did."""


class Subject:
    """What every check works on. `params` replace the pipeline's defaults in all of them."""

    def __init__(self, pipeline: type[Pipeline], setup: Setup, params: Mapping[str, Any], plan: Plan) -> None:
        self.pipeline = pipeline
        self.setup = setup
        self.plan = plan
        self.base = {**defaults(pipeline), **params}
        self.film = Film(*plan.work_size, seed=plan.seed)
        self._cut: str | None = None
        self._validator: Draft202012Validator | None = None

    @property
    def schema(self) -> Mapping[str, Any]:
        """What clients of this machine see."""
        return self.pipeline.offered(self.setup)

    def load(self, **params: Any) -> Rehearsal:
        """An instance loaded with `params` instead of the usual ones. Close it."""
        return Rehearsal(self.pipeline, self.setup, {**self.base, **params})

    def valid(self, params: Mapping[str, Any]) -> bool:
        """Whether a client could set all this."""
        if self._validator is None:
            self._validator = Draft202012Validator(self.schema)
        return bool(self._validator.is_valid(dict(params)))

    def accepts(self, name: str) -> Mapping[str, Any]:
        """The schema of one parameter as it is offered here."""
        whole = self.schema
        found = whole.get("properties", {}).get(name)
        if not isinstance(found, Mapping):
            return self.pipeline.params[name].accepts()
        return {**found, "$defs": whole["$defs"]} if "$defs" in whole else found  # what it may refer to

    def others(self, name: str) -> list[Any]:
        """Valid values of a parameter but the usual one, those first that differ most."""
        usual = self.base[name]
        found = [value for value in edges(self.accepts(name), usual) if value != usual]
        found = [value for value in found if self.valid({**self.base, name: value})]
        return sorted(found, key=lambda value: value in ("", [], {}, None))

    def chance(self, applies: frozenset[Apply]) -> Iterator[dict[str, Any]]:
        """Complete valid sets in which some parameters that apply in one of these ways are changed."""
        chance = random.Random(self.plan.seed)  # noqa: S311 - the same every time, which is what it is for
        names = [name for name, param in self.pipeline.params.items() if param.apply in applies]
        if not names:
            return
        for _ in range(self.plan.chances):
            params = dict(self.base)
            for name in chance.sample(names, chance.randint(1, len(names))):
                found, value = by_chance(self.accepts(name), chance)
                if found and self.valid({**params, name: value}):
                    params[name] = value
            yield params

    def patiently(self, items: Sequence[T], share: float = 1.0) -> Iterator[T]:
        """The items, until this share of the plan's patience is over; the first one always."""
        until_s = time.monotonic() + self.plan.patience_s * share
        for number, item in enumerate(items):
            if number and time.monotonic() > until_s:
                self._cut = f"stopped when {self.plan.patience_s:g} s were over, at {number} of {len(items)}"
                return
            yield item

    def cut(self) -> str | None:
        """What was left out since the last time that somebody asked."""
        cut, self._cut = self._cut, None
        return cut

    def pictures(self, rehearsal: Rehearsal, count: int | None = None, start: int = 0) -> list[VideoFrame]:
        """What an instance makes of the film's next pictures."""
        return [rehearsal.show(frame) for frame in self.film.frames(count or self.plan.frames, start)]

    def first_difference(
        self, these: Sequence[VideoFrame], those: Sequence[VideoFrame], beyond: int = 0
    ) -> str | None:
        """Where two runs first differ by more than the tolerance and `beyond`; None if nowhere."""
        for number, (one, other) in enumerate(zip(these, those, strict=True)):
            if one.rgb.shape != other.rgb.shape:
                return f"picture {number} is {size_of(one)} and {size_of(other)}"
            levels = largest_difference(one.rgb, other.rgb)
            if levels > self.plan.tolerance + beyond:
                return f"picture {number} differs by up to {levels} of 255"
        return None

    def shows(self, rehearsal: Rehearsal, params: Mapping[str, Any], frame: VideoFrame) -> VideoFrame | None:
        """The picture with `params`; None if the pipeline refuses them, as it may."""
        before = rehearsal.params
        try:
            rehearsal.change(params)
            return rehearsal.show(frame)
        except ParamError:
            if rehearsal.params != before:
                rehearsal.change(before)  # `process` refused them
            return None


def largest_difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int:
    """Levels, 0..255; the pictures have one shape."""
    return int(np.max(np.where(one > other, one - other, other - one), initial=0))


def mean_difference(one: VideoFrame, other: VideoFrame) -> float:
    """Levels, 0..255; pictures of different sizes differ wholly."""
    if one.rgb.shape != other.rgb.shape:
        return 255.0
    return float(np.mean(np.abs(one.rgb.astype(np.int16) - other.rgb)))


def size_of(frame: VideoFrame) -> str:
    height, width = frame.rgb.shape[:2]
    return f"{width}x{height}"
