"""NVENC and NVDEC are not here: what cannot be opened is real, what fails later fails as libav does."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
from av.error import ExternalError, InvalidDataError

from services.common.errors import InvalidError
from services.common.media import hardware
from services.common.media.codec import (
    NVENC,
    OPTIONS,
    TICK,
    X264,
    DecodedFrame,
    DecoderBrokenError,
    Rgb,
    VideoDecoder,
    VideoEncoder,
)
from services.common.media.hardware import (
    LIBAV,
    NVDEC,
    Codecs,
    Equipment,
    SteadyDecoder,
    SteadyEncoder,
    Wanted,
    choose,
)
from services.common.media.mpegts import AccessUnit
from services.inference.settings import InferenceSettings

WIDTH, HEIGHT = 320, 240
DEVICE = Codecs(NVENC, NVDEC, "works")
without_device = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has such a device")


def broken() -> av.FFmpegError:
    """What libav says when CUDA or NVENC failed."""
    return ExternalError(542398533, "Generic error in an external library")


def picture(index: int) -> Rgb:
    row, column = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([column * 255 // WIDTH, row, np.full_like(row, 8 * index % 256)], -1).astype(np.uint8)


class Device(VideoEncoder):
    """An encoder on a device, played by libx264: before `call` number `at` it does what it is told."""

    def __init__(self, at: int = -1, act: Callable[[], list[AccessUnit]] | None = None) -> None:
        super().__init__(WIDTH, HEIGHT, 1_000_000)
        self._calls_left, self._act = at, act

    def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        self._calls_left -= 1
        if self._calls_left == -1 and self._act is not None:
            return self._act()
        return super().encode(rgb, pts, keyframe=keyframe)


class DeviceDecoder(VideoDecoder):
    """A decoder on a device, played by libav's: it is gone at a unit, and for good."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self._lives = lives

    def decode(self, data: bytes, pts: int) -> list[DecodedFrame]:
        self._lives -= 1
        if self._lives < 0:
            raise DecoderBrokenError("Generic error in an external library")
        return super().decode(data, pts)

    def flush(self) -> list[DecodedFrame]:
        raise DecoderBrokenError("Generic error in an external library")


def fail() -> list[AccessUnit]:
    raise broken()


def encoders(device: Callable[[], VideoEncoder]) -> hardware.MakeEncoder:
    def make(width: int, height: int, bit_rate: int, fps: float, name: str) -> VideoEncoder:
        return device() if name == NVENC else hardware.encoder(width, height, bit_rate, fps, name)

    return make


def decoders(device: Callable[[], VideoDecoder]) -> hardware.MakeDecoder:
    return lambda name: device() if name == NVDEC else hardware.decoder(name)


def tried(width: int, height: int, bit_rate: int, fps: float, name: str) -> VideoEncoder:
    """A device that works, of any size."""
    assert name == NVENC
    return VideoEncoder(width, height, bit_rate, fps=fps)


# --- the choice


@without_device
def test_without_a_device_software_is_chosen_and_the_reason_told() -> None:
    codecs = choose(Wanted.AUTO)
    assert (codecs.encoder, codecs.decoder) == (X264, LIBAV)
    assert "h264_nvenc: fails (" in codecs.reason
    assert "h264_nvdec: fails (" in codecs.reason


@without_device
def test_what_is_demanded_and_not_there_is_refused() -> None:
    with pytest.raises(InvalidError, match="h264_nvenc") as caught:
        choose(Wanted.NVIDIA)
    assert caught.value.reason == "NO_DEVICE"


def test_who_says_cpu_gets_it_untried() -> None:
    def untouched(*_: Any) -> Any:
        raise AssertionError("a device was tried")

    codecs = choose(Wanted.CPU, make_encoder=untouched, make_decoder=untouched)
    assert (codecs.encoder, codecs.decoder) == (X264, LIBAV)


@pytest.mark.parametrize("wanted", [Wanted.AUTO, Wanted.NVIDIA])
def test_a_device_that_works_is_chosen(wanted: Wanted) -> None:
    codecs = choose(wanted, make_encoder=tried, make_decoder=lambda _: VideoDecoder())
    assert codecs == Codecs(NVENC, NVDEC, "h264_nvenc: works; h264_nvdec: works")


