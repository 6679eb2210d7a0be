"""A clip's sound through a pipeline: decoded as an engine decodes it, and encoded into the result as AAC.

Blocking. Times are ticks from the clip's first picture; sound before it has negative ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray

from services.common.media.mpegts import CLOCK_HZ
from services.common.media.sound import CHANNELS, RATE
from sluice.transform.clip import is_known, opened
from sluice.transform.sound import SoundTrack

PIECE: Final = 960  # samples, as Opus has them
BIT_RATE: Final = 160_000
GAP_SAMPLES: Final = RATE // 10  # what is rounded is less; a real gap stays one

Samples = NDArray[np.float32]


class HeardSound:
    """The sound of a clip on its way through a pipeline: `pieces` out, `take` back in."""

    def __init__(self, path: Path, first_picture_s: Fraction) -> None:
        self._container = opened(path)
        self._first_picture_s = first_picture_s
        known = (stream for stream in self._container.streams.audio if is_known(stream))
        self._stream: AudioStream | None = next(known, None)
        self._pieces = self._decoded(self._stream) if self._stream is not None else iter(())
        self._next = next(self._pieces, None)
        self._made: deque[tuple[int, Samples]] = deque()
        self.start_s = None if self._next is None else first_picture_s + Fraction(self._next[0], CLOCK_HZ)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def pieces(self, until_ticks: int | None) -> Iterator[tuple[int, Samples]]:
        """What begins before `until_ticks`, or all that is left: float32 (2, N)."""
        while self._next is not None and (until_ticks is None or self._next[0] < until_ticks):
            piece, self._next = self._next, next(self._pieces, None)
            yield piece

    def take(self, ticks: int, samples: Samples) -> None:
        """What the pipeline made; it is written with the next picture."""
        self._made.append((ticks, np.broadcast_to(samples, (CHANNELS, samples.shape[1]))))

    def into(self, output: OutputContainer, origin_s: Fraction) -> SoundTrack | None:
        if self._next is None and not self._made:
            return None
        shift_s = self._first_picture_s - origin_s
        return _Track(output, self._made, shift_s)

    def _decoded(self, stream: AudioStream) -> Iterator[tuple[int, Samples]]:
        layout = "mono" if stream.codec_context.channels == 1 else "stereo"
        resampler = av.AudioResampler("fltp", layout, RATE, PIECE)
        for packet in self._packets(stream):
            try:
                frames = stream.decode(packet)
            except av.FFmpegError:
                continue  # a damaged piece is silence
            for frame in frames:
                yield from self._resampled(resampler.resample(frame))
        yield from self._resampled(resampler.resample(None))

    def _packets(self, stream: AudioStream) -> Iterator[av.Packet[AudioStream]]:
        try:
            yield from self._container.demux(stream)
        except av.FFmpegError:
            return  # the file is cut off here, which its pictures told

    def _resampled(self, frames: list[av.AudioFrame]) -> Iterator[tuple[int, Samples]]:
        for frame in frames:
            if frame.pts is None or frame.time_base is None:
                continue
            ticks = round((frame.pts * frame.time_base - self._first_picture_s) * CLOCK_HZ)
            samples = np.asarray(frame.to_ndarray(), np.float32)
            yield ticks, np.ascontiguousarray(np.broadcast_to(samples, (CHANNELS, samples.shape[1])))


class _Track:
    """Encodes what was made; `made` is filled by whoever runs the pipeline."""

    def __init__(self, output: OutputContainer, made: deque[tuple[int, Samples]], shift_s: Fraction) -> None:
        self._output = output
        self._made = made
        self._shift_s = shift_s
        self._stream = output.add_stream("aac", rate=RATE, layout="stereo")
        self._stream.bit_rate = BIT_RATE
        self._next: int | None = None  # where the next sample belongs

    def write_until(self, end_s: Fraction) -> None:
        self._write()

    def finish(self) -> None:
        self._write()
        self._output.mux(self._stream.encode(None))

    def _write(self) -> None:
        while self._made:
            ticks, samples = self._made.popleft()
            at = round((Fraction(ticks, CLOCK_HZ) + self._shift_s) * RATE)
            if self._next is None or at - self._next > GAP_SAMPLES:
                self._next = at
            clean = np.clip(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clean), "fltp", "stereo")
            frame.sample_rate, frame.time_base, frame.pts = RATE, Fraction(1, RATE), self._next
            self._next += samples.shape[1]
            self._output.mux(self._stream.encode(frame))
