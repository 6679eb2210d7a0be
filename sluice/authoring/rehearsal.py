"""One instance of a pipeline, driven as an engine drives it, and looked at as an engine looks at it.

The rule it keeps: one call at a time, in the caller's own thread, so that a debugger and a stopwatch work; a
value that is refused leaves the values before it in effect.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from sluice.authoring.mistakes import ContractError
from sluice.pipeline import Apply, AudioFrame, ParamError, Pipeline, Setup, VideoFrame

ORDER: Final = (Apply.LIVE, Apply.WARM, Apply.RELOAD)
SIDES: Final = range(2, 16_385)  # pixels that H.264 can have


@dataclass(frozen=True, slots=True)
class Applied:
    """How changed parameters took effect, and how long that took: preparing, or loading anew."""

    applies: Apply
    seconds: float


def applies(pipeline: type[Pipeline], was: Mapping[str, Any], now: Mapping[str, Any]) -> Apply:
    """The slowest way in which a parameter that changed takes effect."""
    changed = [param.apply for name, param in pipeline.params.items() if was.get(name) != now.get(name)]
    return max(changed, key=ORDER.index, default=Apply.LIVE)


class Rehearsal:
    """A loaded instance and its complete parameters. Whatever the author's code raises passes through."""

    def __init__(
        self,
        pipeline: type[Pipeline],
        setup: Setup,
        params: Mapping[str, Any],
        hear: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.params = dict(params)
        self._setup = setup
        self._hear = hear
        self._instance: Pipeline | None = None
        self.load_s = self._load(self.params)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def instance(self) -> Pipeline:
        assert self._instance is not None, "closed"
        return self._instance

    def change(self, params: Mapping[str, Any]) -> Applied:
        """Have the next frame show `params`, which are complete. Raises ParamError if they are refused."""
        how = applies(self.pipeline, self.params, params)
        began_s = time.perf_counter()
        if how is Apply.RELOAD:
            self._reload(params)
        elif how is Apply.WARM:
            self.instance.adopt(self.prepared(params))
        self.params = dict(params)
        return Applied(how, time.perf_counter() - began_s)

    def prepared(self, params: Mapping[str, Any]) -> object:
        """What `prepare` makes of `params`, on a thread of its own as in an engine; that is waited for."""
        made: list[object] = []
        raised: list[BaseException] = []

        def prepare() -> None:
            try:
                made.append(self.instance.prepare(params))
            except BaseException as error:  # noqa: BLE001 - it is raised again, where it is waited for
                raised.append(error)

        thread = threading.Thread(target=prepare, name="prepare", daemon=True)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
        return made[0]

    def show(self, frame: VideoFrame) -> VideoFrame:
        """Put a picture through. Raises ContractError for what no pipeline may return."""
        made: object = self.instance.process(frame, self.params)
        if not isinstance(made, VideoFrame):
            raise ContractError(f"process returned {type(made).__name__}, not a VideoFrame")
        height, width = made.rgb.shape[:2]
        if height not in SIDES or width not in SIDES:
            raise ContractError(f"process returned a picture of {width}x{height} pixels")
        if made.pts != frame.pts:
            raise ContractError(f"process returned pts {made.pts} for {frame.pts}; a picture keeps its time")
        return made

    def listen(self, frame: AudioFrame) -> AudioFrame:
        """Put some sound through. Raises ContractError for what no pipeline may return."""
        made: object = self.instance.process_audio(frame, self.params)
        if not isinstance(made, AudioFrame):
            raise ContractError(f"process_audio returned {type(made).__name__}, not an AudioFrame")
        given, count = frame.samples.shape[1], made.samples.shape[1]
        if count != given:
            raise ContractError(f"process_audio returned {count} samples for {given}")
        if made.pts != frame.pts:
            raise ContractError(
                f"process_audio returned pts {made.pts} for {frame.pts}; sound keeps its time"
            )
        return made

    def close(self) -> None:
        instance, self._instance = self._instance, None
        if instance is not None:
            instance.close()

    def _load(self, params: Mapping[str, Any]) -> float:
        began_s = time.perf_counter()
        instance = self.pipeline()
        instance.hear = self._hear
        try:
            instance.load(self._setup, params)
        except BaseException:
            instance.close()
            raise
        self._instance = instance
        return time.perf_counter() - began_s

    def _reload(self, params: Mapping[str, Any]) -> None:
        self.close()
        try:
            self._load(params)
        except ParamError:
            self._load(self.params)
            raise
