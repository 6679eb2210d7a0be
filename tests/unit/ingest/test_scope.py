"""Scope's HTTP surface: its shapes, its error bodies, and what it does better than Scope itself."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import pytest

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ExhaustedError, NotFoundError
from services.inference.engine.pipelines.effects import Effects
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.scope.absent import ABSENT
from services.ingest.faces.scope.possessions import HEADLESS, LOADED, SESSION
from sluice.pipeline import defaults, schema
from tests.support.bridge import hear, output, settled
from tests.support.house import House, housing
from tests.support.media import pictures, shown, ts
from tests.support.scope_plane import ScopePlane

NEON = [{"text": "neon", "weight": 1.0}]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with housing(plane=ScopePlane()) as found, found.core.recordings:
        yield found


async def live(house: House, name: str = SESSION, stream: str = "str_aaaaaaaa") -> BridgeSession:
    """A session of this tenant whose media passes here, with a stream of Scope's."""
    session = house.live(stream, f"ses_{stream[-8:]}")
    house.plane.known[stream] = sessions_pb2.Stream(
        id=stream,
        tenant="acme",
        name=name,
        pipeline="effects",
        params=json.dumps(defaults(Effects)),
        params_schema=json.dumps(schema(Effects)),
        session=session.identity.session,
        revision=1,
    )
    return session


async def show(session: BridgeSession, count: int) -> None:
    """The publisher sends `count` pictures, and the runner returns them."""
    for unit in pictures(count):
        session.push(unit, 0.0)
    writer = session._channels["out-1"].channel.begin_segment(random_access=True)
    writer.write(ts(output(count)))
    writer.end()
    await settled()


def named(house: House, name: str) -> list[sessions_pb2.Stream]:
    return [stream for stream in house.plane.known.values() if stream.name == name]


# --- pipelines


@pytest.mark.parametrize(
    "body",
    [
        {"pipeline_ids": ["effects"], "load_params": {"height": 512, "width": 512, "base_seed": 7}},
        {
            "pipelines": [
                {"node_id": "a", "pipeline_id": "effects", "load_params": {"height": 512, "base_seed": 7}}
            ],
            "connection_id": "x",
            "user_id": None,
        },
    ],
)
async def test_both_forms_of_a_load_are_understood_and_remembered(house: House, body: dict[str, Any]) -> None:
    said = await house.call("POST", "/api/v1/pipeline/load", json=body)
    assert said["message"] == "Pipeline loading initiated successfully"
    assert "height" in said["ignored"]
    (record,) = named(house, LOADED)
    assert json.loads(record.params)["seed"] == 7
    status = await house.call("GET", "/api/v1/pipeline/status")
    assert (status["status"], status["pipeline_id"], status["error"]) == ("loaded", "effects", None)
    assert status["load_params"]["seed"] == 7
    assert set(status) >= {"loaded_lora_adapters", "loading_stage", "produces_video", "produces_audio"}


async def test_a_load_replaces_the_one_before_and_is_the_tenants_own(house: House) -> None:
    await house.call("POST", "/api/v1/pipeline/load", json={"pipeline_ids": ["effects"]})
    await house.call("POST", "/api/v1/pipeline/load", json={"pipeline_ids": ["passthrough"]})
    assert [stream.pipeline for stream in named(house, LOADED)] == ["passthrough"]
    theirs = {"Authorization": "Bearer theirs"}
    assert (await house.call("GET", "/api/v1/pipeline/status", headers=theirs))["pipeline_id"] == "effects"
    assert (await house.call("GET", "/api/v1/pipeline/status"))["pipeline_id"] == "passthrough"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "Either pipelines"),
        ({"pipeline_ids": []}, "Either pipelines"),
        ({"pipeline_ids": ["longlive"]}, "available: effects, passthrough"),
        ({"pipeline_ids": ["effects", "passthrough"]}, "one pipeline a session"),
        ({"pipeline_ids": ["effects"], "load_params": {"noise_scale": 2}}, "noise_scale"),
    ],
)
async def test_what_cannot_be_loaded_is_refused_at_once_and_the_choice_stays(
    house: House, body: dict[str, Any], says: str
) -> None:
    await house.call("POST", "/api/v1/pipeline/load", json={"pipeline_ids": ["passthrough"]})
    refused = await house.call("POST", "/api/v1/pipeline/load", 400, json=body)
    assert says in refused["detail"]
    assert (await house.call("GET", "/api/v1/pipeline/status"))["pipeline_id"] == "passthrough"


