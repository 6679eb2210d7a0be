"""One session in the engine: its packets in, pictures through a pipeline, packets out, on three threads.

Decoding and encoding have threads of their own; between them `infer` runs on the pipeline's thread, where a
pipeline that processes sound gets it too. The rule it keeps: a failure ends this stream with a reason, and
never the engine.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from services.common.media.codec import DecodedFrame, VideoDecoder
from services.common.media.sound import DecodedSound
from services.inference.engine.inbox import Inbox
from services.inference.engine.mailbox import Waiting
from services.inference.engine.pictures import BitRates, PictureEncoder
from services.inference.engine.remarks import Remarks
from services.inference.engine.sound import SoundTrack
from services.inference.packets import Media, Message, Packet, Sound
from services.inference.params import Fold, Patch
from sluice.pipeline import Apply, AudioFrame, Pipeline, VideoFrame, defaults

log = structlog.get_logger()

QUEUE: Final = 4  # pictures before the encoder in complete delivery
UNDECODABLE_AFTER_S: Final = 5.0
NO_KEYFRAME_AFTER_S: Final = 15.0  # encoders' default is a key frame every 250 frames: 10.4 s at 24 fps
PAUSE_S: Final = 1.0  # a packet that comes later than this after the one before counts as so late
SIDES: Final = range(2, 16_385)  # pixels that H.264 can have
SMOOTHING: Final = 0.1
STAMPS: Final = 500  # pictures between two reports, a second apart; of more the oldest go unmeasured
ORDER: Final = (Apply.LIVE, Apply.WARM, Apply.RELOAD)


@dataclass(frozen=True, slots=True)
class _Picture:
    """A decoded picture, and when it was (`time.monotonic`, which all processes of a machine share)."""

    frame: DecodedFrame
    decoded_s: float


@dataclass(frozen=True, slots=True)
class _Result:
    """A picture to encode, and the revisions that it is the first to show, each with how it took effect."""

    rgb: NDArray[np.uint8]
    pts: int
    applied: tuple[tuple[int, Apply], ...]
    times_s: tuple[float, float, float]  # decoded, taken up by the pipeline, inferred


class Stream:
    """One session. The reader of the pipe makes it and calls `take`, `update`, `finish` and the like."""

    def __init__(
        self,
        slot: int,
        pipeline: type[Pipeline],
        fold: Fold,
        *,
        live: bool,
        bit_rates: BitRates,
        send: Callable[[Packet], None],
    ) -> None:
        self.slot = slot
        self.pipeline = pipeline
        self._send = send
        self._fold = fold
        self._fold_lock = threading.Lock()
        self._packets: Waiting[Media] = Waiting(1 << 16)  # the supervisor's window bounds it
        self._inbox: Inbox[_Picture, DecodedSound] = Inbox(live=live, sound=pipeline.processes_audio)
        self._results: Waiting[_Result] = Waiting(1 if live else QUEUE)
        self._ended = threading.Lock()  # taken by what ends the stream first
        self._decoder = VideoDecoder()
        self._encoder = PictureEncoder(bit_rates)
        self._remarks = Remarks(slot, send)
        self.inferred = 0
        self._decoded = self._encoded = 0
        self._stamps: deque[tuple[int, float, float, float, float]] = deque(maxlen=STAMPS)
        self._infer_ms = 0.0
        self._sound: SoundTrack | None = None
        if pipeline.processes_audio:
            self._sound = SoundTrack(
                slot, self._inbox, send=send, taken=self._say_taken, contained=self._contained
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
        with self._fold_lock:
            self._fold = self._fold.add(patch)

    def request_keyframe(self) -> None:
        self._encoder.ask_keyframe()

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
            inferred=self.inferred,
            dropped=self._inbox.dropped,
            dropped_sounds=self._inbox.dropped_sounds,
            encoded=self._encoded,
            undecodable=self._decoder.errors + (self._sound.errors if self._sound is not None else 0),
            queued=len(self._packets) + len(self._inbox) + len(self._results),
            infer_ms=round(self._infer_ms, 3),
            unsaid=dict(self._remarks.refused),
            stamps=[(pts, *(round(moment_s, 6) for moment_s in moments)) for pts, *moments in stamps],
        )

    def fail(self, reason: str, message: str) -> None:
        """End with `failed`, unless it has ended already."""
        if self._ended.acquire(blocking=False):
            self._say("failed", reason=reason, message=message)
        self.abort()

    # --- the pipeline's thread

    def infer(self, instance: Pipeline, renew: Callable[[Mapping[str, Any]], Pipeline]) -> None:
        """Put every picture through `instance`, or through what `renew` gives when a parameter needs that."""
        complete = defaults(self.pipeline)
        instance.hear = self._remarks.take
        revision, params = self._fold.revision, {**complete, **self._fold.params}
        applied = [(revision, Apply.LIVE)]
        while (following := self._inbox.get()) is not None:
            pts, picture = following
            self._remarks.pts = pts
            if isinstance(picture, DecodedSound):
                assert self._sound is not None
                self._sound.put(picture, instance.process_audio(AudioFrame(picture.samples, pts), params))
                continue
            started_s = time.monotonic()
            with self._fold_lock:
                self._fold, fresh = self._fold.applied_at(pts)
                effective, _ = self._fold.effective(pts)
            if fresh:
                was, params = params, {**complete, **effective}
                applies = self._applies(was, params)
                if applies is Apply.RELOAD:
                    instance = renew(params)
                    instance.hear = self._remarks.take
                applied += [(revision, applies) for revision in fresh]
            made = instance.process(VideoFrame(picture.frame.rgb(), pts), params)
            if not isinstance(made, VideoFrame):
                raise TypeError(f"process returned {type(made).__name__}, not a VideoFrame")
            height, width = (side - side % 2 for side in made.rgb.shape[:2])  # as H.264 4:2:0 wants them
            if not (height in SIDES and width in SIDES):
                raise TypeError(f"process returned a picture of {width}x{height} pixels")
            inferred_s = time.monotonic()
            self._measure(inferred_s - started_s)
            times_s = picture.decoded_s, started_s, inferred_s
            self._results.put(_Result(made.rgb[:height, :width], pts, tuple(applied), times_s))
            applied = []
        self._results.finish()
        if self._sound is not None:
            self._sound.finish_output()

    def _applies(self, was: Mapping[str, Any], now: Mapping[str, Any]) -> Apply:
        """The slowest way in which a parameter that changed takes effect."""
        changed = [
            param.apply for name, param in self.pipeline.params.items() if was.get(name) != now.get(name)
        ]
        return max(changed, key=ORDER.index, default=Apply.LIVE)

    def _measure(self, seconds: float) -> None:
        self.inferred += 1
        weight = SMOOTHING if self.inferred > 1 else 1.0
        self._infer_ms += weight * (1000 * seconds - self._infer_ms)

    # --- the stream's own threads

    def _decode(self) -> None:
        fruitless_s, keyframe_seen = 0.0, False
        decoded_s = time.monotonic()
        while (media := self._packets.get()) is not None:
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
            self._decoded += 1
            self._inbox.put_picture(frame.pts, _Picture(frame, time.monotonic()))

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

    def _say(self, kind: str, **fields: object) -> None:
        self._send(Message(kind, self.slot, fields))
