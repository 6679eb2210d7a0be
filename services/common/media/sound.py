"""AAC and Opus to samples and back, at the times of their source: nothing hidden, nothing that adds up.

The rule it keeps: the time stamp of a packet is that of the first sample which a decoder makes of it, so a
codec's own delay (Opus 2.5 ms here, AAC a frame) moves nothing. Bad sound costs that sound, never the stream.
Times are 90 kHz ticks on both sides.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.audio.codeccontext import AudioCodecContext
from av.stream import Stream

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec

RATE: Final = 48_000
CHANNELS: Final = 2
TICK: Final = Fraction(1, CLOCK_HZ)
SAMPLE: Final = Fraction(1, RATE)
TICKS_PER_SAMPLE: Final = Fraction(CLOCK_HZ, RATE)

# libopus takes and gives a packet at a time in every mode; libav's own decoder holds speech back.
DECODERS: Final = {Codec.AAC: "aac", Codec.OPUS: "libopus"}
ENCODERS: Final = {Codec.AAC: "aac", Codec.OPUS: "libopus"}
FRAME: Final = {Codec.AAC: 1024, Codec.OPUS: 960}  # samples of a packet: what AAC has, and 20 ms
SAMPLE_FORMAT: Final = {Codec.AAC: "fltp", Codec.OPUS: "flt"}
OPTIONS: Final = {Codec.AAC: {}, Codec.OPUS: {"application": "lowdelay", "frame_duration": "20"}}
BIT_RATE: Final = 128_000

JITTER: Final = CLOCK_HZ // 100  # a source rounds its time stamps to a millisecond, and some to more
LONGEST_FILL: Final = CLOCK_HZ  # what is missing for longer is left out, not said as silence

Samples = npt.NDArray[np.float32]
"""float32 (2, N), left and right, -1..1, at 48 kHz."""


@dataclass(frozen=True, slots=True)
class DecodedSound:
    """Some sound, and the time of its first sample."""

    pts: int
    samples: Samples


class AudioDecoder:
    """Decodes ADTS frames or bare Opus packets as they come; whatever they are, 48 kHz stereo comes out."""

    def __init__(self, codec: Codec) -> None:
        self.errors = 0  # packets that gave no sound
        context = av.CodecContext.create(DECODERS[codec], "r")
        assert isinstance(context, AudioCodecContext)
        if codec is Codec.OPUS:
            context.sample_rate, context.layout = RATE, "stereo"
        context.thread_count = 1
        self._context = context
        self._resampler: av.AudioResampler | None = None
        self._form: tuple[str, str, int] | None = None

    def decode(self, data: bytes, pts: int) -> list[DecodedSound]:
        """The sound of one packet; a codec that overlaps its frames gives the first one half."""
        if not data:
            self.errors += 1  # to libav an empty packet means the end of the stream
            return []
        packet = av.Packet(data)
        packet.pts, packet.time_base = pts, TICK
        try:
            return [sound for frame in self._context.decode(packet) for sound in self._resampled(frame)]
        except av.FFmpegError:
            self.errors += 1
            return []

    def _resampled(self, frame: av.AudioFrame) -> list[DecodedSound]:
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if self._resampler is None or form != self._form:
            # libswresample would put one channel on both sides with half of its power on each.
            layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            self._resampler, self._form = av.AudioResampler("fltp", layout, RATE), form
        sounds = []
        for part in self._resampler.resample(frame):
            assert part.pts is not None
            assert part.time_base is not None
            samples = np.asarray(part.to_ndarray(), np.float32)  # (1 or 2, N)
            samples = np.ascontiguousarray(np.broadcast_to(samples, (CHANNELS, samples.shape[1])))
            sounds.append(DecodedSound(round(part.pts * part.time_base * CLOCK_HZ), samples))
        return sounds


class AudioEncoder:
    """Encodes sound at the times it is given with.

    Pieces may have any length; less than a packet waits for the next piece. A packet's time follows its
    source's stamps, so clocks that differ do not add up. A gap becomes silence, a long one a new beginning;
    what was there already is cut off.
    """

    def __init__(self, codec: Codec, bit_rate: int = BIT_RATE) -> None:
        self._codec = codec
        self._bit_rate = bit_rate
        self._frame = FRAME[codec]
        self._begin()

    def _begin(self) -> None:
        context = av.CodecContext.create(ENCODERS[self._codec], "w")
        assert isinstance(context, AudioCodecContext)
        context.sample_rate, context.layout = RATE, "stereo"
        context.format = SAMPLE_FORMAT[self._codec]
        context.time_base, context.bit_rate = SAMPLE, self._bit_rate
        context.options = dict(OPTIONS[self._codec])
        self._context = context
        self._waiting: Samples = np.zeros((CHANNELS, 0), np.float32)
        self._encoded = 0  # samples since `_begin`
        # Which sample was said to have which time; the oldest is the one that the next packet begins in.
        self._stamps: deque[tuple[int, int]] = deque()

    def encode(self, samples: Samples, pts: int) -> list[AccessUnit]:
        """The packets that `samples`, whose first is at `pts`, complete."""
        assert samples.dtype == np.float32, samples.dtype
        assert samples.ndim == 2, samples.shape
        assert samples.shape[0] == CHANNELS, samples.shape
        units: list[AccessUnit] = []
        taken = self._encoded + self._waiting.shape[1]
        if self._stamps:
            gap = pts - _extrapolated(self._stamps[-1], taken)
            if abs(gap) > LONGEST_FILL:
                units += self.flush()
                taken = 0
            elif gap > JITTER:
                silence = np.zeros((CHANNELS, round(gap / TICKS_PER_SAMPLE)), np.float32)
                self._waiting = np.concatenate((self._waiting, silence), axis=1)
                taken += silence.shape[1]
            elif gap < -JITTER:
                known = round(-gap / TICKS_PER_SAMPLE)
                samples, pts = samples[:, known:], pts - gap
        if samples.shape[1]:
            self._stamps.append((taken, pts))
            # An author's arithmetic may give what is no number: one encoder refuses it, the other says noise.
            clean = np.clip(np.nan_to_num(samples, nan=0.0, posinf=1.0, neginf=-1.0), -1.0, 1.0)
            self._waiting = np.concatenate((self._waiting, clean), axis=1)
        while self._waiting.shape[1] >= self._frame:
            chunk, self._waiting = np.split(self._waiting, [self._frame], axis=1)
            units += self._encode(chunk)
        return units

    def flush(self) -> list[AccessUnit]:
        """What is still inside, filled up with silence. What is encoded next is a new beginning."""
        units: list[AccessUnit] = []
        if self._stamps:
            if rest := self._waiting.shape[1]:
                silence = np.zeros((CHANNELS, self._frame - rest), np.float32)
                units += self._encode(np.concatenate((self._waiting, silence), axis=1))
            units += self._units(self._context.encode(None))
        self._begin()
        return units

    def _encode(self, chunk: Samples) -> list[AccessUnit]:
        """chunk: float32 (2, frame)."""
        if SAMPLE_FORMAT[self._codec] == "flt":
            chunk = chunk.T.reshape(1, -1)  # (1, 2 x frame), interleaved
        name = SAMPLE_FORMAT[self._codec]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), name, "stereo")
        frame.sample_rate, frame.time_base, frame.pts = RATE, SAMPLE, self._encoded
        self._encoded += self._frame
        return self._units(self._context.encode(frame))

    def _units(self, packets: Iterable[av.Packet[Stream]]) -> list[AccessUnit]:
        units = []
        for packet in packets:
            assert packet.pts is not None
            pts = self._time(packet.pts)  # libav has taken the encoder's delay off
            data = bytes(packet)
            if self._codec is Codec.AAC:
                data = _adts_header(len(data)) + data
            units.append(AccessUnit(self._codec, pts, pts, data, keyframe=True))
        return units

    def _time(self, sample: int) -> int:
        """The time of a sample by the newest stamp at or before it; older stamps are forgotten."""
        while len(self._stamps) > 1 and self._stamps[1][0] <= sample:
            self._stamps.popleft()
        return _extrapolated(self._stamps[0], sample)


def _extrapolated(stamp: tuple[int, int], sample: int) -> int:
    known, pts = stamp
    return pts + round((sample - known) * TICKS_PER_SAMPLE)


def _adts_header(size: int) -> bytes:
    """ISO 13818-7 §6.2: AAC LC, 48 kHz, two channels, one frame of `size` bytes, no checksum."""
    whole = size + 7
    return bytes((0xFF, 0xF1, 0x4C, 0x80 | whole >> 11, whole >> 3 & 0xFF, (whole & 7) << 5 | 0x1F, 0xFC))
