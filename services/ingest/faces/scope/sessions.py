"""`/api/v1/session/...`: the tenant's running sessions, steered and looked at without a data channel."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError, NotFoundError
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import CallerOf, Core, CoreOf
from services.ingest.faces.endless import EndlessResponse
from services.ingest.faces.scope.answers import Detail, ScopeRoute
from services.ingest.faces.scope.possessions import HEADLESS, HEADLESS_ID, Possessions, pipeline_named
from services.ingest.faces.scope.signalling import initial
from services.ingest.faces.shapes import stream_object
from services.ingest.faces.ts import watched
from services.ingest.transports.webrtc import parameters
from services.ingest.transports.webrtc.parameters import TEXTS_MAX, ScopeParameters, WeightedText

router = APIRouter(prefix="/api/v1/session", route_class=ScopeRoute, default_response_class=Detail)
SessionId = Annotated[str, Query(max_length=64)]


class Start(BaseModel):
    """A session without a peer: its pictures come by any of the ways in that the answer names."""

    model_config = ConfigDict(extra="ignore")

    pipeline_id: str | None = Field(None, max_length=200)
    graph: dict[str, Any] | None = None
    input_mode: Literal["text", "video"] = "video"
    prompts: list[WeightedText] | None = Field(None, max_length=TEXTS_MAX)
    input_source: dict[str, Any] | None = None
    parameters: dict[str, Any] = {}


@router.post("/start", response_model=None)
async def start(body: Start, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Make the tenant's headless session anew, and say where to publish. Nothing is allocated until then."""
    if body.input_mode == "text" or (body.input_source or {}).get("enabled"):
        raise InvalidError(
            "pipelines here make pictures of what is published to them: there is no text mode and no source"
            " on the server. Start with input_mode video, and publish to one of the URLs of the answer",
            reason="NO_INPUT",
            field="input_mode" if body.input_mode == "text" else "input_source",
        )
    prompts = {"prompts": [text.model_dump() for text in body.prompts]} if body.prompts else {}
    given = parameters.read({**prompts, **body.parameters})
    named = body.pipeline_id or pipeline_named(parameters.read({"graph": body.graph}))
    if named is None and body.graph is not None:
        raise InvalidError("Invalid graph: Graph must have a pipeline node", field="graph")
    mine = Possessions(core.plane, caller)
    choice = await (mine.offered(named) if named else mine.choice(core.settings.default_pipeline))
    choice, ignored = choice.with_parameters(initial(given))
    before = await mine.named(HEADLESS)
    stream = await mine.make(HEADLESS, choice)
    await mine.forget(before)
    shown = stream_object(stream, core, request)
    return {
        "status": "ok",
        "input_mode": "video",
        "cloud_mode": False,
        "pipeline_id": stream.pipeline,
        "session_id": stream.id,
        "ignored": ignored,
        **{name: url for name, url in shown.items() if name.endswith("_url")},
    }


