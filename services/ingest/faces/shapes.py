"""Streams, sessions and their status as clients get them: all keys that Daydream's SDK wants, ours beside.

Ours are the URLs of the other ways in and out, `delivery`, `revision`, `wishes`, and the `queue` and `sluice`
parts of the status.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from fastapi import Request

from protos.inference.v1 import runner_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.ingest.bridge.identity import ORDERLY
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import Core
from services.ingest.faces.sessions import Known, session_object
from services.ingest.runner_news import WHILE_IT_GOES_ON, words
from services.ingest.times import iso

PHASES: Final = {
    sessions_pb2.PHASE_ALLOCATING: "LOADING",
    sessions_pb2.PHASE_STARTING: "LOADING",
    sessions_pb2.PHASE_LIVE: "ONLINE",
    sessions_pb2.PHASE_DEGRADED: "DEGRADED_INFERENCE",
    sessions_pb2.PHASE_PAUSED: "DEGRADED_INPUT",
    sessions_pb2.PHASE_MIGRATING: "DEGRADED_INFERENCE",
    sessions_pb2.PHASE_ENDED: "OFFLINE",
}
POLICIES: Final = {
    router_pb2.POLICY_BALANCED: "balanced",
    router_pb2.POLICY_CHEAPEST: "cheapest",
    router_pb2.POLICY_FASTEST: "fastest",
}


def stream_object(stream: sessions_pb2.Stream, core: Core, request: Request) -> dict[str, Any]:
    """A stream with every key that Daydream's SDK wants present."""
    base = core.base_url(request)
    key, playback = core.keys.publish(stream.id), core.keys.playback(stream.id)
    return {
        "id": stream.id,
        "stream_key": key,
        "created_at": iso(stream.created_unix_ms),
        "output_playback_id": playback,
        "output_stream_url": f"{base}/ts/{playback}",
        "name": stream.name,
        "author": stream.author,
        "from_playground": False,
        "gateway_host": request.url.hostname or "",
        "is_smoke_test": False,
        "whip_url": f"{base}/whip/{key}",
        "pipeline": stream.pipeline,
        "params": complete(json.loads(stream.params), json.loads(stream.params_schema or "{}")),
        "output_rtmp_url": stream.output_rtmp_url or None,
        "publish_url": f"{base}/ts/{key}",
        "rtmp_url": f"{core.rtmp_url(request)}/{key}",
        "trickle_publish_url": f"{core.trickle_url(request)}/{key}",
        "whep_url": core.whep_url(request, stream.id),
        "hls_url": f"{base}/hls/{playback}/index.m3u8",
        "play_url": f"{base}/ts/{playback}",
        "trickle_play_url": f"{core.trickle_url(request)}/{playback}",
        "watch_url": f"{base}/watch/{playback}",
        "events_url": f"{base}/v1/streams/{stream.id}/events",
        "wishes": wishes_object(stream.wishes) if stream.HasField("wishes") else None,
        "delivery": "complete" if stream.delivery == runner_pb2.DELIVERY_COMPLETE else "live",
        "revision": stream.revision,
        "session": stream.session or None,
        "last_session": stream.last_session or None,
    }


def wishes_object(wishes: sessions_pb2.Wishes) -> dict[str, Any]:
    """What a stream asks of where it runs, as it was asked."""
    return {
        "region": wishes.region,
        "gpu_class": wishes.gpu_class,
        "labels": dict(wishes.labels),
        "max_price_per_second": wishes.max_micro_per_second or None,
        "policy": POLICIES.get(wishes.policy, "balanced"),
        "priority": wishes.priority,
        "max_wait_s": wishes.max_wait_ms / 1000 or None,
    }


def complete(value: Any, schema: Any) -> Any:
    """`value` with the defaults that its schema declares, inside of its objects and lists as well.

    Daydream's SDK takes what lacks a key that it knows for something unknown.
    """
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        return [complete(item, schema.get("items")) for item in value]
    if not isinstance(value, dict):
        return value
    known = {name: fact for name, fact in schema.get("properties", {}).items() if isinstance(fact, dict)}
    defaults = {name: fact["default"] for name, fact in known.items() if "default" in fact}
    return {name: complete(item, known.get(name)) for name, item in {**defaults, **value}.items()}


