"""One session in the engine: its packets in, pictures through a pipeline, packets out, on three threads.

Decoding and encoding have threads of their own; between them its course is on the pipeline's thread, where a
pipeline that processes sound gets it too. The rule it keeps: a failure ends this stream with a reason, and
never the engine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import structlog

from services.common.media.codec import DecodedFrame
from services.common.media.hardware import Equipment
from services.common.media.sound import DecodedSound
from services.inference.engine.changes import Changes
from services.inference.engine.course import Course, EndedError, Picture, Result, Surroundings
from services.inference.engine.inbox import Inbox
from services.inference.engine.mailbox import Waiting
from services.inference.engine.pictures import BitRates, PictureEncoder
from services.inference.engine.progress import Loading
from services.inference.engine.remarks import Remarks
from services.inference.engine.snapshots import Snapshots
from services.inference.engine.sound import SoundTrack
from services.inference.engine.troubles import Troubles
from services.inference.engine.worker import Successor, Worker, Workshop
from services.inference.packets import Media, Message, Packet, Sound
from services.inference.params import Fold, Patch
from sluice.pipeline import AudioFrame, Pipeline

log = structlog.get_logger()

QUEUE: Final = 4  # pictures before the encoder in complete delivery
UNDECODABLE_AFTER_S: Final = 5.0
NO_KEYFRAME_AFTER_S: Final = 15.0  # encoders' default is a key frame every 250 frames: 10.4 s at 24 fps
PAUSE_S: Final = 1.0  # a packet that comes later than this after the one before counts as so late
MOST_TO_TRY: Final = 4  # revisions, each for the time of its probation, which is a second at 30 fps
STAMPS: Final = 500  # pictures between two reports, a second apart; of more the oldest go unmeasured


@dataclass(frozen=True, slots=True)
class Opening:
    """How a stream begins. The rest is what an engine before this one left, if there was one.

    `resumed`: these parameters were shown already. `after_pts`: pictures up to there were, too. `cautious`:
    the engine died, perhaps of what is still to be shown.
    """

    fold: Fold
    live: bool
    resumed: bool = False
    cautious: bool = False
    after_pts: int | None = None
    snapshot: bytes | None = None

    @property
    def to_try(self) -> int:
        """How many revisions are shown one after the other; of many that would take too long."""
        unshown = sum(patch.revision not in self.fold.shown for patch in self.fold.patches)
        return unshown if self.cautious and unshown <= MOST_TO_TRY else 0


class Stream:
    """One session. The reader of the pipe makes it and calls `take`, `update`, `finish` and the like."""

    def __init__(
        self,
        slot: int,
        pipeline: type[Pipeline],
        opening: Opening,
        *,
        complete: Mapping[str, Any],
        workshop: Workshop,
        bit_rates: BitRates,
        equipment: Equipment,
        send: Callable[[Packet], None],
        over: Callable[[Stream], None],
    ) -> None:
        """`complete` has each parameter's default; `over` is called when its last instance is closed."""
        self.slot = slot
        self.pipeline = pipeline
        self._send = send
        self._over = over
        self._after_pts = opening.after_pts
        self._packets: Waiting[Media] = Waiting(1 << 16)  # the supervisor's window bounds it
        self._inbox: Inbox[Picture, DecodedSound] = Inbox(live=opening.live, sound=pipeline.processes_audio)
        self._results: Waiting[Result] = Waiting(1 if opening.live else QUEUE)
        self._ended = threading.Lock()  # taken by what ends the stream first
        self._decoder = equipment.decoder()
        self._encoder = PictureEncoder(bit_rates, equipment)
        self._remarks = Remarks(slot, send)
        self._snapshots = Snapshots(slot, pipeline, send)
        self._decoded = self._encoded = 0
        self._stamps: deque[tuple[int, float, float, float, float]] = deque(maxlen=STAMPS)
        self._sound: SoundTrack | None = None
        if pipeline.processes_audio:
            self._sound = SoundTrack(
                slot, self._inbox, send=send, taken=self._say_taken, contained=self._contained
            )
        ways = {name: param.apply for name, param in pipeline.params.items()}
        self._changes = Changes(opening.fold, complete, ways)
        self._course = Course(
            pipeline,
            self._changes,
            Surroundings(
                slot,
                self._inbox,
                show=self._results.put,
                sound=self._sound.put if self._sound is not None else _no_sound,
                remarks=self._remarks,
                troubles=Troubles(slot, self._say),
                snapshots=self._snapshots,
                tell_loading=self.tell_loading,
                tell_settled=lambda keep: self._say("settled", keep=keep),
                workshop=workshop,
            ),
            live=opening.live,
            resumed=opening.resumed,
            to_try=opening.to_try,
            snapshot=opening.snapshot,
        )
        self._threads = [
            threading.Thread(target=self._contained, args=(work,), name=f"{name}-{slot}", daemon=True)
            for name, work in (("decode", self._decode), ("encode", self._encode))
        ]
        for thread in self._threads:
            thread.start()

    # --- called by the reader

    def take(self, media: Media) -> None:
        self._packets.put(media)

    def take_sound(self, sound: Sound) -> None:
        assert self._sound is not None, sound.slot
        self._sound.take(sound)

    def update(self, patch: Patch) -> None:
        self._changes.add(patch)

    def request_keyframe(self, at_pts: int | None) -> None:
        self._encoder.ask_keyframe(at_pts)

    def request_bit_rate(self, bits_per_second: int | None) -> None:
        self._encoder.ask_bit_rate(bits_per_second)

    def finish(self) -> None:
        """No more input: what is inside comes out, then `finished`."""
        self._packets.finish()
        if self._sound is not None:
            self._sound.finish_input()

    def abort(self) -> None:
        """Nothing more comes out; the threads end after what they are at."""
        self._ended.acquire(blocking=False)
        for box in (self._packets, self._inbox, self._results, self._sound):
            if box is not None:
                box.abort()

    def join(self) -> None:
        """Wait until decoding and encoding are over."""
        for thread in self._threads:
            thread.join()
        if self._sound is not None:
            self._sound.join()

    def report(self) -> None:
        """Send the counts so far, and when each picture since the last report passed each stage."""
        stamps = [self._stamps.popleft() for _ in range(len(self._stamps))]
        self._say(
            "stats",
            decoded=self._decoded,
            inferred=self._course.inferred,
            dropped=self._inbox.dropped + self._course.held,
            dropped_sounds=self._inbox.dropped_sounds,
            encoded=self._encoded,
            undecodable=self._decoder.errors + (self._sound.errors if self._sound is not None else 0),
            queued=len(self._packets) + len(self._inbox) + len(self._results),
            infer_ms=round(self._course.infer_ms, 3),
            unsaid=dict(self._remarks.refused),
            snapshots_dropped=dict(self._snapshots.dropped),
            stamps=[(pts, *(round(moment_s, 6) for moment_s in moments)) for pts, *moments in stamps],
        )

    def fail(self, reason: str, message: str) -> None:
        """End with `failed`, unless it has ended already."""
        if self._ended.acquire(blocking=False):
            self._say("failed", reason=reason, message=message)
        self.abort()

    # --- the pipeline's threads

    def play(self, worker: Worker) -> Successor | None:
        """Serve until the stream is over, or another instance is needed."""
        following = None
        try:
            following = self._course.play(worker)
        except EndedError as ended:
            self.fail(ended.reason, ended.message)
        except Exception as error:  # this is the edge of one stream
            log.exception("internal error", where="course", slot=self.slot)
            self.fail("internal_error", f"{type(error).__name__} in the engine")
        if following is not None and not self._ended.locked():
            return following
        if following is not None and following.worker is not None:
            following.worker.dismiss()
        self._results.finish()
        if self._sound is not None:
            self._sound.finish_output()
        return None

    def tell_loading(self, loading: Loading) -> None:
        self._say("loading", **asdict(loading))

    def over(self) -> None:
        self._over(self)

    # --- the stream's own threads

    def _decode(self) -> None:
        fruitless_s, keyframe_seen = 0.0, False
        decoded_s = time.monotonic()
        while (media := self._packets.get()) is not None:
            if media.only_decode:
                self._after_pts = max(media.pts, self._after_pts or 0)
            frames = self._decoder.decode(media.data, media.pts)
            self._say_taken()
            self._put(frames)
            was_s, decoded_s = decoded_s, time.monotonic()
            if frames:
                fruitless_s, keyframe_seen = 0.0, False
                continue
            fruitless_s += min(decoded_s - was_s, PAUSE_S)
            keyframe_seen |= media.keyframe
            limit_s = UNDECODABLE_AFTER_S if keyframe_seen else NO_KEYFRAME_AFTER_S
            if fruitless_s >= limit_s:
                self.fail("input_undecodable", f"no picture in {limit_s:.0f} s of video")
                return
        self._put(self._decoder.flush())
        self._inbox.finish_pictures()

    def _put(self, frames: list[DecodedFrame]) -> None:
        for frame in frames:
            if self._after_pts is not None and frame.pts <= self._after_pts:
                continue  # its viewers have it, or do without
            self._decoded += 1
            self._inbox.put_picture(frame.pts, Picture(frame, time.monotonic()))

    def _encode(self) -> None:
        while (result := self._results.get()) is not None:
            for unit in self._encoder.encode(result.rgb, result.pts):
                self._encoded += 1
                self._stamps.append((unit.pts, *result.times_s, time.monotonic()))
                self._send(Media(self.slot, unit.pts, unit.dts, unit.keyframe, unit.data))
            for revision, applies in result.applied:
                self._say("applied", revision=revision, pts=result.pts, applies=applies)
        if self._sound is not None:
            self._sound.join()
        if self._ended.acquire(blocking=False):
            self.report()
            self._say("finished")

    def _contained(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # this is the edge of one stream
            log.exception("internal error", where=work.__name__, slot=self.slot)
            self.fail("internal_error", f"{type(error).__name__} in the engine")

    def _say_taken(self) -> None:
        self._say("taken", packets=1)

    def _say(self, kind: str, /, **fields: object) -> None:
        self._send(Message(kind, self.slot, fields))


def _no_sound(heard: DecodedSound, made: AudioFrame) -> None:
    raise AssertionError("a pipeline without sound was given some")
