"""The public API in the shapes that shipped clients send and read; every refusal has the same seven keys."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest

from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2
from services.common import errors
from services.common.errors import SluiceError, UnauthenticatedError
from services.common.machine_clock import clock_name
from services.common.media.clock import ORIGIN_TICKS
from services.ingest import steering
from services.ingest.app import METHODS
from services.ingest.bridge.stages import PictureTimes, Stage
from services.ingest.faces import ts as face
from tests.support.bridge import hear
from tests.support.house import KEYS, STREAM_KEYS, House, housing, seven
from tests.support.media import pictures, shown, ts


@pytest.fixture
async def house(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(face, "DRAIN_S", 0.01)
    async with housing() as found:
        yield found


# --- create

# As Daydream's documentation has it: nothing of it is ours to understand, for the pipeline's schema judges.
DIFFUSION = {
    "model_id": "stabilityai/sd-turbo",
    "prompt": [["a", 1], ["b", 0.5]],
    "prompt_interpolation_method": "slerp",
    "num_inference_steps": 50,
    "t_index_list": [12, 20, 32],
    "seed": [[42, 1]],
    "lora_dict": None,
    "ip_adapter_style_image_url": None,
    "controlnets": [
        {
            "enabled": True,
            "model_id": "thibaud/controlnet-sd21-depth-diffusers",
            "preprocessor": "depth_tensorrt",
            "preprocessor_params": {},
            "conditioning_scale": 0.2,
        }
    ],
}


@pytest.mark.parametrize(
    ("body", "pipeline", "params"),
    [
        ({"pipeline": "effects", "params": {"prompt": "neon"}}, "effects", {"prompt": "neon"}),
        ({"params": {"prompt": "neon"}}, "effects", {"prompt": "neon"}),
        ({}, "effects", {}),
        ({"name": "mine"}, "effects", {}),
        ({"pipeline": "effects", "prompt": "neon"}, "effects", {"prompt": "neon"}),
        (
            {"pipeline": "effects", "prompt": [["a", 1], ["b", 0.5]]},
            "effects",
            {"prompt": [["a", 1], ["b", 0.5]]},
        ),
        (
            {"pipeline": "streamdiffusion", "params": {"model_id": "stabilityai/sd-turbo"}},
            "streamdiffusion",
            {"model_id": "stabilityai/sd-turbo"},
        ),
        # what older shipped clients send: daydream.md D.1
        (
            {"pipeline_id": "pip_qpUgXycjWF6YMeSL", "pipeline_params": {"prompt": "neon"}},
            "streamdiffusion",
            {"prompt": "neon"},
        ),
        ({"pipeline_id": "pip_SD15"}, "streamdiffusion", {"model_id": "Lykon/dreamshaper-8"}),
        (
            {"pipeline_params": {"pipeline_id": "pip_SD-turbo", "prompt": "neon"}},
            "streamdiffusion",
            {"model_id": "stabilityai/sd-turbo", "prompt": "neon"},
        ),
        (
            {"pipeline_id": "pip_SDXL-turbo", "pipeline_params": {"model_id": "of my own"}},
            "streamdiffusion",
            {"model_id": "of my own"},
        ),
        ({"pipeline_id": "pip_unknown"}, "streamdiffusion", {}),
        (
            {"pipeline_id": "pip_SD15", "pipeline_params": {"pipeline_id": "pip_SD15"}},
            "streamdiffusion",
            {"model_id": "Lykon/dreamshaper-8"},
        ),
        ({"pipeline": "streamdiffusion", "params": DIFFUSION}, "streamdiffusion", DIFFUSION),
        ({"pipeline": "effects", "somebody_elses": True, "output_rtmp_url": None}, "effects", {}),
        ({"pipeline": "effects", "output_rtmp_url": ""}, "effects", {}),
    ],
)
async def test_every_body_of_a_shipped_client_creates_what_it_means(
    house: House, body: dict[str, Any], pipeline: str, params: dict[str, Any]
) -> None:
    await house.stream(**body)
    (asked,) = house.plane.created
    assert (asked.pipeline, json.loads(asked.params)) == (pipeline, params)
    assert (asked.tenant, asked.author, asked.name) == ("acme", "id-mine", body.get("name", ""))
    assert asked.id.startswith("str_")


async def test_the_answer_has_every_key_that_the_sdk_wants_present(house: House) -> None:
    made = await house.stream(params={"prompt": "neon"}, name="mine")
    assert set(STREAM_KEYS.split()) <= set(made)
    assert made["created_at"] == "2023-11-14T22:13:20.123Z"
    assert KEYS.stream_of(made["stream_key"]) == ("stk_", made["id"])
    assert KEYS.stream_of(made["output_playback_id"]) == ("pbk_", made["id"])
    assert made["whip_url"] == f"http://gateway.test:8000/whip/{made['stream_key']}"
    assert made["publish_url"] == f"http://gateway.test:8000/ts/{made['stream_key']}"
    assert made["play_url"] == f"http://gateway.test:8000/ts/{made['output_playback_id']}"
    assert made["gateway_host"] == "gateway.test"
    assert (made["params"], made["delivery"], made["session"]) == ({"prompt": "neon"}, "live", None)


async def test_the_echo_has_every_key_that_the_pipeline_declares_inside_of_lists_and_objects_too(
    house: House,
) -> None:
    net = {
        "properties": {
            "model_id": {"type": "string"},
            "enabled": {"type": "boolean", "default": True},
            "control_guidance_end": {"type": "number", "default": 1.0},
        }
    }
    schema = {
        "properties": {"controlnets": {"items": net, "default": []}, "odd": True, "seed": {"default": 7}}
    }
    made = await house.stream(
        params={"controlnets": [{"model_id": "depth", "enabled": False}, 3], "odd": [{}]}
    )
    house.plane.known[made["id"]].params_schema = json.dumps(schema)
    shown = await house.call("GET", f"/v1/streams/{made['id']}")
    assert shown["params"] == {
        "controlnets": [{"model_id": "depth", "enabled": False, "control_guidance_end": 1.0}, 3],
        "odd": [{}],
        "seed": 7,
    }


async def test_complete_delivery_is_asked_for_by_name(house: House) -> None:
    assert (await house.stream(delivery="complete"))["delivery"] == "complete"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"delivery": "sometimes"}, "body.delivery"),
        ({"params": []}, "body.params"),
        ({"name": "x" * 201}, "body.name"),
        ({"name": 7}, "body.name"),
        ({"apply_at_ms": -1}, "body.apply_at_ms"),
        ({"output_rtmp_url": "rtmp://elsewhere/live"}, "output_rtmp_url"),
    ],
)
async def test_a_wrong_body_is_refused_by_the_fields_name(
    house: House, body: dict[str, Any], field: str
) -> None:
    answer = await house.client.post("/v1/streams", json=body)
    assert answer.status_code == 400
    assert seven(answer)["details"]["field"] == field
    assert house.plane.created == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"\xff\xfe"])
async def test_a_body_that_is_no_object_is_refused(house: House, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await house.client.post("/v1/streams", content=content, headers=headers)
    assert answer.status_code == 400
    seven(answer)


async def test_a_body_that_no_call_can_mean_is_refused_before_it_is_in_memory(house: House) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 1 << 30:
            read += 1 << 16
            yield b" " * (1 << 16)

    answer = await house.client.post("/v1/streams", content=endless())
    assert answer.status_code == 413
    seven(answer)
    assert read < 4 << 20


# --- change


@pytest.mark.parametrize(
    ("body", "pipeline", "patch"),
    [
        ({"pipeline": "effects", "params": {"prompt": "sketch"}}, "effects", {"prompt": "sketch"}),
        ({"params": {"prompt": "sketch"}}, "", {"prompt": "sketch"}),
        ({"params": {"prompt": None}}, "", {"prompt": None}),
        ({"prompt": "sketch"}, "", {"prompt": "sketch"}),
        ({"pipeline": "streamdiffusion", "params": DIFFUSION}, "streamdiffusion", DIFFUSION),
        (
            {"pipeline_id": "pip_SD-turbo", "pipeline_params": {"prompt": "sketch"}},
            "streamdiffusion",
            {"model_id": "stabilityai/sd-turbo", "prompt": "sketch"},
        ),
    ],
)
async def test_every_patch_of_a_shipped_client_changes_what_it_means(
    house: House, body: dict[str, Any], pipeline: str, patch: dict[str, Any]
) -> None:
    made = await house.stream()
    shown = await house.call("PATCH", f"/v1/streams/{made['id']}", json=body)
    (asked,) = house.plane.updates
    assert (asked.pipeline, json.loads(asked.patch), asked.tenant) == (pipeline, patch, "acme")
    assert asked.apply_at_pts == 0
    assert shown["update"] == {"revision": 2, "applies": "live", "pts_ms": None}
    assert set(STREAM_KEYS.split()) <= set(shown)


@pytest.mark.parametrize(("at_ms", "pts"), [(0, 90_000), (40, 93_600), (10_000, 990_000)])
async def test_media_time_counts_from_the_first_picture(house: House, at_ms: int, pts: int) -> None:
    made = await house.stream()
    await house.call(
        "PATCH", f"/v1/streams/{made['id']}", json={"params": {"prompt": "x"}, "apply_at_ms": at_ms}
    )
    assert house.plane.updates[0].apply_at_pts == pts


async def test_who_waits_is_answered_when_the_change_is_in_a_picture(house: House) -> None:
    made = await house.stream()
    live = house.live(made["id"])
    path = f"/v1/streams/{made['id']}?wait=applied"
    answer = asyncio.ensure_future(house.call("PATCH", path, json={"params": {"prompt": "sketch"}}))
    await asyncio.sleep(0.05)
    hear(live, "applied", revision=1, pts=95_000)
    await asyncio.sleep(0.05)
    assert not answer.done()
    hear(live, "applied", revision=2, pts=ORIGIN_TICKS + 9000)
    assert (await answer)["update"] == {"revision": 2, "applies": "live", "pts_ms": 100}


async def test_who_waits_is_not_left_waiting(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "WAIT_APPLIED_S", {"live": 0.05})
    made = await house.stream()
    house.live(made["id"])
    answer = await house.client.patch(f"/v1/streams/{made['id']}?wait=applied", json={"prompt": "x"})
    assert answer.status_code == 504
    shown = seven(answer)
    assert shown["code"] == "STREAMS/NOT_APPLIED_YET"
    assert shown["details"] == {"revision": "2", "applies": "live"}


async def test_who_waits_is_told_why_the_change_was_refused_and_of_which_field(house: House) -> None:
    made = await house.stream()
    live = house.live(made["id"])
    house.plane.applies = "reload"
    waiting = asyncio.ensure_future(
        house.client.patch(f"/v1/streams/{made['id']}?wait=applied", json={"params": {"lora": "x"}})
    )
    await asyncio.sleep(0.05)
    hear(live, "refused", revision=1, reason="param_refused", message="an older one")
    await asyncio.sleep(0.05)
    assert not waiting.done()
    hear(
        live, "refused", revision=2, field="params.lora", reason="param_refused", message="there is no LoRA x"
    )
    shown = seven(await waiting)
    assert (shown["status"], shown["code"]) == (409, "STREAMS/PARAM_REFUSED")
    assert shown["details"] == {"revision": "2", "field": "params.lora"}
    assert shown["error"].endswith("the values before it stay: there is no LoRA x")


async def test_who_waits_for_a_slow_change_is_not_answered_by_a_quick_one_that_overtook_it(
    house: House,
) -> None:
    made = await house.stream()
    live = house.live(made["id"])
    house.plane.applies = "warm"
    path = f"/v1/streams/{made['id']}?wait=applied"
    answer = asyncio.ensure_future(house.call("PATCH", path, json={"params": {"style": "b"}}))
    await asyncio.sleep(0.05)
    hear(live, "applied", revision=3, pts=ORIGIN_TICKS + 9_000, applies="live")
    await asyncio.sleep(0.05)
    assert not answer.done()
    hear(live, "applied", revision=2, pts=ORIGIN_TICKS + 18_000, applies="warm")
    assert (await answer)["update"] == {"revision": 2, "applies": "warm", "pts_ms": 200}


async def test_who_waits_for_a_session_that_ends_is_not_told_that_it_was_applied(house: House) -> None:
    made = await house.stream()
    live = house.live(made["id"])
    waiting = asyncio.ensure_future(
        house.client.patch(f"/v1/streams/{made['id']}?wait=applied", json={"prompt": "x"})
    )
    await asyncio.sleep(0.05)
    live.close("stopped", "")
    answer = await waiting
    assert answer.status_code == 409
    assert seven(answer)["code"] == "STREAMS/SESSION_ENDED"


async def test_nobody_waits_for_a_change_that_is_applied_at_the_start(house: House) -> None:
    made = await house.stream()
    house.plane.applies = "at_start"
    shown = await house.call("PATCH", f"/v1/streams/{made['id']}?wait=applied", json={"prompt": "x"})
    assert shown["update"]["pts_ms"] is None
    answer = await house.client.patch(f"/v1/streams/{made['id']}?wait=forever", json={"prompt": "x"})
    assert seven(answer)["details"]["field"] == "query.wait"


# --- read and delete


async def test_a_tenant_sees_and_deletes_its_own_streams(house: House) -> None:
    mine = await house.stream()
    assert (await house.call("GET", f"/v1/streams/{mine['id']}"))["id"] == mine["id"]
    listed = await house.call("GET", "/v1/streams?user_id=me")
    assert listed["success"] is True
    assert [stream["id"] for stream in listed["data"]] == [mine["id"]]
    theirs = {"Authorization": "Bearer theirs"}
    assert (await house.call("GET", "/v1/streams", headers=theirs))["data"] == []
    for method in ("GET", "PATCH", "DELETE"):
        content: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
        answer = await house.client.request(method, f"/v1/streams/{mine['id']}", headers=theirs, **content)
        assert answer.status_code == 404
        assert seven(answer)["code"] == "STREAMS/STREAM_NOT_FOUND"
    assert await house.call("DELETE", f"/v1/streams/{mine['id']}") == {"success": True, "data": {}}
    await house.call("GET", f"/v1/streams/{mine['id']}", 404)


async def test_the_sdk_deletes_by_query(house: House) -> None:
    made = await house.stream()
    assert await house.call("DELETE", f"/v1/streams?id={made['id']}") == {"success": True, "data": {}}
    seven(await house.client.delete(f"/v1/streams?id={made['id']}"))
    assert seven(await house.client.delete("/v1/streams"))["details"]["field"] == "query.id"


# --- status

P = sessions_pb2


@pytest.mark.parametrize(
    ("phase", "facts", "state"),
    [
        (None, {}, "OFFLINE"),
        (P.PHASE_ALLOCATING, {}, "LOADING"),
        (P.PHASE_STARTING, {}, "LOADING"),
        (P.PHASE_LIVE, {}, "ONLINE"),
        (P.PHASE_PAUSED, {}, "DEGRADED_INPUT"),
        (P.PHASE_DEGRADED, {"degraded_by": "input"}, "DEGRADED_INPUT"),
        (P.PHASE_DEGRADED, {"degraded_by": "inference"}, "DEGRADED_INFERENCE"),
        (P.PHASE_MIGRATING, {}, "DEGRADED_INFERENCE"),
        *(
            (P.PHASE_ENDED, {"end_reason": reason}, "OFFLINE")
            for reason in ("stopped", "stream_deleted", "input_ended", "publisher_gone", "max_duration")
        ),
        *(
            (P.PHASE_ENDED, {"end_reason": reason}, "ERROR")
            for reason in (
                "runner_lost",
                "engine_crashed",
                "credit_exhausted",
                "no_capacity",
                "internal_error",
            )
        ),
    ],
)
async def test_the_status_is_in_daydreams_words(
    house: House, phase: int | None, facts: dict[str, Any], state: str
) -> None:
    made = await house.stream()
    if phase is not None:
        house.record(made["id"], phase, end_message="because", **facts)
    shown = await house.call("GET", f"/v1/streams/{made['id']}/status")
    assert (shown["success"], shown["error"]) == (True, None)
    data = shown["data"]
    assert data["state"] == state
    assert data["stream_id"] == made["id"]
    playback = made["output_playback_id"]
    assert data["gateway_status"]["whep_url"] == f"http://gateway.test:8000/webrtc/whep/{playback}"
    assert {"request_id", "pipeline_id", "type", "pipeline", "orchestrator_info", "inference_status"} <= set(
        data
    )
    assert data["inference_status"]["last_params"] == made["params"]
    wrong = f"{facts['end_reason']}: because" if state == "ERROR" else None
    assert data["gateway_status"]["last_error"] == data["inference_status"]["last_error"] == wrong
    assert (data["sluice"] is None) == (phase is None)


async def test_the_status_shows_what_the_bridge_of_this_pod_sees(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE, micro_per_second=1000)
    live = house.live(made["id"])
    for unit in pictures(3):
        live.push(unit, time.monotonic())
    shown = (await house.call("GET", f"/v1/streams/{made['id']}/status"))["data"]["sluice"]
    assert (shown["session"], shown["phase"], shown["runner"]) == ("ses_mine", "live", "r0")
    assert (shown["publisher"], shown["frames_in"], shown["frames_out"]) == ("sending", 3, 0)
    assert (shown["cost_micro"], shown["applied_ms"], shown["paid_until_ms"]) == (0, None, 60_000)
    assert shown["created_at"] == "2023-11-14T22:13:20.000Z"


async def test_the_status_says_how_the_runner_is_and_what_failed_last(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    live = house.live(made["id"])
    path = f"/v1/streams/{made['id']}/status"
    nothing = (await house.call("GET", path))["data"]["sluice"]
    assert (nothing["health"], nothing["loading"], nothing["problem"]) == (None, None, None)
    hear(live, "health", state="degraded_inference", cause="12 of 30 fps", since_ms=5)
    hear(live, "problem", **PROBLEM)
    hear(live, "loading", why="restart", stage="weights", percent=40.9)
    whole = (await house.call("GET", path))["data"]
    shown, inference = whole["sluice"], whole["inference_status"]
    assert (shown["health"]["state"], shown["health"]["cause"]) == ("degraded_inference", "12 of 30 fps")
    assert shown["loading"] == {"why": "restart", "stage": "weights", "percent": 40}
    assert shown["problem"].items() >= {"error": "ZeroDivisionError", "pts_ms": 0, "frame": 7}.items()
    assert whole["state"] == "LOADING"
    assert inference["last_error"] == "crash: ZeroDivisionError: division by zero"
    assert inference["restart_count"] == 1
    assert inference["last_error_time"] == inference["last_restart_time"] > 1_700_000_000_000
    hear(live, "loading", why="restart", stage="weights", percent=100)
    after = (await house.call("GET", path))["data"]
    assert (after["state"], after["sluice"]["loading"]) == ("ONLINE", None)


async def test_a_pipeline_that_prepares_beside_its_pictures_is_online(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    hear(house.live(made["id"]), "loading", why="warm", stage="LoRA", percent=10)
    assert (await house.call("GET", f"/v1/streams/{made['id']}/status"))["data"]["state"] == "ONLINE"


PROBLEM = {
    "stage": "process",
    "kind": "crash",
    "error": "ZeroDivisionError",
    "message": "division by zero",
    "pts": ORIGIN_TICKS,
    "frame": 7,
    "action": "restarting",
}


async def test_a_session_record_that_is_gone_leaves_a_stream_offline(house: House) -> None:
    made = await house.stream()
    house.plane.known[made["id"]].last_session = "ses_purged"
    assert (await house.call("GET", f"/v1/streams/{made['id']}/status"))["data"]["state"] == "OFFLINE"


# --- errors


@pytest.mark.parametrize("kind", errors.ERRORS, ids=lambda kind: kind.__name__)
async def test_every_refusal_has_the_seven_keys_and_its_status(house: House, kind: type[SluiceError]) -> None:
    house.plane.error = kind("a sentence", reason="SOME_REASON", retry_after_s=2.6)
    answer = await house.client.get("/v1/streams")
    assert answer.status_code == kind.http_status
    shown = seven(answer)
    assert (shown["error"], shown["code"]) == ("a sentence", "STREAMS/SOME_REASON")
    assert answer.headers["Retry-After"] == "3"
    assert answer.headers.get("WWW-Authenticate") == ("Bearer" if kind is UnauthenticatedError else None)


async def test_without_a_reason_to_wait_there_is_no_retry_after(house: House) -> None:
    house.plane.error = errors.UnavailableError("away")
    answer = await house.client.get("/v1/streams")
    assert "Retry-After" not in answer.headers
    assert seven(answer)["details"] is None


@pytest.mark.parametrize("header", [None, "", "Basic bWluZQ==", "Bearer", "Bearer nobody", "mine"])
async def test_a_call_without_a_good_key_is_unauthenticated(house: House, header: str | None) -> None:
    house.client.headers.pop("Authorization")
    headers = {} if header is None else {"Authorization": header}
    answer = await house.client.get("/v1/streams", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert seven(answer)["code"] in {"STREAMS/KEY_MISSING", "STREAMS/KEY_INVALID"}


async def test_the_scheme_of_a_key_has_no_case(house: House) -> None:
    assert (
        await house.client.get("/v1/streams", headers={"Authorization": "bearer  mine "})
    ).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/v1/streams", 405), ("DELETE", "/v1/balance", 405)],
)
async def test_a_route_that_is_not_there_is_refused_in_the_same_shape(
    house: House, method: str, path: str, status: int
) -> None:
    answer = await house.client.request(method, path)
    assert answer.status_code == status
    seven(answer)


async def test_a_bug_is_an_internal_error_that_tells_nothing_of_itself(house: House) -> None:
    house.plane.error = ZeroDivisionError("secret detail")
    answer = await house.client.get("/v1/streams")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert seven(answer)["code"] == "STREAMS/INTERNAL"


async def test_a_clients_request_id_comes_back(house: House) -> None:
    answer = await house.client.get("/nowhere", headers={"x-request-id": "abc"})
    assert seven(answer)["requestId"] == "abc"


# --- account


async def test_what_a_tenant_asks_about_itself(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    house.record(made["id"], P.PHASE_ENDED, session="ses_over")
    assert [one["session"] for one in (await house.call("GET", "/v1/sessions"))["data"]] == ["ses_mine"]
    assert len((await house.call("GET", "/v1/sessions?ended=true"))["data"]) == 2
    assert (await house.call("GET", "/v1/sessions/ses_mine"))["phase"] == "live"
    assert await house.call("DELETE", "/v1/sessions/ses_mine") == {"success": True, "data": {}}
    assert house.plane.stopped == [("ses_mine", "acme")]
    await house.call("GET", "/v1/sessions/ses_mine", 404, headers={"Authorization": "Bearer theirs"})
    usage = await house.call("GET", "/v1/usage?session=ses_mine")
    assert (usage["data"][0]["cost_micro"], usage["available_micro"]) == (5, 6)
    assert (await house.call("GET", "/v1/balance"))["reserved_micro"] == 4
    await house.call("GET", "/v1/usage?limit=0", 400)


async def test_what_anybody_may_know(house: House) -> None:
    house.client.headers.pop("Authorization")
    (offer,) = (await house.call("GET", "/v1/pipelines"))["data"]
    assert (offer["pipeline"], offer["params_schema"], offer["free"]) == ("effects", {"a": 1}, 1)
    assert (offer["warm"], offer["devices"], offer["codecs"]) == (True, ["cpu"], ["h264", "vp9"])
    prices = await house.call("GET", "/v1/prices")
    assert (prices["currency"], prices["data"][0]["micro_per_second"]) == ("USD", 1000)
    await house.call("GET", "/v1/runners", 401)


async def test_whose_session_holds_a_slot_is_shown_to_its_tenant_only(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    (runner,) = (await house.call("GET", "/v1/runners"))["data"]
    assert [slot["session"] for slot in runner["slots"]] == ["ses_mine", None]
    assert [slot["state"] for slot in runner["slots"]] == ["held", "held"]
    assert runner["heartbeat_age_ms"] is None


# --- media


async def test_a_key_opens_its_own_door_only(house: House) -> None:
    made = await house.stream()
    for method, key, status, code in (
        ("POST", made["output_playback_id"], 403, "SLUICE/PLAYBACK_ID"),
        ("GET", made["stream_key"], 403, "SLUICE/STREAM_KEY"),
        ("POST", "stk_forged-key", 404, "SLUICE/KEY_NOT_FOUND"),
        ("GET", "pbk_forged-key", 404, "SLUICE/KEY_NOT_FOUND"),
    ):
        answer = await house.client.request(method, f"/ts/{key}", content=b"x" if method == "POST" else None)
        assert answer.status_code == status
        assert seven(answer)["code"] == code


async def test_a_stream_that_nobody_publishes_is_waited_for_and_then_not_live(house: House) -> None:
    made = await house.stream()
    answer = await house.client.get(made["play_url"])
    assert answer.status_code == 404
    assert seven(answer)["code"] == "SLUICE/NOT_LIVE"


async def test_no_more_viewers_are_let_in_than_the_settings_say(house: House) -> None:
    made = await house.stream()
    house.live(made["id"])
    house.core.viewing.take(made["id"], "acme")
    answer = await house.client.get(made["play_url"])
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "5"


async def test_a_tenant_makes_lists_and_deletes_channels_of_its_own(house: House) -> None:
    made = await house.call("POST", "/v1/channels", 201, json={"name": "notes"})
    assert (made["name"], made["content_type"], made["head"]) == ("notes", "application/octet-stream", 0)
    read, write = (urlsplit(made[url]) for url in ("read_url", "write_url"))
    assert (read.netloc, read.path[:9]) == ("gateway.test:8002", "/trickle/")
    assert read.path != write.path
    assert len(write.path) > 40, "unguessable"
    assert (await house.call("GET", "/v1/channels"))["data"] == [made]
    theirs = {"Authorization": "Bearer theirs"}
    assert (await house.call("GET", "/v1/channels", headers=theirs))["data"] == []
    await house.call("DELETE", "/v1/channels/notes", 404, headers=theirs)
    await house.call("POST", "/v1/channels", 201, headers=theirs, json={"name": "notes"})
    assert (await house.call("POST", "/v1/channels", 409, json={"name": "notes"}))["code"] == (
        "SLUICE/CHANNEL_EXISTS"
    )
    await house.call("DELETE", "/v1/channels/notes")
    assert (await house.call("GET", "/v1/channels"))["data"] == []
    await house.call("DELETE", "/v1/channels/notes", 404)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"name": ""}, {"name": "a/b"}, {"name": "x" * 101}, {"name": "a", "content_type": "no\r\ntype"}],
)
async def test_a_channel_with_a_wrong_field_is_refused(house: House, wrong: dict[str, str]) -> None:
    refused = await house.call("POST", "/v1/channels", 400, json=wrong)
    assert refused["details"]["field"].startswith("body.")


async def test_a_tenant_has_so_many_channels_and_no_more(house: House) -> None:
    for number in range(25):
        await house.call("POST", "/v1/channels", 201, json={"name": f"n{number}"})
    refused = await house.call("POST", "/v1/channels", 429, json={"name": "one-more"})
    assert refused["code"] == "SLUICE/TOO_MANY_CHANNELS"
    await house.call("DELETE", "/v1/channels/n7")
    await house.call("POST", "/v1/channels", 201, json={"name": "one-more"})


async def test_methods_that_a_client_invents_make_no_new_series(house: House) -> None:
    for method in ("BREW", "WHEN", "PROPFIND"):
        await house.call(method, "/v1/streams", 405)
    counted = {
        sample.labels["method"]
        for metric in REGISTRY.collect()
        if metric.name == "sluice_http_requests"
        for sample in metric.samples
    }
    assert "other" in counted
    assert counted <= {*METHODS, "other"}


async def test_the_latency_of_an_ended_session_is_that_of_its_record(house: House) -> None:
    made = await house.stream()
    infer = bridge_pb2.StageLatency(stage="infer", p50_us=7_000, p95_us=12_500)
    known = bridge_pb2.Latency(pictures=900, stages=[infer])
    house.record(made["id"], P.PHASE_ENDED, latency=known)
    assert await house.call("GET", "/v1/sessions/ses_mine/latency") == {
        "session": "ses_mine",
        "pipeline": "effects",
        "live": False,
        "pictures": 900,
        "stages": [{"stage": "infer", "p50_ms": 7.0, "p95_ms": 12.5}],
    }
    await house.call("GET", "/v1/sessions/ses_mine/latency", 404, headers={"Authorization": "Bearer theirs"})


async def test_the_latency_of_a_running_session_is_what_its_bridge_sees(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    live = house.live(made["id"])
    refused = await house.call("GET", "/v1/sessions/ses_mine/latency", 404)
    assert refused["code"] == "SLUICE/NO_LATENCY"
    now_s = time.monotonic()
    live.stages.returned(90_000, PictureTimes(now_s, now_s + 0.001, now_s + 0.02, now_s + 0.021))
    live.stages.complete(clock_name(), [[90_000, round(1e6 * (now_s + 0.003)), 1000, 2000, 3000, 4000]])
    shown = await house.call("GET", "/v1/sessions/ses_mine/latency")
    assert (shown["live"], shown["pictures"]) == (True, 1)
    stages = {one["stage"]: one["p50_ms"] for one in shown["stages"]}
    assert list(stages) == [*(stage.value for stage in Stage), "total"]
    assert (stages["trickle_in"], stages["infer"], stages["total"]) == pytest.approx(
        (2.0, 3.0, 21.0), abs=0.1
    )


async def test_what_is_played_is_what_the_runner_returned(house: House) -> None:
    made = await house.stream()
    live = house.live(made["id"])
    for unit in pictures(5):
        live.push(unit, time.monotonic())
    watching = asyncio.ensure_future(house.client.get(made["play_url"]))
    data = ts(pictures(5, start=ORIGIN_TICKS))
    with live._channels["out-1"].channel.begin_segment() as writer:
        writer.write(data)
    while live.frames_out < 5 or not house.core.viewing.of(made["id"]):
        await asyncio.sleep(0.01)
    live.close("stopped", "")
    answer = await watching
    assert answer.headers["content-type"] == "video/mp2t"
    assert answer.headers["cache-control"] == "no-store"

    assert shown(answer.content) == [ORIGIN_TICKS + n * 3600 for n in range(5)]
    assert house.core.viewing.of(made["id"]) == 0


async def test_garbage_is_refused_and_the_connection_is_not_used_again(house: House) -> None:
    made = await house.stream()
    answer = await house.client.post(made["publish_url"], content=b"garbage" * 100)
    assert answer.status_code == 400
    assert answer.headers["connection"] == "close"
    assert "H.264" in seven(answer)["error"]


async def test_no_stream_key_is_in_a_metric(house: House) -> None:

    made = await house.stream()
    with suppress(httpx.HTTPError):
        await house.client.post(made["publish_url"], content=b"x")
    assert made["stream_key"].encode() not in generate_latest()