async def test_a_pipeline_that_loads_is_said_with_its_stage_until_it_is_done(house: House) -> None:
    session = await live(house)
    for percent, why, standing, stage in (
        (40, "start", "loading", "weights, 40 %"),
        (100, "start", "loaded", None),
        (10, "warm", "loaded", None),  # pictures go on meanwhile
    ):
        hear(session, "loading", why=why, stage="weights", percent=percent)
        status = await house.call("GET", "/api/v1/pipeline/status")
        assert (status["status"], status["loading_stage"]) == (standing, stage)


async def test_failed_sessions_stay_in_the_status_however_often_it_is_read(house: House) -> None:
    await live(house)
    house.record(
        "str_aaaaaaaa", sessions_pb2.PHASE_ENDED, "ses_1", end_reason="runner_lost", end_message="gone"
    )
    house.record("str_aaaaaaaa", sessions_pb2.PHASE_ENDED, "ses_2", end_reason="input_ended")
    for _ in range(2):
        (failed,) = (await house.call("GET", "/api/v1/pipeline/status"))["errors"]
        assert (failed["reason"], failed["error"]) == ("runner_lost", "gone")


async def test_schemas_and_nodes_have_all_keys_of_scopes(house: House) -> None:
    schemas = (await house.call("GET", "/api/v1/pipelines/schemas"))["pipelines"]
    assert set(schemas) == {"effects", "passthrough"}
    keys = (
        "id name description version supported_modes default_mode supports_prompts"
        " default_temporal_interpolation_method default_temporal_interpolation_steps"
        " default_spatial_interpolation_method docs_url estimated_vram_gb requires_models supports_lora"
        " supports_vace supports_cache_management supports_kv_cache_bias supports_quantization min_dimension"
        " recommended_quantization_vram_threshold modified produces_video produces_audio usage inputs outputs"
        " config_schema mode_defaults plugin_name"
    )
    assert set(schemas["effects"]) == set(keys.split())
    assert schemas["effects"]["supports_prompts"]
    assert not schemas["passthrough"]["supports_prompts"]
    nodes = (await house.call("GET", "/api/v1/nodes/definitions"))["nodes"]
    assert [node["node_type_id"] for node in nodes] == ["effects", "passthrough"]
    kinds = {param["name"]: param["param_type"] for param in nodes[0]["params"]}
    assert kinds["strength"] == "number"
    assert kinds["prompt"] == "string"
    assert kinds["prompt_interpolation_method"] == "select"


async def test_small_things_have_scopes_shapes(house: House) -> None:
    health = await house.call("GET", "/health", headers={"Authorization": ""})
    assert health["status"] == "healthy"
    assert {"timestamp", "server_start_time", "version", "git_commit"} <= set(health)
    assert (await house.call("GET", "/api/v1/models/status?pipeline_id=effects")) == {
        "downloaded": True,
        "progress": None,
    }
    hardware = await house.call("GET", "/api/v1/hardware/info")
    assert set(hardware) == {"vram_gb", "spout", "ndi", "syphon"}
    assert (await house.call("GET", "/api/v1/input-sources")) == {"input_sources": []}
    assert (await house.call("GET", "/api/v1/assets?type=image")) == {"assets": []}
    assert (await house.call("GET", "/api/v1/loras")) == {"lora_files": []}
    assert (await house.call("GET", "/api/v1/webrtc/ice-servers")) == {"iceServers": []}


# --- errors


