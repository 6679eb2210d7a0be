"""`/v1/streams` in the shapes of Daydream's shipped clients, which is our own API too, extended.

A client that knows only Daydream's fields finds them all; ours are `publish_url`, `play_url`, `delivery`,
`apply_at_ms`, `?wait=applied` and the `sluice` part of the status.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError, NotFoundError
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import CallerOf, Core, CoreOf
from services.ingest.publishing import new_id
from services.ingest.steering import AT_START, media_ms, media_pts

router = APIRouter(prefix="/v1/streams", tags=["streams"])

# The pipeline ids that older shipped clients send; all of them are StreamDiffusion with a model.
LEGACY_PIPELINES: Final = {
    "pip_qpUgXycjWF6YMeSL": {},
    "pip_SD-turbo": {"model_id": "stabilityai/sd-turbo"},
    "pip_SDXL-turbo": {"model_id": "stabilityai/sdxl-turbo"},
    "pip_SD15": {"model_id": "Lykon/dreamshaper-8"},
}
STREAMDIFFUSION: Final = "streamdiffusion"
PHASES: Final = {
    sessions_pb2.PHASE_ALLOCATING: "LOADING",
    sessions_pb2.PHASE_STARTING: "LOADING",
    sessions_pb2.PHASE_LIVE: "ONLINE",
    sessions_pb2.PHASE_DEGRADED: "DEGRADED_INFERENCE",
    sessions_pb2.PHASE_PAUSED: "DEGRADED_INPUT",
    sessions_pb2.PHASE_MIGRATING: "DEGRADED_INFERENCE",
    sessions_pb2.PHASE_ENDED: "OFFLINE",
}
# Ends that are nobody's fault; any other makes the state ERROR.
ORDERLY: Final = frozenset({"stopped", "stream_deleted", "input_ended", "publisher_gone", "max_duration"})


class StreamBody(BaseModel):
    """What clients send to create or change a stream; unknown fields are other versions' and are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field("", max_length=200)
    pipeline: str = Field("", max_length=100)
    params: dict[str, Any] = {}
    pipeline_id: str = Field("", max_length=100)
    pipeline_params: dict[str, Any] = {}
    prompt: str | list[Any] | None = None
    output_rtmp_url: str | None = Field(None, max_length=2000)
    delivery: Literal["live", "complete"] = "live"
    apply_at_ms: Annotated[int, Field(ge=0, le=7 * 86_400_000)] | None = None

    def wanted(self) -> tuple[str, dict[str, Any]]:
        """The pipeline's name, empty if none was named, and the parameters, whichever body they came in."""
        params = {**self.pipeline_params, **self.params}
        inner = str(params.pop("pipeline_id", ""))
        legacy = self.pipeline_id or inner
        if self.prompt is not None:
            params.setdefault("prompt", self.prompt)
        if self.pipeline or not legacy:
            return self.pipeline, params
        return STREAMDIFFUSION, {**LEGACY_PIPELINES.get(legacy, {}), **params}


