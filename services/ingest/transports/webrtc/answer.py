"""Which of an offer's media are taken, in which codec, and the answer that says so. Pure.

The rule it keeps: H.264 and Opus where they are offered, for they pass through; one codec a section, so that
nobody changes it later; what cannot be used is refused in the answer, and an offer of which nothing is left
is an InvalidError.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.ingest.transports.webrtc.sdp import Format, Media, Offer

ABS_SEND_TIME: Final = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
PLAYOUT_DELAY: Final = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
DATA_PROTOCOLS: Final = frozenset({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP", "DTLS/SCTP"})
RTP_PROTOCOLS: Final = frozenset({"UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "RTP/SAVPF", "TCP/TLS/RTP/SAVPF"})
FEEDBACK: Final = ("nack", "nack pli", "ccm fir", "goog-remb")
RECEIVED: Final = ("H264", "VP8", "VP9")  # the others than the first are converted
SENT: Final = ("H264", "VP8")
# Chromium begins at 300 kbit/s and with smaller pictures; this is its own word for beginning higher.
START_KBPS: Final = 1500
H264_PROFILES: Final = frozenset({"42", "4d", "64", "58"})  # baseline, main, high, extended


@dataclass(frozen=True, slots=True)
class Line:
    """What becomes of one media section."""

    media: Media
    receives: bool = False
    sends: bool = False
    format: Format | None = None
    rtx: Format | None = None
    data: bool = False

    @property
    def accepted(self) -> bool:
        return self.data or self.format is not None

    @property
    def abs_send_time(self) -> int | None:
        return self.media.extensions.get(ABS_SEND_TIME) if self.media.kind == "video" else None

    @property
    def playout_delay(self) -> int | None:
        sends = self.sends and self.media.kind == "video"
        return self.media.extensions.get(PLAYOUT_DELAY) if sends else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of an offer."""

    offer: Offer
    lines: tuple[Line, ...]

    def receiving(self, kind: str) -> Line | None:
        return next((line for line in self.lines if line.receives and line.media.kind == kind), None)

    def sending(self, kind: str) -> Line | None:
        return next((line for line in self.lines if line.sends and line.media.kind == kind), None)

    @property
    def data(self) -> Media | None:
        return next((line.media for line in self.lines if line.data), None)

    @property
    def dtls_client(self) -> bool:
        """Whether we begin the DTLS handshake: RFC 5763 §5 recommends it, and it saves a round trip."""
        return self.offer.setup != "active"


@dataclass(frozen=True, slots=True)
class Sources:
    """The SSRCs of what we send."""

    video: int
    video_rtx: int
    audio: int


@dataclass(frozen=True, slots=True)
class Local:
    """Our side of the connection."""

    session: int
    ufrag: str
    password: str
    fingerprint: str
    candidates: tuple[tuple[str, int], ...]
    cname: str
    sources: Sources
    largest_message: int  # that we take on a data channel


def plan(offer: Offer, *, publish: bool, watch: bool) -> Plan:
    """Choose. Raises InvalidError with the reason NO_CODEC when nothing of it can be used."""
    taken: set[tuple[str, str]] = set()
    lines = []
    bundled = set(offer.bundle) or {offer.media[0].mid}
    for media in offer.media:
        # RFC 9143: a section with port 0 is refused, unless it is in the bundle, then it is `bundle-only`.
        if media.mid not in bundled or (media.port == 0 and not offer.bundle):
            lines.append(Line(media))
        elif media.kind == "application":
            usable = media.protocol in DATA_PROTOCOLS and not any(line.data for line in lines)
            lines.append(Line(media, data=usable and media.sctp_port is not None))
        elif media.kind in {"video", "audio"} and media.protocol in RTP_PROTOCOLS and media.rtcp_mux:
            lines.append(_line(media, taken, publish=publish, watch=watch))
        else:
            lines.append(Line(media))
    made = Plan(offer, tuple(lines))
    _demand(made, publish=publish, watch=watch)
    return made


