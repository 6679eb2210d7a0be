"""One track that a peer sends: its packets to frames, what is lost asked for, and how it arrives reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from aiortc.rate import RemoteBitrateEstimator

from services.ingest.transports.webrtc import h264_rtp, rtcp, vpx_rtp
from services.ingest.transports.webrtc.answer import Line
from services.ingest.transports.webrtc.jitter import Frame, JitterBuffer
from services.ingest.transports.webrtc.rtp import SEQUENCES, Packet, near

VIDEO_PATIENCE_S: Final = 0.15  # a retransmission over 100 ms of round trip comes in time
AUDIO_PATIENCE_S: Final = 0.06  # sound is not sent again, only late
AGAIN_S: Final = 0.03  # how often what is missing is asked for
KEYFRAME_S: Final = 0.3  # least time between two requests for a key frame
TAKE_OVER_S: Final = 1.0  # a source that was silent for so long may be replaced by another
BEGINS: Final = {
    "H264": h264_rtp.begins_keyframe,
    "VP8": vpx_rtp.vp8_begins_keyframe,
    "VP9": vpx_rtp.vp9_begins_keyframe,
}


class Reception:
    """Statistics of a source by RFC 3550 §6.4 and A.3."""

    def __init__(self, clock: int) -> None:
        self._clock = clock
        self._base: int | None = None
        self.highest = 0  # unwrapped
        self.received = 0
        self.bytes = 0
        self._jitter = 0.0
        self._transit: float | None = None
        self._expected_before = self._received_before = 0

    def add(self, sequence: int, packet: Packet, arrival_s: float) -> None:
        if self._base is None:
            self._base = self.highest = sequence
        self.highest = max(self.highest, sequence)
        self.received += 1
        self.bytes += len(packet.payload)
        transit = arrival_s * self._clock - packet.timestamp
        if self._transit is not None and abs(transit - self._transit) < 10 * self._clock:
            self._jitter += (abs(transit - self._transit) - self._jitter) / 16
        self._transit = transit

    @property
    def lost(self) -> int:
        return max(0, self._expected - self.received)

    @property
    def _expected(self) -> int:
        return 0 if self._base is None else self.highest - self._base + 1

    def report(self, ssrc: int, last_report: int, delay: int) -> rtcp.ReceptionReport:
        expected = self._expected - self._expected_before
        received = self.received - self._received_before
        self._expected_before, self._received_before = self._expected, self.received
        loss = max(0.0, (expected - received) / expected) if expected else 0.0
        return rtcp.ReceptionReport(
            ssrc, loss, self.lost, self.highest & 0xFFFFFFFF, round(self._jitter), last_report, delay
        )


class IncomingTrack:
    """`on_frame` gets what is complete; `send_rtcp` takes what is to be told to the sender."""

    def __init__(
        self,
        line: Line,
        *,
        rtcp_ssrc: int,
        send_rtcp: Callable[[bytes], None],
        on_frame: Callable[[Frame], None],
    ) -> None:
        assert line.format is not None
        self.ssrc: int | None = None
        self.kind = line.media.kind
        self._format = line.format
        self._rtx_type = line.rtx.payload_type if line.rtx is not None else None
        self._rtcp_ssrc = rtcp_ssrc
        self._send_rtcp = send_rtcp
        self._on_frame = on_frame
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._nacks = "nack" in line.format.feedback
        self._estimator = (
            RemoteBitrateEstimator()
            if "goog-remb" in line.format.feedback and line.abs_send_time is not None
            else None
        )
        self.estimate_bps: int | None = None
        self._heard_s = 0.0
        self._asked_s = -KEYFRAME_S
        self._last_report = 0
        self._last_report_s = 0.0
        self._begin()

    def _begin(self) -> None:
        self.reception = Reception(self._format.clock)
        video = self.kind == "video"
        self._buffer = JitterBuffer(
            patience_s=VIDEO_PATIENCE_S if video else AUDIO_PATIENCE_S,
            begins=BEGINS[self._format.name] if video else None,
        )
        self._sequence: int | None = None
        self._given_up = 0

    @property
    def payload_types(self) -> tuple[int, ...]:
        own = self._format.payload_type
        return (own,) if self._rtx_type is None else (own, self._rtx_type)

    def receive(self, packet: Packet, now_s: float) -> None:
        """Take one packet of one of our payload types."""
        if packet.payload_type == self._rtx_type:
            if self.ssrc is None or len(packet.payload) < 2:
                return  # RFC 4588 §4: without the two bytes it is padding
            packet.sequence = int.from_bytes(packet.payload[:2], "big")
            packet.payload = packet.payload[2:]
        elif not self._mine(packet, now_s):
            return
        else:
            self._heard_s = now_s
        sequence = (
            packet.sequence if self._sequence is None else near(self._sequence, packet.sequence, SEQUENCES)
        )
        self._sequence = sequence if self._sequence is None else max(self._sequence, sequence)
        if packet.payload_type == self._format.payload_type:
            self.reception.add(sequence, packet, now_s)
        if self._estimator is not None and packet.send_time is not None:
            self._weigh(packet, now_s)
        self._deliver(self._buffer.add(sequence, packet, now_s))
        if self._timer is None and self._buffer.due_s is not None:
            self._look_for_missing()

    def _mine(self, packet: Packet, now_s: float) -> bool:
        """Whether it is of the source that is listened to; another may follow when that has gone silent."""
        if self.ssrc != packet.ssrc:
            if self.ssrc is not None and now_s - self._heard_s < TAKE_OVER_S:
                return False
            self.ssrc = packet.ssrc
            self._begin()
        return True

    def _weigh(self, packet: Packet, now_s: float) -> None:
        assert self._estimator is not None
        assert self.ssrc is not None
        assert packet.send_time is not None
        found = self._estimator.add(
            arrival_time_ms=int(now_s * 1000),
            abs_send_time=packet.send_time,
            payload_size=len(packet.payload),
            ssrc=self.ssrc,
        )
        if found is not None:
            self.estimate_bps = found[0]
            self._send_rtcp(rtcp.receiver_estimate(self._rtcp_ssrc, self.ssrc, found[0]))

    def _deliver(self, frames: list[Frame]) -> None:
        for frame in frames:
            self._on_frame(frame)
        if self._buffer.given_up > self._given_up:
            self._given_up = self._buffer.given_up
            self.ask_keyframe()

    def _look_for_missing(self) -> None:
        """Ask again for what is missing, or give it up; then again, as long as something is."""
        self._timer = None
        now_s = self._loop.time()
        self._deliver(self._buffer.expire(now_s))
        due_s = self._buffer.due_s
        if due_s is None:
            return
        if self._nacks and self.ssrc is not None and (missing := self._buffer.missing()):
            self._send_rtcp(rtcp.nack(self._rtcp_ssrc, self.ssrc, missing))
        self._timer = self._loop.call_at(min(due_s, now_s + AGAIN_S), self._look_for_missing)

    def ask_keyframe(self) -> None:
        """Ask for a key frame, unless that was just done."""
        now_s = self._loop.time()
        if self.kind == "video" and self.ssrc is not None and now_s - self._asked_s >= KEYFRAME_S:
            self._asked_s = now_s
            self._send_rtcp(rtcp.picture_loss(self._rtcp_ssrc, self.ssrc))

    def take_report(self, report: rtcp.SenderReport, now_s: float) -> None:
        if report.ssrc == self.ssrc:
            self._last_report, self._last_report_s = rtcp.middle(report.ntp), now_s

    def report(self, now_s: float) -> rtcp.ReceptionReport | None:
        if self.ssrc is None:
            return None
        delay = round((now_s - self._last_report_s) * 65_536) & 0xFFFFFFFF if self._last_report else 0
        return self.reception.report(self.ssrc, self._last_report, delay)

    @property
    def given_up(self) -> int:
        return self._buffer.given_up

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
