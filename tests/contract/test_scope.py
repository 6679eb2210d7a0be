"""Scope's clients against a real ingest over HTTP and UDP: the documented sequence, and what goes wrong.

The client is aiortc's; the session-manager and the runner are played, and the runner returns what it gets.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from aiortc import RTCDataChannel

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ExhaustedError
from services.inference.engine.pipelines.effects import Effects
from services.ingest.auth import Caller
from services.ingest.faces.scope.possessions import SESSION
from sluice.pipeline import schema
from tests.support import webrtc
from tests.support.ingest import KEYS, STREAM, Ingest, ingesting, until
from tests.support.nats import nats_server
from tests.support.scope_client import Camera, ScopeClient, scope_client
from tests.support.scope_plane import ScopePlane

INITIAL = {
    "input_mode": "video",
    "prompts": [{"text": "A painting", "weight": 1.0}],
    "denoising_step_list": [700, 500],
}


class Platform:
    """An ingest with a control plane that offers `effects`."""

    def __init__(self, ingest: Ingest, plane: ScopePlane) -> None:
        self.ingest = ingest
        self.plane = plane
        self.hub = ingest.hub

    async def delete_stream(self, stream: str, tenant: str) -> None:
        """What a session-manager does: the session ends with its stream."""
        await self.plane.delete_stream(stream, tenant)
        session = self.hub.of_stream(stream)
        if session is not None and session.identity.tenant == tenant:
            session.close("stream_deleted", "the stream was deleted")

    async def nothing_left(self) -> None:
        await until(lambda: not len(self.hub) and not len(self.ingest.core.peers))
        await until(lambda: not self.plane.known)


def heard_on(channel: RTCDataChannel) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    channel.on("message", lambda text: heard.append(json.loads(text)))
    return heard


@pytest.fixture
async def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Platform]:
    async with nats_server(tmp_path / "nats") as server, ingesting(server.url, tmp_path) as ingest:
        found = Platform(ingest, ScopePlane())

        async def who(key: str) -> Caller:
            return Caller(key, "id")

        monkeypatch.setattr(ingest.core.authenticator, "who", who)
        for name in ("create_stream", "stream", "streams", "update", "capacity", "sessions"):
            monkeypatch.setattr(ingest.core.plane, name, getattr(found.plane, name))
        monkeypatch.setattr(ingest.core.plane, "delete_stream", found.delete_stream)
        ingest.http.headers["Authorization"] = "Bearer acme"
        yield found


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[ScopeClient]:
    with patch("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"]):
        async with scope_client(platform.ingest.http) as found:
            yield found


@pytest.mark.parametrize("codec", ["video/H264", "video/VP8"])
async def test_the_documented_sequence_brings_pictures_back_and_leaves_nothing(
    platform: Platform, client: ScopeClient, codec: str
) -> None:
    answer = await client.connect(INITIAL, codec=codec)
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["type"], said["ignored"]) == ("answer", ["denoising_step_list"])
    assert "a=end-of-candidates" in said["sdp"]
    (stream,) = platform.plane.created
    assert (stream.id, stream.name, stream.tenant) == (client.session_id, SESSION, "acme")
    assert '"prompt": "A painting"' in platform.plane.known[stream.id].params
    await client.pictures(20)
    assert client.frames[-1].shape == (240, 320, 3)
    client.say({"id": 5, "prompts": [{"text": "neon", "weight": 1.0}]})
    assert (await client.next("parameters_accepted"))["revision"] == 2
    applied = await client.next("parameters_applied")
    assert (applied["id"], applied["applies"]) == (5, "live")
    client.say({"transition": {"target_prompts": [{"text": "sketch"}], "num_steps": 8}})
    assert (await client.next("parameters_accepted", 2))["revision"] == 3
    client.say("not JSON at all")
    assert (await client.next("error"))["field"] == "message"
    await client.pc.close()
    await platform.nothing_left()


async def test_a_flood_is_answered_and_the_session_goes_on(platform: Platform, client: ScopeClient) -> None:
    answer = await client.connect(INITIAL)
    assert "a=max-message-size:65536" in answer.json()["sdp"], "browsers send no larger ones then"
    await client.pictures(5)
    for count in range(200):
        client.say({"type": "update", "params": {"seed": count}})
    assert (await client.next("error"))["code"] == "RATE_LIMITED"
    await asyncio.sleep(1)
    client.say({"id": "after", "type": "update", "params": {"seed": 7}})
    await until(lambda: any(one.get("id") == "after" for one in client.of("parameters_accepted")))
    assert len(platform.plane.updates) < 20, "a burst is few changes"
    await client.pictures(5)


async def test_a_client_that_never_trickles_connects(platform: Platform, client: ScopeClient) -> None:
    with patch.object(ScopeClient, "trickle", _accepted):
        await client.connect(INITIAL)
        await client.pictures(5)


async def _accepted(self: ScopeClient, candidate: str) -> object:
    class Answer:
        status_code = 204

    return Answer()


async def test_the_end_of_the_session_is_told_and_the_connection_closed(
    platform: Platform, client: ScopeClient
) -> None:
    await client.connect(INITIAL)
    await client.pictures(5)
    session = platform.hub.of_stream(client.session_id)
    assert session is not None
    session.close("runner_lost", "the runner is gone")
    assert await client.next("stream_stopped") == {
        "type": "stream_stopped",
        "reason": "runner_lost",
        "error_message": "the runner is gone",
    }
    await until(lambda: client.pc.connectionState == "closed")
    await platform.nothing_left()
    assert (await client.trickle("candidate:1 1 udp 1 127.0.0.1 9 typ host")).status_code == 404


async def test_a_delete_ends_the_session_and_tells_the_client(
    platform: Platform, client: ScopeClient
) -> None:
    await client.connect(INITIAL)
    await client.pictures(5)
    for _ in range(2):
        answer = await platform.ingest.http.delete(f"/api/v1/webrtc/offer/{client.session_id}")
        assert answer.status_code == 204
    assert await client.next("stream_stopped") == {"type": "stream_stopped", "reason": "stream_deleted"}
    await platform.nothing_left()


async def test_sessions_know_nothing_of_each_other(platform: Platform, client: ScopeClient) -> None:
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(scope_client(platform.ingest.http))
        await client.connect(INITIAL)
        await other.connect({**INITIAL, "prompts": [{"text": "sketch"}]}, camera=Camera(160, 120))
        await client.pictures(5)
        await other.pictures(5)
        assert client.frames[-1].shape != other.frames[-1].shape
        other.say({"prompts": [{"text": "neon"}]})
        await other.next("parameters_accepted")
        assert '"prompt": "A painting"' in platform.plane.known[client.session_id].params
        theirs = {"Authorization": "Bearer somebody-else"}
        path = f"/api/v1/webrtc/offer/{client.session_id}"
        candidate = {
            "candidate": "candidate:1 1 udp 1 127.0.0.1 9 typ host",
            "sdpMid": "0",
            "sdpMLineIndex": 0,
        }
        patched = await platform.ingest.http.patch(path, json={"candidates": [candidate]}, headers=theirs)
        assert patched.status_code == 404
        await platform.ingest.http.delete(path, headers=theirs)
        await client.pictures(5)
        await other.pc.close()
        await until(lambda: len(platform.hub) == 1)
        await client.pictures(5)


async def test_a_pause_holds_the_pictures_and_they_go_on_afterwards(
    platform: Platform, client: ScopeClient
) -> None:
    await client.connect(INITIAL)
    await client.pictures(10)
    session = platform.hub.of_stream(client.session_id)
    assert session is not None
    client.say({"paused": True})
    await until(lambda: session.paused)
    await asyncio.sleep(0.3)
    held, at_pts = len(client.frames), session.out_pts
    await asyncio.sleep(1)
    assert len(client.frames) == held
    client.say({"paused": False})
    await client.pictures(10)
    assert session.out_pts > at_pts + 90_000


async def test_a_candidate_that_is_none_is_the_clients_mistake(
    platform: Platform, client: ScopeClient
) -> None:
    await client.connect(INITIAL)
    answer = await client.trickle("nonsense")
    assert answer.status_code == 400, answer.text
    assert "candidate" in answer.json()["detail"]
    await client.pictures(5)


async def test_an_offer_without_video_is_refused_in_words_and_allocates_nothing(platform: Platform) -> None:
    from aiortc import RTCPeerConnection

    pc = RTCPeerConnection()
    pc.createDataChannel("parameters")
    pc.addTransceiver("video", direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    body = {"sdp": pc.localDescription.sdp, "type": "offer", "initialParameters": {"input_mode": "text"}}
    answer = await platform.ingest.http.post("/api/v1/webrtc/offer", json=body)
    await pc.close()
    assert answer.status_code == 400
    assert "sends no video" in answer.json()["detail"]
    assert platform.plane.created == []


async def test_without_a_slot_the_offer_says_when_to_come_back_and_leaves_nothing(
    platform: Platform, client: ScopeClient
) -> None:
    error = ExhaustedError("no slot is free", reason="NO_CAPACITY", retry_after_s=7)
    platform.ingest.sessions.fail("StartSession", error)
    answer = await client.connect(INITIAL)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json()["code"] == "NO_CAPACITY"
    await platform.nothing_left()


async def test_a_client_that_never_connects_leaves_nothing(platform: Platform, client: ScopeClient) -> None:
    pc = client.pc
    pc.addTrack(Camera())
    await pc.setLocalDescription(await pc.createOffer())
    body = {"sdp": pc.localDescription.sdp, "type": "offer"}
    assert (await platform.ingest.http.post("/api/v1/webrtc/offer", json=body)).status_code == 200
    assert len(platform.plane.known) == 1
    async with asyncio.timeout(20):
        while platform.plane.known:
            await asyncio.sleep(0.1)
    await platform.nothing_left()


async def test_whip_and_whep_have_the_same_channel_and_only_the_publisher_steers(platform: Platform) -> None:
    rules = json.dumps(schema(Effects))
    record = sessions_pb2.Stream(
        id=STREAM, tenant="acme", pipeline="effects", params="{}", params_schema=rules, revision=1
    )
    platform.plane.known[STREAM] = record
    async with webrtc.client() as publisher, webrtc.client() as viewer:
        publisher.publish(webrtc.moving_pictures())
        steering = publisher.pc.createDataChannel("parameters")
        said = heard_on(steering)
        answer = await publisher.connect(platform.ingest.http, f"/whip/{KEYS.publish(STREAM)}")
        assert answer.status_code == 201, answer.text
        await until(lambda: steering.readyState == "open")
        viewer.watch("video")
        listening = viewer.pc.createDataChannel("anything")
        heard = heard_on(listening)
        answer = await viewer.connect(platform.ingest.http, f"/whep/{KEYS.playback(STREAM)}")
        assert answer.status_code == 201, answer.text
        await until(lambda: listening.readyState == "open")
        steering.send(json.dumps({"id": 1, "type": "update", "params": {"strength": 0.5}}))
        await until(lambda: any(one["type"] == "parameters_applied" and one["id"] == 1 for one in said))
        listening.send(json.dumps({"id": 2, "prompts": [{"text": "mine"}]}))
        await until(lambda: heard)
        assert [(one["type"], one["code"], one["id"]) for one in heard] == [("error", "MAY_NOT_STEER", 2)]
        session = platform.hub.of_stream(STREAM)
        assert session is not None
        with session.data.begin_segment() as segment:
            segment.write(b'{"pts": 90000, "data": {"faces": 2}}\n')
        told = {"type": "data", "pts_ms": 0, "data": {"faces": 2}}
        await until(lambda: told in heard and told in said)