def _line(media: Media, taken: set[tuple[str, str]], *, publish: bool, watch: bool) -> Line:
    """The section's part in each direction that is not another section's already."""
    receives = publish and media.direction in {"sendonly", "sendrecv"} and ("in", media.kind) not in taken
    sends = watch and media.direction in {"recvonly", "sendrecv"} and ("out", media.kind) not in taken
    if not (receives or sends):
        return Line(media)
    known = SENT if sends else RECEIVED
    chosen = _video(media, known) if media.kind == "video" else _sound(media)
    if chosen is None:
        return Line(media)
    if receives:
        taken.add(("in", media.kind))
    if sends:
        taken.add(("out", media.kind))
    rtx = next(
        (
            each
            for each in media.formats
            if each.name == "RTX" and each.parameters.get("apt") == str(chosen.payload_type)
        ),
        None,
    )
    return Line(media, receives, sends, chosen, rtx)


def _video(media: Media, known: Iterable[str]) -> Format | None:
    for name in known:
        formats = [each for each in media.formats if each.name == name and each.clock == 90_000]
        if name == "H264":
            formats = sorted(filter(_decodable, formats), key=_single_nal_units)
        if formats:
            return formats[0]
    return None


def _decodable(chosen: Format) -> bool:
    profile = chosen.parameters.get("profile-level-id", "42e01f").lower()
    return len(profile) == 6 and profile[:2] in H264_PROFILES


def _single_nal_units(chosen: Format) -> bool:
    """Whether it is packetization mode 0, which is taken where there is no other."""
    return chosen.parameters.get("packetization-mode", "0") != "1"


def _sound(media: Media) -> Format | None:
    return next((each for each in media.formats if each.name == "OPUS" and each.clock == 48_000), None)


def _demand(made: Plan, *, publish: bool, watch: bool) -> None:
    """Raise InvalidError when what the offer is for is not in it."""
    offered = sorted({each.name for media in made.offer.media for each in media.formats if each.name})
    if publish and made.receiving("video") is None:
        sends = any(
            media.kind == "video" and media.direction in {"sendonly", "sendrecv"}
            for media in made.offer.media
        )
        if sends:
            raise InvalidError(
                f"none of the offered codecs can be received ({', '.join(offered)}): send H.264 (VP8 and VP9"
                " are converted)",
                reason="NO_CODEC",
                field="sdp",
            )
        raise InvalidError("the offer sends no video", reason="NO_VIDEO", field="sdp")
    if watch and made.sending("video") is None and made.sending("audio") is None:
        raise InvalidError(
            f"none of the offered codecs can be sent ({', '.join(offered)}): H.264 (or VP8) and Opus can",
            reason="NO_CODEC",
            field="sdp",
        )


def write(made: Plan, local: Local) -> str:
    """The answer, complete: with all candidates."""
    mids = " ".join(line.media.mid for line in made.lines if line.accepted)
    lines = [
        "v=0",
        f"o=- {local.session} 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        *([f"a=group:BUNDLE {mids}"] if made.offer.bundle else []),
        "a=msid-semantic:WMS *",
        "a=ice-lite",
    ]
    for line in made.lines:
        lines += _section(line, made, local)
    return "\r\n".join(lines) + "\r\n"


def fragment(made: Plan, local: Local) -> str:
    """The answer to an ICE restart: RFC 9725 §4.3.3, RFC 8840."""
    first = next(line for line in made.lines if line.accepted)
    lines = [
        "a=ice-lite",
        "a=ice-options:trickle",
        f"a=ice-ufrag:{local.ufrag}",
        f"a=ice-pwd:{local.password}",
        f"m={first.media.kind} 9 {first.media.protocol} 0",
        f"a=mid:{first.media.mid}",
        *_candidates(local),
    ]
    return "\r\n".join(lines) + "\r\n"


def _candidates(local: Local) -> list[str]:
    """RFC 8421 prefers IPv6; the addresses are in the order of the setting, so the order says."""
    lines = []
    for index, (address, port) in enumerate(local.candidates):
        priority = (126 << 24) | ((65_535 - index) << 8) | 255
        lines.append(f"a=candidate:{index + 1} 1 udp {priority} {address} {port} typ host")
    return [*lines, "a=end-of-candidates"]


