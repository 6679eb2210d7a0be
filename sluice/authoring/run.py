"""A clip through a pipeline, in this process and without any service, with a stopwatch at every stage.

The rule it keeps: everything happens in the caller's thread and in the order of the clip's times, so that the
same clip gives the same result however slow the pipeline is, and a debugger works.
"""

from __future__ import annotations

import resource
import sys
import time
from bdb import BdbQuit
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Protocol

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, VideoReformatter

from services.common.errors import InvalidError
from services.common.json_objects import merge_patch
from services.common.media import h264
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.codec import (
    BT601_MATRIX,
    BT709_MATRIX,
    HD_LINES,
    MATRICES,
    TICK,
    DecodedFrame,
    Rgb,
)
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.param_schema import validate
from sluice.authoring.hearing import HeardSound
from sluice.authoring.mistakes import AuthorError
from sluice.authoring.rehearsal import Rehearsal
from sluice.authoring.sayings import Saying, Sayings
from sluice.pipeline import (
    AudioFrame,
    ModelMissingError,
    ModelTooLargeError,
    ParamError,
    Pipeline,
    Setup,
    VideoFrame,
    defaults,
)
from sluice.transform.arguments import Change
from sluice.transform.clip import Clip
from sluice.transform.result import Result
from sluice.transform.sound import ResultSound, Sound
from sluice.transform.source import KEYFRAME_TICKS, encoder

STAGES: Final = ("decode", "process", "sound", "encode")
KIB: Final = 1024


class Watcher(Protocol):
    """Who is told while it goes on."""

    def say(self, line: str) -> None: ...
    def show(self, *, media_s: float, fps: float, process_ms: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What was asked for. `params` and each of `changes` are merge patches; None drops nothing in `limit`."""

    pipeline: type[Pipeline]
    setup: Setup
    clip: Path
    output: Path | None
    container: str
    params: Mapping[str, Any]
    changes: Sequence[Change]
    limit: int | None


@dataclass(frozen=True, slots=True)
class Stage:
    """How long one stage took, for each picture (or piece of sound) and in all."""

    p50_ms: float
    p95_ms: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """A change of parameters. `refused` is why it did not take effect, and else empty."""

    at_s: float
    params: Mapping[str, Any]
    applies: str
    seconds: float
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How it went; `fps` is of everything, once loaded."""

    pipeline: str
    version: str
    frames: int
    fps: float
    load_s: float
    load_stages: tuple[tuple[str, float], ...]
    stages: Mapping[str, Stage]
    changes: tuple[Turn, ...]
    said: int
    sayings: tuple[Saying, ...]
    unsaid: Mapping[str, int]
    peak_memory_mb: float
    damaged_packets: int


@dataclass(slots=True)
class _Stopwatch:
    """Seconds of each stage."""

    took: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})

    @contextmanager
    def over(self, stage: str) -> Iterator[None]:
        began_s = time.perf_counter()
        yield
        self.took[stage].append(time.perf_counter() - began_s)

    def stages(self) -> dict[str, Stage]:
        found = {}
        for name, took in self.took.items():
            if took:
                p50, p95 = np.percentile(took, [50, 95]) * 1000
                found[name] = Stage(round(float(p50), 3), round(float(p95), 3), round(sum(took), 3))
        return found


class Progress:
    """What `load` reports: told at most once a percent, and kept as the time that each stage took."""

    def __init__(self, watcher: Watcher) -> None:
        self.stages: dict[str, float] = {}
        self._watcher = watcher
        self._stage = ""
        self._began_s = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now_s = time.perf_counter()
        if stage != self._stage:
            self._stage, self._began_s = stage, now_s
            self._watcher.say(f"loading: {stage}")
        self.stages[stage] = round(now_s - self._began_s, 3)


def validated(
    pipeline: type[Pipeline], setup: Setup, params: Mapping[str, Any], changes: Sequence[Change]
) -> dict[str, Any]:
    """The complete parameters at the beginning.

    Raises InvalidError that names the first value, now or of a change, that the schema does not accept.
    """
    usual, schema = defaults(pipeline), pipeline.offered(setup)
    patched = patch_of({}, params)
    first = {**usual, **patched}
    validate(first, schema)
    for change in changes:
        patched = patch_of(patched, change.params)
        validate({**usual, **patched}, schema)
    return first