@router.post("", status_code=201)
async def create(body: StreamBody, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Create a stream. Nothing is allocated until somebody publishes to it."""
    pipeline, params = body.wanted()
    if body.output_rtmp_url:
        raise InvalidError(
            "pushing to RTMP is not supported yet", field="output_rtmp_url", reason="UNSUPPORTED"
        )
    complete = body.delivery == "complete"
    stream = await core.plane.create_stream(
        sessions_pb2.Stream(
            id=new_id("str"),
            tenant=caller.tenant,
            name=body.name,
            pipeline=pipeline or core.settings.default_pipeline,
            params=json.dumps(params),
            delivery=runner_pb2.DELIVERY_COMPLETE if complete else runner_pb2.DELIVERY_LIVE,
            author=caller.key_id,
        )
    )
    return stream_object(stream, core, request)


@router.get("")
async def get_all(
    request: Request, caller: CallerOf, core: CoreOf, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List the tenant's streams, newest first."""
    found = await core.plane.streams(caller.tenant, limit)
    return {"success": True, "data": [stream_object(stream, core, request) for stream in found]}


@router.get("/{stream_id}")
async def get_by_id(stream_id: str, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    return stream_object(await core.plane.stream(stream_id, caller.tenant), core, request)


@router.patch("/{stream_id}")
async def update(
    stream_id: str,
    body: StreamBody,
    request: Request,
    caller: CallerOf,
    core: CoreOf,
    wait: Annotated[Literal["applied"] | None, Query()] = None,
) -> dict[str, Any]:
    """Change parameters, while the stream runs too: all of them or, if one is wrong, none.

    `apply_at_ms`: media time, 0 = the first picture of the running session. `?wait=applied` answers when the
    change is in a picture.
    """
    pipeline, params = body.wanted()
    change = await core.steering.change(
        stream_id,
        caller.tenant,
        params,
        pipeline=pipeline,
        apply_at_pts=0 if body.apply_at_ms is None else media_pts(body.apply_at_ms),
    )
    applied: dict[str, Any] = {"revision": change.revision, "applies": change.applies, "pts_ms": None}
    session = core.hub.of_stream(stream_id)
    if wait == "applied" and change.applies != AT_START and session is not None:
        applied["pts_ms"] = media_ms(await core.steering.applied(session, change.revision))
    return {**stream_object(change.stream, core, request), "update": applied}


@router.delete("/{stream_id}")
async def delete(stream_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """End the stream's session, if it has one, and forget the stream."""
    await core.plane.stream(stream_id, caller.tenant)
    await core.plane.delete_stream(stream_id, caller.tenant)
    return {"success": True, "data": {}}


@router.delete("")
async def delete_by_query(
    stream_id: Annotated[str, Query(alias="id")], caller: CallerOf, core: CoreOf
) -> dict[str, Any]:
    return await delete(stream_id, caller, core)


@router.get("/{stream_id}/status")
async def status(stream_id: str, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """What the stream is doing, in Daydream's words and, under `sluice`, in ours."""
    stream = await core.plane.stream(stream_id, caller.tenant)
    record: sessions_pb2.Session | None = None
    if stream.last_session:
        try:
            record = await core.plane.session(stream.last_session, caller.tenant)
        except NotFoundError:
            record = None
    live = core.hub.of_stream(stream_id)
    return {
        "success": True,
        "error": None,
        "data": {
            "stream_id": stream.id,
            "request_id": record.id if record else None,
            "pipeline_id": stream.pipeline,
            "type": "status",
            "pipeline": stream.pipeline,
            "state": _state(record),
            "orchestrator_info": {"address": record.runner if record else "", "url": ""},
            "inference_status": _inference_status(stream, record, live),
            "gateway_status": {
                "whep_url": None,  # the platform serves no WHEP yet; clients take null for "not ready"
                "play_url": _play_url(stream.id, core, request),
                "last_error": _error_of(record),
            },
            "sluice": session_object(record, core) if record else None,
        },
    }


def _state(record: sessions_pb2.Session | None) -> str:
    if record is None:
        return "OFFLINE"
    if record.phase == sessions_pb2.PHASE_ENDED and record.end_reason not in ORDERLY:
        return "ERROR"
    if record.phase == sessions_pb2.PHASE_DEGRADED and record.degraded_by == "input":
        return "DEGRADED_INPUT"
    return PHASES[record.phase]


def _inference_status(
    stream: sessions_pb2.Stream, record: sessions_pb2.Session | None, live: BridgeSession | None
) -> dict[str, Any]:
    report = live.report() if live else None
    return {
        "pipeline": stream.pipeline,
        "start_time": record.created_unix_ms if record else None,
        "last_params": json.loads(stream.params),
        "last_params_hash": None,
        "last_params_update_time": None,
        "input_fps": round(report.fps_in, 2) if report else 0.0,
        "output_fps": round(report.fps_out, 2) if report else 0.0,
        "restart_count": 0,
        "last_restart_time": None,
        "last_restart_logs": None,
        "last_error": _error_of(record),
        "last_error_time": record.ended_unix_ms if record and _error_of(record) else None,
        "stream_id": stream.id,
    }


def _error_of(record: sessions_pb2.Session | None) -> str | None:
    if record is None or not record.end_reason or record.end_reason in ORDERLY:
        return None
    return f"{record.end_reason}: {record.end_message}".removesuffix(": ")


def session_object(record: sessions_pb2.Session, core: Core) -> dict[str, Any]:
    """A session as our own API shows it; what the bridge knows is there while its media passes this pod."""
    shown: dict[str, Any] = {
        "session": record.id,
        "stream": record.stream,
        "pipeline": record.pipeline,
        "phase": sessions_pb2.Phase.Name(record.phase).removeprefix("PHASE_").lower(),
        "end_reason": record.end_reason or None,
        "end_message": record.end_message or None,
        "runner": record.runner or None,
        "created_at": iso(record.created_unix_ms),
        "ended_at": iso(record.ended_unix_ms) if record.ended_unix_ms else None,
        "settled": record.settled,
        "micro_per_second": record.micro_per_second,
    }
    live = core.hub.of_stream(record.stream)
    if live is None or live.identity.session != record.id:
        return shown
    report = live.report()
    return {
        **shown,
        "publisher": live.publisher().name.lower(),
        "fps_in": round(report.fps_in, 2),
        "fps_out": round(report.fps_out, 2),
        "frames_in": report.frames_in,
        "frames_out": report.frames_out,
        "frames_dropped": report.frames_dropped,
        "latency_ms": round(report.latency_ms, 1),
        "infer_ms": round(live.infer_ms, 1),
        "delivered_ms": report.delivered_ms,
        "paused_ms": report.paused_ms,
        "cost_micro": record.micro_per_second * report.delivered_ms // 1000,
        "applied_revision": report.applied_revision,
        "applied_ms": media_ms(report.applied_pts) if report.applied_pts else None,
        "viewers": core.viewing.of(record.stream),
        "session_ms": report.session_ms,
        "paid_until_ms": report.paid_until_ms,
    }


def stream_object(stream: sessions_pb2.Stream, core: Core, request: Request) -> dict[str, Any]:
    """A stream with every key that Daydream's SDK wants present."""
    base = core.base_url(request)
    key = core.keys.publish(stream.id)
    return {
        "id": stream.id,
        "stream_key": key,
        "created_at": iso(stream.created_unix_ms),
        "output_playback_id": core.keys.playback(stream.id),
        "output_stream_url": _play_url(stream.id, core, request),
        "name": stream.name,
        "author": stream.author,
        "from_playground": False,
        "gateway_host": request.url.hostname or "",
        "is_smoke_test": False,
        "whip_url": f"{base}/whip/{key}",
        "pipeline": stream.pipeline,
        "params": json.loads(stream.params),
        "publish_url": f"{base}/ts/{key}",
        "play_url": _play_url(stream.id, core, request),
        "trickle_publish_url": f"{core.trickle_url(request)}/{key}",
        "trickle_play_url": f"{core.trickle_url(request)}/{core.keys.playback(stream.id)}",
        "delivery": "complete" if stream.delivery == runner_pb2.DELIVERY_COMPLETE else "live",
        "revision": stream.revision,
        "session": stream.session or None,
        "last_session": stream.last_session or None,
    }


def _play_url(stream: str, core: Core, request: Request) -> str:
    return f"{core.base_url(request)}/ts/{core.keys.playback(stream)}"


def iso(unix_ms: int) -> str:
    return (
        datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
