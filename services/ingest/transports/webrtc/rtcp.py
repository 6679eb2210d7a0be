"""RTCP (RFC 3550, 4585, 5104 and the REMB draft): what peers report, and what is reported to them. Pure.

Arbitrary bytes give what can be understood of them, and never an exception.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

SENDER_REPORT: Final = 200
RECEIVER_REPORT: Final = 201
DESCRIPTION: Final = 202
BYE: Final = 203
TRANSPORT_FEEDBACK: Final = 205
PAYLOAD_FEEDBACK: Final = 206

NACK: Final = 1
PICTURE_LOSS: Final = 1
FULL_INTRA_REQUEST: Final = 4
APPLICATION: Final = 15

HEAD: Final = struct.Struct("!BBH")
BLOCK: Final = struct.Struct("!II4I")
MOST_LOST: Final = 0x7FFFFF
NTP_SECONDS: Final = 2_208_988_800  # from 1900 to 1970


@dataclass(frozen=True, slots=True)
class SenderReport:
    """When, on the sender's wall clock, a timestamp was."""

    ssrc: int
    ntp: int  # 32.32 bits of seconds since 1900
    timestamp: int


@dataclass(frozen=True, slots=True)
class ReceptionReport:
    """How what we send arrives."""

    ssrc: int
    lost: float  # of what was sent since the last report, 0..1
    total_lost: int
    highest: int
    jitter: int
    last_report: int  # the middle 32 bits of the last sender report's NTP time
    delay: int  # since then, in 1/65536 s


