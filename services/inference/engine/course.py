"""What a stream's pipeline does, frame by frame, whichever of its instances is at it.

It runs on the thread of that instance, and comes back when another is needed. The rules it keeps: a change
that takes time is made beside the frames where it can be; nothing that an author's code raises ends a stream
before `containment` says so; and a frame that failed is not shown, nor is what came in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from services.common.media.codec import DecodedFrame
from services.common.media.sound import DecodedSound
from services.inference.blackbox import Stage
from services.inference.engine import memory
from services.inference.engine.changes import Changes, Target
from services.inference.engine.containment import Action, Containment
from services.inference.engine.inbox import Inbox
from services.inference.engine.preparation import Preparation
from services.inference.engine.progress import Loading
from services.inference.engine.remarks import Remarks
from services.inference.engine.snapshots import Snapshots
from services.inference.engine.troubles import OUT_OF_MEMORY, Troubles, message_of
from services.inference.engine.worker import Successor, Worker, Workshop
from sluice.pipeline import Apply, AudioFrame, ParamError, Pipeline, VideoFrame

log = structlog.get_logger()

SIDES: Final = range(2, 16_385)  # pixels that H.264 can have
SMOOTHING: Final = 0.1
PIPELINE_FAILED: Final = "pipeline_failed"
PARAMS_REFUSED: Final = "params_refused"
Item = tuple[int, Any]


class EndedError(Exception):
    """No remedy is left: the stream ends, with a stable reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, and when it was (`time.monotonic`, which all processes of a machine share)."""

    frame: DecodedFrame
    decoded_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """A picture to encode, and the revisions that it is the first to show, each with how it took effect."""

    rgb: NDArray[np.uint8]
    pts: int
    applied: tuple[tuple[int, Apply], ...]
    times_s: tuple[float, float, float]  # decoded, taken up by the pipeline, inferred


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a course has to do with."""

    slot: int
    inbox: Inbox[Picture, DecodedSound]
    show: Callable[[Result], None]
    sound: Callable[[DecodedSound, AudioFrame], None]
    remarks: Remarks
    troubles: Troubles
    snapshots: Snapshots
    tell_loading: Callable[[Loading], None]
    tell_settled: Callable[[Sequence[int]], None]
    workshop: Workshop


