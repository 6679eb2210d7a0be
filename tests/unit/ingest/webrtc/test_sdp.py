from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.transports.webrtc.sdp import LARGEST_OFFER, parse_offer, split_fragment
from tests.unit.ingest.webrtc.offers import (
    FINGERPRINT,
    PASSWORD,
    TRANSPORT,
    UFRAG,
    chromium,
    h264,
    offer,
    section,
)

LINES = [line for line in chromium().splitlines() if line]


def test_an_offer_of_chromium_is_read_whole() -> None:
    found = parse_offer(chromium())
    video, audio, data = found.media
    assert [media.kind for media in found.media] == ["video", "audio", "application"]
    assert found.bundle == ("0", "1", "2")
    assert (found.ufrag, found.password, found.setup) == (UFRAG, PASSWORD, "actpass")
    assert found.fingerprints == (("sha-256", FINGERPRINT),)
    assert [each.name for each in video.formats][:3] == ["VP8", "RTX", "H264"]
    assert video.formats[2].parameters["profile-level-id"] == "42001f"
    assert "nack pli" in video.formats[2].feedback
    assert (audio.formats[0].name, audio.formats[0].clock, audio.formats[0].channels) == ("OPUS", 48_000, 2)
    assert (data.sctp_port, data.largest_message) == (5000, 262_144)
    assert video.rtcp_mux
    assert video.direction == "sendonly"


def test_credentials_may_stand_before_the_first_section() -> None:
    bare = section("video", "0", h264(96), transport=())
    text = offer(bare).replace("t=0 0\r\n", "t=0 0\r\n" + "\r\n".join(TRANSPORT) + "\r\n")
    assert parse_offer(text).ufrag == UFRAG


def test_the_bundle_has_the_credentials_of_its_first_section() -> None:
    text = offer(section("audio", "a", [], transport=()), section("video", "v", h264(96)), bundle="v")
    with pytest.raises(InvalidError, match="malformed"):
        parse_offer(text)  # a section without a payload type
    text = offer(section("video", "x", h264(96), transport=()), section("video", "v", h264(97)), bundle="v")
    assert parse_offer(text).ufrag == UFRAG


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("v=0", "v=1", "v=0"),
        (f"a=ice-ufrag:{UFRAG}", "a=x:y", "ice-ufrag"),
        (f"a=ice-ufrag:{UFRAG}", "a=ice-ufrag:a b c", "ice-ufrag"),
        (f"a=ice-pwd:{PASSWORD}", "a=ice-pwd:short", "ice-pwd"),
        (f"a=fingerprint:sha-256 {FINGERPRINT}", "a=x:y", "fingerprint"),
        (f"a=fingerprint:sha-256 {FINGERPRINT}", "a=fingerprint:sha-256 zz", "fingerprint"),
        ("a=setup:actpass", "a=setup:holdconn", "setup"),
        ("a=mid:1", "a=mid:0", "same a=mid"),
        ("a=mid:1", "a=mid:\x00", "mid"),
        ("m=video 9 ", "m=video 99999 ", "port"),
        ("m=video 9 ", "m=video x ", "port"),
        ("a=sctp-port:5000", "a=sctp-port:70000", "sctp-port"),
        ("a=rtpmap:111 opus/48000/2", "a=rtpmap:111 opus/x", "clock"),
    ],
)
def test_what_is_wrong_is_said(before: str, after: str, says: str) -> None:
    text = chromium()
    assert before in text
    with pytest.raises(InvalidError, match=says):
        parse_offer(text.replace(before, after))


@pytest.mark.parametrize("text", ["", "v=0", "v=0\r\ns=-\r\n", "hello", "x" * (LARGEST_OFFER + 1)])
def test_what_is_no_offer_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        parse_offer(text)


def test_many_sections_are_refused() -> None:
    sections = [section("video", f"m{index}", h264(96)) for index in range(40)]
    with pytest.raises(InvalidError, match="media sections"):
        parse_offer(offer(*sections))


@given(st.text(max_size=400))
def test_any_text_is_an_offer_or_an_invalid_error(text: str) -> None:
    for parse in (parse_offer, split_fragment):
        with suppress(InvalidError):
            parse(text)


@given(
    st.lists(
        st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(["drop", "twice", "cut", "swap", "junk"])),
        min_size=1,
        max_size=6,
    ),
    st.text(max_size=20),
)
def test_any_damage_to_an_offer_gives_an_offer_or_an_invalid_error(
    damages: list[tuple[int, str]], junk: str
) -> None:
    lines = list(LINES)
    for anywhere, what in damages:
        place = anywhere % len(lines)
        if what == "drop":
            del lines[place]
        elif what == "twice":
            lines.insert(place, lines[place])
        elif what == "cut":
            lines[place] = lines[place][: len(lines[place]) // 2]
        elif what == "swap":
            lines[place], lines[0] = lines[0], lines[place]
        else:
            lines[place] = lines[place][:6] + junk
    with suppress(InvalidError):
        parse_offer("\r\n".join(lines))


def test_a_fragment_has_credentials_and_candidates() -> None:
    text = (
        "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n"
        "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n"
        "a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0\r\n"
        "a=end-of-candidates\r\n"
    )
    found = split_fragment(text)
    assert (found.ufrag, found.password) == ("EsAw", "P2uYro0UCOQ4zxjKXaWCBui1")
    assert found.candidates == (
        "candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0",
    )


def test_what_is_no_fragment_is_refused() -> None:
    with pytest.raises(InvalidError):
        split_fragment("{}")
