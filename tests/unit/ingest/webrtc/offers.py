"""Offers as clients send them, shortened to what is negotiated."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

FINGERPRINT: Final = ":".join(["AB"] * 32)
UFRAG: Final = "abcd"
PASSWORD: Final = "0123456789abcdefghijklmn"
ABS_SEND_TIME: Final = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
FEEDBACK: Final = ("goog-remb", "transport-cc", "ccm fir", "nack", "nack pli")

TRANSPORT: Final = (
    f"a=ice-ufrag:{UFRAG}",
    f"a=ice-pwd:{PASSWORD}",
    f"a=fingerprint:sha-256 {FINGERPRINT}",
    "a=setup:actpass",
)


def h264(number: int, *, profile: str = "42e01f", mode: int = 1, rtx: int | None = None) -> list[str]:
    lines = [f"a=rtpmap:{number} H264/90000", *(f"a=rtcp-fb:{number} {what}" for what in FEEDBACK)]
    lines.append(
        f"a=fmtp:{number} level-asymmetry-allowed=1;packetization-mode={mode};profile-level-id={profile}"
    )
    return [*lines, *([] if rtx is None else retransmission(rtx, number))]


def vpx(number: int, name: str, *, rtx: int | None = None) -> list[str]:
    lines = [f"a=rtpmap:{number} {name}/90000", *(f"a=rtcp-fb:{number} {what}" for what in FEEDBACK)]
    return [*lines, *([] if rtx is None else retransmission(rtx, number))]


def retransmission(number: int, of: int) -> list[str]:
    return [f"a=rtpmap:{number} rtx/90000", f"a=fmtp:{number} apt={of}"]


def section(
    kind: str,
    mid: str,
    lines: Iterable[str],
    *,
    direction: str = "sendonly",
    port: int = 9,
    transport: Iterable[str] = TRANSPORT,
) -> list[str]:
    lines = list(lines)
    numbers = [line.removeprefix("a=rtpmap:").split()[0] for line in lines if line.startswith("a=rtpmap:")]
    return [
        f"m={kind} {port} UDP/TLS/RTP/SAVPF {' '.join(numbers)}",
        "c=IN IP4 0.0.0.0",
        "a=rtcp:9 IN IP4 0.0.0.0",
        *transport,
        f"a=mid:{mid}",
        f"a=extmap:2 {ABS_SEND_TIME}",
        f"a={direction}",
        "a=rtcp-mux",
        "a=rtcp-rsize",
        *lines,
    ]


def opus(number: int = 111) -> list[str]:
    return [f"a=rtpmap:{number} opus/48000/2", f"a=fmtp:{number} minptime=10;useinbandfec=1"]


def data(mid: str) -> list[str]:
    return [
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        *TRANSPORT,
        f"a=mid:{mid}",
        "a=sctp-port:5000",
        "a=max-message-size:262144",
    ]


def offer(*sections: list[str], bundle: str | None = None) -> str:
    mids = [line.removeprefix("a=mid:") for lines in sections for line in lines if line.startswith("a=mid:")]
    group = " ".join(mids) if bundle is None else bundle
    lines = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0"]
    if group:
        lines.append(f"a=group:BUNDLE {group}")
    for each in sections:
        lines += each
    return "\r\n".join(lines) + "\r\n"


def chromium(direction: str = "sendonly") -> str:
    """What Chromium offers, by its order: VP8 first, then H.264 in several profiles."""
    video = [
        *vpx(96, "VP8", rtx=97),
        *h264(102, profile="42001f", rtx=103),
        *h264(104, profile="42001f", mode=0, rtx=105),
        *h264(106, profile="42e01f", rtx=107),
        *vpx(98, "VP9", rtx=99),
    ]
    return offer(
        section("video", "0", video, direction=direction),
        section("audio", "1", opus(), direction=direction),
        data("2"),
    )
