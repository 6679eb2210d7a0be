"""The clip's own sound for the result: copied where the container takes it, else as AAC.

Blocking: it is called in the result's thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from sluice.transform.clip import is_known, opened

# libav would put more into an MP4, but then it plays in few places beyond libav.
COPIED_INTO_MP4: Final = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"})
AAC_RATES: Final = frozenset(
    {96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000}
)
AAC_LAYOUTS: Final = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
AAC_BIT_RATE_PER_CHANNEL: Final = 80_000
GAP_S: Final = 0.1  # containers round times to milliseconds, or to frames; nothing rounds so much


class SoundTrack(Protocol):
    """The sound of a result in the making."""

    def write_until(self, end_s: Fraction) -> None:
        """Write what sounds before `end_s` of the clip."""

    def finish(self) -> None:
        """Write what is left."""


class ResultSound(Protocol):
    """What a result takes its sound from."""

    start_s: Fraction | None

    def into(self, output: OutputContainer, origin_s: Fraction) -> SoundTrack | None:
        """A track for it in `output`, where the clip's `origin_s` is 0; None without any sound."""


class Sound:
    """The default sound track of a clip, read along with the result. Later tracks are left out."""

    def __init__(self, path: Path) -> None:
        self._container = opened(path)
        known = (stream for stream in self._container.streams.audio if is_known(stream))
        self._stream: AudioStream | None = next(known, None)
        self._time_base = (self._stream.time_base if self._stream else None) or Fraction(1, 48_000)
        self._packets: Iterator[av.Packet[AudioStream]] = iter(())
        self._held: av.Packet[AudioStream] | None = None
        self.start_s: Fraction | None = None
        if self._stream is not None:
            self._packets = self._read(self._stream)
            self._held = next(self._packets, None)
            start = self._stream.start_time
            if start is None and self._held is not None:
                start = self._held.pts
            # An encoder's priming lies before the stream's start; an edit list hides it there and here.
            self.start_s = None if start is None else start * self._time_base

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def into(self, output: OutputContainer, origin_s: Fraction) -> SoundTrack | None:
        if self._stream is None or self._held is None:
            return None
        name = self._stream.codec_context.codec.canonical_name  # mp3, where the decoder is mp3float
        taken = COPIED_INTO_MP4 if output.format.name == "mp4" else output.supported_codecs
        if name in taken and name in output.supported_codecs:
            return Copied(self, output, output.add_stream_from_template(self._stream), origin_s)
        return Encoded(self, output, self._stream, origin_s)

    def until(self, end_s: Fraction | None) -> Iterator[av.Packet[AudioStream]]:
        """The packets that begin before `end_s` of the clip, or all that are left, in order."""
        while self._held is not None:
            assert self._held.pts is not None
            if end_s is not None and self._held.pts * self._time_base >= end_s:
                return
            packet = self._held
            self._held = next(self._packets, None)
            yield packet

    def _read(self, stream: AudioStream) -> Iterator[av.Packet[AudioStream]]:
        try:
            for packet in self._container.demux(stream):
                if packet.size and packet.pts is not None:
                    yield packet
        except av.FFmpegError:
            return  # the file is cut off here, which its pictures told


class Copied:
    """Packets as they are, only their times move."""

    def __init__(self, sound: Sound, output: OutputContainer, track: AudioStream, origin_s: Fraction) -> None:
        self._sound = sound
        self._output = output
        self._track = track
        self._origin_s = origin_s

    def write_until(self, end_s: Fraction) -> None:
        self._write(self._sound.until(end_s))

    def finish(self) -> None:
        self._write(self._sound.until(None))

    def _write(self, packets: Iterator[av.Packet[AudioStream]]) -> None:
        for packet in packets:
            shift = round(self._origin_s / packet.time_base)
            assert packet.pts is not None
            packet.pts -= shift
            packet.dts = packet.pts
            packet.stream = self._track
            self._output.mux_one(packet)


class Encoded:
    """Decoded, and encoded as AAC with the channels and, if AAC has it, the rate that it had."""

    def __init__(
        self, sound: Sound, output: OutputContainer, stream: AudioStream, origin_s: Fraction
    ) -> None:
        self._sound = sound
        self._output = output
        self._decoder = stream
        self._origin_s = origin_s
        channels = stream.codec_context.channels
        channels = channels if channels in AAC_LAYOUTS else 2
        rate = stream.codec_context.sample_rate
        rate = rate if rate in AAC_RATES else 48_000
        layout = AAC_LAYOUTS[channels]
        self._track = output.add_stream("aac", rate=rate, layout=layout)
        self._track.bit_rate = AAC_BIT_RATE_PER_CHANNEL * channels
        self._resampler = av.AudioResampler("fltp", layout, rate)
        self._rate = rate
        self._next: int | None = None  # where the next sample belongs, in samples

    def write_until(self, end_s: Fraction) -> None:
        for packet in self._sound.until(end_s):
            self._take(packet)

    def finish(self) -> None:
        for packet in self._sound.until(None):
            self._take(packet)
        self._take(None)
        self._encode(self._resampler.resample(None))
        self._output.mux(self._track.encode(None))

    def _take(self, packet: av.Packet[AudioStream] | None) -> None:
        try:
            frames = self._decoder.decode(packet)
        except av.FFmpegError:
            return  # a damaged piece is silence
        for frame in frames:
            if frame.pts is not None and frame.time_base:
                frame.pts -= round(self._origin_s / frame.time_base)
            self._encode(self._resampler.resample(frame))

    def _encode(self, frames: list[av.AudioFrame]) -> None:
        """Encode without the overlaps that rounded times make; a real gap stays one."""
        for frame in frames:
            if frame.pts is not None and (self._next is None or frame.pts - self._next > self._rate * GAP_S):
                self._next = frame.pts
            frame.pts = self._next
            self._next = (self._next or 0) + frame.samples
            self._output.mux(self._track.encode(frame))
