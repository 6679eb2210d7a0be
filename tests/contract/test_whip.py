"""WHIP and WHEP against real aiortc clients over UDP; the session-manager and the runner are played."""

from __future__ import annotations

import asyncio
import json
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from aioice import stun
from aiortc.rtcdtlstransport import RTCCertificate, generate_certificate
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google_crc32c import value as crc32c

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ExhaustedError, PaymentRequiredError, SluiceError
from services.common.telemetry import BUGS
from services.ingest.transports.webrtc import audience as audience_module
from services.ingest.transports.webrtc import peer as peer_module
from services.ingest.transports.webrtc import rtcp
from tests.support.ingest import KEYS, STREAM, Ingest, ingesting, paced, until
from tests.support.media import pictures, sound
from tests.support.nats import nats_server
from tests.support.webrtc import SDP, Bare, Client, client, drawn_pictures, moving_pictures, tone
from tests.unit.ingest.webrtc.offers import data, h264, offer, opus, section

KEY = KEYS.publish(STREAM)
PLAYBACK = KEYS.playback(STREAM)
WHIP = f"/whip/{KEY}"
WHEP = f"/whep/{PLAYBACK}"
FRAGMENT = {"content-type": "application/trickle-ice-sdpfrag"}


@asynccontextmanager
async def served(tmp_path: Path, **facts: Any) -> AsyncIterator[Ingest]:
    async with nats_server(tmp_path / "nats") as server, ingesting(server.url, tmp_path, **facts) as made:
        yield made


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Ingest]:
    async with served(tmp_path) as made:
        yield made


@asynccontextmanager
async def publishing(ingest: Ingest) -> AsyncIterator[Client]:
    """A client that publishes, whose pictures come back from the runner."""
    async with client() as made:
        made.publish(moving_pictures(), tone())
        answer = await made.connect(ingest.http, WHIP)
        assert answer.status_code == 201, answer.text
        await live(ingest)
        yield made


async def live(ingest: Ingest, frames: int = 5, within_s: float = 8.0) -> None:
    await until(lambda: (found := ingest.hub.of_stream(STREAM)) and found.frames_out > frames, within_s)


