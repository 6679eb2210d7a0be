from __future__ import annotations

import random
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.codec import DecodedFrame, Rgb, VideoDecoder, VideoEncoder, bit_rate_for
from services.common.media.mpegts import AccessUnit, Codec

SAMPLE = Path(__file__).parents[3] / "data" / "bigbuckbunny.mp4"
TICK = Fraction(1, 90_000)
WIDTH, HEIGHT = 320, 240


def chart(width: int, height: int) -> Rgb:
    """Red over x, green over y, blue along the diagonal: smooth, for subsampling blurs edges."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack(
        [x * 255 // width, y * 255 // height, 255 - (x + y) * 255 // (width + height)], -1
    ).astype(np.uint8)


def moving(index: int, width: int = WIDTH, height: int = HEIGHT) -> Rgb:
    return np.roll(chart(width, height), index * 8, axis=1)


@cache
def encoded_by_x264(b_frames: int, frames: int = 30) -> tuple[tuple[int, bytes], ...]:
    """PTS and picture, in decoding order."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.max_b_frames = TICK, Fraction(30), b_frames
    encoder.options = {"preset": "superfast", "bf": str(b_frames), "b-adapt": "0"}
    packets = []
    for index in range(frames):
        frame = av.VideoFrame.from_ndarray(moving(index)).reformat(format="yuv420p")
        frame.pts, frame.time_base = 90_000 + 3000 * index, TICK
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return tuple((packet.pts, bytes(packet)) for packet in packets if packet.pts is not None)


def encoded(frames: int, *, every: int = 15, width: int = WIDTH, height: int = HEIGHT) -> list[AccessUnit]:
    encoder = VideoEncoder(width, height, 1_000_000)
    units: list[AccessUnit] = []
    for index in range(frames):
        units += encoder.encode(moving(index, width, height), 3000 * index, keyframe=index % every == 0)
    return units


def mean_error(frame: DecodedFrame, original: Rgb) -> float:
    return float(np.abs(frame.rgb().astype(int) - original).mean())


# --- decoder --------------------------------------------------------------------------------------


def test_without_b_frames_every_picture_comes_out_at_once() -> None:
    decoder = VideoDecoder()
    for pts, data in encoded_by_x264(b_frames=0):
        assert [frame.pts for frame in decoder.decode(data, pts)] == [pts]
    assert decoder.flush() == []
    assert decoder.errors == 0


def test_with_b_frames_every_picture_comes_out_in_its_order() -> None:
    decoder = VideoDecoder()
    frames: list[DecodedFrame] = []
    for pts, data in encoded_by_x264(b_frames=2):
        frames += decoder.decode(data, pts)
    waiting = decoder.flush()
    assert len(waiting) <= 2
    assert [frame.pts for frame in frames + waiting] == [90_000 + 3000 * index for index in range(30)]
    for index, frame in enumerate(frames):
        assert mean_error(frame, moving(index)) < 6


def test_the_sample_is_decoded_whole() -> None:
    decoder = VideoDecoder()
    frames: list[DecodedFrame] = []
    with av.open(str(SAMPLE), "r") as container:
        to_annex_b = av.BitStreamFilterContext("h264_mp4toannexb", container.streams.video[0])
        for packet in container.demux(video=0):
            for picture in to_annex_b.filter(packet):
                assert picture.pts is not None
                frames += decoder.decode(bytes(picture), int(picture.pts * picture.time_base / TICK))
    frames += decoder.flush()
    assert [frame.pts for frame in frames] == [3600 * index for index in range(132)]
    assert frames[0].rgb().shape == (720, 1280, 3)


def test_a_decoder_goes_on_after_a_flush() -> None:
    decoder = VideoDecoder()
    units = encoded(4, every=2)
    assert len([frame for unit in units[:2] for frame in decoder.decode(unit.data, unit.pts)]) == 2
    decoder.flush()
    assert len([frame for unit in units[2:] for frame in decoder.decode(unit.data, unit.pts)]) == 2


