"""A track that is received and one that is sent, each against the other, over a network that loses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import pytest

from services.common.media.mpegts import CLOCK_HZ
from services.ingest.transports.webrtc import h264_rtp, rtcp, rtp
from services.ingest.transports.webrtc.answer import PLAYOUT_DELAY, Line, plan
from services.ingest.transports.webrtc.incoming import KEYFRAME_S, TAKE_OVER_S, IncomingTrack
from services.ingest.transports.webrtc.jitter import Frame
from services.ingest.transports.webrtc.outgoing import AGAIN_S, HISTORY, OutgoingTrack
from services.ingest.transports.webrtc.sdp import parse_offer
from tests.support.media import FRAME, pictures
from tests.unit.ingest.webrtc.offers import h264, offer, opus, section


def line(kind: str = "video", *, rtx: bool = True) -> Line:
    formats = opus() if kind == "audio" else h264(96, rtx=97 if rtx else None)
    sections = [section("video", "0", h264(96)), section(kind, "1", formats)]
    found = plan(parse_offer(offer(*sections[kind == "video" :])), publish=True, watch=False).receiving(kind)
    assert found is not None
    return found


def outgoing(send: Callable[[bytes], bool], kind: str = "video", *, rtx: bool = True) -> OutgoingTrack:
    return OutgoingTrack(line(kind, rtx=rtx), ssrc=1, rtx_ssrc=2, cname="name", send=send)


def parsed(packets: list[bytes]) -> list[rtp.Packet]:
    found = [rtp.parse(packet, 2) for packet in packets]
    assert all(found)
    return [packet for packet in found if packet is not None]


def keeping(packets: list[bytes]) -> Callable[[bytes], bool]:
    def keep(packet: bytes) -> bool:
        packets.append(packet)
        return True

    return keep


# --- sent


def test_units_become_packets_in_a_row_with_the_marker_on_the_last() -> None:
    packets: list[bytes] = []
    track = outgoing(keeping(packets))
    assert track.send([b"a", b"b"], CLOCK_HZ, 5.0)
    assert track.send([b"c"], CLOCK_HZ + FRAME, 5.0)
    first, second, third = parsed(packets)
    assert [packet.payload for packet in (first, second, third)] == [b"a", b"b", b"c"]
    assert [packet.marker for packet in (first, second, third)] == [False, True, True]
    assert second.sequence == (first.sequence + 1) & 0xFFFF
    assert first.timestamp == second.timestamp
    assert (third.timestamp - first.timestamp) % rtp.TIMESTAMPS == FRAME
    assert first.send_time == 5 << 18


def test_a_browser_is_asked_to_show_pictures_as_they_come() -> None:
    text = offer(section("video", "0", h264(96), direction="recvonly"))
    text = text.replace("a=rtcp-mux", f"a=extmap:7 {PLAYOUT_DELAY}\r\na=rtcp-mux")
    found = plan(parse_offer(text), publish=False, watch=True).sending("video")
    assert found is not None
    packets: list[bytes] = []
    OutgoingTrack(found, ssrc=1, rtx_ssrc=2, cname="name", send=keeping(packets)).send([b"a"], 0, 5.0)
    (packet,) = parsed(packets)
    assert (packet.send_time, packet.payload) == (5 << 18, b"a")
    # Behind the send time: the extension's number and length, no least delay, at most half a second.
    assert packets[0][20:24] == bytes((7 << 4 | 2, 0, 0, 50))


def test_sound_counts_in_its_own_clock() -> None:
    packets: list[bytes] = []
    track = outgoing(keeping(packets), "audio")
    for index in range(3):
        track.send([b"o"], 90_000 + index * 1800, 0.0)
    found = parsed(packets)
    steps = {(found[index + 1].timestamp - found[index].timestamp) % rtp.TIMESTAMPS for index in range(2)}
    assert steps == {960}
    assert not any(packet.marker for packet in found)


def test_what_was_lost_is_sent_again_on_its_own_source_but_not_at_once_again() -> None:
    packets: list[bytes] = []
    track = outgoing(keeping(packets))
    track.send([b"a", b"b"], 0, 0.0)
    lost = parsed(packets)[1]
    for now_s in (1.0, 1.0 + AGAIN_S / 2, 1.0 + 2 * AGAIN_S):
        track.repeat([lost.sequence, 60_000], now_s, 0.0)
    again = parsed(packets)[2:]
    assert len(again) == 2
    assert {packet.ssrc for packet in again} == {2}
    assert {packet.payload_type for packet in again} == {97}
    assert again[0].payload == lost.sequence.to_bytes(2, "big") + b"b"
    assert (again[0].timestamp, again[0].marker) == (lost.timestamp, lost.marker)
    assert track.repeated == 2


def test_without_rtx_the_very_packet_is_sent_again() -> None:
    packets: list[bytes] = []
    track = outgoing(keeping(packets), rtx=False)
    track.send([b"a"], 0, 7.0)
    track.repeat([parsed(packets)[0].sequence], 9.0, 99.0)
    assert packets[1] == packets[0]


def test_old_packets_are_forgotten() -> None:
    packets: list[bytes] = []
    track = outgoing(keeping(packets))
    track.send([b"old"], 0, 0.0)
    track.send([b"x"] * HISTORY, 1, 0.0)
    track.repeat([parsed(packets)[0].sequence], 1.0, 0.0)
    assert track.repeated == 0


def test_that_a_packet_could_not_leave_is_told() -> None:
    track = outgoing(lambda packet: False)
    assert not track.send([b"a"], 0, 0.0)


def test_reports_give_the_round_trip() -> None:
    track = outgoing(lambda packet: True)
    (said,) = rtcp.parse(track.report(CLOCK_HZ, 10.0, 1000.0))
    assert isinstance(said, rtcp.SenderReport)
    answer = rtcp.ReceptionReport(1, 0.5, 3, 0, 0, rtcp.middle(said.ntp), 65_536 // 2)
    track.take_report(answer, 10.7)
    assert track.rtt_s == pytest.approx(0.2)
    assert track.loss == 0.5


# --- received


class Receiver:
    """A track, and what it gave out and asked for."""

    def __init__(self, kind: str = "video") -> None:
        self.frames: list[Frame] = []
        self.asked: list[rtcp.Report] = []
        self.track = IncomingTrack(line(kind), rtcp_ssrc=9, send_rtcp=self._ask, on_frame=self.frames.append)

    def _ask(self, packet: bytes) -> None:
        self.asked += rtcp.parse(packet)

    def take(self, packet: bytes) -> None:
        found = rtp.parse(packet, 2)
        assert found is not None
        self.track.receive(found, asyncio.get_running_loop().time())

    def of(self, kind: type[rtcp.Report]) -> list[rtcp.Report]:
        return [report for report in self.asked if isinstance(report, kind)]


def sent(count: int) -> tuple[OutgoingTrack, list[bytes]]:
    """`count` pictures as packets, one each, the first a key frame."""
    packets: list[bytes] = []
    track = outgoing(keeping(packets))
    for unit in pictures(count):
        payloads = h264_rtp.payloads(unit.data)
        assert len(payloads) == 1
        track.send(payloads, unit.pts, unit.pts / CLOCK_HZ)
    return track, packets


@pytest.mark.looptime
async def test_a_lost_packet_is_asked_for_at_once_and_comes_by_rtx() -> None:
    sender, packets = sent(4)
    receiver = Receiver()
    receiver.take(packets[0])
    receiver.take(packets[2])
    (lost,) = receiver.of(rtcp.Lost)
    assert isinstance(lost, rtcp.Lost)
    sender.repeat(lost.sequences, 1.0, 0.0)
    receiver.take(packets[-1])
    assert len(receiver.frames) == 3
    assert not receiver.of(rtcp.KeyframeWanted)
    receiver.track.close()


@pytest.mark.looptime
async def test_what_does_not_come_is_asked_for_again_and_then_given_up_for_a_key_frame() -> None:
    _, packets = sent(30)
    receiver = Receiver()
    receiver.take(packets[0])
    receiver.take(packets[2])
    await asyncio.sleep(0.1)
    assert len(receiver.of(rtcp.Lost)) >= 3
    assert not receiver.of(rtcp.KeyframeWanted)
    await asyncio.sleep(0.1)
    assert len(receiver.of(rtcp.KeyframeWanted)) == 1
    for packet in packets[3:]:
        receiver.take(packet)
    assert [frame.after_loss for frame in receiver.frames] == [False, True, False, False, False, False]
    receiver.track.close()


@pytest.mark.looptime
async def test_key_frames_are_asked_for_with_some_time_between() -> None:
    _, packets = sent(1)
    receiver = Receiver()
    receiver.track.ask_keyframe()
    assert not receiver.asked  # there is nobody yet
    receiver.take(packets[0])
    for _ in range(5):
        receiver.track.ask_keyframe()
    assert len(receiver.asked) == 1
    await asyncio.sleep(KEYFRAME_S)
    receiver.track.ask_keyframe()
    assert len(receiver.asked) == 2


@pytest.mark.looptime
async def test_another_source_takes_over_when_the_first_has_gone() -> None:
    _, packets = sent(3)
    others = [packet[:8] + b"\0\0\0\7" + packet[12:] for packet in packets]
    receiver = Receiver()
    receiver.take(packets[0])
    receiver.take(others[0])
    assert len(receiver.frames) == 1
    await asyncio.sleep(TAKE_OVER_S + 0.1)
    for packet in others:
        receiver.take(packet)
    assert len(receiver.frames) == 4
    assert receiver.track.ssrc == 7


@pytest.mark.looptime
async def test_reports_tell_what_was_lost() -> None:
    _, packets = sent(10)
    receiver = Receiver()
    assert receiver.track.report(0.0) is None
    for index, packet in enumerate(packets):
        if index not in {3, 5}:
            receiver.take(packet)
    receiver.track.take_report(rtcp.SenderReport(1, 77 << 16, 0), 1.0)
    report = receiver.track.report(1.5)
    assert report is not None
    assert report.lost == pytest.approx(0.2)
    assert report.total_lost == 2
    assert (report.last_report, report.delay) == (77, 32_768)
    later = receiver.track.report(2.0)
    assert later is not None
    assert later.lost == 0.0
    receiver.track.close()


@pytest.mark.looptime
async def test_over_a_bad_network_every_picture_that_comes_out_is_one_that_went_in() -> None:
    random = Random(7)
    receiver = Receiver()
    loop = asyncio.get_running_loop()

    def lossy(packet: bytes) -> bool:
        if random.random() > 0.05:
            loop.call_later(0.02 + random.random() * 0.02, receiver.take, packet)
        return True

    sender = outgoing(lossy)
    went = pictures(100, every=25)
    for unit in went:
        sender.send(h264_rtp.payloads(unit.data), unit.pts, loop.time())
        await asyncio.sleep(0.04)
        for report in receiver.asked:
            if isinstance(report, rtcp.Lost):
                sender.repeat(report.sequences, loop.time(), loop.time())
        receiver.asked.clear()
    await asyncio.sleep(1)
    came = [h264_rtp.picture(frame.payloads) for frame in receiver.frames]
    assert len(came) > 90
    assert set(came) <= {h264_rtp.picture(h264_rtp.payloads(unit.data)) for unit in went}
    receiver.track.close()