def deafen(peer: peer_module.Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing of its client reach it, as behind a network that went away."""
    monkeypatch.setattr(peer, "receive", lambda *_: None)
    monkeypatch.setattr(peer, "check", lambda *_: None)


def assert_forward(frames: list[Any]) -> None:
    assert all(first.pts < second.pts for first, second in pairwise(frames))


async def test_what_is_published_by_whip_is_watched_by_whep_with_its_sound(ingest: Ingest) -> None:
    async with publishing(ingest) as publisher, client() as viewer:
        viewer.watch("video", "audio")
        answer = await viewer.connect(ingest.http, WHEP)
        assert answer.status_code == 201, answer.text
        await viewer.until(lambda: len(viewer.frames["video"]) > 25)
        await viewer.until(lambda: len(viewer.frames["audio"]) > 25)
        assert_forward(viewer.frames["video"])
        assert (viewer.frames["video"][-1].width, viewer.frames["video"][-1].height) == (64, 48)  # type: ignore[attr-defined]
        (peer,) = [each for each in ingest.core.peers._peers.values() if each.watching]
        stats = peer.stats()
        assert (stats.state, stats.converts) == ("connected", {})
        assert stats.codecs == {"video_out": "h264", "audio_out": "opus"}
        assert stats.bytes_out > 0
    assert publisher.location


async def test_the_answer_says_where_to_end_it_and_where_to_watch(ingest: Ingest) -> None:
    async with client() as publisher:
        publisher.publish(moving_pictures())
        answer = await publisher.connect(ingest.http, WHIP)
        assert answer.headers["content-type"].startswith("application/sdp")
        assert answer.headers["location"].startswith(f"{str(ingest.http.base_url).rstrip('/')}{WHIP}/")
        assert answer.headers["etag"].startswith('"')
        assert answer.headers["livepeer-playback-url"].endswith(f"/webrtc/whep/{PLAYBACK}")
        assert "a=end-of-candidates" in answer.text
        assert f" 127.0.0.1 {ingest.core.peers.port.listening} typ host" in answer.text


async def test_the_key_may_come_as_bearer_token_and_by_livepeers_path(ingest: Ingest) -> None:
    async with client() as publisher:
        publisher.publish(moving_pictures())
        answer = await publisher.connect(ingest.http, "/whip", authorization=f"Bearer {KEY}")
        assert answer.status_code == 201, answer.text
        await live(ingest)
        assert (await ingest.http.delete(publisher.location)).status_code == 200
    await until(lambda: ingest.hub.of_stream(STREAM) is None)
    async with client() as publisher:
        publisher.publish(moving_pictures())
        answer = await publisher.connect(ingest.http, f"/live/video-to-video/{KEY}/whip")
        assert answer.status_code == 201, answer.text


async def test_a_viewer_waits_with_a_still_and_stays_over_the_streams_sessions(ingest: Ingest) -> None:
    async with client() as viewer:
        viewer.watch("video", "audio")
        assert (await viewer.connect(ingest.http, WHEP)).status_code == 201
        await viewer.until(lambda: len(viewer.frames["video"]) >= 2)
        frames: list[Any] = viewer.frames["video"]
        assert {frame.width for frame in frames} == {512}
        async with publishing(ingest) as publisher:
            await viewer.until(lambda: frames[-1].width == 64)
            assert (await ingest.http.delete(publisher.location)).status_code == 200
        await until(lambda: ingest.hub.of_stream(STREAM) is None)
        before = len(frames)
        await viewer.until(lambda: len(frames) >= before + 2)  # the still, in the size of the stream
        async with publishing(ingest):
            before = len(frames)
            await viewer.until(lambda: len(frames) > before + 20)
        assert_forward(frames)


async def test_a_page_that_closes_its_connection_first_and_deletes_then_leaves_no_grace(
    ingest: Ingest,
) -> None:
    async with publishing(ingest) as publisher:
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        await publisher.close()
        await until(lambda: len(ingest.core.peers) == 0)
        assert not session.closed.done(), "it may come back"
        strange = publisher.location.replace(KEY, KEYS.publish("str_another"))
        assert (await ingest.http.delete(strange)).status_code == 404
        assert (await ingest.http.delete(publisher.location)).status_code == 200
        assert (await asyncio.wait_for(session.closed, 15)).reason == "input_ended"
        assert (await ingest.http.delete(publisher.location)).status_code == 404


async def test_deleting_the_resource_ends_the_session_in_order(ingest: Ingest) -> None:
    async with publishing(ingest) as publisher:
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        assert (await ingest.http.delete(publisher.location)).status_code == 200
        assert (await ingest.http.delete(publisher.location)).status_code == 404
        closed = await asyncio.wait_for(session.closed, 15)
        assert closed.reason == "input_ended"


async def test_a_publisher_that_goes_without_a_word_can_come_back_to_its_session(ingest: Ingest) -> None:
    async with publishing(ingest):
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
    await until(lambda: not session.connected)
    assert not session.closed.done()
    frames = session.frames_out
    async with publishing(ingest):
        assert ingest.hub.of_stream(STREAM) is session
        await until(lambda: session.frames_out > frames + 10)


async def test_a_second_publisher_is_refused_unless_the_first_one_hangs(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with publishing(ingest), client() as second:
        second.publish(moving_pictures())
        assert (await second.connect(ingest.http, WHIP)).status_code == 409
        first = ingest.core.peers.publisher_of(STREAM)
        assert first is not None
        deafen(first, monkeypatch)
        await until(lambda: first.silent_s > 2)
        async with client() as third:
            third.publish(moving_pictures())
            assert (await third.connect(ingest.http, WHIP)).status_code == 201
            assert first.closed.result().reason == "replaced"
            await third.connected()


async def test_the_platforms_end_ends_the_connection(ingest: Ingest) -> None:
    async with publishing(ingest) as publisher:
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        peer = ingest.core.peers.publisher_of(STREAM)
        assert peer is not None
        session.close("stopped", "somebody stopped it")
        assert (await asyncio.wait_for(peer.closed, 10)).reason == "stopped"
        await publisher.until(lambda: publisher.pc.connectionState in {"closed", "failed"})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PaymentRequiredError("no credit", reason="NO_CREDIT"), 402),
        (ExhaustedError("no runner is free", reason="NO_CAPACITY", retry_after_s=7), 503),
    ],
)
async def test_what_cannot_be_paid_or_run_is_refused_before_an_answer(
    ingest: Ingest, error: SluiceError, status: int
) -> None:
    ingest.sessions.fail("StartSession", error)
    async with client() as publisher:
        publisher.publish(moving_pictures())
        answer = await publisher.connect(ingest.http, WHIP)
        assert answer.status_code == status
        assert answer.headers.get("retry-after") == ("7" if status == 503 else None)
    await until(lambda: ingest.hub.of_stream(STREAM) is None)
    assert len(ingest.core.peers) == 0


@pytest.mark.parametrize(
    ("path", "change", "status"),
    [
        ("/whip/stk_nobody-xyz", {}, 404),
        (f"/whip/{PLAYBACK}", {}, 403),
        (f"/whep/{KEY}", {}, 403),
        ("/whep/pbk_nobody-xyz", {}, 404),
        (WHIP, {"content-type": "application/json"}, 415),
        (WHIP, {"body": "hello"}, 400),
        (WHIP, {"body": "\xff".encode("latin-1")}, 400),
        (WHIP, {"body": "v=0\r\n" + "x" * 200_000}, 413),
        (WHIP, {"replace": ("H264/90000", "AV1/90000")}, 406),
        (WHIP, {"replace": ("a=sendonly", "a=recvonly")}, 422),
        (WHEP, {"replace": ("a=sendonly", "a=inactive")}, 406),
    ],
)
async def test_what_is_no_offer_for_that_key_is_refused(
    ingest: Ingest, path: str, change: dict[str, Any], status: int
) -> None:
    async with client() as made:
        made.publish(moving_pictures())
        offered: Any = change.get("body", await made.offer())
        if "replace" in change:
            offered = offered.replace(*change["replace"])
        headers = {"content-type": change.get("content-type", "application/sdp")}
        answer = await ingest.http.post(path, content=offered, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["success"] is False
    assert ingest.hub.of_stream(STREAM) is None
    assert len(ingest.core.peers) == 0


async def test_without_a_key_there_is_no_publishing(ingest: Ingest) -> None:
    answer = await ingest.http.post("/whip", content="v=0", headers=SDP)
    assert answer.status_code == 401


async def test_more_viewers_than_there_are_seats_are_refused_and_a_seat_is_given_back(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, max_viewers=1) as ingest, client() as first:
        first.watch("video")
        assert (await first.connect(ingest.http, WHEP)).status_code == 201
        async with client() as second:
            second.watch("video")
            answer = await second.connect(ingest.http, WHEP)
            assert (answer.status_code, answer.json()["code"]) == (429, "SLUICE/TOO_MANY_VIEWERS")
        assert (await ingest.http.delete(first.location)).status_code == 200
        async with client() as third:
            third.watch("video")
            assert (await third.connect(ingest.http, WHEP)).status_code == 201


async def test_a_process_has_only_so_many_connections(tmp_path: Path) -> None:
    async with served(tmp_path, max_peers=1) as ingest, client() as first, client() as second:
        first.watch("video")
        assert (await first.connect(ingest.http, WHEP)).status_code == 201
        second.publish(moving_pictures())
        answer = await second.connect(ingest.http, WHIP)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert ingest.hub.of_stream(STREAM) is None


async def test_candidates_and_restarts_follow_the_rfc(ingest: Ingest) -> None:
    async with publishing(ingest) as publisher:
        path = publisher.location
        peer = ingest.core.peers.publisher_of(STREAM)
        assert peer is not None
        candidate = (
            "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"
        )
        mine = {"if-match": f'"{peer.etag}"'}

        async def patch(text: str, **headers: str) -> httpx.Response:
            return await ingest.http.patch(path, content=text, headers=FRAGMENT | headers)

        assert (await patch(candidate, **mine)).status_code == 204
        assert (await patch("a=end-of-candidates\r\n", **mine)).status_code == 204
        assert (await patch(candidate)).status_code == 428
        assert (await patch(candidate, **{"if-match": '"another"'})).status_code == 412
        assert (await patch("a=candidate:nonsense\r\n", **mine)).status_code == 400
        assert (await patch("{}", **mine)).status_code == 400
        assert (await patch(candidate, **mine, **{"content-type": "application/json"})).status_code == 415
        wrong = path.replace(KEY, PLAYBACK).replace("/whip/", "/whep/")
        assert (await ingest.http.patch(wrong, content=candidate, headers=FRAGMENT | mine)).status_code == 404
        # A restart: the client takes a new name, and gets ours.
        restart = f"a=ice-ufrag:renewed\r\na=ice-pwd:{'p' * 24}\r\n{candidate}"
        answer = await patch(restart, **{"if-match": "*"})
        assert answer.status_code == 200
        assert answer.headers["etag"] == f'"{peer.etag}"' != mine["if-match"]
        lines = dict(
            line.removeprefix("a=").split(":", 1) for line in answer.text.splitlines() if ":" in line
        )
        assert await answered_by_stun(ingest, f"{lines['ice-ufrag']}:renewed", lines["ice-pwd"])
        assert not await answered_by_stun(ingest, f"{lines['ice-ufrag']}:another", lines["ice-pwd"])
        for number in range(5):
            restart = f"a=ice-ufrag:renewed{number}\r\na=ice-pwd:{'p' * 24}\r\n{candidate}"
            assert (await patch(restart, **{"if-match": "*"})).status_code == 200
        assert len(ingest.core.peers.port._names) == 2


async def answered_by_stun(ingest: Ingest, username: str, password: str) -> bool:
    """Whether the port answers a check of that name."""
    answers: asyncio.Queue[bytes] = asyncio.Queue()

    class Heard(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: object) -> None:
            answers.put_nowait(data)

    loop = asyncio.get_running_loop()
    port = ingest.core.peers.port.listening
    transport, _ = await loop.create_datagram_endpoint(Heard, remote_addr=("127.0.0.1", port))
    try:
        request = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
        request.attributes |= {"USERNAME": username, "PRIORITY": 1}
        request.add_message_integrity(password.encode())
        transport.sendto(bytes(request))
        read = stun.parse_message(await asyncio.wait_for(answers.get(), 0.5))
        return read.check_message_integrity(password.encode())
    except TimeoutError:
        return False
    finally:
        transport.close()


async def test_clients_ask_first_what_there_is(tmp_path: Path) -> None:
    facts = {"turn_urls": "turn:turn.example:3478", "turn_secret": "north", "stun_urls": "stun:stun.example"}
    async with served(tmp_path, **facts) as ingest:
        answer = await ingest.http.options(WHIP)
        assert answer.status_code == 204
        assert answer.headers["accept-post"] == "application/sdp"
        links = answer.headers.get_list("link")
        assert links[0] == '<stun:stun.example>; rel="ice-server"'
        assert 'credential-type="password"' in links[1]
        preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
        answer = await ingest.http.options(WHEP, headers=preflight)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == "*"
        for path in (WHIP, WHEP, f"/webrtc/whep/{PLAYBACK}"):
            for method in ("HEAD", "GET"):
                answer = await ingest.http.request(method, path, headers={"origin": "https://a.example"})
                assert answer.status_code == 405
                assert answer.headers["allow"] == "POST, OPTIONS"
                assert answer.headers["access-control-allow-origin"] == "*"
        async with client() as viewer:
            viewer.watch("video")
            answer = await viewer.connect(ingest.http, f"/webrtc/whep/{PLAYBACK}")
            assert len(answer.headers.get_list("link")) == 2
            assert (await ingest.http.get(viewer.location)).status_code == 405


async def test_a_client_that_never_connects_is_let_go(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "CONNECT_S", 0.5)
    async with client() as publisher:
        publisher.publish(moving_pictures())
        answer = await ingest.http.post(WHIP, content=await publisher.offer(), headers=SDP)
        assert answer.status_code == 201
    peer = ingest.core.peers.publisher_of(STREAM)
    assert peer is not None
    assert (await asyncio.wait_for(peer.closed, 5)).reason == "never_connected"
    session = ingest.hub.of_stream(STREAM)
    assert session is not None
    assert not session.connected  # its grace has begun


async def test_a_client_that_falls_silent_is_let_go(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    async with publishing(ingest):
        peer = ingest.core.peers.publisher_of(STREAM)
        session = ingest.hub.of_stream(STREAM)
        assert peer is not None
        assert session is not None
        monkeypatch.setattr(peer_module, "SILENCE_S", 0.5)
        deafen(peer, monkeypatch)
        assert (await asyncio.wait_for(peer.closed, 5)).reason == "silent"
        await until(lambda: not session.connected)
        assert not session.closed.done()


async def test_a_viewer_without_pictures_is_let_go_in_the_end(tmp_path: Path) -> None:
    async with served(tmp_path, viewer_idle_s=0.5) as ingest, client() as viewer:
        viewer.watch("video")
        await viewer.connect(ingest.http, WHEP)
        (peer,) = ingest.core.peers._peers.values()
        assert (await asyncio.wait_for(peer.closed, 5)).reason == "idle"
        await viewer.until(lambda: viewer.pc.connectionState in {"closed", "failed"})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (sessions_pb2.Stream(id="str_another"), "stream_deleted"),
        (sessions_pb2.Stream(id=STREAM, tenant="acme", session="ses_elsewhere"), "moved"),
    ],
)
async def test_a_viewer_of_a_stream_that_will_not_be_here_is_let_go(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, record: sessions_pb2.Stream, reason: str
) -> None:
    monkeypatch.setattr(audience_module, "ASK_S", 0.1)
    async with client() as viewer:
        viewer.watch("video")
        await viewer.connect(ingest.http, WHEP)
        (peer,) = ingest.core.peers._peers.values()
        ingest.sessions.record = record
        assert (await asyncio.wait_for(peer.closed, 5)).reason == reason


async def test_the_failure_of_one_connection_is_reported_and_ends_no_other(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with publishing(ingest), client() as one, client() as two:
        for viewer in (one, two):
            viewer.watch("video")
            await viewer.connect(ingest.http, WHEP)
            await until(lambda frames=viewer.frames["video"]: len(frames) > 2)  # type: ignore[misc]
        first, second = [peer for peer in ingest.core.peers._peers.values() if peer.watching]
        before = BUGS.labels("webrtc")._value.get()
        monkeypatch.setattr(first, "_take_media", broken)
        assert (await asyncio.wait_for(first.closed, 5)).reason == "internal_error"
        assert BUGS.labels("webrtc")._value.get() == before + 1
        frames = len(two.frames["video"])
        await two.until(lambda: len(two.frames["video"]) > frames + 10)
        # One that breaks what the viewers have in common ends them, and not the publisher.
        monkeypatch.setattr(second.audience, "_show_still", broken)
        assert (await asyncio.wait_for(second.closed, 5)).reason == "internal_error"
        monkeypatch.undo()
        assert ingest.core.peers.publisher_of(STREAM) is not None
        async with client() as three:
            three.watch("video")
            await three.connect(ingest.http, WHEP)
            await three.until(lambda: len(three.frames["video"]) > 2)


async def test_vp8_is_converted_on_both_ways_of_one_section(ingest: Ingest) -> None:
    """What Scope's client does: one section, VP8 only, both ways."""
    async with client() as both:
        both.publish(drawn_pictures(), codec="VP8", direction="sendrecv")
        session = await ingest.core.publishing.join(KEY)
        offered = await both.offer()
        peer = await ingest.core.peers.connect(offered, tenant="acme", publish=session, watch=STREAM)
        await both.answered(peer.sdp)
        assert peer.converts == {"video_in": "vp8->h264", "video_out": "h264->vp8"}
        await both.until(lambda: bool(both.frames["video"]) and both.frames["video"][-1].width == 128, 15)  # type: ignore[attr-defined]
        assert len(ingest.core.peers) == 1
        assert peer.audience is not None
        assert peer.audience._vp8 is not None
        await peer.close("deleted", orderly=True)
        assert peer.audience._vp8 is None  # nobody needs it any more
    await asyncio.wait_for(session.closed, 15)


async def test_the_sound_of_a_publisher_without_opus_is_converted(ingest: Ingest) -> None:
    async with client() as viewer:
        viewer.watch("video", "audio")
        await viewer.connect(ingest.http, WHEP)
        await viewer.connected()
        units = sorted([*pictures(150), *sound(280)], key=lambda unit: unit.dts)
        task = asyncio.ensure_future(ingest.publish(paced(units, times_faster=1)))
        try:
            (peer,) = ingest.core.peers._peers.values()
            await until(lambda: peer.converts == {"sound_out": "aac->opus"})
            await viewer.until(lambda: len(viewer.frames["video"]) > 10)
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_what_strangers_send_ends_their_own_connection_at_most(ingest: Ingest) -> None:
    random = Random(3)
    bugs = sum(sample.value for metric in BUGS.collect() for sample in metric.samples)
    bare = Bare()
    transport = bare.transport_lines()
    offered = offer(
        section("video", "0", h264(96, rtx=97), transport=transport),
        section("audio", "1", opus(), transport=transport),
        [*data("2")[:2], *transport, *data("2")[6:]],
    )
    answer = await ingest.http.post(WHIP, content=offered, headers=SDP)
    assert answer.status_code == 201, answer.text
    peer = ingest.core.peers.publisher_of(STREAM)
    assert peer is not None
    await bare.connect(answer.text)
    try:
        for index in range(400):
            noise = random.randbytes(random.randrange(1, 200))
            kind = random.choice([96, 97, 111, 45, 96 | 128])
            header = struct.pack("!BBHII", 0x80 | random.choice([0, 16, 32, 3]), kind, index, index * 3000, 7)
            bare.send(noise)
            bare.send_rtp(header + noise)
            said = random.choice([200, 201, 202, 204, 205, 206, 207])  # no good-bye
            bare.send_rtcp(struct.pack("!BBHI", 0x80 | index % 32, said, 1 + index % 9, 7) + noise)
            if index % 20 == 0:
                await asyncio.sleep(0.01)
        assert not peer.closed.done()
        assert peer.stats().state == "connected"
        assert bare.dtls is not None
        for _ in range(200):
            bare.dtls.write(struct.pack("!HHII", 5000, 5000, 0, 0) + random.randbytes(40))
        # An INIT with another chunk behind it, which SCTP forbids, and a right checksum.
        chunks = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 1 << 16, 1, 1, 1) * 2
        head = struct.pack("!HHI", 5000, 5000, 0)
        bare.dtls.write(head + struct.pack("<I", crc32c(head + bytes(4) + chunks)) + chunks)
        assert (await asyncio.wait_for(peer.closed, 5)).reason == "protocol_error"
    finally:
        bare.close()
    assert bugs == sum(sample.value for metric in BUGS.collect() for sample in metric.samples)
    assert len(ingest.core.peers) == 0
    assert not ingest.core.peers.port._addresses