def status_object(
    stream: sessions_pb2.Stream,
    record: sessions_pb2.Session | None,
    known: Known,
    core: Core,
    request: Request,
) -> dict[str, Any]:
    """A stream's status; `record` is its newest session, and `known` what others know of that."""
    live = core.hub.of_stream(stream.id)
    wrong = _error_of(record)
    wrong_at = record.ended_unix_ms if record and wrong else None
    return {
        "success": True,
        "error": None,
        "data": {
            "stream_id": stream.id,
            "request_id": record.id if record else None,
            "pipeline_id": stream.pipeline,
            "type": "status",
            "pipeline": stream.pipeline,
            "state": _state(record, live),
            "orchestrator_info": {"address": record.runner if record else "", "url": ""},
            "inference_status": _inference_status(stream, record, live),
            "gateway_status": {
                "whep_url": core.whep_url(request, stream.id),
                "play_url": f"{core.base_url(request)}/ts/{core.keys.playback(stream.id)}",
                "last_error": wrong,
                "error": {"error_message": wrong, "error_time": wrong_at} if wrong else None,
                "ingest_metrics": None,
            },
            "queue": known.place(record) if record else None,
            "sluice": session_object(record, core, known) if record else None,
        },
    }


def public_part(data: Mapping[str, Any]) -> dict[str, Any]:
    """What of a status is for who has the stream's id, but not its tenant's key."""
    shown = {key: data[key] for key in ("stream_id", "type", "pipeline", "state")}
    return {**shown, "gateway_status": {"whep_url": data["gateway_status"]["whep_url"]}}


def _state(record: sessions_pb2.Session | None, live: BridgeSession | None) -> str:
    if record is None:
        return "OFFLINE"
    if record.phase == sessions_pb2.PHASE_ENDED and record.end_reason not in ORDERLY:
        return "ERROR"
    if record.phase == sessions_pb2.PHASE_DEGRADED and record.degraded_by == "input":
        return "DEGRADED_INPUT"
    loading = live.heard.loading if live is not None else None
    if record.phase == sessions_pb2.PHASE_LIVE and loading is not None and loading.why != WHILE_IT_GOES_ON:
        return "LOADING"
    return PHASES[record.phase]


def _inference_status(
    stream: sessions_pb2.Stream, record: sessions_pb2.Session | None, live: BridgeSession | None
) -> dict[str, Any]:
    report = live.report() if live else None
    heard = live.heard if live else None
    problem = heard.problems[-1] if heard and heard.problems else None
    wrong, wrong_at = _error_of(record), record.ended_unix_ms if record and _error_of(record) else None
    if wrong is None and problem is not None:
        wrong, wrong_at = words(problem.problem), problem.unix_ms
    now_ms = time.time_ns() // 1_000_000
    came_ms = now_ms - report.input_age_ms if report and report.input_age_ms >= 0 else None
    went_ms = now_ms - report.output_age_ms if report and report.output_age_ms >= 0 else None
    return {
        "pipeline": stream.pipeline,
        "start_time": record.created_unix_ms if record else None,
        "last_params": json.loads(stream.params),
        "last_params_hash": hashlib.sha256(stream.params.encode()).hexdigest()[:16],
        "last_params_update_time": None,
        "input_fps": round(report.fps_in, 2) if report else 0.0,
        "output_fps": round(report.fps_out, 2) if report else 0.0,
        "last_input_time": came_ms,
        "last_output_time": went_ms,
        "restart_count": heard.restart_count if heard else 0,
        "last_restart_time": heard.restarted_unix_ms if heard else None,
        "last_restart_logs": None,
        "last_error": wrong,
        "last_error_time": wrong_at,
        "stream_id": stream.id,
    }


def _error_of(record: sessions_pb2.Session | None) -> str | None:
    if record is None or not record.end_reason or record.end_reason in ORDERLY:
        return None
    return f"{record.end_reason}: {record.end_message}".removesuffix(": ")
