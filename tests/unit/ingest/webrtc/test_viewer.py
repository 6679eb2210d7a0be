from __future__ import annotations

import pytest

from services.common.frame_drops import FRAME_DROPS
from services.ingest.transports.webrtc.answer import plan
from services.ingest.transports.webrtc.outgoing import OutgoingTrack
from services.ingest.transports.webrtc.sdp import parse_offer
from services.ingest.transports.webrtc.viewer import Showing, Viewer
from tests.unit.ingest.webrtc.offers import chromium


class Network:
    """What leaves, unless it is full."""

    def __init__(self) -> None:
        self.full = False
        self.sent: list[bytes] = []

    def send(self, packet: bytes) -> bool:
        if not self.full:
            self.sent.append(packet)
        return not self.full

    def payloads(self) -> list[bytes]:
        found = [packet[-1:] for packet in self.sent]
        self.sent.clear()
        return found


@pytest.fixture
def network() -> Network:
    return Network()


@pytest.fixture
def viewer(network: Network) -> Viewer:
    found = plan(parse_offer(chromium("recvonly")), publish=False, watch=True)
    tracks = []
    for kind in ("video", "audio"):
        line = found.sending(kind)
        assert line is not None
        tracks.append(OutgoingTrack(line, ssrc=1, rtx_ssrc=2, cname="name", send=network.send))
    made = Viewer(*tracks, over=lambda reason, message: None, now_s=0.0)
    made.connected = True
    return made


def show(viewer: Viewer, payload: bytes, *, keyframe: bool = False) -> bool:
    return viewer.picture([payload], 0, 0.0, 0.0, keyframe=keyframe)


def dropped() -> float:
    return float(FRAME_DROPS.labels("webrtc_out")._value.get())


def test_the_stream_begins_with_a_key_frame_and_its_sound_with_it(viewer: Viewer, network: Network) -> None:
    assert not show(viewer, b"a")  # it needs one
    viewer.sound(b"s", 0, 0.0)
    assert network.payloads() == []
    assert show(viewer, b"k", keyframe=True)
    assert show(viewer, b"b")
    viewer.sound(b"t", 0, 0.0)
    assert network.payloads() == [b"k", b"b", b"t"]
    assert viewer.showing is Showing.LIVE


def test_a_still_gives_way_to_a_key_frame_only(viewer: Viewer, network: Network) -> None:
    viewer.still([b"w"], 0, 0.0)
    assert not show(viewer, b"a")
    assert network.payloads() == [b"w"]
    assert show(viewer, b"k", keyframe=True)
    assert network.payloads() == [b"k"]


def test_a_picture_that_could_not_leave_costs_those_up_to_the_next_key_frame(
    viewer: Viewer, network: Network
) -> None:
    before = dropped()
    show(viewer, b"k", keyframe=True)
    network.full = True
    assert not show(viewer, b"a")
    network.full = False
    assert not show(viewer, b"b")
    assert show(viewer, b"l", keyframe=True)
    assert show(viewer, b"c")
    assert network.payloads() == [b"k", b"l", b"c"]
    assert dropped() == before + 1


def test_nothing_is_sent_before_the_connection_is_there(viewer: Viewer, network: Network) -> None:
    viewer.connected = False
    assert show(viewer, b"k", keyframe=True)
    viewer.still([b"w"], 0, 0.0)
    assert network.payloads() == []
    assert viewer.showing is Showing.NOTHING


def test_a_viewer_of_sound_alone_hears_it_from_the_first_picture_on(network: Network) -> None:
    found = plan(parse_offer(chromium("recvonly")), publish=False, watch=True).sending("audio")
    assert found is not None
    track = OutgoingTrack(found, ssrc=1, rtx_ssrc=2, cname="name", send=network.send)
    viewer = Viewer(None, track, over=lambda reason, message: None, now_s=0.0)
    viewer.connected = True
    viewer.sound(b"s", 0, 0.0)
    assert show(viewer, b"a")
    viewer.sound(b"t", 0, 0.0)
    assert network.payloads() == [b"t"]