class Course:
    """One stream's, from its first frame to its last."""

    def __init__(
        self,
        pipeline: type[Pipeline],
        changes: Changes,
        around: Surroundings,
        *,
        live: bool,
        resumed: bool,
        to_try: int,
        snapshot: bytes | None,
    ) -> None:
        """`resumed`: another engine showed these parameters before. `snapshot`: what it remembered.

        `to_try`: so many revisions are shown one after the other, for one of them may have killed it.
        """
        self.inferred = 0
        self.held = 0  # pictures that failed
        self.infer_ms = 0.0
        self._pipeline = pipeline
        self._changes = changes
        self._around = around
        self._live = live
        self._snapshot = snapshot
        self._frame = 0
        self._applied: list[tuple[int, Apply]] = [] if resumed else [(changes.revision, Apply.LIVE)]
        self._beside: Preparation | Worker | None = None
        self._in_hand: Item | None = None  # taken from the inbox, for the next instance
        self._first = True  # frame of this instance
        self._pictures = Containment()
        self._sounds = Containment()
        self._to_try = to_try
        self._pictures.showing(changes.doubtful())

    def play(self, worker: Worker) -> Successor | None:
        """Put everything through the instance of `worker`; returns what comes next, None at the end.

        Raises EndedError.
        """
        try:
            return self._play(worker)
        finally:
            if self._beside is not None:
                worker.preparing = self._beside.settled if isinstance(self._beside, Preparation) else None
                self._beside.dismiss()
                self._beside = None
                self._changes.abandon()

    def _play(self, worker: Worker) -> Successor | None:
        changes = self._changes
        arrives = changes.under_way is not None  # this instance was loaded for it
        if not arrives and changes.way(worker.params, changes.params) is Apply.RELOAD:
            return Successor(changes.params, "start")
        if worker.problem is not None:
            return self._not_loaded(worker.problem)
        instance = worker.instance
        assert instance is not None
        self._first = True
        instance.hear = self._around.remarks.take
        if not arrives and changes.way(worker.params, changes.params) is Apply.WARM:
            following = self._prepared_first(instance)
            if following is not None:
                return following
        self._restore(instance)
        while (item := self._next()) is not None:
            pts, what = item
            self._around.remarks.pts = pts
            if isinstance(what, DecodedSound):
                following = self._hear(instance, what, pts)
            else:
                following = self._change(worker, instance, pts)
                if following is not None:
                    self._in_hand = item
                else:
                    following = self._show(instance, what, pts)
            if following is not None:
                return following
        return None

    def _next(self) -> Item | None:
        item, self._in_hand = self._in_hand, None
        return item or self._around.inbox.get()

    # --- changes

    def _change(self, worker: Worker, instance: Pipeline, pts: int) -> Successor | None:
        """Have everything that is due and ready in effect for a frame at `pts`, and begin what is not."""
        changes = self._changes
        self._step(pts)
        while True:
            if self._beside is not None:
                if self._live and not self._beside.settled.is_set():
                    return None
                following = self._take_over(instance, pts)
                if following is not None:
                    return following
            elif changes.under_way is not None:
                self._arrived(changes.under_way, pts)
            elif changes.wanted is not None:
                target = changes.begin()
                if target.way is Apply.RELOAD and not self._around.workshop.has_room_for(worker):
                    return Successor(target.params, "reload", revisions=target.revisions)
                self._beside = self._started(instance, target)
            else:
                return None

    def _step(self, pts: int) -> None:
        """Show what a frame at `pts` may show at once."""
        if not self._to_try:
            self._take_effect(self._changes.step(pts), Apply.LIVE)
        elif not self._pictures.on_probation and self._changes.under_way is None:
            self._take_effect(self._changes.step(pts, one=True), Apply.LIVE)
            if not self._pictures.on_probation and self._changes.wanted is None:
                self._to_try = 0  # the rest is for later

    def _started(self, instance: Pipeline, target: Target) -> Preparation | Worker:
        around = self._around
        if target.way is Apply.WARM:
            return Preparation(around.slot, instance, target, around.workshop.box, around.tell_loading)
        return Worker(
            self._pipeline,
            target.params,
            around.workshop,
            why="reload",
            tell=around.tell_loading,
            slot=around.slot,
            beside=True,
            revisions=target.revisions,
        )

    def _take_over(self, instance: Pipeline, pts: int) -> Successor | None:
        """What was made beside the frames is there, or cannot be had."""
        beside, self._beside = self._beside, None
        target = self._changes.under_way
        assert beside is not None
        assert target is not None
        beside.settled.wait()
        if isinstance(beside, Worker):
            if beside.problem is None:
                return Successor(target.params, "reload", beside)
            beside.dismiss()
            self._cannot_be_had(beside.problem, Stage.LOAD, pts)
            return None
        if beside.problem is not None:
            self._cannot_be_had(beside.problem, Stage.PREPARE, pts)
            return None
        error = self._adopted(instance, beside.prepared)
        if error is None:
            self._arrived(target, pts)
            return None
        self._cannot_be_had(error, Stage.ADOPT, pts)
        return Successor(self._changes.params, "restart")  # nobody knows which values it has now

    def _adopted(self, instance: Pipeline, prepared: object) -> BaseException | None:
        box, slot = self._around.workshop.box, self._around.slot
        box.enter(slot, Stage.ADOPT, frame=self._frame)
        try:
            instance.adopt(prepared)
        except BaseException as error:  # noqa: BLE001 - an author's code may even exit; it is told as a problem
            return error
        finally:
            box.leave(slot)
        return None

    def _arrived(self, target: Target, pts: int) -> None:
        self._take_effect(self._changes.reached(pts), target.way)
        self._step(pts)

    def _take_effect(self, revisions: Sequence[int], way: Apply) -> None:
        if revisions:
            self._to_try = max(self._to_try - len(revisions), 0)
            self._applied += [(revision, way) for revision in revisions]
            self._pictures.showing(revisions)
            self._sounds.showing(revisions)

    def _cannot_be_had(self, error: BaseException, stage: Stage, pts: int) -> None:
        """Those before stay."""
        refused = self._changes.cannot_be_had(_parameter(error))
        self._around.troubles.problem(error, stage, Action.HELD, frame=self._frame, pts=pts)
        self._refuse(refused, error)
        self._step(pts)

    def _refuse(self, revisions: Iterable[int], error: BaseException) -> None:
        for revision in revisions:
            self._to_try = max(self._to_try - 1, 0)
            self._around.troubles.refused(revision, error)
        self._pictures.forget(revisions)
        self._sounds.forget(revisions)
        self._applied = [(one, way) for one, way in self._applied if one not in set(revisions)]

    # --- an instance's beginning

    def _not_loaded(self, error: BaseException) -> Successor:
        target = self._changes.under_way
        if target is None:
            return self._without_newest(error, Stage.LOAD)
        self._around.troubles.problem(error, Stage.LOAD, Action.RELOADING, frame=self._frame)
        self._refuse(self._changes.cannot_be_had(_parameter(error)), error)
        return Successor(self._changes.params, "reload")

    def _prepared_first(self, instance: Pipeline) -> Successor | None:
        """Give a new instance warm values before its first frame."""
        around, changes = self._around, self._changes
        target = Target((), changes.params, Apply.WARM)
        preparation = Preparation(around.slot, instance, target, around.workshop.box, around.tell_loading)
        preparation.settled.wait()
        if preparation.problem is not None:
            return self._without_newest(preparation.problem, Stage.PREPARE)
        error = self._adopted(instance, preparation.prepared)
        return None if error is None else self._without_newest(error, Stage.ADOPT)

    def _without_newest(self, error: BaseException, stage: Stage) -> Successor:
        """What frames should show cannot be had: leave out the newest revision that can be, or end."""
        doubtful = self._changes.doubtful()
        if not doubtful:
            raise self._end(error, stage)
        self._around.troubles.problem(error, stage, Action.ROLLED_BACK, frame=self._frame)
        self._changes.roll_back(doubtful[0])
        self._refuse(doubtful[:1], error)
        return Successor(self._changes.params, "restart")

    def _restore(self, instance: Pipeline) -> None:
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None or type(instance).restore is Pipeline.restore:
            return
        box, slot = self._around.workshop.box, self._around.slot
        box.enter(slot, Stage.RESTORE)
        try:
            instance.restore(snapshot)
        except ValueError as error:
            log.info("the pipeline begins without its snapshot", slot=slot, why=str(error))
        except BaseException as error:  # noqa: BLE001 - an author's code may even exit; it is told as a problem
            self._around.troubles.problem(error, Stage.RESTORE, Action.HELD)
        finally:
            box.leave(slot)

    # --- frames

    def _show(self, instance: Pipeline, picture: Picture, pts: int) -> Successor | None:
        """Put a picture through the pipeline, and pass on what comes of it."""
        self._frame += 1
        started_s = time.monotonic()
        rgb = picture.frame.rgb()
        made: NDArray[np.uint8] | None = None
        while made is None:
            try:
                made = self._processed(instance, rgb, pts)
            except BaseException as error:  # noqa: BLE001 - an author's code may even exit; judged and told
                action, following = self._contained(self._pictures, error, Stage.PROCESS, pts)
                if action is not Action.AGAIN:
                    self.held += 1
                    return following
                memory.free()
        inferred_s = time.monotonic()
        self._first = False
        self._measure(inferred_s - started_s)
        applied, self._applied = tuple(self._applied), []
        self._around.show(Result(made, pts, applied, (picture.decoded_s, started_s, inferred_s)))
        if self._pictures.worked():
            self._settle()
        if self._around.snapshots.due():
            box, slot = self._around.workshop.box, self._around.slot
            box.enter(slot, Stage.SNAPSHOT, frame=self._frame, pts=pts)
            self._around.snapshots.take(instance)
            box.leave(slot)
        return None

    def _processed(self, instance: Pipeline, rgb: NDArray[np.uint8], pts: int) -> NDArray[np.uint8]:
        stage = Stage.FIRST if self._first else Stage.PROCESS
        self._enter(stage, pts)
        try:
            made = instance.process(VideoFrame(rgb, pts), self._changes.params)
        finally:
            self._around.workshop.box.leave(self._around.slot)
        if not isinstance(made, VideoFrame):
            raise TypeError(f"process returned {type(made).__name__}, not a VideoFrame")
        height, width = (side - side % 2 for side in made.rgb.shape[:2])  # as H.264 4:2:0 wants them
        if not (height in SIDES and width in SIDES):
            raise TypeError(f"process returned a picture of {width}x{height} pixels")
        return made.rgb[:height, :width]

    def _hear(self, instance: Pipeline, heard: DecodedSound, pts: int) -> Successor | None:
        """Put some sound through the pipeline, and pass on what comes of it."""
        made: AudioFrame | None = None
        while made is None:
            self._enter(Stage.PROCESS_AUDIO, pts)
            try:
                made = instance.process_audio(AudioFrame(heard.samples, pts), self._changes.params)
                self._around.sound(heard, made)
            except BaseException as error:  # noqa: BLE001 - an author's code may even exit; judged and told
                made = None
                action, following = self._contained(self._sounds, error, Stage.PROCESS_AUDIO, pts)
                if action is not Action.AGAIN:
                    return following
                memory.free()
            finally:
                self._around.workshop.box.leave(self._around.slot)
        self._sounds.worked()
        return None

    def _enter(self, stage: Stage, pts: int) -> None:
        trying = self._pictures.on_probation
        self._around.workshop.box.enter(
            self._around.slot, stage, revisions=trying, frame=self._frame, pts=pts
        )

    def _settle(self) -> None:
        """A probation has ended, for sound too, of which there may be none."""
        keep = self._pictures.on_probation
        self._changes.settle(keep)
        self._sounds.forget(set(self._sounds.on_probation).difference(keep))
        self._around.tell_settled(keep)

    def _measure(self, seconds: float) -> None:
        self.inferred += 1
        weight = SMOOTHING if self.inferred > 1 else 1.0
        self.infer_ms += weight * (1000 * seconds - self.infer_ms)

    # --- failures

    def _contained(
        self, containment: Containment, error: BaseException, stage: Stage, pts: int
    ) -> tuple[Action, Successor | None]:
        """Do what is to be done about a frame that failed; returns what that is, and what comes next."""
        blamed = self._changes.newest_that_set(_parameter(error))
        verdict = containment.failed(out_of_memory=memory.is_exhausted(error), blamed=blamed)
        if verdict.action is Action.AGAIN:
            return verdict.action, None
        if verdict.action is Action.ENDED:
            raise self._end(error, stage, pts)
        self._around.troubles.problem(error, stage, verdict.action, frame=self._frame, pts=pts)
        anew = verdict.action is Action.RELOADING
        if verdict.action is Action.ROLLED_BACK:
            anew = self._changes.roll_back(verdict.revision) is not Apply.LIVE
            self._refuse([verdict.revision], error)
        return verdict.action, Successor(self._changes.params, "restart") if anew else None

    def _end(self, error: BaseException, stage: Stage, pts: int = 0) -> EndedError:
        self._around.troubles.problem(error, stage, Action.ENDED, frame=self._frame, pts=pts)
        message = f"{message_of(error)} (after {self.inferred} frames)"
        if memory.is_exhausted(error):
            return EndedError(OUT_OF_MEMORY, message)
        refused = isinstance(error, ParamError) and self.inferred == 0
        return EndedError(PARAMS_REFUSED if refused else PIPELINE_FAILED, message)


def _parameter(error: BaseException) -> str | None:
    """Which one a pipeline complains of."""
    return error.field.partition(".")[0] if isinstance(error, ParamError) else None