def _section(line: Line, made: Plan, local: Local) -> list[str]:
    media = line.media
    if not line.accepted:
        fmts = "webrtc-datachannel" if media.kind == "application" else "0"
        return [
            f"m={media.kind} 0 {media.protocol} {fmts}",
            "c=IN IP4 0.0.0.0",
            f"a=mid:{media.mid}",
            "a=inactive",
        ]
    address, port = local.candidates[0]
    fmts = "webrtc-datachannel" if line.data else _payload_types(line)
    return [
        f"m={media.kind} {port} {media.protocol} {fmts}",
        f"c=IN {'IP6' if ':' in address else 'IP4'} {address}",
        *_candidates(local),
        f"a=ice-ufrag:{local.ufrag}",
        f"a=ice-pwd:{local.password}",
        f"a=fingerprint:{local.fingerprint}",
        f"a=setup:{'active' if made.dtls_client else 'passive'}",
        f"a=mid:{media.mid}",
        *(_data(media, local) if line.data else _media(line, local)),
    ]


def _payload_types(line: Line) -> str:
    assert line.format is not None
    return " ".join(str(each.payload_type) for each in (line.format, line.rtx) if each is not None)


def _data(media: Media, local: Local) -> list[str]:
    return [f"a=sctp-port:{media.sctp_port}", f"a=max-message-size:{local.largest_message}"]


def _media(line: Line, local: Local) -> list[str]:
    chosen, media = line.format, line.media
    assert chosen is not None
    channels = f"/{chosen.channels}" if chosen.channels > 1 else ""
    direction = {(True, True): "sendrecv", (True, False): "recvonly", (False, True): "sendonly"}
    lines = [f"a={direction[line.receives, line.sends]}", "a=rtcp-mux"]
    if media.reduced_rtcp:
        lines.append("a=rtcp-rsize")
    if line.abs_send_time is not None:
        lines.append(f"a=extmap:{line.abs_send_time} {ABS_SEND_TIME}")
    if line.playout_delay is not None:
        lines.append(f"a=extmap:{line.playout_delay} {PLAYOUT_DELAY}")
    lines.append(f"a=rtpmap:{chosen.payload_type} {_written(chosen)}/{chosen.clock}{channels}")
    if fmtp := _fmtp(line, chosen):
        lines.append(f"a=fmtp:{chosen.payload_type} {fmtp}")
    lines += [f"a=rtcp-fb:{chosen.payload_type} {what}" for what in FEEDBACK if what in chosen.feedback]
    if line.rtx is not None:
        lines.append(f"a=rtpmap:{line.rtx.payload_type} rtx/{line.rtx.clock}")
        lines.append(f"a=fmtp:{line.rtx.payload_type} apt={chosen.payload_type}")
    if line.sends:
        lines += _source(line, local)
    return lines


def _written(chosen: Format) -> str:
    return chosen.name.lower() if chosen.name == "OPUS" else chosen.name


def _fmtp(line: Line, chosen: Format) -> str:
    """As it was offered: GStreamer takes a differing profile for another codec."""
    parts = [chosen.fmtp] if chosen.fmtp else []
    if line.receives and chosen.name == "OPUS" and "stereo" not in chosen.parameters:
        parts.append("stereo=1")
    if line.receives and line.media.kind == "video" and "goog-remb" in chosen.feedback:
        parts.append(f"x-google-start-bitrate={START_KBPS}")
    return ";".join(parts)


def _source(line: Line, local: Local) -> list[str]:
    sources, track = local.sources, line.media.kind
    lines = [f"a=msid:{local.cname} {local.cname}-{track}"]
    if track == "audio":
        return [*lines, f"a=ssrc:{sources.audio} cname:{local.cname}"]
    if line.rtx is not None:
        lines.append(f"a=ssrc-group:FID {sources.video} {sources.video_rtx}")
    lines.append(f"a=ssrc:{sources.video} cname:{local.cname}")
    if line.rtx is not None:
        lines.append(f"a=ssrc:{sources.video_rtx} cname:{local.cname}")
    return lines
