"""A peer's tracks as a publisher's source: whole pictures, sound with them, what is no H.264 converted."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Final

from services.common.frame_drops import FRAME_DROPS
from services.common.media import h264
from services.common.media.mpegts import AccessUnit, Codec
from services.ingest.source import PushedSource
from services.ingest.transports.webrtc import h264_rtp, vpx_rtp
from services.ingest.transports.webrtc.alignment import Alignment
from services.ingest.transports.webrtc.answer import Line
from services.ingest.transports.webrtc.conversion import Conversion, VideoConverter
from services.ingest.transports.webrtc.jitter import Frame

FRAMES: Final = {"VP8": vpx_rtp.vp8_frame, "VP9": vpx_rtp.vp9_frame}
KEYFRAMES: Final = {"VP8": vpx_rtp.vp8_is_keyframe, "VP9": vpx_rtp.vp9_is_keyframe}


class Publication:
    """What a peer publishes. `conversion` is to be run by the peer where there is one."""

    def __init__(self, source: PushedSource, video: Line, audio: Line | None, executor: Executor) -> None:
        assert video.format is not None
        self.source = source
        self.begun = False  # there was a picture
        self.alignment = Alignment()
        self._codec = video.format.name
        self._keyframe_needed = True
        self._parameter_sets = b""
        self._arrived_s = 0.0
        self.conversion: Conversion | None = None
        if self._codec != "H264":
            self.conversion = Conversion(
                VideoConverter(self._codec, "H264"),
                executor,
                deliver=self._push,
                ask_keyframe=source.ask_keyframe,
            )
        source.announce((Codec.H264,) if audio is None else (Codec.H264, Codec.OPUS))

    def keyframe_wanted(self) -> bool:
        """Ask the converter for a key frame; False where the peer itself has to be asked."""
        if self.conversion is None:
            return False
        self.conversion.want_keyframe()
        return True

    def video(self, frame: Frame) -> None:
        """Take one complete frame."""
        self._keyframe_needed |= frame.after_loss
        self._arrived_s = frame.arrived_s
        pts = self.alignment.video(frame.timestamp, frame.arrived_s)
        if self.conversion is None:
            self._take_h264(frame, pts)
        else:
            self._take_other(self.conversion, frame, pts)

    def _take_h264(self, frame: Frame, pts: int) -> None:
        data = h264_rtp.picture(frame.payloads)
        if data is None:
            self._drop()
            return
        if not h264.has_slice(data):
            # Some senders put the parameter sets into a timestamp of their own.
            self._parameter_sets = h264.parameter_sets(data) or self._parameter_sets
            return
        keyframe = h264.is_keyframe(data)
        if keyframe:
            self._parameter_sets = h264.parameter_sets(data) or self._parameter_sets
            data = h264.ensure_parameter_sets(data, self._parameter_sets)
            if not self._parameter_sets:
                self._drop()
                return
        elif self._keyframe_needed:
            self._drop()
            return
        self._keyframe_needed = False
        self._push(AccessUnit(Codec.H264, pts, pts, data, keyframe))

    def _take_other(self, conversion: Conversion, frame: Frame, pts: int) -> None:
        data = FRAMES[self._codec](frame.payloads)
        keyframe = data is not None and KEYFRAMES[self._codec](data)
        if data is None or (self._keyframe_needed and not keyframe):
            self._drop()
            return
        self._keyframe_needed = False
        conversion.put(data, pts, keyframe=keyframe)

    def _drop(self) -> None:
        """Drop a picture that cannot be decoded; those after it cannot either, up to the next key frame."""
        FRAME_DROPS.labels("webrtc_in").inc()
        self._keyframe_needed = True
        self.source.ask_keyframe()

    def _push(self, unit: AccessUnit) -> None:
        self.begun = True
        self.source.push(unit, self._arrived_s)

    def audio(self, frame: Frame) -> None:
        """Take one Opus packet."""
        pts = self.alignment.audio(frame.timestamp, frame.arrived_s)
        if pts is not None:
            self.source.push(
                AccessUnit(Codec.OPUS, pts, pts, frame.payloads[0], keyframe=True), frame.arrived_s
            )
