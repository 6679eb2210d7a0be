"""H.264, VP8 and VP9 in RTP, with aiortc's packers as the other side's."""

from __future__ import annotations

from aiortc.codecs.h264 import H264PayloadDescriptor
from aiortc.codecs.vpx import Vp8Encoder, VpxPayloadDescriptor
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.h264 import START_CODE, is_keyframe, strip_delimiter
from services.ingest.transports.webrtc import h264_rtp, vpx_rtp
from services.ingest.transports.webrtc.rtp import PAYLOAD_BYTES
from tests.support.media import pictures

# A NAL unit never holds a start code, and never ends in a zero.
body = st.binary(max_size=40).map(lambda data: data.replace(b"\0", b"\1"))
nal = st.tuples(st.sampled_from([1, 5, 6, 7, 8]), body, st.integers(0, 4)).map(
    lambda each: bytes((0x60 | each[0],)) + each[1] + b"\x55" * (each[2] * 900) + b"\1"
)


@given(st.lists(nal, min_size=1, max_size=6))
def test_a_picture_comes_out_as_it_went_in(units: list[bytes]) -> None:
    picture = b"".join(START_CODE + unit for unit in units)
    payloads = h264_rtp.payloads(picture)
    assert all(len(payload) <= PAYLOAD_BYTES for payload in payloads)
    assert h264_rtp.picture(payloads) == picture


@given(st.lists(nal, min_size=1, max_size=6))
def test_another_implementation_reads_the_payloads(units: list[bytes]) -> None:
    picture = b"".join(START_CODE + unit for unit in units)
    read = b"".join(H264PayloadDescriptor.parse(payload)[1] for payload in h264_rtp.payloads(picture))
    assert read == picture


def test_the_delimiter_is_left_out_and_the_parts_of_a_large_unit_are_of_one_size() -> None:
    delimited = START_CODE + b"\x09\xf0" + START_CODE + b"\x65" + b"\x11" * 3000
    payloads = h264_rtp.payloads(delimited)
    assert h264_rtp.picture(payloads) == strip_delimiter(delimited)
    assert len({len(payload) for payload in payloads}) == 1


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_payloads_are_a_picture_or_none(payloads: list[bytes]) -> None:
    h264_rtp.picture(payloads)
    vpx_rtp.vp8_frame(payloads)
    vpx_rtp.vp9_frame(payloads)
    for payload in payloads:
        h264_rtp.begins_keyframe(payload)
        vpx_rtp.vp8_begins_keyframe(payload)
        vpx_rtp.vp9_begins_keyframe(payload)


def test_a_picture_with_a_part_missing_is_none() -> None:
    payloads = h264_rtp.payloads(START_CODE + b"\x65" + b"\x11" * 5000)
    assert len(payloads) > 3
    for missing in (0, len(payloads) - 1):
        assert h264_rtp.picture(payloads[:missing] + payloads[missing + 1 :]) is None


def test_a_key_frame_is_known_by_its_first_payload() -> None:
    for unit in pictures(3):
        payloads = h264_rtp.payloads(unit.data)
        assert h264_rtp.begins_keyframe(payloads[0]) == unit.keyframe
        assert is_keyframe(h264_rtp.picture(payloads) or b"") == unit.keyframe


@given(st.binary(min_size=1, max_size=4000))
def test_vp8_comes_out_as_it_went_in(frame: bytes) -> None:
    payloads = vpx_rtp.vp8_payloads(frame)
    assert vpx_rtp.vp8_frame(payloads) == frame
    assert vpx_rtp.vp8_begins_keyframe(payloads[0]) == vpx_rtp.vp8_is_keyframe(frame)
    assert b"".join(VpxPayloadDescriptor.parse(payload)[1] for payload in payloads) == frame
    assert not any(vpx_rtp.vp8_begins_keyframe(payload) for payload in payloads[1:])


@given(st.binary(min_size=1, max_size=4000), st.integers(0, 32_767))
def test_vp8_with_picture_ids_is_read(frame: bytes, picture: int) -> None:
    payloads = Vp8Encoder._packetize(frame, picture)
    assert vpx_rtp.vp8_frame(payloads) == frame


def test_vp9_descriptors_are_skipped() -> None:
    # I, P, L, F, B, E, V, Z: RFC 9628 §4.2
    plain = b"\x8c\x85\x01" + b"frame"  # picture id of two bytes, begin and end
    layered = b"\xac\x05\x00\x07" + b"frame"  # not flexible: layers and TL0PICIDX
    flexible = b"\xdc\x05\x03\x02" + b"frame"  # two references
    structured = b"\x8e\x05\x18\x02\x00\x02\x00\x01\x04\x09" + b"frame"
    for payload in (plain, layered, flexible, structured):
        assert vpx_rtp.vp9_frame([payload]) == b"frame", payload.hex()
    assert vpx_rtp.vp9_begins_keyframe(plain)
    assert not vpx_rtp.vp9_begins_keyframe(flexible)  # predicted