@router.post("/stop")
async def stop(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    mine = Possessions(core.plane, caller)
    found = await mine.named(HEADLESS)
    if not found:
        raise NotFoundError("No active headless session", reason="SESSION_NOT_FOUND")
    await mine.forget(found)
    return {"status": "ok", "message": "Session stopped"}


@router.get("/parameters", response_model=None)
async def get_parameters(caller: CallerOf, core: CoreOf, session_id: SessionId = "") -> dict[str, Any]:
    """The parameters of the newest session, or of one."""
    mine = Possessions(core.plane, caller)
    found = [await mine.find(session_id)] if session_id else (await mine.live())[:1]
    return {"parameters": parameters.in_scopes_words(json.loads(found[0].params)) if found else {}}


@router.post("/parameters", response_model=None)
async def change_parameters(
    given: ScopeParameters, caller: CallerOf, core: CoreOf, session_id: SessionId = ""
) -> dict[str, Any]:
    """Change what is given, and nothing else, of all the tenant's sessions or of one.

    Without a session it is remembered for the next one.
    """
    if not given.given():
        raise InvalidError("no parameters given", field="body")
    mine = Possessions(core.plane, caller)
    found = [await mine.find(session_id)] if session_id else list(await mine.live())
    if not found:
        choice, ignored = (await mine.choice(core.settings.default_pipeline)).with_parameters(given)
        await mine.load(choice)
        return {"status": "ok", "applied_parameters": given.given(), "ignored": ignored, "sessions": {}}
    changes = {stream.id: await _change(stream, given, core) for stream in found}
    ignored = tuple(dict.fromkeys(name for one in changes.values() for name in one["ignored"]))
    return {"status": "ok", "applied_parameters": given.given(), "ignored": ignored, "sessions": changes}


async def _change(stream: sessions_pb2.Stream, given: ScopeParameters, core: Core) -> dict[str, Any]:
    properties = json.loads(stream.params_schema or "{}").get("properties", {})
    steering = parameters.steering(given, properties)
    ignored = list(steering.ignored)
    if steering.paused is not None:
        session = core.hub.of_stream(stream.id)
        if session is None:
            ignored.append("paused")  # its media passes another process, or none
        else:
            session.pause(steering.paused)
    if not steering.patch:
        return {"revision": stream.revision, "applies": "live", "ignored": ignored}
    change = await core.steering.change(stream.id, stream.tenant, steering.patch)
    return {"revision": change.revision, "applies": change.applies, "ignored": ignored}


@router.get("/metrics")
async def metrics(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Of the sessions whose media passes this process."""
    live = await Possessions(core.plane, caller).live()
    shown = {
        HEADLESS_ID if stream.name == HEADLESS else stream.id: _figures(session, stream)
        for stream in live
        if (session := core.hub.of_stream(stream.id)) is not None
    }
    return {"sessions": shown, "gpu": {}}


def _figures(session: BridgeSession, stream: sessions_pb2.Stream) -> dict[str, Any]:
    report = session.report()
    return {
        "session_id": stream.id,
        "pipeline_id": stream.pipeline,
        "frames_in": report.frames_in,
        "frames_out": report.frames_out,
        "frames_dropped": report.frames_dropped,
        "elapsed_seconds": round(report.session_ms / 1000, 3),
        "fps_in": round(report.fps_in, 2),
        "fps_out": round(report.fps_out, 2),
        "pipeline_fps": round(1000 / session.infer_ms, 2) if session.infer_ms else None,
        "latency_ms": round(report.latency_ms, 1),
        "infer_ms": round(session.infer_ms, 1),
        "paused": session.paused,
        "output_sinks": {},
        "input_source_enabled": False,
        "input_source_type": None,
        "relay_mode": False,
        "headless": stream.name == HEADLESS,
    }


@router.get("/frame")
async def frame(
    caller: CallerOf,
    core: CoreOf,
    quality: Annotated[int, Query(ge=1, le=100)] = 85,
    session_id: SessionId = "",
) -> Response:
    """The newest picture, as a JPEG."""
    session = await _here(caller, core, session_id)
    picture = await core.stills.newest(session, quality)
    return Response(picture, media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.get("/output.ts")
async def output(caller: CallerOf, core: CoreOf, session_id: SessionId = "") -> Response:
    """Watch as one endless MPEG-TS."""
    session = await _here(caller, core, session_id)
    seat = core.viewing.take(session.identity.stream, caller.tenant)
    return EndlessResponse(
        watched(session),
        media_type="video/mp2t",
        stall_s=core.settings.viewer_stall_s,
        done=seat.release,
    )


async def _here(caller: CallerOf, core: Core, session_id: str) -> BridgeSession:
    """The session that is meant, or the newest whose media passes here. Raises NotFoundError."""
    mine = Possessions(core.plane, caller)
    found = [await mine.find(session_id)] if session_id else list(await mine.live())
    for stream in found:
        session = core.hub.of_stream(stream.id)
        if session is not None:
            return session
    raise NotFoundError("no session runs here", reason="SESSION_NOT_FOUND")
