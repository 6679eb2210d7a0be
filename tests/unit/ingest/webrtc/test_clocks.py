"""Two tracks on one clock; what a viewer's way carries; credentials."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.mpegts import CLOCK_HZ
from services.ingest.settings import IngestSettings
from services.ingest.transports.webrtc.alignment import Alignment
from services.ingest.transports.webrtc.congestion import Congestion
from services.ingest.transports.webrtc.rtcp import SenderReport, ntp_time
from services.ingest.transports.webrtc.rtp import TIMESTAMPS
from services.ingest.transports.webrtc.turn import ice_servers

AUDIO_HZ = 48_000


@given(st.integers(0, TIMESTAMPS - 1), st.integers(0, TIMESTAMPS - 1))
def test_times_never_jump_by_a_wrap(video: int, audio: int) -> None:
    clock = Alignment()
    # A day and a half, in steps of a quarter of an hour: 32 bits of 48 kHz are a day.
    steps = [
        (
            clock.video((video + index * 900 * CLOCK_HZ) % TIMESTAMPS, index * 900.0),
            clock.audio((audio + index * 900 * AUDIO_HZ) % TIMESTAMPS, index * 900.0),
        )
        for index in range(150)
    ]
    for index in range(1, len(steps)):
        assert steps[index][0] - steps[index - 1][0] == 900 * CLOCK_HZ
        before, now = steps[index - 1][1], steps[index][1]
        assert before is not None
        assert now is not None
        assert abs(now - before - 900 * CLOCK_HZ) <= 1


def test_until_there_are_reports_the_arrival_says_what_belongs_together() -> None:
    clock = Alignment()
    assert clock.audio(1000, 4.0) is None
    assert clock.video(500_000, 5.0) == 500_000
    assert clock.audio(1000 + AUDIO_HZ, 5.0) == 500_000


def test_reports_say_it_exactly_whatever_the_arrival() -> None:
    clock = Alignment()
    clock.video(500_000, 5.0)
    clock.audio(1000, 5.2)  # sampled at the same moment as the picture, but it came 200 ms later
    clock.report("video", SenderReport(1, ntp_time(100.0), 500_000))
    assert clock.audio(1000 + AUDIO_HZ, 6.2) == 500_000 + CLOCK_HZ + CLOCK_HZ // 5
    clock.report("audio", SenderReport(2, ntp_time(102.0), 1000 + 2 * AUDIO_HZ))
    assert clock.audio(1000 + 3 * AUDIO_HZ, 8.2) == pytest.approx(500_000 + 3 * CLOCK_HZ, abs=2)


def test_small_differences_and_impossible_ones_move_nothing() -> None:
    clock = Alignment()
    clock.video(500_000, 5.0)
    clock.audio(1000, 5.0)
    for sound_s in (100.01, 200.0):
        clock.report("video", SenderReport(1, ntp_time(100.0), 500_000))
        clock.report("audio", SenderReport(2, ntp_time(sound_s), 1000))
        assert clock.audio(1000 + AUDIO_HZ, 6.0) == 500_000 + CLOCK_HZ


def run(way: Congestion, bits_per_second: int, seconds: int, *, from_s: int = 0) -> int:
    """Send at that rate, ten pictures a second; how many were allowed."""
    allowed = 0
    for index in range(seconds * 10):
        allowed += way.allows(bits_per_second // 10, from_s + index / 10, keyframe=index % 20 == 0)
    return allowed


def test_a_viewer_that_says_nothing_bad_gets_everything() -> None:
    way = Congestion(0.0)
    way.estimated(1_500_000)
    assert run(way, 1_000_000, 10) == 100
    assert way.limit_bps is None


def test_an_estimate_below_what_is_sent_is_a_limit_and_grows_out_of_it() -> None:
    way = Congestion(0.0)
    way.estimated(500_000)
    assert run(way, 1_000_000, 3) == 30  # it loses nothing: the runner slows down, nothing is dropped
    assert way.limit_bps == 500_000
    way.estimated(2_000_000)
    run(way, 400_000, 30, from_s=3)
    assert way.limit_bps is None


def test_a_viewer_that_goes_on_losing_gets_what_it_can_carry() -> None:
    way = Congestion(0.0)
    way.estimated(300_000)
    allowed = []
    for second in range(16):
        way.lost(0.3)
        allowed.append(run(way, 1_000_000, 1, from_s=second))
    assert allowed[:3] == [10] * 3  # the runner has some seconds to come down
    assert 10 < sum(allowed[6:]) < 40
    for second in range(16, 30):
        way.lost(0.0)
        allowed.append(run(way, 300_000, 1, from_s=second))
    assert allowed[-10:] == [10] * 10


def test_a_link_that_is_only_bad_costs_no_pictures() -> None:
    way = Congestion(0.0)
    way.estimated(1_500_000)
    for second in range(30):
        way.lost(0.2 if second % 4 == 0 else 0.04)
        assert run(way, 1_000_000, 1, from_s=second) == 10


def test_credentials_are_coturns() -> None:
    settings = IngestSettings(
        stream_secret="x" * 16,
        stun_urls="stun:stun.example:3478",
        turn_urls="turn:turn.example:3478?transport=udp, turns:turn.example:443?transport=tcp",
        turn_secret="north",
        turn_ttl_s=600,
    )
    stun, turn = ice_servers(settings, "me", 1_000_000.5)
    assert stun.urls == ("stun:stun.example:3478",)
    assert stun.username is None
    assert turn.username == "1000600:me"
    # printf 1000600:me | openssl dgst -sha1 -hmac north -binary | base64
    assert turn.credential == "RZPfzs1QQwuIGAJ4nfKE/9wtazg="
    assert turn.link_headers()[1] == (
        '<turns:turn.example:443?transport=tcp>; rel="ice-server"; username="1000600:me";'
        ' credential="RZPfzs1QQwuIGAJ4nfKE/9wtazg="; credential-type="password"'
    )


def test_without_servers_nothing_is_said() -> None:
    assert ice_servers(IngestSettings(stream_secret="x" * 16), "me", 0.0) == []
