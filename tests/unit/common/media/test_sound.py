"""Sound through decoders and encoders: where each sample ends up, measured, and what broken input does."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer
from services.common.media.sound import FRAME, RATE, AudioDecoder, AudioEncoder, DecodedSound, Samples

START = 5 * CLOCK_HZ + 17  # no multiple of anything
CODECS = pytest.mark.parametrize("codec", [Codec.OPUS, Codec.AAC])
MS = CLOCK_HZ / 1000


def chirp(length: int) -> Samples:
    """200 Hz to 8 kHz: like nothing but itself at any other place."""
    at = np.arange(length) / RATE
    rising = np.sin(2 * np.pi * (200 * at + (8000 - 200) / 2 * at**2 / at[-1])).astype(np.float32)
    return np.stack([rising, 0.7 * rising]) * np.float32(0.5)


def placed(sounds: Sequence[DecodedSound], length: int, origin: int = START) -> Samples:
    """Every sample where its time stamp says, counted from `origin`."""
    out = np.zeros((2, length), np.float32)
    for sound in sounds:
        first = round((sound.pts - origin) * RATE / CLOCK_HZ)
        begin, end = max(first, 0), min(first + sound.samples.shape[1], length)
        if begin < end:
            out[:, begin:end] = sound.samples[:, begin - first : end - first]
    return out


def shift_ms(heard: npt.NDArray[Any], said: npt.NDArray[Any]) -> float:
    """By how much `heard` comes after `said`, by correlation."""
    size = 1 << (len(said) * 2).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(said, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    return (lag - size if lag > size // 2 else lag) * 1000 / RATE


def encoded(encoder: AudioEncoder, samples: Samples, piece: int, start: int = START) -> list[AccessUnit]:
    units = []
    for first in range(0, samples.shape[1], piece):
        pts = start + round(first * CLOCK_HZ / RATE)
        units += encoder.encode(samples[:, first : first + piece], pts)
    return units


def decoded(codec: Codec, units: Sequence[AccessUnit]) -> list[DecodedSound]:
    decoder = AudioDecoder(codec)
    sounds = [sound for unit in units for sound in decoder.decode(unit.data, unit.pts)]
    assert decoder.errors == 0
    return sounds


def other_encoder(name: str, rate: int, layout: str, samples: Samples) -> list[tuple[int, bytes]]:
    """Packets as a publisher's libav makes them, with its own time stamps (ticks from `START`)."""
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, av.AudioCodecContext)
    form = "flt" if name == "libopus" else "fltp"
    context.sample_rate, context.layout, context.format = rate, layout, form
    context.time_base, context.bit_rate = Fraction(1, rate), 128_000
    resampler = av.AudioResampler(form, layout, rate, frame_size=960 if name == "libopus" else 1024)
    taken = samples if layout == "stereo" else samples[:1]
    source = av.AudioFrame.from_ndarray(np.ascontiguousarray(taken), "fltp", layout)
    source.sample_rate, source.time_base, source.pts = RATE, Fraction(1, RATE), 0
    packets = [packet for frame in resampler.resample(source) for packet in context.encode(frame)]
    index = {96_000: 0, 88_200: 1, 48_000: 3, 44_100: 4, 22_050: 7, 16_000: 8}[rate]
    out = []
    for packet in packets:
        assert packet.pts is not None
        data = bytes(packet)
        if name == "aac":
            size, channels = len(data) + 7, context.layout.nb_channels
            data = (
                bytes((0xFF, 0xF1, 1 << 6 | index << 2, (channels & 3) << 6 | size >> 11))
                + struct.pack(">H", (size & 0x7FF) << 5 | 0x1F)
                + b"\xfc"
                + data
            )
        out.append((START + round(packet.pts * CLOCK_HZ / rate), data))
    return out


