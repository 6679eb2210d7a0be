"""What a client's offer says, of which arbitrary text gives an offer or an InvalidError. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from services.common.errors import InvalidError

LARGEST_OFFER: Final = 128 * 1024  # characters; browsers with everything on send 20,000
MOST_MEDIA: Final = 32
MOST_FORMATS: Final = 128  # payload types have 7 bits

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
DIRECTIONS: Final[Mapping[str, Direction]] = MappingProxyType(
    {"sendrecv": "sendrecv", "sendonly": "sendonly", "recvonly": "recvonly", "inactive": "inactive"}
)
# RFC 8839 §5.4: what may stand in a username fragment and a password.
ICE_TEXT: Final = re.compile(r"[A-Za-z0-9+/]+")
TOKEN: Final = re.compile(r"[!#-'*+\-.0-9A-Z^-~]+")
FINGERPRINT: Final = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){15,63}")


@dataclass(frozen=True, slots=True)
class Format:
    """One payload type of a media section."""

    payload_type: int
    name: str = ""  # upper case: H264, VP8, RTX, OPUS
    clock: int = 0
    channels: int = 1
    fmtp: str = ""  # as it came
    parameters: Mapping[str, str] = field(default_factory=dict)
    feedback: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Media:
    """One media section."""

    kind: str
    port: int
    protocol: str
    formats: tuple[Format, ...]
    mid: str
    direction: Direction
    extensions: Mapping[str, int]  # header extensions, by URI
    sctp_port: int | None
    largest_message: int
    rtcp_mux: bool
    reduced_rtcp: bool


@dataclass(frozen=True, slots=True)
class Offer:
    """A whole offer. What is said once for the bundle (ICE, DTLS) is taken from its first section."""

    media: tuple[Media, ...]
    bundle: tuple[str, ...]
    ufrag: str
    password: str
    fingerprints: tuple[tuple[str, str], ...]  # (algorithm, value)
    setup: str


class _Section:
    """The lines of one section, or of what stands before the first."""

    def __init__(self, line: str = "") -> None:
        self.line = line
        self.lines: list[tuple[str, str]] = []

    def first(self, name: str) -> str | None:
        return next((value for key, value in self.lines if key == name), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.lines if key == name]

    def has(self, name: str) -> bool:
        return any(key == name for key, _ in self.lines)


def parse_offer(text: str) -> Offer:
    """The offer. Raises InvalidError that says what is wrong."""
    if len(text) > LARGEST_OFFER:
        raise _bad(f"an offer has at most {LARGEST_OFFER} characters")
    session, sections = _split(text)
    if not sections:
        raise _bad("no media section (m=) in it")
    if len(sections) > MOST_MEDIA:
        raise _bad(f"more than {MOST_MEDIA} media sections")
    media = tuple(_media(section, index) for index, section in enumerate(sections))
    mids = [each.mid for each in media]
    if len(set(mids)) < len(mids):
        raise _bad("two media sections have the same a=mid")
    bundle = _bundle(session)
    first = next((section for section, each in zip(sections, media, strict=True) if each.mid in bundle), None)
    transport = first or sections[0]
    ufrag = transport.first("ice-ufrag") or session.first("ice-ufrag") or ""
    password = transport.first("ice-pwd") or session.first("ice-pwd") or ""
    check_credentials(ufrag, password)
    return Offer(
        media,
        bundle,
        ufrag,
        password,
        _fingerprints(transport.all("fingerprint") or session.all("fingerprint")),
        _setup(transport.first("setup") or session.first("setup") or "actpass"),
    )


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a trickled part of an offer says (RFC 8840): new credentials, candidates."""

    ufrag: str
    password: str
    candidates: tuple[str, ...]  # without `a=`


def split_fragment(text: str) -> Fragment:
    """The parts of a fragment. Raises InvalidError."""
    if len(text) > LARGEST_OFFER:
        raise _bad(f"a fragment has at most {LARGEST_OFFER} characters")
    found = _Section()
    for line in text.splitlines():
        kind, _, value = line.strip().partition("=")
        if kind == "a":
            name, _, rest = value.partition(":")
            found.lines.append((name, rest.strip()))
        elif kind not in {"", "m"}:
            raise _bad(f"a fragment has no line {line[:20]!r}")
    candidates = tuple(f"candidate:{value}" for value in found.all("candidate"))
    return Fragment(found.first("ice-ufrag") or "", found.first("ice-pwd") or "", candidates)


def check_credentials(ufrag: str, password: str) -> None:
    """Raise InvalidError unless they are what RFC 8839 §5.4 allows."""
    if not (4 <= len(ufrag) <= 256 and ICE_TEXT.fullmatch(ufrag)):
        raise _bad("a=ice-ufrag is missing or malformed")
    if not (22 <= len(password) <= 256 and ICE_TEXT.fullmatch(password)):
        raise _bad("a=ice-pwd is missing or malformed")