def test_a_device_that_only_decodes_is_used_for_that() -> None:
    def no_encoder(*_: Any) -> VideoEncoder:
        raise broken()

    codecs = choose(Wanted.AUTO, make_encoder=no_encoder, make_decoder=lambda _: VideoDecoder())
    assert (codecs.encoder, codecs.decoder) == (X264, NVDEC)
    with pytest.raises(InvalidError):
        choose(Wanted.NVIDIA, make_encoder=no_encoder, make_decoder=lambda _: VideoDecoder())


def test_an_encoder_that_holds_a_picture_back_is_not_chosen() -> None:
    class Late(VideoEncoder):
        def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
            return super().encode(rgb, pts, keyframe=keyframe) if pts else []

    codecs = choose(Wanted.AUTO, make_encoder=lambda *size, **_: Late(*size[:3]))
    assert codecs.encoder == X264
    assert "h264_nvenc: holds pictures back" in codecs.reason


def test_an_encoder_that_makes_no_key_frame_when_asked_is_not_chosen() -> None:
    class Deaf(VideoEncoder):
        def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
            return super().encode(rgb, pts, keyframe=False)

    codecs = choose(Wanted.AUTO, make_encoder=lambda *size, **_: Deaf(*size[:3]))
    assert codecs.encoder == X264
    assert "key frames" in codecs.reason


def test_a_decoder_that_holds_a_picture_back_is_not_chosen() -> None:
    class Late(VideoDecoder):
        def decode(self, data: bytes, pts: int) -> list[DecodedFrame]:
            super().decode(data, pts)
            return []

    codecs = choose(Wanted.AUTO, make_encoder=tried, make_decoder=lambda _: Late())
    assert (codecs.encoder, codecs.decoder) == (NVENC, LIBAV)
    assert "h264_nvdec: holds pictures back" in codecs.reason


def test_the_setting_says_what_can_be_wanted() -> None:
    assert set(get_args(InferenceSettings.model_fields["codecs"].annotation)) == set(Wanted)


# --- an encoder that fails


def steady(
    make: hardware.MakeEncoder, failures: list[tuple[str, str]] | None = None, codecs: Codecs = DEVICE
) -> SteadyEncoder:
    def failed(codec: str, problem: str) -> None:
        if failures is not None:
            failures.append((codec, problem))

    return SteadyEncoder(WIDTH, HEIGHT, 1_000_000, fps=30, codecs=codecs, failed=failed, make=make)


@pytest.mark.parametrize("act", [fail, list], ids=["fails", "holds a picture back"])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_a_device_that_fails_costs_no_picture_and_is_told_once(at: int, act: Callable[[], Any]) -> None:
    failures: list[tuple[str, str]] = []
    encoder = steady(encoders(lambda: Device(at, act)), failures)
    decoder = VideoDecoder()
    for index in range(12):
        (unit,) = encoder.encode(picture(index), 3000 * index, keyframe=False)
        assert unit.keyframe == (index in {0, at})
        (frame,) = decoder.decode(unit.data, unit.pts)
        assert frame.pts == 3000 * index
        assert np.abs(frame.rgb().astype(int) - picture(index)).mean() < 6
    assert [codec for codec, _ in failures] == [NVENC]


@without_device
def test_a_device_that_is_not_there_is_replaced_at_the_first_picture() -> None:
    failures: list[tuple[str, str]] = []
    encoder = steady(hardware.encoder, failures)
    (unit,) = encoder.encode(picture(0), 0, keyframe=False)
    assert unit.keyframe
    assert [codec for codec, _ in failures] == [NVENC]


def test_software_goes_on_at_the_bit_rate_that_was_wanted_last() -> None:
    encoder = steady(encoders(lambda: Device(1, fail)))
    encoder.encode(picture(0), 0, keyframe=True)
    assert encoder.aim(500_000, fps=30) == pytest.approx(0.5)
    encoder.encode(picture(1), 3000, keyframe=False)
    assert encoder.aim(500_000, fps=30) == pytest.approx(1)


def test_a_device_that_works_makes_what_it_is_asked_for() -> None:
    failures: list[tuple[str, str]] = []
    encoder = steady(encoders(Device), failures)
    keyframes = [encoder.encode(picture(i), 3000 * i, keyframe=i == 5)[0].keyframe for i in range(8)]
    assert keyframes == [i in {0, 5} for i in range(8)]
    assert failures == []


def test_an_odd_size_is_no_failure_of_a_device() -> None:
    failures: list[tuple[str, str]] = []
    with pytest.raises(InvalidError):
        Equipment(DEVICE, lambda *what: failures.append(what)).encoder(321, 240, 500_000, fps=30)
    assert failures == []


