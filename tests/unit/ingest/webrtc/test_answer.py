from __future__ import annotations

import pytest
from aiortc.sdp import SessionDescription

from services.common.errors import InvalidError
from services.ingest.transports.webrtc.answer import Local, Plan, Sources, fragment, plan, write
from services.ingest.transports.webrtc.sdp import parse_offer
from tests.unit.ingest.webrtc.offers import chromium, data, h264, offer, opus, section, vpx

LOCAL = Local(
    1,
    "u" * 16,
    "p" * 32,
    "sha-256 AB:CD",
    (("192.0.2.7", 8189), ("2001:db8::7", 8189)),
    "name",
    Sources(1, 2, 3),
    65_536,
)


def made(text: str, *, publish: bool = True, watch: bool = False) -> Plan:
    return plan(parse_offer(text), publish=publish, watch=watch)


def chosen(found: Plan, kind: str = "video") -> tuple[str, int]:
    line = found.receiving(kind) or found.sending(kind)
    assert line is not None
    assert line.format is not None
    return line.format.name, line.format.payload_type


def test_h264_is_taken_before_what_the_client_would_rather_send() -> None:
    assert chosen(made(chromium())) == ("H264", 102)
    assert chosen(made(chromium("recvonly"), publish=False, watch=True)) == ("H264", 102)


@pytest.mark.parametrize(
    ("formats", "expected"),
    [
        ([*h264(96, mode=0), *h264(97, mode=1)], ("H264", 97)),
        (h264(96, mode=0), ("H264", 96)),
        (h264(96, profile="640c1f"), ("H264", 96)),
        (h264(96, profile="4d001f"), ("H264", 96)),
        ([*h264(96, profile="f4001f"), *vpx(97, "VP8")], ("VP8", 97)),  # High 4:4:4, which no browser shows
        ([*vpx(98, "VP9"), *vpx(97, "VP8")], ("VP8", 97)),
        (vpx(98, "VP9"), ("VP9", 98)),
    ],
)
def test_a_publishers_codec(formats: list[str], expected: tuple[str, int]) -> None:
    assert chosen(made(offer(section("video", "0", formats)))) == expected


def test_a_viewer_with_only_vp8_gets_vp8() -> None:
    text = offer(section("video", "0", vpx(97, "VP8", rtx=98), direction="recvonly"))
    found = made(text, publish=False, watch=True)
    assert chosen(found) == ("VP8", 97)
    line = found.sending("video")
    assert line is not None
    assert line.rtx is not None
    assert line.rtx.payload_type == 98


@pytest.mark.parametrize("formats", [vpx(97, "AV1"), vpx(97, "H265")])
def test_a_codec_that_nobody_converts_is_refused_by_name(formats: list[str]) -> None:
    for direction, publish in (("sendonly", True), ("recvonly", False)):
        text = offer(section("video", "0", formats, direction=direction))
        with pytest.raises(InvalidError) as caught:
            made(text, publish=publish, watch=not publish)
        assert caught.value.reason == "NO_CODEC"


def test_a_publisher_without_video_is_told() -> None:
    for text in (offer(section("audio", "0", opus())), chromium("recvonly")):
        with pytest.raises(InvalidError) as caught:
            made(text)
        assert caught.value.reason == "NO_VIDEO"


def test_one_section_can_publish_and_watch() -> None:
    found = made(offer(section("video", "0", h264(96), direction="sendrecv")), watch=True)
    line = found.receiving("video")
    assert line is not None
    assert line is found.sending("video")
    assert "a=sendrecv" in write(found, LOCAL)


def test_two_sections_publish_and_watch_once_each() -> None:
    text = offer(
        section("video", "0", h264(96)),
        section("video", "1", h264(96), direction="recvonly"),
        section("video", "2", h264(96), direction="recvonly"),
    )
    found = made(text, watch=True)
    assert [(line.receives, line.sends, line.accepted) for line in found.lines] == [
        (True, False, True),
        (False, True, True),
        (False, False, False),
    ]


def test_what_is_not_in_the_bundle_is_refused_and_what_is_bundle_only_is_not() -> None:
    text = offer(
        section("video", "0", h264(96)),
        section("audio", "1", opus(), port=0),
        section("audio", "2", opus()),
        bundle="0 1",
    )
    found = made(text)
    assert [line.accepted for line in found.lines] == [True, True, False]
    assert "m=audio 0 UDP/TLS/RTP/SAVPF 0" in write(found, LOCAL)


def test_the_answer_is_one_that_aiortc_understands() -> None:
    text = write(made(chromium()), LOCAL)
    read = SessionDescription.parse(text)
    video, audio, channel = read.media
    assert [media.port for media in read.media] == [8189, 8189, 8189]
    assert [codec.name for codec in video.rtp.codecs] == ["H264", "rtx"]
    assert video.rtp.codecs[0].parameters["profile-level-id"] == "42001f"
    assert video.direction == audio.direction == "recvonly"
    assert "a=ice-lite\r\n" in text
    assert video.ice is not None
    assert video.ice.usernameFragment == "u" * 16
    assert [candidate.ip for candidate in video.ice_candidates] == ["192.0.2.7", "2001:db8::7"]
    assert video.ice_candidates[0].priority > video.ice_candidates[1].priority
    assert video.ice_candidates_complete
    assert video.dtls is not None
    assert video.dtls.role == "client"
    assert channel.kind == "application"
    assert channel.sctp_port == 5000
    assert not video.ssrc  # nothing is sent


def test_a_viewers_answer_names_the_sources() -> None:
    text = write(made(chromium("recvonly"), publish=False, watch=True), LOCAL)
    assert "a=ssrc-group:FID 1 2" in text
    assert "a=ssrc:3 cname:name" in text
    assert text.count("a=sendonly") == 2


def test_whoever_wants_to_begin_dtls_may() -> None:
    text = chromium()
    assert made(text).dtls_client
    assert not made(text.replace("setup:actpass", "setup:active")).dtls_client
    assert made(text.replace("setup:actpass", "setup:passive")).dtls_client
    assert "a=setup:passive" in write(made(text.replace("setup:actpass", "setup:active")), LOCAL)


def test_the_profile_is_answered_as_it_was_offered_and_chromiums_word_only_to_chromium() -> None:
    bare = [line for line in h264(96, profile="42c01f") if "goog-remb" not in line]
    text = write(made(offer(section("video", "0", bare))), LOCAL)
    line = "a=fmtp:96 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42c01f\r\n"
    assert line in text
    assert "x-google-start-bitrate=1500" in write(made(chromium()), LOCAL)


def test_a_data_channel_alone_does_not_watch() -> None:
    with pytest.raises(InvalidError):
        made(offer(data("0")), publish=False, watch=True)


def test_the_answer_to_a_restart_is_a_fragment() -> None:
    text = fragment(made(chromium()), LOCAL)
    assert "a=ice-ufrag:" + "u" * 16 in text
    assert "a=candidate:1 1 udp" in text
    assert "v=0" not in text