def check_candidate(line: str) -> None:
    """Raise InvalidError unless it is a candidate attribute (RFC 8839 §5.1), or the empty end of them."""
    words = line.removeprefix("a=").split()
    if words and (not words[0].startswith("candidate:") or len(words) < 8 or words[6] != "typ"):
        raise InvalidError("this is no ICE candidate", reason="BAD_CANDIDATE", field="candidate")


def _bad(what: str) -> InvalidError:
    return InvalidError(f"the offer cannot be used: {what}", reason="BAD_SDP", field="sdp")


def _split(text: str) -> tuple[_Section, list[_Section]]:
    session = current = _Section()
    sections: list[_Section] = []
    lines = text.splitlines()
    if not lines or lines[0].strip() != "v=0":
        raise _bad("it does not begin with v=0")
    for line in lines:
        kind, _, value = line.strip().partition("=")
        if kind == "m":
            current = _Section(value)
            sections.append(current)
        elif kind == "a":
            name, _, rest = value.partition(":")
            current.lines.append((name, rest.strip()))
    return session, sections


def _bundle(session: _Section) -> tuple[str, ...]:
    for group in session.all("group"):
        semantics, *mids = group.split() or [""]
        if semantics == "BUNDLE":
            return tuple(mids)
    return ()


def _media(section: _Section, index: int) -> Media:
    words = section.line.split()
    if not 4 <= len(words) <= 3 + MOST_FORMATS:
        raise _bad(f"the line m={section.line[:80]} is malformed")
    kind, ports, protocol, *fmts = words
    port = _number(ports.partition("/")[0], 65_535, "port")
    mid = section.first("mid")
    mid = str(index) if mid is None else mid
    if not TOKEN.fullmatch(mid) or len(mid) > 64:
        raise _bad("a=mid is malformed")
    media = kind in {"audio", "video"} and "RTP" in protocol
    sctp_port = section.first("sctp-port")
    largest = section.first("max-message-size")
    return Media(
        kind=kind,
        port=port,
        protocol=protocol,
        formats=_formats(section, fmts) if media else (),
        mid=mid,
        direction=next(
            (DIRECTIONS[key] for key, _ in section.lines if key in DIRECTIONS),
            "sendrecv",
        ),
        extensions=_extensions(section.all("extmap")),
        sctp_port=None if sctp_port is None else _number(sctp_port, 65_535, "sctp-port"),
        largest_message=65_536 if largest is None else _number(largest, 2**40, "max-message-size"),
        rtcp_mux=section.has("rtcp-mux"),
        reduced_rtcp=section.has("rtcp-rsize"),
    )


def _formats(section: _Section, fmts: Iterable[str]) -> tuple[Format, ...]:
    names = _by_payload_type(section.all("rtpmap"))
    fmtps = _by_payload_type(section.all("fmtp"))
    feedback: dict[str, list[str]] = {}
    for line in section.all("rtcp-fb"):
        number, _, what = line.partition(" ")
        feedback.setdefault(number, []).append(what.strip())
    formats = []
    for number in fmts:
        payload_type = _number(number, 127, "payload type")
        name, clock, channels = _encoding(names.get(number, ""))
        fmtp = fmtps.get(number, "")
        formats.append(
            Format(
                payload_type,
                name,
                clock,
                channels,
                fmtp,
                MappingProxyType(_parameters(fmtp)),
                (*feedback.get(number, ()), *feedback.get("*", ())),
            )
        )
    return tuple(formats)


def _encoding(rtpmap: str) -> tuple[str, int, int]:
    name, _, rest = rtpmap.partition("/")
    clock, _, channels = rest.partition("/")
    return (
        name.strip().upper(),
        _number(clock, 2**31, "clock rate") if clock else 0,
        _number(channels, 255, "channel count") if channels else 1,
    )


def _by_payload_type(lines: Iterable[str]) -> dict[str, str]:
    found = {}
    for line in lines:
        number, _, value = line.partition(" ")
        found[number] = value.strip()
    return found


def _parameters(fmtp: str) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in fmtp.split(";"))
    return {key.strip().lower(): value.strip() for key, _, value in pairs if key.strip()}


def _extensions(lines: Iterable[str]) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        number, _, uri = line.partition(" ")
        number = number.partition("/")[0]
        if uri and number.isdecimal() and 1 <= int(number) <= 14:  # what a one-byte header can name
            found.setdefault(uri.split()[0], int(number))
    return MappingProxyType(found)


def _fingerprints(lines: Iterable[str]) -> tuple[tuple[str, str], ...]:
    found = []
    for line in lines:
        algorithm, _, value = line.partition(" ")
        if not FINGERPRINT.fullmatch(value.strip()):
            raise _bad("a=fingerprint is malformed")
        found.append((algorithm.lower(), value.strip().upper()))
    if not found:
        raise _bad("a=fingerprint is missing")
    return tuple(found)


def _setup(value: str) -> str:
    if value not in {"actpass", "active", "passive"}:
        raise _bad("a=setup must be actpass, active or passive")
    return value


def _number(text: str, highest: int, what: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 15 or int(text) > highest:
        raise _bad(f"the {what} {text[:20]!r} is no number up to {highest}")
    return int(text)