def test_the_size_may_change_at_a_key_frame() -> None:
    decoder = VideoDecoder()
    for width, height in ((320, 240), (640, 480), (160, 120)):
        for unit in encoded(3, width=width, height=height):
            (frame,) = decoder.decode(unit.data, unit.pts)
            assert frame.rgb().shape == (height, width, 3)
    assert decoder.errors == 0


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x00\x00\x01", b"no picture at all", b"\x00\x00\x00\x01\x65\x88\x84\x00"]
)
def test_what_is_no_picture_is_counted_and_harmless(data: bytes) -> None:
    decoder = VideoDecoder()
    assert decoder.decode(data, 0) == []
    assert decoder.errors == 1
    (unit,) = encoded(1)
    assert len(decoder.decode(unit.data, 3000)) == 1


def test_nothing_comes_out_before_the_first_key_frame() -> None:
    decoder = VideoDecoder()
    units = encoded(6, every=3)
    assert [len(decoder.decode(unit.data, unit.pts)) for unit in units[1:]] == [0, 0, 1, 1, 1]
    assert decoder.errors == 2


@pytest.mark.parametrize("seed", range(5))
def test_damaged_pictures_never_raise_and_the_next_key_frame_heals(seed: int) -> None:
    chance = random.Random(seed)
    decoder = VideoDecoder()
    units = encoded(60)
    for unit in units[:45]:
        data = bytearray(unit.data)
        for _ in range(chance.choice([0, 1, 20])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        for frame in decoder.decode(bytes(data[: chance.choice([len(data), len(data) // 2])]), unit.pts):
            frame.rgb()
    assert decoder.errors > 0
    before = decoder.errors
    for index, unit in enumerate(units[45:], 45):
        frame = decoder.decode(unit.data, unit.pts)[-1]
        assert frame.pts == unit.pts
        assert mean_error(frame, moving(index)) < 6
    assert decoder.errors == before


# --- encoder --------------------------------------------------------------------------------------


def test_every_picture_is_a_unit_of_the_same_time_at_once() -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 1_000_000)
    for index in range(20):
        (unit,) = encoder.encode(moving(index), 90_000 + 3003 * index, keyframe=False)
        assert (unit.codec, unit.pts, unit.dts) == (Codec.H264, 90_000 + 3003 * index, 90_000 + 3003 * index)
    assert encoder.flush() == []


def test_key_frames_come_first_and_where_they_are_asked_for() -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 1_000_000)
    noise = np.random.default_rng(1)
    asked = {7, 8, 300}
    for index in range(330):
        cut = (
            noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) if index in {50, 51} else moving(index)
        )
        (unit,) = encoder.encode(cut, 3000 * index, keyframe=index in asked)
        assert unit.keyframe == (index in asked or index == 0), index
        assert h264.has_parameter_sets(unit.data) == unit.keyframe


def test_a_key_frame_starts_a_new_decoder() -> None:
    units = encoded(20)
    assert h264.picture_size(units[15].data) == (WIDTH, HEIGHT)
    (frame,) = VideoDecoder().decode(units[15].data, units[15].pts)
    assert mean_error(frame, moving(15)) < 6


@pytest.mark.parametrize("size", [(512, 512), (1280, 720), (854, 480)])
def test_colours_survive_the_encoder_and_the_decoder(size: tuple[int, int]) -> None:
    (unit,) = VideoEncoder(*size, 8_000_000).encode(chart(*size), 0, keyframe=True)
    (frame,) = VideoDecoder().decode(unit.data, 0)
    assert mean_error(frame, chart(*size)) < 3
    assert frame.frame.colorspace == (1 if size[1] >= 720 else 6)
    assert frame.frame.color_range == 1


def test_full_range_video_is_not_stretched_again() -> None:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "yuvj420p", TICK
    encoder.color_range = 2
    encoder.options = {"preset": "superfast", "tune": "zerolatency", "qp": "4"}
    picture = av.VideoFrame.from_ndarray(chart(WIDTH, HEIGHT)).reformat(
        format="yuvj420p", dst_colorspace=5, src_color_range=2, dst_color_range=2
    )
    picture.pts = 0
    (packet,) = encoder.encode(picture)
    (frame,) = VideoDecoder().decode(bytes(packet), 0)
    assert mean_error(frame, chart(WIDTH, HEIGHT)) < 3


@pytest.mark.parametrize("fps", [10, 30])
def test_noise_keeps_to_the_bit_rate(fps: int) -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 600_000, fps=fps)
    noise = np.random.default_rng(2)
    sizes = []
    for index in range(fps * 4):
        pixels = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        (unit,) = encoder.encode(pixels, index * 90_000 // fps, keyframe=index % (2 * fps) == 0)
        sizes.append(len(unit.data) * 8)
    assert sum(sizes) / 4 < 600_000 * 1.3
    assert max(sizes) < 600_000


@pytest.mark.parametrize("size", [(321, 240), (320, 241), (0, 240), (320, -2)])
def test_a_picture_with_an_odd_side_is_invalid(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidError) as caught:
        VideoEncoder(*size, 1_000_000)
    assert caught.value.reason == "ODD_SIZE"


def test_pixels_that_are_not_contiguous_are_encoded_too() -> None:
    wide = chart(WIDTH * 2, HEIGHT)
    (unit,) = VideoEncoder(WIDTH, HEIGHT, 4_000_000).encode(wide[:, ::2], 0, keyframe=True)
    (frame,) = VideoDecoder().decode(unit.data, 0)
    assert mean_error(frame, wide[:, ::2]) < 3


def test_the_bit_rate_follows_the_pixels_within_bounds() -> None:
    assert bit_rate_for(512, 512, 30) == 786_432
    assert bit_rate_for(1280, 720, 30) == 2_764_800
    assert bit_rate_for(64, 64, 10) == 300_000
    assert bit_rate_for(3840, 2160, 60) == 8_000_000


# --- another bit rate while it runs


def noise_bits(encoder: VideoEncoder, pictures: range) -> list[int]:
    noise = np.random.default_rng(3)
    sizes = []
    for index in pictures:
        pixels = noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        (unit,) = encoder.encode(pixels, 3000 * index, keyframe=index == 0)
        assert unit.keyframe == (index == 0)
        sizes.append(len(unit.data) * 8)
    return sizes


def test_a_running_encoder_takes_less_and_is_given_it_back_without_a_key_frame() -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 1_200_000)
    before = noise_bits(encoder, range(60))
    assert encoder.aim(800_000, fps=30) == pytest.approx(2 / 3)
    lower = noise_bits(encoder, range(60, 120))
    assert encoder.aim(1_200_000, fps=30) == pytest.approx(1)
    again = noise_bits(encoder, range(120, 180))
    assert sum(before[30:]) == pytest.approx(1_200_000, rel=0.15)
    assert sum(lower[30:]) == pytest.approx(800_000, rel=0.15)
    assert sum(again[30:]) == pytest.approx(1_200_000, rel=0.15)


def test_a_running_encoder_cannot_take_more_and_says_how_much_is_wanted() -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 800_000)
    noise_bits(encoder, range(60))
    assert encoder.aim(2_400_000, fps=30) == pytest.approx(3)
    assert sum(noise_bits(encoder, range(60, 90))) == pytest.approx(800_000, rel=0.15)


def test_twice_the_pace_is_half_the_bits_for_each_picture() -> None:
    encoder = VideoEncoder(WIDTH, HEIGHT, 1_200_000, fps=30)
    noise_bits(encoder, range(60))
    assert encoder.aim(1_200_000, fps=60) == pytest.approx(0.5)
    sizes = noise_bits(encoder, range(60, 180))
    assert sum(sizes[60:]) == pytest.approx(1_200_000, rel=0.2)
