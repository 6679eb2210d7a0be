"""Clients without a header for their key, clients on this machine, and pages of other origins."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from protos.sessions.v1 import sessions_pb2
from services.ingest.app import public_app
from tests.support.house import House, housing, seven


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with housing() as found:
        yield found


async def bare(house: House, path: str, *, host: str = "localhost:8000", **headers: str) -> httpx.Response:
    """GET without a key, from this machine."""
    transport = httpx.ASGITransport(public_app(house.core), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        return await client.get(path, headers=headers)


async def test_a_key_in_the_path_is_a_key(house: House) -> None:
    assert (await bare(house, "/k/mine/v1/balance")).status_code == 200
    assert (await bare(house, "/k/nobodys/v1/balance")).status_code == 401
    assert (await bare(house, "/k//v1/balance")).status_code == 401


async def test_a_key_in_the_header_wins_over_one_in_the_path(house: House) -> None:
    made = await house.stream()
    path = f"/k/theirs/v1/streams/{made['id']}"
    assert (await house.client.get(path)).status_code == 200
    assert (await bare(house, path)).status_code == 404, "it is another tenant's"


async def test_without_the_setting_a_client_on_this_machine_needs_a_key(house: House) -> None:
    answer = await bare(house, "/v1/balance")
    assert seven(answer)["code"] == "SLUICE/KEY_MISSING"


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("localhost:8000", {}, 200),
        ("127.0.0.1:8000", {}, 200),
        ("[::1]:8000", {}, 200),
        ("localhost:8000", {"Origin": "http://localhost:5173"}, 200),
        ("localhost:8000", {"Origin": "https://evil.example"}, 401),
        ("localhost:8000", {"Origin": "null"}, 401),
        ("evil.example:8000", {}, 401),
        ("localhost.evil.example:8000", {}, 401),
        ("localhost:8000", {"Authorization": "Bearer nobodys"}, 401),
    ],
)
async def test_with_it_clients_on_this_machine_are_let_in_and_pages_of_other_sites_are_not(
    host: str, headers: dict[str, str], status: int
) -> None:
    async with housing(loopback_key="mine") as house:
        assert (await bare(house, "/v1/balance", host=host, **headers)).status_code == status


async def test_a_page_of_any_origin_may_call_and_read_what_it_needs(house: House) -> None:
    asked = await house.client.options(
        "/v1/streams",
        headers={
            "Origin": "https://app.example",
            "Access-Control-Request-Method": "PATCH",
            "Access-Control-Request-Headers": "authorization,content-type,if-match",
        },
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "*"
    assert "authorization" in asked.headers["access-control-allow-headers"]
    answer = await house.client.get("/v1/balance", headers={"Origin": "https://app.example"})
    exposed = answer.headers["access-control-expose-headers"]
    for name in ("Location", "ETag", "Link", "Livepeer-Playback-URL"):
        assert name in exposed


async def test_a_refusal_can_be_read_by_pages_too(house: House) -> None:
    answer = await bare(house, "/v1/balance", Origin="https://app.example")
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_who_knows_only_a_streams_id_is_told_its_state_and_where_it_is_watched(house: House) -> None:
    made = await house.stream(params={"prompt": "secret plans"})
    house.record(made["id"], sessions_pb2.PHASE_LIVE)
    answer = await bare(house, f"/v1/streams/{made['id']}/status")
    data: dict[str, Any] = answer.json()["data"]
    assert data["state"] == "ONLINE"
    assert data["gateway_status"]["whep_url"].endswith(made["output_playback_id"])
    assert "secret" not in json.dumps(data)
    assert set(data) == {"stream_id", "type", "pipeline", "state", "gateway_status"}
    assert (await bare(house, "/v1/streams/str_unknown/status")).status_code == 404


async def test_the_first_clients_change_a_prompt_by_a_post(house: House) -> None:
    made = await house.stream()
    for body in ({"prompt": "neon"}, {"prompts": [["neon", 1]]}, {"params": {"prompt": "neon"}}):
        answer = await house.client.post(f"/beta/streams/{made['id']}/prompts", json=body)
        assert answer.status_code == 200
    assert [json.loads(update.patch) for update in house.plane.updates] == [
        {"prompt": "neon"},
        {"prompt": [["neon", 1]]},
        {"prompt": "neon"},
    ]


async def test_every_way_in_and_out_of_a_stream_is_in_its_object(house: House) -> None:
    made = await house.stream()
    key, playback = made["stream_key"], made["output_playback_id"]
    assert made["rtmp_url"] == f"rtmp://gateway.test:1935/live/{key}"
    assert made["hls_url"] == f"http://gateway.test:8000/hls/{playback}/index.m3u8"
    assert made["whep_url"] == f"http://gateway.test:8000/webrtc/whep/{playback}"
    assert made["events_url"] == f"http://gateway.test:8000/v1/streams/{made['id']}/events"
    assert made["watch_url"] == f"http://gateway.test:8000/watch/{playback}"
    for url in ("hls_url", "whep_url", "play_url", "trickle_play_url", "watch_url"):
        assert key not in made[url], "who watches must not be able to publish"


async def test_a_target_that_can_never_work_is_refused_before_there_is_a_stream(house: House) -> None:
    for url in ("http://example.com/live/key", "rtmp://127.0.0.1/live/key", "rtmp://example.com/key"):
        answer = await house.client.post("/v1/streams", json={"output_rtmp_url": url})
        assert seven(answer)["details"]["field"] == "output_rtmp_url"
        assert "key" not in seven(answer)["error"].replace("stream key", "")
    made = await house.stream(output_rtmp_url="rtmp://example.com/live/key")
    assert made["output_rtmp_url"] == "rtmp://example.com/live/key"
    assert house.plane.created[-1].output_rtmp_url == "rtmp://example.com/live/key"
