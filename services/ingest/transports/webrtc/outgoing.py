"""One track that a peer is sent: sequence numbers, what may be asked for again, and reports. One per viewer.

Payloads are made once for all viewers; what is a viewer's own is twelve bytes of header, or twenty.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

from services.ingest.transports.webrtc import rtcp
from services.ingest.transports.webrtc.answer import Line
from services.ingest.transports.webrtc.rtp import (
    EXTENDED,
    HEADER,
    MARKER,
    ONE_BYTE_EXTENSIONS,
    TIMESTAMPS,
    VERSION,
    WITH_EXTENSIONS,
)

HISTORY: Final = 1024  # packets for retransmission: 1.9 s of 5 Mbit/s
AGAIN_S: Final = 0.02  # a packet is not sent again more often: two requests for it crossed
MOST_AGAIN: Final = 64  # packets that one report makes us send
REMEMBERED_REPORTS: Final = 8
SMOOTHING: Final = 0.25
# At least 0 and at most 500 ms (12 bits each, in 10 ms): within these Chromium shows a picture as it comes,
# unless its sound holds it back, and else evens out their pace. On a busy machine that took 77 ms.
PLAYOUT_DELAY: Final = 0 << 12 | 50
SEND_TIME_MASK: Final = 0xFFFFFF

_Sent = tuple[int, int, int, bytes, bytes]


class OutgoingTrack:
    """`send` takes whole RTP packets and says whether they left."""

    def __init__(
        self, line: Line, *, ssrc: int, rtx_ssrc: int, cname: str, send: Callable[[bytes], bool]
    ) -> None:
        assert line.format is not None
        self.ssrc = ssrc
        self.kind = line.media.kind
        self.codec = line.format.name
        self.rtt_s: float | None = None
        self.loss = 0.0
        self.packets = self.bytes = self.repeated = 0
        self._clock = line.format.clock
        self._payload_type = line.format.payload_type
        self._rtx_type = line.rtx.payload_type if line.rtx is not None else None
        self._rtx_ssrc = rtx_ssrc
        self._cname = cname
        self._send = send
        self._send_time = line.abs_send_time
        self._playout = b""
        if line.playout_delay is not None:
            self._playout = (line.playout_delay << 28 | 2 << 24 | PLAYOUT_DELAY).to_bytes(4, "big")
        # In the lower half, for a number that wraps soon after the first packet confuses SRTP.
        self._sequence = secrets.randbelow(1 << 15)
        self._rtx_sequence = secrets.randbelow(1 << 15)
        self._origin = secrets.randbits(32)
        # What may be asked for: sequence number, timestamp, marker, payload, and where there is no RTX to
        # send it again by, the packet itself: SRTP must not see two different packets with the same number.
        self._history: list[_Sent | None] = [None] * (HISTORY if "nack" in line.format.feedback else 0)
        self._repeated_s: dict[int, float] = {}
        self._reported: dict[int, float] = {}  # when the report with these middle bits was sent

    def send(self, payloads: Sequence[bytes], ticks: int, unix_s: float) -> bool:
        """Send one unit at `ticks` (90 kHz); False when a packet of it could not leave."""
        timestamp = self._timestamp(ticks)
        extensions = self._extensions(unix_s)
        last = len(payloads) - 1
        left = True
        for index, payload in enumerate(payloads):
            second = self._payload_type | (MARKER if index == last and self.kind == "video" else 0)
            packet = self._header(second, self._sequence, timestamp, self.ssrc, extensions) + payload
            left &= self._send(packet)
            if self._history:
                kept = packet if self._rtx_type is None else b""
                self._history[self._sequence % HISTORY] = (
                    self._sequence,
                    timestamp,
                    second & MARKER,
                    payload,
                    kept,
                )
            self._sequence = (self._sequence + 1) & 0xFFFF
            self.bytes += len(payload)
        self.packets += len(payloads)
        return left

    def _timestamp(self, ticks: int) -> int:
        return (ticks * self._clock // 90_000 + self._origin) % TIMESTAMPS

    def _header(self, second: int, sequence: int, timestamp: int, ssrc: int, extensions: bytes) -> bytes:
        if not extensions:
            return HEADER.pack(VERSION, second, sequence, timestamp, ssrc)
        words = len(extensions) // 4
        head = WITH_EXTENSIONS.pack(
            VERSION | EXTENDED, second, sequence, timestamp, ssrc, ONE_BYTE_EXTENSIONS, words
        )
        return head + extensions

    def _extensions(self, unix_s: float) -> bytes:
        """The header extensions of what is sent now; each is three bytes behind one of its own."""
        if self._send_time is None:
            return self._playout
        ticks = int(unix_s * (1 << 18)) & SEND_TIME_MASK
        return (self._send_time << 28 | 2 << 24 | ticks).to_bytes(4, "big") + self._playout

    def repeat(self, sequences: Sequence[int], now_s: float, unix_s: float) -> None:
        """Send again what was lost, as far as it is remembered: RFC 4588."""
        if len(self._repeated_s) > HISTORY:
            self._repeated_s.clear()
        extensions = self._extensions(unix_s)
        for sequence in sequences[:MOST_AGAIN] if self._history else ():
            held = self._history[sequence % HISTORY]
            if held is None or held[0] != sequence:
                continue
            before_s = self._repeated_s.get(sequence)
            if before_s is not None and now_s - before_s < AGAIN_S:
                continue
            self._repeated_s[sequence] = now_s
            self._repeat(held, extensions)

    def _repeat(self, held: _Sent, extensions: bytes) -> None:
        sequence, timestamp, marker, payload, packet = held
        if self._rtx_type is not None:
            second = self._rtx_type | marker
            header = self._header(second, self._rtx_sequence, timestamp, self._rtx_ssrc, extensions)
            packet = header + sequence.to_bytes(2, "big") + payload
            self._rtx_sequence = (self._rtx_sequence + 1) & 0xFFFF
        self._send(packet)
        self.repeated += 1

    def report(self, ticks: int, now_s: float, unix_s: float) -> bytes:
        """The sender report: that `ticks` is now. Sound and pictures share the ticks, hence their lips."""
        ntp = rtcp.ntp_time(unix_s)
        self._reported[rtcp.middle(ntp)] = now_s
        while len(self._reported) > REMEMBERED_REPORTS:
            del self._reported[next(iter(self._reported))]
        return rtcp.sender_report(
            self.ssrc,
            ntp=ntp,
            timestamp=self._timestamp(ticks),
            packets=self.packets,
            octets=self.bytes,
            cname=self._cname,
        )

    def take_report(self, report: rtcp.ReceptionReport, now_s: float) -> None:
        """How it arrives: RFC 3550 §6.4.1 for the round trip."""
        self.loss = report.lost
        sent_s = self._reported.get(report.last_report)
        if sent_s is not None and report.delay:
            rtt_s = max(0.0, now_s - sent_s - report.delay / 65_536)
            self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + SMOOTHING * (rtt_s - self.rtt_s)
