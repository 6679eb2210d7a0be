"""An input's sound as units to publish: AAC and Opus as they are, whatever else as AAC.

Blocking: it is called in a thread of its own. Times are ticks on the input's own clock.
"""

from __future__ import annotations

import io
from typing import Final

import av
import numpy as np
from av.audio.stream import AudioStream

from services.common.media.codec import TICK
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.media.sound import CHANNELS, RATE, AudioEncoder

MOST_CHANNELS: Final = 2  # what a browser's Opus and the pipelines have
LC: Final = "LC"


class PassedAac:
    """AAC LC, behind the headers that a transport stream wants: libav's own muxer writes them."""

    codec = Codec.AAC

    def __init__(self, stream: AudioStream) -> None:
        self._written = io.BytesIO()
        self._adts = av.open(self._written, "w", format="adts", options={"flush_packets": "1"})
        self._track = self._adts.add_stream_from_template(stream)

    def take(self, packet: av.Packet[AudioStream] | None) -> list[AccessUnit]:
        """The unit of a packet; None is the end."""
        if packet is None or packet.pts is None:
            return []
        pts = round(packet.pts * packet.time_base * CLOCK_HZ)
        packet.stream = self._track
        self._adts.mux_one(packet)
        data = self._written.getvalue()
        self._written.seek(0)
        self._written.truncate()
        return [AccessUnit(Codec.AAC, pts, pts, data, keyframe=True)] if data else []


class PassedOpus:
    """Opus packets, bare."""

    codec = Codec.OPUS

    def take(self, packet: av.Packet[AudioStream] | None) -> list[AccessUnit]:
        """The unit of a packet; None is the end."""
        if packet is None or packet.pts is None:
            return []
        pts = round(packet.pts * packet.time_base * CLOCK_HZ)
        return [AccessUnit(Codec.OPUS, pts, pts, bytes(packet), keyframe=True)]


class EncodedSound:
    """Anything else as AAC in stereo."""

    codec = Codec.AAC

    def __init__(self, stream: AudioStream) -> None:
        self._stream = stream
        # libswresample would put one channel on both sides with half of its power on each.
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        self._resampler = av.AudioResampler("fltp", layout, RATE)
        self._encoder = AudioEncoder(Codec.AAC)

    def take(self, packet: av.Packet[AudioStream] | None) -> list[AccessUnit]:
        """The units that a packet completes; None is the end."""
        try:
            frames = self._stream.decode(packet)
        except av.FFmpegError:
            return []  # a damaged piece is silence
        units = [unit for frame in frames for unit in self._encoded(frame)]
        return units if packet is not None else [*units, *self._encoder.flush()]

    def _encoded(self, frame: av.AudioFrame) -> list[AccessUnit]:
        units = []
        for part in self._resampler.resample(frame):
            if part.pts is None:
                continue
            samples = np.asarray(part.to_ndarray(), np.float32)  # (1 or 2, N)
            samples = np.ascontiguousarray(np.broadcast_to(samples, (CHANNELS, samples.shape[1])))
            units += self._encoder.encode(samples, round(part.pts * (part.time_base or TICK) * CLOCK_HZ))
        return units


Sounds = PassedAac | PassedOpus | EncodedSound


def sounds_of(stream: AudioStream) -> Sounds:
    """The way of a stream's sound that does the least to it."""
    context = stream.codec_context
    if context.channels <= MOST_CHANNELS:
        if context.name == "aac" and context.profile == LC:
            return PassedAac(stream)
        if context.codec.canonical_name == "opus":
            return PassedOpus()
    return EncodedSound(stream)