@CODECS
@pytest.mark.parametrize("piece", [480, 960, 1024, 2048, 777])
def test_sound_stays_where_it_was_through_decoding_and_encoding_twice(codec: Codec, piece: int) -> None:
    said = chirp(2 * RATE)
    once = decoded(codec, encoded(AudioEncoder(codec), said, piece))
    again = AudioEncoder(codec)
    twice = decoded(codec, [unit for sound in once for unit in again.encode(sound.samples, sound.pts)])
    for heard in (placed(once, said.shape[1]), placed(twice, said.shape[1])):
        for left_or_right in (0, 1):
            assert abs(shift_ms(heard[left_or_right], said[left_or_right])) <= 0.1
        inner = slice(RATE // 4, -RATE // 4)
        assert np.corrcoef(heard[0, inner], said[0, inner])[0, 1] > 0.9


@CODECS
def test_a_click_is_heard_at_its_own_millisecond(codec: Codec) -> None:
    said = np.zeros((2, RATE), np.float32)
    said[:, 30_000] = 0.9
    heard = placed(decoded(codec, encoded(AudioEncoder(codec), said, 960)), RATE)
    assert abs(int(np.argmax(np.abs(heard[0]))) - 30_000) <= 5 * RATE // 1000


@pytest.mark.parametrize(
    ("name", "rate", "layout"),
    [
        ("aac", 48_000, "stereo"),
        ("aac", 44_100, "stereo"),
        ("aac", 22_050, "mono"),
        ("aac", 48_000, "mono"),
        ("aac", 96_000, "stereo"),
        ("libopus", 48_000, "stereo"),
        ("libopus", 48_000, "mono"),
    ],
)
def test_whatever_a_publisher_sends_is_48_khz_stereo_at_its_time(name: str, rate: int, layout: str) -> None:
    said = chirp(2 * RATE)
    codec = Codec.AAC if name == "aac" else Codec.OPUS
    decoder = AudioDecoder(codec)
    sounds = [
        sound for pts, data in other_encoder(name, rate, layout, said) for sound in decoder.decode(data, pts)
    ]
    assert decoder.errors == 0
    assert all(sound.samples.dtype == np.float32 and sound.samples.shape[0] == 2 for sound in sounds)
    heard = placed(sounds, said.shape[1])
    assert abs(shift_ms(heard[0], said[0])) <= 1
    level = np.sqrt(np.mean(heard[0, RATE // 2 : RATE] ** 2) / np.mean(said[0, RATE // 2 : RATE] ** 2))
    assert 0.9 <= level <= 1.1, "as loud as it was"
    for before, after in pairwise(sounds):
        assert after.pts - before.pts == pytest.approx(before.samples.shape[1] * CLOCK_HZ / RATE, abs=3)


@CODECS
def test_a_packet_comes_out_of_the_call_that_completes_it(codec: Codec) -> None:
    encoder = AudioEncoder(codec)
    said = chirp(RATE)
    pieces = [said[:, n * 480 : (n + 1) * 480] for n in range(100)]
    counts = [len(encoder.encode(piece, START + n * 900)) for n, piece in enumerate(pieces, start=0)]
    held = FRAME[codec] if codec is Codec.AAC else 0  # AAC's own: it looks a frame ahead
    for number, total in enumerate(np.cumsum(counts), start=1):
        assert total == max(0, (number * 480 - held) // FRAME[codec])


@CODECS
def test_packets_pass_through_a_transport_stream(codec: Codec) -> None:
    units = encoded(AudioEncoder(codec), chirp(RATE), 960)
    muxer, demuxer = Muxer(audio=codec), Demuxer()
    assert demuxer.feed(muxer.begin_segment() + b"".join(map(muxer.write, units))) == units


@CODECS
def test_a_source_whose_clock_is_off_does_not_drift(codec: Codec) -> None:
    """1000 ppm: after 20 s the samples alone would be 20 ms off."""
    said = chirp(20 * RATE)
    encoder = AudioEncoder(codec)
    units = []
    for first in range(0, said.shape[1], 960):
        units += encoder.encode(said[:, first : first + 960], START + round(first * CLOCK_HZ / RATE * 1.001))
    expected = START + round(19 * CLOCK_HZ * 1.001)
    nearest = min(units, key=lambda unit: abs(unit.pts - expected))
    index = round((nearest.pts - START) / 1.001 * RATE / CLOCK_HZ)
    heard = decoded(codec, units)
    part = next(sound for sound in heard if sound.pts == nearest.pts).samples[0]
    around = said[0, index - 4800 : index + 4800]
    assert abs(shift_ms(np.concatenate((np.zeros(4800), part)), around)) <= 1


@CODECS
@pytest.mark.parametrize("gap_ms", [25, 400])
def test_a_gap_becomes_silence_and_what_follows_is_at_its_time(codec: Codec, gap_ms: int) -> None:
    said = chirp(RATE)
    missing = gap_ms * RATE // 1000
    with_gap = said.copy()
    with_gap[:, RATE // 2 : RATE // 2 + missing] = 0
    encoder = AudioEncoder(codec)
    units = encoded(encoder, said[:, : RATE // 2], 960)
    rest = RATE // 2 + missing
    units += encoded(encoder, said[:, rest:], 960, START + round(rest * CLOCK_HZ / RATE))
    assert all(after.pts > before.pts for before, after in pairwise(units))
    heard = placed(decoded(codec, units), RATE)
    assert abs(shift_ms(heard[0, rest:], said[0, rest:])) <= 0.1
    hole = heard[0, RATE // 2 + 600 : rest - 600] if gap_ms > 100 else np.zeros(1)
    assert np.abs(hole).max() < 0.05


@CODECS
def test_after_a_long_gap_sound_begins_anew_and_nothing_from_before_is_lost(codec: Codec) -> None:
    said = chirp(RATE)
    encoder = AudioEncoder(codec)
    units = encoded(encoder, said[:, : RATE // 2], 960)
    later = START + 60 * CLOCK_HZ
    units += encoded(encoder, said[:, RATE // 2 :], 960, later)
    units += encoder.flush()
    assert len(units) < 60, "no minute of silence"
    assert all(after.pts > before.pts for before, after in pairwise(units))
    heard = decoded(codec, units)
    assert abs(shift_ms(placed(heard, RATE // 2)[0], said[0, : RATE // 2])) <= 0.1
    assert abs(shift_ms(placed(heard, RATE // 2, later)[0], said[0, RATE // 2 :])) <= 0.1


@CODECS
def test_sound_of_a_time_that_was_there_is_cut_off(codec: Codec) -> None:
    said = chirp(RATE)
    encoder = AudioEncoder(codec)
    units = encoded(encoder, said[:, : RATE // 2], 960)
    units += encoded(encoder, said[:, :4800], 960, START)  # again what was there
    units += encoded(encoder, said[:, RATE // 2 - 960 :], 960, START + round((RATE // 2 - 960) * 1.875))
    assert all(after.pts > before.pts for before, after in pairwise(units))
    heard = placed(decoded(codec, units), RATE)
    inner = slice(RATE // 4, RATE - 4800)
    assert np.corrcoef(heard[0, inner], said[0, inner])[0, 1] > 0.9


@CODECS
def test_the_end_is_not_lost(codec: Codec) -> None:
    said = chirp(RATE + 333)
    encoder = AudioEncoder(codec)
    units = encoded(encoder, said, 1000) + encoder.flush()
    heard = placed(decoded(codec, units), RATE + 333)
    assert np.corrcoef(heard[0, -2000:], said[0, -2000:])[0, 1] > 0.9
    assert AudioEncoder(codec).flush() == []


@CODECS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_numbers_that_are_no_sound_harm_nothing(codec: Codec, bad: float) -> None:
    said = chirp(RATE)
    broken = said.copy()
    broken[:, 20_000:20_100] = bad
    heard = placed(decoded(codec, encoded(AudioEncoder(codec), broken, 960)), RATE)
    assert np.isfinite(heard).all()
    assert np.corrcoef(heard[0, 24_000:40_000], said[0, 24_000:40_000])[0, 1] > 0.9


@CODECS
def test_bad_packets_are_counted_and_survived(codec: Codec) -> None:
    units = encoded(AudioEncoder(codec), chirp(RATE), 960)
    decoder = AudioDecoder(codec)
    sounds = []
    for number, unit in enumerate(units):
        data = {10: b"", 11: b"\xff" * 40, 12: unit.data[:5]}.get(number, unit.data)
        sounds += decoder.decode(data, unit.pts)
    assert 1 <= decoder.errors <= 3
    assert sounds[-1].pts == units[-1].pts


@CODECS
@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(codec: Codec, data: bytes) -> None:
    decoder = AudioDecoder(codec)
    for sound in decoder.decode(data, START):
        assert sound.samples.shape[0] == 2


@CODECS
@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(-100_000, 200_000) | st.integers(-2000, 2000)),
        max_size=20,
    )
)
def test_whatever_the_times_packets_go_forward_or_begin_anew(
    codec: Codec, pieces: list[tuple[int, int]]
) -> None:
    encoder = AudioEncoder(codec)
    at = START
    units: list[AccessUnit] = []
    for length, jump in pieces:
        at += jump
        units += encoder.encode(np.zeros((2, length), np.float32), at)
        at += round(length * CLOCK_HZ / RATE)
    units += encoder.flush()
    for before, after in pairwise(units):
        assert after.pts > before.pts or before.pts - after.pts > CLOCK_HZ / 2