async def test_without_a_key_nothing_is_said_but_that_one_is_needed(house: House) -> None:
    for path in ("pipeline/status", "webrtc/ice-servers", "session/metrics", "osc/status", "unheard-of"):
        answer = await house.client.get(f"/api/v1/{path}", headers={"Authorization": ""})
        assert answer.status_code == 401, path
        assert "API key" in answer.json()["detail"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "webrtc/offer", {}, 422, "sdp"),
        (
            "POST",
            "webrtc/offer",
            {"sdp": "v=0", "type": "offer", "initialParameters": {"paused": 1}},
            422,
            "paused",
        ),
        ("POST", "webrtc/offer", {"sdp": "nonsense", "type": "offer"}, 400, "offer"),
        ("PATCH", "webrtc/offer/str_unknown", {"candidates": []}, 404, "str_unknown"),
        ("PATCH", "webrtc/offer/str_unknown", {}, 422, "candidates"),
        ("POST", "session/parameters", {"noise_scale": 99}, 422, "noise_scale"),
        ("POST", "session/parameters", {}, 400, "no parameters"),
        ("GET", "session/frame", None, 404, "no session"),
        ("GET", "session/frame?quality=0", None, 422, "quality"),
        ("GET", "session/output.ts", None, 404, "no session"),
        ("POST", "session/stop", None, 404, "No active headless session"),
        ("POST", "session/start", {"input_mode": "text"}, 400, "no text mode"),
        ("POST", "session/start", {"graph": {"nodes": []}}, 400, "Invalid graph"),
        ("POST", "session/start", {"pipeline_id": "longlive"}, 400, "available"),
        ("GET", "recordings/str_unknown", None, 404, "recording"),
        ("POST", "recordings/str_unknown/start", None, 404, "str_unknown"),
        ("GET", "recordings/headless", None, 404, "headless"),
        ("GET", "no/such/thing", None, 404, "Not Found"),
    ],
)
async def test_errors_are_fastapis_own_and_name_what_is_wrong(
    house: House, method: str, path: str, body: Any, status: int, says: str
) -> None:
    answer = await house.client.request(method, f"/api/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert says in json.dumps(answer.json()["detail"])
    if status == 422:
        assert all(set(one) == {"type", "loc", "msg"} for one in answer.json()["detail"])


@pytest.mark.parametrize("path", sorted(ABSENT))
async def test_what_is_not_served_is_refused_in_words(house: House, path: str) -> None:
    name = path.rstrip("/*")
    urls = [f"{name}/some/thing"] if path.endswith("/*") else [name]
    if path == f"{name}*":
        urls.append(f"{name}/something")
    for url in urls:
        for method in ("POST", "DELETE"):
            answer = await house.client.request(method, f"/api/v1/{url}")
            assert (answer.status_code, answer.json()["code"]) == (501, "NOT_SERVED"), url
            assert len(answer.json()["detail"]) > 20


def test_what_is_not_served_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "scope-api.md").read_text()
    assert [path for path in ABSENT if f"`{path}`" not in text] == []


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("session/parameters", b'{"prompts": [{"text": "\\ud800"}]}', 422),
        ("session/parameters", b'{"mine": {"\\ud800": ["\\ud800"]}, "graph": {"a": {"\\ud800": 1}}}', 200),
        ("pipeline/load", b'{"pipeline_ids": ["effects"], "load_params": {"a": "\\ud800"}}', 200),
        ("session/parameters", b'{"mine": NaN}', 422),
        ("session/parameters", b'{"mine": ' + b"[" * 200 + b"]" * 200 + b"}", 422),
        ("pipeline/load", b'{"pipeline_ids": ["effects"], "load_params": {"a": 1e999}}', 400),
    ],
)
async def test_whatever_json_can_say_is_answered(house: House, path: str, body: bytes, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await house.client.post(f"/api/v1/{path}", content=body, headers=headers)
    assert answer.status_code == status, answer.text


# --- steering by HTTP


async def test_parameters_before_there_is_a_session_are_those_of_the_next_one(house: House) -> None:
    said = await house.call(
        "POST", "/api/v1/session/parameters", json={"prompts": NEON, "manage_cache": True}
    )
    assert said["status"] == "ok"
    assert said["applied_parameters"] == {"prompts": NEON, "manage_cache": True}
    assert said["ignored"] == ["manage_cache"]
    (record,) = named(house, LOADED)
    assert json.loads(record.params)["prompt"] == "neon"
    assert (await house.call("GET", "/api/v1/session/parameters")) == {"parameters": {}}


async def test_only_what_is_given_is_changed_in_all_sessions_of_the_tenant_and_in_no_other(
    house: House,
) -> None:
    await live(house)
    await live(house, HEADLESS, "str_bbbbbbbb")
    await live(house, "somebody's own stream", "str_cccccccc")
    said = await house.call("POST", "/api/v1/session/parameters", json={"noise_scale": 0.5})
    assert set(said["sessions"]) == {"str_aaaaaaaa", "str_bbbbbbbb"}
    assert [(one.stream, one.patch) for one in house.plane.updates] == [
        ("str_bbbbbbbb", '{"strength": 0.5}'),
        ("str_aaaaaaaa", '{"strength": 0.5}'),
    ]
    found = (await house.call("GET", "/api/v1/session/parameters"))["parameters"]
    assert (found["strength"], found["prompts"]) == (0.5, [{"text": "watercolor", "weight": 1.0}])
    theirs = {"Authorization": "Bearer theirs"}
    assert (await house.call("GET", "/api/v1/session/parameters", headers=theirs)) == {"parameters": {}}


async def test_one_session_can_be_named(house: House) -> None:
    await live(house)
    await live(house, stream="str_bbbbbbbb")
    await house.call("POST", "/api/v1/session/parameters?session_id=str_aaaaaaaa", json={"base_seed": 3})
    assert [one.stream for one in house.plane.updates] == ["str_aaaaaaaa"]
    await house.call("POST", "/api/v1/session/parameters?session_id=str_cccccccc", 404, json={"base_seed": 3})


async def test_a_pause_is_the_sessions(house: House) -> None:
    session = await live(house)
    await house.call("POST", "/api/v1/session/parameters", json={"paused": True})
    assert session.paused
    assert house.plane.updates == []


# --- looking


async def test_metrics_are_of_the_tenants_sessions(house: House) -> None:
    session = await live(house)
    await show(session, 10)
    found = await house.call("GET", "/api/v1/session/metrics")
    assert found["gpu"] == {}
    one = found["sessions"]["str_aaaaaaaa"]
    assert (one["frames_in"], one["frames_out"]) == (10, 10)
    keys = "elapsed_seconds fps_in fps_out pipeline_fps output_sinks input_source_enabled relay_mode"
    assert set(keys.split()) <= set(one)
    theirs = {"Authorization": "Bearer theirs"}
    assert (await house.call("GET", "/api/v1/session/metrics", headers=theirs))["sessions"] == {}


async def test_the_newest_picture_is_a_jpeg_and_without_one_there_is_none(house: House) -> None:
    session = await live(house)
    assert "no picture" in (await house.call("GET", "/api/v1/session/frame", 404))["detail"]
    await show(session, 10)
    answer = await house.client.get("/api/v1/session/frame?quality=60")
    assert answer.headers["content-type"] == "image/jpeg"
    with av.open(io.BytesIO(answer.content), "r", format="jpeg_pipe") as picture:
        assert next(picture.decode(video=0)).width == 64


async def test_the_output_can_be_watched_as_a_transport_stream(house: House) -> None:
    session = await live(house)
    await show(session, 10)
    watching = asyncio.ensure_future(house.client.get("/api/v1/session/output.ts"))
    async with asyncio.timeout(5):
        while not house.core.viewing.of("str_aaaaaaaa"):
            await asyncio.sleep(0.01)
    session.close("input_ended", "")
    answer = await watching
    assert answer.headers["content-type"] == "video/mp2t"
    assert len(shown(answer.content)) == 10


async def test_a_recording_is_started_stopped_and_fetched_in_parts_also_after_the_end(house: House) -> None:
    session = await live(house)
    path = "/api/v1/recordings/str_aaaaaaaa"
    assert (await house.call("POST", f"{path}/stop"))["status"] == "not_recording"
    assert (await house.call("POST", f"{path}/start"))["status"] == "started"
    assert (await house.call("POST", f"{path}/start"))["status"] == "already_recording"
    await show(session, 25)
    assert (await house.call("POST", f"{path}/stop"))["status"] == "stopped"
    session.close("stopped", "")
    del house.plane.known["str_aaaaaaaa"]
    answer = await house.client.get(path)
    assert answer.headers["content-type"] == "video/mp4"
    assert 'filename="recording-' in answer.headers["content-disposition"]
    with av.open(io.BytesIO(answer.content), "r") as film:
        assert len([*film.decode(video=0)]) == 25
    before = len(list(Path("/proc/self/fd").iterdir()))
    part = await house.client.get(path, headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    await house.call("GET", path, 404, headers={"Authorization": "Bearer theirs"})


# --- without a peer


async def test_a_headless_session_says_where_to_publish_and_replaces_the_one_before(house: House) -> None:
    body = {
        "pipeline_id": "effects",
        "prompts": NEON,
        "parameters": {"noise_scale": 0.5, "vace_enabled": True},
    }
    first = await house.call("POST", "/api/v1/session/start", json=body)
    assert (first["status"], first["pipeline_id"], first["cloud_mode"]) == ("ok", "effects", False)
    assert first["ignored"] == ["vace_enabled"]
    assert first["publish_url"].startswith("http://gateway.test:8000/ts/stk_")
    (made,) = named(house, HEADLESS)
    params = json.loads(made.params)
    assert (params["prompt"], params["strength"]) == ("neon", 0.5)
    second = await house.call(
        "POST",
        "/api/v1/session/start",
        json={
            "graph": {
                "nodes": [
                    {"id": "in", "type": "source"},
                    {"id": "p", "type": "pipeline", "pipeline_id": "passthrough"},
                ]
            }
        },
    )
    assert second["pipeline_id"] == "passthrough"
    assert [stream.id for stream in named(house, HEADLESS)] == [second["session_id"]]
    assert (await house.call("POST", "/api/v1/session/stop"))["status"] == "ok"
    assert named(house, HEADLESS) == []


# --- offers that come to nothing


async def test_an_offer_that_cannot_be_served_leaves_no_stream_behind(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def join(key: str) -> BridgeSession:
        raise ExhaustedError("no slot is free", reason="NO_CAPACITY", retry_after_s=7)

    monkeypatch.setattr(house.core.publishing, "join", join)
    monkeypatch.setattr(house.core.peers, "check", lambda *_, **__: None)
    answer = await house.client.post("/api/v1/webrtc/offer", json={"sdp": "v=0", "type": "offer"})
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "7"
    assert answer.json() == {"detail": "no slot is free", "code": "NO_CAPACITY"}
    assert len(house.plane.created) == 1
    assert house.plane.known == {}


async def test_an_offer_may_name_its_pipeline_and_only_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def join(key: str) -> BridgeSession:
        raise NotFoundError("not now")

    monkeypatch.setattr(house.core.publishing, "join", join)
    monkeypatch.setattr(house.core.peers, "check", lambda *_, **__: None)
    offer = {"sdp": "v=0", "type": "offer"}
    for initial in (
        {"pipeline_ids": ["passthrough"]},
        {"graph": {"nodes": [{"type": "pipeline", "pipeline_id": "passthrough"}]}},
    ):
        body = {**offer, "initialParameters": {"prompts": NEON, **initial}}
        await house.call("POST", "/api/v1/webrtc/offer", 404, json=body)
    assert [(made.name, made.pipeline) for made in house.plane.created] == [(SESSION, "passthrough")] * 2
    for initial in ({"pipeline_ids": ["effects", "passthrough"]}, {"pipeline_ids": ["longlive"]}):
        await house.call("POST", "/api/v1/webrtc/offer", 400, json={**offer, "initialParameters": initial})
    assert len(house.plane.created) == 2


async def test_what_a_killed_process_left_behind_is_tidied_away_and_nothing_else(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(house.core.peers, "check", lambda *_, **__: None)
    for number, (name, session, created) in enumerate(
        [(SESSION, "", 1), (SESSION, "ses_a", 1), (SESSION, "", 2**52), ("mine", "", 1), (HEADLESS, "", 1)]
    ):
        house.plane.known[f"str_{number}"] = sessions_pb2.Stream(
            id=f"str_{number}", tenant="acme", name=name, session=session, created_unix_ms=created
        )

    async def join(key: str) -> BridgeSession:
        raise NotFoundError("not now")

    monkeypatch.setattr(house.core.publishing, "join", join)
    await house.call("POST", "/api/v1/webrtc/offer", 404, json={"sdp": "v=0", "type": "offer"})
    assert sorted(house.plane.known) == ["str_1", "str_2", "str_3", "str_4"]


async def test_the_end_of_an_unknown_session_is_no_error_and_of_another_tenants_no_end(house: House) -> None:
    await live(house)
    for headers in ({"Authorization": "Bearer theirs"}, {}):
        answer = await house.client.delete("/api/v1/webrtc/offer/str_unknown", headers=headers)
        assert answer.status_code == 204
    await house.client.delete("/api/v1/webrtc/offer/str_aaaaaaaa", headers={"Authorization": "Bearer theirs"})
    assert "str_aaaaaaaa" in house.plane.known
    await house.client.delete("/api/v1/webrtc/offer/str_aaaaaaaa")
    assert "str_aaaaaaaa" not in house.plane.known