def patch_of(params: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """What a client has set after `patch`; null sets the default again."""
    merged = merge_patch(params, patch)
    assert isinstance(merged, dict)
    return merged


def run(job: Job, clip: Clip, watcher: Watcher, progress: Progress) -> Report:
    """Raises InvalidError, AuthorError."""
    first = validated(job.pipeline, job.setup, job.params, job.changes)
    sayings, watch = Sayings(), _Stopwatch()
    try:
        rehearsal = Rehearsal(job.pipeline, job.setup, first, sayings.take)
    except ParamError as error:
        raise InvalidError(f"params.{error.field}: {error.message}") from error
    except (ModelMissingError, ModelTooLargeError) as error:
        raise InvalidError(str(error)) from error
    except Exception as error:
        raise AuthorError(f"{job.pipeline.name} does not load", error) from error
    with ExitStack() as stack:
        stack.callback(rehearsal.close)
        heard: HeardSound | None = None
        sound: ResultSound
        if job.pipeline.processes_audio:
            sound = heard = stack.enter_context(HeardSound(job.clip, clip.start_s))
        else:
            sound = stack.enter_context(Sound(job.clip))
        result = None
        if job.output is not None:
            result = stack.enter_context(Result(job.output, job.container, start_s=clip.start_s, sound=sound))
        passage = _Passage(job, rehearsal, heard, result, watch, sayings, watcher, clip.fps)
        began_s = time.perf_counter()
        passage.run(clip)
        took_s = time.perf_counter() - began_s
    return Report(
        pipeline=job.pipeline.name,
        version=job.pipeline.version,
        frames=passage.frames,
        fps=round(passage.frames / took_s, 2) if took_s else 0.0,
        load_s=round(rehearsal.load_s, 3),
        load_stages=tuple(progress.stages.items()),
        stages=watch.stages(),
        changes=tuple(passage.turns),
        said=sayings.count,
        sayings=tuple(sayings.kept),
        unsaid=dict(sayings.dropped),
        peak_memory_mb=round(_peak_memory_mb(), 1),
        damaged_packets=clip.damaged,
    )


class _Passage:
    """The clip's way through the pipeline, picture by picture."""

    def __init__(
        self,
        job: Job,
        rehearsal: Rehearsal,
        heard: HeardSound | None,
        result: Result | None,
        watch: _Stopwatch,
        sayings: Sayings,
        watcher: Watcher,
        fps: Fraction,
    ) -> None:
        self.frames = 0
        self.turns: list[Turn] = []
        self._job = job
        self._rehearsal = rehearsal
        self._heard = heard
        self._result = result
        self._watch = watch
        self._sayings = sayings
        self._due = deque(job.changes)
        self._set = patch_of({}, job.params)
        self._usual = defaults(job.pipeline)
        self._good: tuple[dict[str, Any], dict[str, Any]] = {}, {}  # what the last picture was made with
        self._watcher = watcher
        self._encoder: PictureEncoder | None = None
        self._fps = fps

    def run(self, clip: Clip) -> None:
        pictures = clip.frames()
        began_s = time.perf_counter()
        while self._job.limit is None or self.frames < self._job.limit:
            with self._watch.over("decode"):
                following = next(pictures, None)
                rgb = None if following is None else DecodedFrame(0, following[1]).rgb()
            if following is None or rgb is None:
                self._watch.took["decode"].pop()
                break
            self._picture(following[0], rgb)
            fps = self.frames / (time.perf_counter() - began_s)
            process_ms = self._watch.took["process"][-1] * 1000
            self._watcher.show(media_s=following[0] / CLOCK_HZ, fps=fps, process_ms=process_ms)
        self._listen(clip.end_ticks if self._job.limit is not None else None)
        if self._result is not None:
            self._result.finish(clip.end_ticks)

    def _picture(self, ticks: int, rgb: Rgb) -> None:
        self._listen(ticks)
        at_s = ticks / CLOCK_HZ
        self._sayings.at_s = at_s
        where = f"at {at_s:.3f} s, in picture {self.frames}"
        with _contained(f"{self._job.pipeline.name} failed {where}"):
            self._turn(ticks)
            made = self._shown(VideoFrame(rgb, ORIGIN_TICKS + ticks), at_s)
        if self._result is not None:
            with self._watch.over("encode"):
                if self._encoder is None:
                    self._encoder = PictureEncoder(made.rgb, self._fps)
                for unit in self._encoder.encode(made.rgb, ticks):
                    self._result.add(unit)
        self.frames += 1

    def _turn(self, ticks: int) -> None:
        """Have what is due by now take effect."""
        while self._due and self._due[0].at_ms * CLOCK_HZ <= ticks * 1000:
            change = self._due.popleft()
            patched = patch_of(self._set, change.params)
            wanted, was = {**self._usual, **patched}, self._rehearsal.params
            differs = {name: value for name, value in wanted.items() if value != was.get(name)}
            try:
                applied = self._rehearsal.change(wanted)
                turn = Turn(change.at_ms / 1000, differs, applied.applies, round(applied.seconds, 4))
                self._set = patched
            except ParamError as error:  # those before it stay, and those after it come to them
                turn = Turn(change.at_ms / 1000, differs, "", 0.0, str(error))
            self._tell(turn)

    def _shown(self, frame: VideoFrame, at_s: float) -> VideoFrame:
        """What the pipeline makes of `frame`; if it refuses the newest values, with those before them."""
        good, patched = self._good
        try:
            with self._watch.over("process"):
                made = self._rehearsal.show(frame)
        except ParamError as error:
            refused = self._rehearsal.params
            if refused == good:
                raise  # it took them before: this is no answer to a value
            self._rehearsal.change(good)
            self._set = patched
            differs = {name: value for name, value in refused.items() if value != good.get(name)}
            self._tell(Turn(at_s, differs, "", 0.0, str(error)))
            with self._watch.over("process"):
                made = self._rehearsal.show(frame)
        self._good = self._rehearsal.params, self._set
        return made

    def _tell(self, turn: Turn) -> None:
        self.turns.append(turn)
        self._watcher.say(told(turn))

    def _listen(self, until_ticks: int | None) -> None:
        if self._heard is None:
            return
        for ticks, samples in self._heard.pieces(until_ticks):
            self._sayings.at_s = ticks / CLOCK_HZ
            where = f"at {ticks / CLOCK_HZ:.3f} s, in sound"
            with _contained(f"{self._job.pipeline.name} failed {where}"), self._watch.over("sound"):
                made = self._rehearsal.listen(AudioFrame(samples, ORIGIN_TICKS + ticks))
            self._heard.take(ticks, made.samples)


@contextmanager
def _contained(message: str) -> Iterator[None]:
    """What the author's code raises is an AuthorError; whoever leaves the debugger has interrupted."""
    try:
        yield
    except BdbQuit:
        raise KeyboardInterrupt from None
    except Exception as error:
        raise AuthorError(message, error) from error


class PictureEncoder:
    """What comes out of the pipeline, as H.264. A file has one size: that of the first picture."""

    def __init__(self, rgb: Rgb, fps: Fraction) -> None:
        height, width = (side - side % 2 for side in rgb.shape[:2])
        self._size = width, height
        matrix = BT709_MATRIX if height >= HD_LINES else BT601_MATRIX
        self._matrix = MATRICES[matrix]
        self._context = encoder(self._size, fps, matrix)
        self._reformatter = VideoReformatter()
        self._key_due = 0

    def encode(self, rgb: Rgb, ticks: int) -> Iterator[AccessUnit]:
        """rgb: uint8 (H, W, 3)."""
        height, width = (side - side % 2 for side in rgb.shape[:2])
        source = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(rgb[:height, :width]))
        frame = self._reformatter.reformat(
            source,
            *self._size,
            format="yuv420p",
            dst_colorspace=self._matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        keyframe = ticks >= self._key_due
        if keyframe:
            self._key_due = ticks + KEYFRAME_TICKS
        frame.pts, frame.time_base = ticks, TICK
        frame.pict_type = PictureType.I if keyframe else PictureType.NONE
        for packet in self._context.encode(frame):
            data = bytes(packet)
            yield AccessUnit(Codec.H264, ticks, ticks, data, h264.is_keyframe(data))


def told(turn: Turn) -> str:
    """`turn` in a line."""
    what = ", ".join(f"{name}={value!r}" for name, value in turn.params.items()) or "nothing"
    if turn.refused:
        return f"{turn.at_s:g} s: {what}: refused: {turn.refused}"
    if turn.applies == "live":
        return f"{turn.at_s:g} s: {what}: live"
    doing = "prepared" if turn.applies == "warm" else "loaded anew"
    return f"{turn.at_s:g} s: {what}: {turn.applies}, {doing} in {turn.seconds * 1000:.0f} ms"


def _peak_memory_mb() -> float:
    """Of this process since it began."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (KIB * KIB if sys.platform == "darwin" else KIB)
