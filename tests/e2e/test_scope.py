"""Scope's API on the whole platform: a session that is loaded, steered, looked at, recorded and ended."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from unittest.mock import patch

import av
import httpx
import pytest

from tests.support import publisher
from tests.support.scope_client import ScopeClient, scope_client
from tests.support.stack import Stack, until
from tests.support.viewer import finish

NEON = {
    "input_mode": "video",
    "prompts": [{"text": "neon", "weight": 1.0}],
    "denoising_step_list": [700, 500],
}


def on(stack: Stack, work: Callable[[httpx.AsyncClient, ScopeClient], Awaitable[None]]) -> None:
    """Run `work` with the public API and a client on this machine."""

    async def run() -> None:
        headers = {"Authorization": f"Bearer {stack.key}"}
        http = httpx.AsyncClient(base_url=stack.url, timeout=30, headers=headers)
        async with http, scope_client(http) as client:
            await work(http, client)

    with patch("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"]):
        asyncio.run(run())


def test_a_session_is_loaded_steered_looked_at_recorded_and_ended(stack: Stack) -> None:
    async def work(http: httpx.AsyncClient, client: ScopeClient) -> None:
        body = {"pipeline_ids": ["effects"], "load_params": {"base_seed": 7, "height": 512}}
        assert (await http.post("/api/v1/pipeline/load", json=body)).json()["ignored"] == ["height"]
        assert (await http.get("/api/v1/pipeline/status")).json()["load_params"]["seed"] == 7
        assert (await client.connect(NEON)).status_code == 200
        await client.pictures(20)
        sid = client.session_id
        assert (await client.next("data"))["data"] == {"looks": {"neon": 1.0}}
        assert client.frames[-1].mean() < 60

        assert (await http.post(f"/api/v1/recordings/{sid}/start")).json() == {"status": "started"}
        client.say({"id": "white", "transition": {"target_prompts": [{"text": "sketch"}], "num_steps": 0}})
        applied = await client.next("parameters_applied")
        assert (applied["id"], applied["applies"]) == ("white", "live")
        await client.pictures(20)
        assert client.frames[-1].mean() > 120

        changed = await http.patch(f"/v1/streams/{sid}", json={"params": {"prompt": "neon"}})
        assert changed.status_code == 200
        updated = await client.next("parameters_updated")
        assert updated["parameters"]["prompts"] == [{"text": "neon", "weight": 1.0}]

        metrics = (await http.get("/api/v1/session/metrics")).json()["sessions"][sid]
        assert metrics["frames_out"] >= 40
        picture = await http.get("/api/v1/session/frame", params={"session_id": sid, "quality": 70})
        with av.open(io.BytesIO(picture.content), "r", format="jpeg_pipe") as still:
            assert next(still.decode(video=0)).width == 320

        assert (await http.post(f"/api/v1/recordings/{sid}/stop")).json() == {"status": "stopped"}
        assert (await http.delete(f"/api/v1/webrtc/offer/{sid}")).status_code == 204
        assert (await client.next("stream_stopped"))["reason"] == "stream_deleted"
        film = await http.get(f"/api/v1/recordings/{sid}")
        with av.open(io.BytesIO(film.content), "r") as container:
            assert len([*container.decode(video=0)]) >= 20
        assert (await http.get(f"/v1/streams/{sid}")).status_code == 404

    on(stack, work)


def test_a_pause_costs_no_pictures_and_ends_with_the_next_ones(stack: Stack) -> None:
    async def work(http: httpx.AsyncClient, client: ScopeClient) -> None:
        await client.connect({**NEON, "pipeline_ids": ["passthrough"]})
        await client.pictures(10)
        client.say({"paused": True})
        await client.next("parameters_applied")
        await asyncio.sleep(1)
        before = len(client.frames)
        await asyncio.sleep(3)
        assert len(client.frames) - before <= 1
        client.say({"paused": False})
        await client.pictures(20)
        await http.delete(f"/api/v1/webrtc/offer/{client.session_id}")

    on(stack, work)


def test_a_slot_that_is_taken_is_told_in_the_answer_and_freed_by_a_client_that_leaves(stack: Stack) -> None:
    async def work(http: httpx.AsyncClient, client: ScopeClient) -> None:
        await client.connect(NEON)
        await client.pictures(5)
        async with scope_client(http) as second:
            refused = await second.connect(NEON)
            assert (refused.status_code, refused.json()["code"]) == (503, "NO_CAPACITY")
            assert int(refused.headers["Retry-After"]) > 0
            await client.close()
            async with asyncio.timeout(20):
                while refused.status_code == 503:
                    await asyncio.sleep(0.5)
                    await second.pc.close()
                    refused = await second.connect(NEON)
            await second.pictures(5)
            await http.delete(f"/api/v1/webrtc/offer/{second.session_id}")

    on(stack, work)


def test_a_session_without_a_peer_is_published_to_and_looked_at(stack: Stack) -> None:
    body = {"pipeline_id": "effects", "prompts": [{"text": "sketch"}]}
    begun = stack.http.post("/api/v1/session/start", json=body).json()
    sending = publisher.start(begun["publish_url"], seconds=20)
    try:
        until(lambda: stack.http.get("/api/v1/session/frame").status_code == 200, 20, "a picture")
        assert stack.http.post("/api/v1/recordings/headless/start").json() == {"status": "started"}
        until(
            lambda: (
                stack.http.get("/api/v1/session/metrics").json()["sessions"]["headless"]["frames_out"] > 80
            ),
            20,
            "some seconds of it",
        )
        assert stack.http.post("/api/v1/recordings/headless/stop").json() == {"status": "stopped"}
        film = stack.http.get("/api/v1/recordings/headless")
        with av.open(io.BytesIO(film.content), "r") as container:
            assert len([*container.decode(video=0)]) > 20
        assert stack.http.post("/api/v1/session/stop").json()["status"] == "ok"
        assert stack.http.get("/api/v1/session/frame").status_code == 404
    finally:
        finish(sending)


@pytest.fixture(autouse=True)
def nothing_is_loaded(stack: Stack) -> None:
    """What one test loaded is not for the next."""
    for stream in stack.http.get("/v1/streams").json()["data"]:
        if stream["name"].startswith("scope:"):
            stack.http.delete(f"/v1/streams/{stream['id']}")