# --- a decoder that fails


def stream(count: int, *, every: int = 10, b_frames: int = 0) -> list[tuple[bytes, int]]:
    """Units and their times, in decoding order."""
    context = av.CodecContext.create("libx264", "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = WIDTH, HEIGHT, "yuv420p", TICK
    context.options = {"preset": "superfast", "bf": str(b_frames), "b-adapt": "0", "keyint": str(every)}
    context.options |= {"sc_threshold": "0", "forced-idr": "1", "g": str(every), "tune": "zerolatency"}
    packets = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(picture(index)).reformat(format="yuv420p")
        frame.pts, frame.time_base = 90_000 + 3000 * index, TICK
        packets += context.encode(frame)
    packets += context.encode(None)
    return [(bytes(packet), packet.pts) for packet in packets if packet.pts is not None]


def decoded(decoder: SteadyDecoder, units: list[tuple[bytes, int]]) -> list[int]:
    """The times of the pictures in the order in which they came."""
    frames = [frame for unit in units for frame in decoder.decode(*unit)]
    return [frame.pts for frame in frames + decoder.flush()]


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("lives", [0, 1, 14, 19])
def test_a_decoder_that_breaks_loses_no_picture_and_gives_none_twice(lives: int, b_frames: int) -> None:
    failures: list[str] = []
    decoder = SteadyDecoder(
        DEVICE, failed=lambda codec, _: failures.append(codec), make=decoders(lambda: DeviceDecoder(lives))
    )
    units = stream(25, b_frames=b_frames)
    assert decoded(decoder, units) == [90_000 + 3000 * index for index in range(25)]
    assert failures == [NVDEC]
    assert decoder.errors == 0


def test_a_decoder_that_breaks_at_the_end_gives_its_last_pictures() -> None:
    decoder = SteadyDecoder(DEVICE, make=decoders(lambda: DeviceDecoder(100)))
    assert decoded(decoder, stream(25, b_frames=2)) == [90_000 + 3000 * index for index in range(25)]


def test_far_from_a_key_frame_software_waits_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "KEPT_UNITS", 4)
    decoder = SteadyDecoder(DEVICE, make=decoders(lambda: DeviceDecoder(7)))
    shown = decoded(decoder, stream(25))
    assert shown == [90_000 + 3000 * index for index in (*range(7), *range(10, 25))]
    assert decoder.errors > 0


@without_device
def test_a_decoder_that_is_not_there_is_replaced_at_once() -> None:
    failures: list[str] = []
    decoder = Equipment(DEVICE, lambda codec, _: failures.append(codec)).decoder()
    assert failures == [NVDEC]
    assert len(decoded(decoder, stream(5))) == 5


class FailingContext:
    """libav's decoder, as it looks when each unit ends in one error."""

    def __init__(self, error: av.FFmpegError) -> None:
        self._error = error

    def decode(self, _: object) -> list[object]:
        raise self._error


def test_bad_input_is_the_streams_fault_and_all_else_the_devices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = VideoDecoder()
    monkeypatch.setattr(decoder, "_on_device", True)
    monkeypatch.setattr(decoder, "_context", FailingContext(InvalidDataError(1094995529, "Invalid data")))
    assert decoder.decode(b"\0\0\0\1", 0) == []
    assert decoder.errors == 1
    monkeypatch.setattr(decoder, "_context", FailingContext(broken()))
    with pytest.raises(DecoderBrokenError, match="external"):
        decoder.decode(b"\0\0\0\1", 0)
    monkeypatch.setattr(decoder, "_on_device", False)
    assert decoder.decode(b"\0\0\0\1", 0) == []
    assert decoder.errors == 2


def opened(encoder: str, **options: str) -> int | None:
    """The error, as a number, with which it does not open."""
    context = av.CodecContext.create(encoder, "w")
    assert isinstance(context, av.VideoCodecContext)
    context.width, context.height, context.pix_fmt, context.time_base = WIDTH, HEIGHT, "yuv420p", TICK
    context.options = options
    try:
        context.open()
    except av.FFmpegError as error:
        return error.errno
    return 0


@pytest.mark.parametrize("option", OPTIONS[NVENC])
def test_libav_knows_each_option_of_nvenc_and_takes_its_value(option: str) -> None:
    assert opened(NVENC, **{option: "nonsense"}) == EINVAL
    assert opened(NVENC, **{option: OPTIONS[NVENC][option]}) != EINVAL
