from __future__ import annotations

from fractions import Fraction

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media import h264

DELIMITER = b"\x00\x00\x00\x01\x09\xf0"
SETS = b"\x00\x00\x00\x01\x67\x42\xc0\x1e" + b"\x00\x00\x00\x01\x68\xce"
IDR = b"\x00\x00\x01\x65\x88\x84"
INTER = b"\x00\x00\x00\x01\x41\x9a"


def encoded_key_frame(
    width: int, height: int, profile: str, pix_fmt: str, *, interlaced: bool = False
) -> bytes:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, pix_fmt
    encoder.time_base = Fraction(1, 30)
    encoder.options = {"preset": "ultrafast", "tune": "zerolatency", "profile": profile}
    if interlaced:
        encoder.options |= {"x264-params": "interlaced=1"}
    frame = av.VideoFrame(width, height, pix_fmt)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def test_nal_units_are_found_behind_both_start_codes() -> None:
    data = b"\x00\x00\x01\x09\xf0" + b"\x00\x00\x00\x01\x67\x42" + b"\x00\x00\x01\x65\x00\x00\x03\x01\x88"
    assert list(h264.nal_units(data)) == [b"\x09\xf0", b"\x67\x42", b"\x65\x00\x00\x03\x01\x88"]


def test_data_without_start_codes_has_no_nal_units() -> None:
    assert list(h264.nal_units(b"\x65\x88\x00\x00\x02")) == []
    assert list(h264.nal_units(b"\x00\x00\x01\x00\x00\x01")) == []


def test_only_an_idr_is_a_key_frame() -> None:
    assert h264.is_keyframe(DELIMITER + SETS + IDR)
    assert h264.is_keyframe(IDR)
    assert not h264.is_keyframe(DELIMITER + INTER)
    assert not h264.is_keyframe(SETS)
    assert not h264.is_keyframe(b"")
    assert not h264.is_keyframe(b"\x00\x00\x01")


def test_what_stands_before_a_picture_is_none_of_it() -> None:
    assert not h264.has_slice(b"")
    assert not h264.has_slice(DELIMITER + SETS + b"\x00\x00\x01\x06\x05\x01")
    assert not h264.has_slice(b"\x00\x00\x01")
    assert h264.has_slice(DELIMITER + INTER)
    assert h264.has_slice(SETS + IDR)


def test_parameter_sets_are_taken_out_of_a_picture() -> None:
    picture = DELIMITER + SETS + b"\x00\x00\x01\x06\x05\x01" + IDR
    assert h264.parameter_sets(picture) == SETS
    assert h264.parameter_sets(IDR) == b""


def test_an_sps_alone_is_not_enough_to_decode() -> None:
    assert h264.has_parameter_sets(SETS + IDR)
    assert not h264.has_parameter_sets(SETS[:8] + IDR)
    assert not h264.has_parameter_sets(IDR)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (IDR, SETS + IDR),
        (DELIMITER + IDR, DELIMITER + SETS + IDR),
        (b"\x00\x00\x01\x09\x10" + IDR, b"\x00\x00\x01\x09\x10" + SETS + IDR),
        (DELIMITER + SETS + IDR, DELIMITER + SETS + IDR),
    ],
)
def test_missing_parameter_sets_go_behind_the_delimiter(picture: bytes, expected: bytes) -> None:
    assert h264.ensure_parameter_sets(picture, SETS) == expected


def test_only_a_leading_delimiter_is_stripped() -> None:
    assert h264.strip_delimiter(DELIMITER + IDR) == IDR
    assert h264.strip_delimiter(b"\x00\x00\x01\x09\x10" + INTER) == INTER
    assert h264.strip_delimiter(IDR) == IDR
    assert h264.strip_delimiter(DELIMITER) == DELIMITER


@pytest.mark.parametrize("size", [(512, 512), (1280, 720), (1920, 1080), (854, 480), (66, 34), (16, 16)])
@pytest.mark.parametrize(
    ("profile", "pix_fmt"),
    [("baseline", "yuv420p"), ("high", "yuv420p"), ("high422", "yuv422p"), ("high444", "yuv444p")],
)
def test_the_size_of_what_x264_encodes_is_read(size: tuple[int, int], profile: str, pix_fmt: str) -> None:
    assert h264.picture_size(encoded_key_frame(*size, profile, pix_fmt)) == size


def test_the_size_of_interlaced_video_is_read() -> None:
    assert h264.picture_size(encoded_key_frame(640, 360, "high", "yuv420p", interlaced=True)) == (640, 360)


def test_a_scaling_matrix_and_picture_order_type_1_are_read_over() -> None:
    flat_list = "1" + "1" * 16  # present, 16 deltas of 0
    default_list = "1" + "000010001"  # present, first delta -8: the rest is not sent
    order = "010" + "1" + "1" + "1" + "011" + "1" + "1"  # type 1, two offsets
    sps = "".join(
        (
            f"{100:08b}" + "0" * 8 + f"{30:08b}",
            "1" + "010" + "1" + "1" + "0",
            "1" + flat_list + default_list + "0" * 6,
            "1" + order + "010" + "0",  # frame numbers, order, one reference, no gaps
            "0001010" + "00110" + "1" + "1" + "0" + "0",  # 10 x 6 macroblocks, frames only, no crop, no VUI
            "1",
        )
    )
    sps += "0" * (-len(sps) % 8)
    data = b"\x00\x00\x01\x67" + int(sps, 2).to_bytes(len(sps) // 8, "big")
    assert h264.picture_size(data) == (160, 96)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        IDR,
        b"\x00\x00\x01\x67",
        b"\x00\x00\x01\x67\x42",
        b"\x00\x00\x01\x67\x42\x00\x1e" + b"\x00\x00\x03" * 3 + b"\x01",
        b"\x00\x00\x01\x67" + b"\xff" * 600,
    ],
)
def test_a_size_that_cannot_be_read_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidError):
        h264.picture_size(data)


@given(st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_a_garbled_sps_is_invalid_or_a_size(garbage: bytes) -> None:
    try:
        width, height = h264.picture_size(b"\x00\x00\x01\x67" + garbage)
    except InvalidError:
        return
    assert 0 < width <= h264.LARGEST_SIDE
    assert 0 < height <= h264.LARGEST_SIDE


@given(
    st.lists(st.sampled_from([b"\x00", b"\x01", b"\x65", b"\x67", b"\x68", b"\x09", b"\x41", SETS, IDR])).map(
        b"".join
    )
)
@settings(deadline=None)
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    h264.is_keyframe(data)
    h264.has_parameter_sets(data)
    assert h264.is_keyframe(h264.ensure_parameter_sets(data, SETS)) == h264.is_keyframe(data)
    assert all(b"\x00\x00\x01" not in nal for nal in h264.nal_units(data))
