"""RTP and RTCP, with aiortc's as the other side's."""

from __future__ import annotations

import aiortc.rtp as other
import pytest
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters, RTCRtpParameters
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.transports.webrtc import rtcp
from services.ingest.transports.webrtc.rtp import SEQUENCES, near, parse
from tests.unit.ingest.webrtc.offers import ABS_SEND_TIME


def extensions(number: int) -> other.HeaderExtensionsMap:
    made = other.HeaderExtensionsMap()
    made.configure(
        RTCRtpParameters(headerExtensions=[RTCRtpHeaderExtensionParameters(id=number, uri=ABS_SEND_TIME)])
    )
    return made


@given(
    st.integers(0, 127),
    st.booleans(),
    st.integers(0, 65_535),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=50),
    st.one_of(st.none(), st.integers(0, 2**24 - 1)),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
    st.integers(0, 20),
)
def test_packets_of_another_implementation_are_read(
    kind: int,
    marker: bool,
    sequence: int,
    timestamp: int,
    ssrc: int,
    payload: bytes,
    send_time: int | None,
    sources: list[int],
    padding: int,
) -> None:
    packet = other.RtpPacket(kind, int(marker), sequence, timestamp, ssrc, payload)
    packet.csrc = sources
    packet.extensions.abs_send_time = send_time
    packet.padding_size = padding
    found = parse(packet.serialize(extensions(3)), 3)
    assert found is not None
    assert (found.payload_type, found.marker, found.sequence) == (kind, marker, sequence)
    assert (found.timestamp, found.ssrc, found.payload) == (timestamp, ssrc, payload)
    assert found.send_time == send_time


@given(st.binary(max_size=100), st.integers(0, 255))
def test_any_bytes_are_a_packet_or_none(data: bytes, first: int) -> None:
    parse(data, 2)
    parse(bytes((0x80 | first & 0x3F,)) + data, 2)
    list(rtcp.parse(data))
    list(rtcp.parse(bytes((0x80 | first & 0x3F, 200 + first % 8)) + data))


@given(st.integers(0, 10 * SEQUENCES), st.integers(-30_000, 30_000))
def test_the_nearest_number_undoes_the_wrap(previous: int, step: int) -> None:
    assert near(previous, (previous + step) % SEQUENCES, SEQUENCES) == previous + step


def test_what_is_said_of_what_is_sent_is_understood() -> None:
    made = rtcp.sender_report(7, ntp=5 << 32, timestamp=9, packets=3, octets=4, cname="name")
    report, description = other.RtcpPacket.parse(made)
    assert isinstance(report, other.RtcpSrPacket)
    assert (report.ssrc, report.sender_info.ntp_timestamp, report.sender_info.rtp_timestamp) == (
        7,
        5 << 32,
        9,
    )
    assert isinstance(description, other.RtcpSdesPacket)
    assert description.chunks[0].items == [(1, b"name")]
    assert list(rtcp.parse(made)) == [rtcp.SenderReport(7, 5 << 32, 9)]


def test_what_is_said_of_what_is_received_is_understood() -> None:
    told = rtcp.ReceptionReport(5, 0.25, 100, 70_000, 12, 34, 56)
    made = rtcp.receiver_report(7, [told])
    (report,) = other.RtcpPacket.parse(made)
    assert isinstance(report, other.RtcpRrPacket)
    assert report.reports[0].fraction_lost == 64
    assert report.reports[0].packets_lost == 100
    assert list(rtcp.parse(made)) == [told]


@given(st.lists(st.integers(0, 200), min_size=1, unique=True).map(sorted), st.integers(65_400, 65_600))
def test_requests_for_packets_are_understood(offsets: list[int], base: int) -> None:
    sequences = [base + offset for offset in offsets]
    made = rtcp.nack(1, 2, sequences)
    (report,) = other.RtcpPacket.parse(made)
    assert isinstance(report, other.RtcpRtpfbPacket)
    expected = {sequence & 0xFFFF for sequence in sequences}
    assert {sequence & 0xFFFF for sequence in report.lost} == expected
    (mine,) = rtcp.parse(made)
    assert isinstance(mine, rtcp.Lost)
    assert (mine.ssrc, set(mine.sequences)) == (2, expected)


@pytest.mark.parametrize("rate", [0, 1, 262_143, 262_144, 1_500_000, 2_000_000_000])
def test_an_estimate_is_understood(rate: int) -> None:
    made = rtcp.receiver_estimate(1, 2, rate)
    (report,) = other.RtcpPacket.parse(made)
    assert isinstance(report, other.RtcpPsfbPacket)
    said, sources = other.unpack_remb_fci(report.fci)
    assert sources == [2]
    assert said == pytest.approx(rate, rel=1e-4)
    assert list(rtcp.parse(made)) == [rtcp.ReceiverEstimate(said, (2,))]


def test_key_frames_are_asked_for_in_both_ways() -> None:
    (asked,) = other.RtcpPacket.parse(rtcp.picture_loss(1, 2))
    assert isinstance(asked, other.RtcpPsfbPacket)
    assert (asked.fmt, asked.media_ssrc) == (other.RTCP_PSFB_PLI, 2)
    full = other.RtcpPsfbPacket(fmt=other.RTCP_PSFB_FIR, ssrc=1, media_ssrc=0, fci=b"\0\0\0\2\7\0\0\0")
    for made in (rtcp.picture_loss(1, 2), bytes(full)):
        assert list(rtcp.parse(made)) == [rtcp.KeyframeWanted(2)]


def test_a_good_bye_is_understood() -> None:
    (said,) = other.RtcpPacket.parse(rtcp.bye([1, 2]))
    assert isinstance(said, other.RtcpByePacket)
    assert said.sources == [1, 2]
    assert list(rtcp.parse(rtcp.bye([1, 2]))) == [rtcp.Bye((1, 2))]


def test_a_damaged_rest_costs_only_itself() -> None:
    made = rtcp.picture_loss(1, 2) + b"\x81\xce\xff\xff"
    assert list(rtcp.parse(made)) == [rtcp.KeyframeWanted(2)]