@dataclass(frozen=True, slots=True)
class Bye:
    """These sources end."""

    ssrcs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Packets that are to be sent again."""

    ssrc: int
    sequences: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeyframeWanted:
    """PLI or FIR."""

    ssrc: int


@dataclass(frozen=True, slots=True)
class ReceiverEstimate:
    """REMB: the bits per second that the way to the receiver can carry."""

    bits_per_second: int
    ssrcs: tuple[int, ...]


Report = SenderReport | ReceptionReport | Bye | Lost | KeyframeWanted | ReceiverEstimate


def is_rtcp(data: bytes) -> bool:
    """Whether a datagram on a port of both is RTCP: RFC 5761 §4."""
    return len(data) >= 2 and 192 <= data[1] <= 223


def parse(data: bytes) -> Iterator[Report]:
    """What a compound packet says that we act on; a damaged rest is left out."""
    place = 0
    while place + 4 <= len(data):
        first, kind, words = HEAD.unpack_from(data, place)
        end = place + 4 + 4 * words
        if first & 0xC0 != 0x80 or end > len(data):
            return
        body = data[place + 4 : end]
        if first & 0x20 and body:
            body = body[: max(0, len(body) - body[-1])]
        yield from _one(kind, first & 0x1F, body)
        place = end


def _one(kind: int, count: int, body: bytes) -> Iterator[Report]:
    if kind == SENDER_REPORT and len(body) >= 24:
        ssrc, ntp, timestamp = struct.unpack_from("!IQI", body)
        yield SenderReport(ssrc, ntp, timestamp)
        yield from _blocks(body[24:], count)
    elif kind == RECEIVER_REPORT and len(body) >= 4:
        yield from _blocks(body[4:], count)
    elif kind == BYE:
        ssrcs = min(count, len(body) // 4)
        yield Bye(struct.unpack_from(f"!{ssrcs}I", body))
    elif len(body) >= 8 and kind == TRANSPORT_FEEDBACK and count == NACK:
        yield Lost(int.from_bytes(body[4:8], "big"), tuple(_sequences(body[8:])))
    elif len(body) >= 8 and kind == PAYLOAD_FEEDBACK:
        yield from _payload_feedback(count, body)


def _payload_feedback(form: int, body: bytes) -> Iterator[Report]:
    if form == PICTURE_LOSS:
        yield KeyframeWanted(int.from_bytes(body[4:8], "big"))
    elif form == FULL_INTRA_REQUEST:
        for place in range(8, len(body) - 7, 8):
            yield KeyframeWanted(int.from_bytes(body[place : place + 4], "big"))
    elif form == APPLICATION and body[8:12] == b"REMB" and len(body) >= 16:
        mantissa = int.from_bytes(body[13:16], "big")
        bits_per_second = (mantissa & 0x3FFFF) << (mantissa >> 18)
        ssrcs = min(body[12], (len(body) - 16) // 4)
        yield ReceiverEstimate(bits_per_second, struct.unpack_from(f"!{ssrcs}I", body, 16))


def _blocks(body: bytes, count: int) -> Iterator[Report]:
    for index in range(min(count, len(body) // 24)):
        ssrc, loss, highest, jitter, last, delay = BLOCK.unpack_from(body, 24 * index)
        yield ReceptionReport(ssrc, (loss >> 24) / 256, loss & 0xFFFFFF, highest, jitter, last, delay)


def _sequences(body: bytes) -> Iterator[int]:
    for place in range(0, len(body) - 3, 4):
        first, following = struct.unpack_from("!HH", body, place)
        yield first
        for bit in range(16):
            if following >> bit & 1:
                yield (first + bit + 1) & 0xFFFF


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return HEAD.pack(0x80 | count, kind, len(body) // 4) + body


def ntp_time(unix_s: float) -> int:
    """A wall time as SRs say it."""
    return int((unix_s + NTP_SECONDS) * (1 << 32))


def middle(ntp: int) -> int:
    """The 32 bits of an NTP time that reports return."""
    return ntp >> 16 & 0xFFFFFFFF


def sender_report(ssrc: int, *, ntp: int, timestamp: int, packets: int, octets: int, cname: str) -> bytes:
    """A report of what we sent, with the name that ties sound and pictures together."""
    body = struct.pack("!IQIII", ssrc, ntp, timestamp, packets & 0xFFFFFFFF, octets & 0xFFFFFFFF)
    name = cname.encode()
    chunk = struct.pack("!IBB", ssrc, 1, len(name)) + name
    chunk += b"\0" * (4 - len(chunk) % 4)
    return _packet(SENDER_REPORT, 0, body) + _packet(DESCRIPTION, 1, chunk)


def receiver_report(ssrc: int, reports: Sequence[ReceptionReport]) -> bytes:
    """How arrives what we are sent."""
    body = struct.pack("!I", ssrc)
    for each in reports:
        loss = min(255, int(each.lost * 256)) << 24 | min(MOST_LOST, max(0, each.total_lost))
        body += BLOCK.pack(each.ssrc, loss, each.highest, each.jitter, each.last_report, each.delay)
    return _packet(RECEIVER_REPORT, len(reports), body)


def nack(ssrc: int, media: int, sequences: Iterable[int]) -> bytes:
    """Ask for packets again; `sequences` ascend, unwrapped."""
    body = struct.pack("!II", ssrc, media)
    first, following = None, 0
    for sequence in sequences:
        if first is not None and sequence - first <= 16:
            following |= 1 << (sequence - first - 1)
            continue
        if first is not None:
            body += struct.pack("!HH", first & 0xFFFF, following)
        first, following = sequence, 0
    assert first is not None
    body += struct.pack("!HH", first & 0xFFFF, following)
    return _packet(TRANSPORT_FEEDBACK, NACK, body)


def picture_loss(ssrc: int, media: int) -> bytes:
    """Ask for a key frame."""
    return _packet(PAYLOAD_FEEDBACK, PICTURE_LOSS, struct.pack("!II", ssrc, media))


def receiver_estimate(ssrc: int, media: int, bits_per_second: int) -> bytes:
    """Say what the way to us can carry."""
    exponent = max(0, bits_per_second.bit_length() - 18)
    number = exponent << 18 | bits_per_second >> exponent
    body = struct.pack("!II", ssrc, 0) + b"REMB" + struct.pack("!I", 1 << 24 | number)
    return _packet(PAYLOAD_FEEDBACK, APPLICATION, body + struct.pack("!I", media))


def bye(ssrcs: Sequence[int]) -> bytes:
    """These end."""
    return _packet(BYE, len(ssrcs), struct.pack(f"!{len(ssrcs)}I", *ssrcs))