async def test_what_a_viewer_reports_is_heard(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Bare()
    transport = bare.transport_lines()
    offered = offer(section("video", "0", h264(96, rtx=97), direction="recvonly", transport=transport))
    async with publishing(ingest):
        answer = await ingest.http.post(WHEP, content=offered, headers=SDP)
        (peer,) = [each for each in ingest.core.peers._peers.values() if each.watching]
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        asked: list[None] = []
        estimates: list[int | None] = []
        monkeypatch.setattr(session, "ask_keyframe", lambda: asked.append(None))
        monkeypatch.setattr(session, "receiver_estimate", lambda viewer, rate: estimates.append(rate))
        await bare.connect(answer.text)
        try:
            await until(lambda: len(bare.packets) > 3)
            lost = bare.packets[0]
            bare.send_rtcp(rtcp.nack(5, lost.ssrc, [lost.sequence]))
            await until(lambda: any(packet.payload_type == 97 for packet in bare.packets))
            again = next(packet for packet in bare.packets if packet.payload_type == 97)
            assert again.payload == lost.sequence.to_bytes(2, "big") + lost.payload
            asked.clear()
            bare.send_rtcp(rtcp.picture_loss(5, lost.ssrc))
            await until(lambda: bool(asked))
            bare.send_rtcp(rtcp.receiver_estimate(5, lost.ssrc, 2_000))  # a tenth of what is sent
            await until(lambda: peer.stats().limit_out_bps == 2_000)
            bare.send_rtcp(rtcp.receiver_estimate(5, lost.ssrc, 2_000))
            await until(lambda: 2_000 in estimates)
            assert peer.stats().repeated == 1
        finally:
            bare.close()
        await until(lambda: estimates[-1] is None)  # it left: it limits nobody any more


async def test_ffmpegs_own_whip_publishes(ingest: Ingest, tmp_path: Path) -> None:
    """With a certificate on P-256: FFmpeg with GnuTLS makes itself one on a curve that OpenSSL has left."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ec.generate_private_key(ec.SECP256R1())
    form = serialization.PrivateFormat.TraditionalOpenSSL
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    issued = RTCCertificate(made, generate_certificate(made))._cert
    certificate.write_bytes(issued.public_bytes(serialization.Encoding.PEM))
    url = f"{str(ingest.http.base_url).rstrip('/')}{WHIP}"
    command = (sys.executable, "-m", "tests.support.ffmpeg_whip", url, str(key), str(certificate))
    ffmpeg = await asyncio.create_subprocess_exec(*command)
    try:
        await live(ingest, frames=20, within_s=15)
        assert await asyncio.wait_for(ffmpeg.wait(), 10) == 0
    finally:
        if ffmpeg.returncode is None:
            ffmpeg.kill()
            await ffmpeg.wait()
    assert len(ingest.core.peers) == 0  # it deleted its resource


async def test_a_data_channel_carries_what_the_client_wants(ingest: Ingest) -> None:
    async with client() as publisher:
        publisher.publish(moving_pictures())
        channel = publisher.pc.createDataChannel("parameters")
        heard: list[dict[str, Any]] = []
        channel.on("message", lambda text: heard.append(json.loads(text)))
        assert (await publisher.connect(ingest.http, WHIP)).status_code == 201
        await publisher.until(lambda: channel.readyState == "open")
        channel.send("this is no JSON")
        await publisher.until(lambda: any(message["type"] == "error" for message in heard))
