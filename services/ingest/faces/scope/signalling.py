"""`/api/v1/webrtc/...`: an offer is answered with a session of its own, which no other tenant can touch."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from services.common.errors import ExhaustedError, InvalidError
from services.ingest.faces.context import CallerOf, Core, CoreOf, while_connected
from services.ingest.faces.scope.answers import Detail, ScopeRoute
from services.ingest.faces.scope.possessions import SESSION, Possessions, pipeline_named
from services.ingest.transports.webrtc.parameters import ScopeParameters

router = APIRouter(prefix="/api/v1/webrtc", route_class=ScopeRoute, default_response_class=Detail)


class Offer(BaseModel):
    """What a browser has to say; who the user is, the key says."""

    model_config = ConfigDict(extra="ignore")

    sdp: str = Field(max_length=200_000)
    type: str = Field(max_length=20)
    initial_parameters: ScopeParameters | None = Field(None, alias="initialParameters")


class Candidate(BaseModel):
    """As a browser's `onicecandidate` gives it."""

    model_config = ConfigDict(extra="ignore")

    candidate: str = Field(max_length=1000)
    sdp_mid: str | None = Field(None, alias="sdpMid", max_length=100)
    sdp_index: int | None = Field(None, alias="sdpMLineIndex")


class Candidates(BaseModel):
    """Some of them; none is none."""

    candidates: list[Candidate] = Field(max_length=100)


@router.get("/ice-servers")
async def ice_servers(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """What to give to `RTCPeerConnection`; none where none is needed."""
    return {
        "iceServers": [
            {"urls": list(one.urls), "username": one.username, "credential": one.credential}
            for one in core.peers.ice_servers(caller.tenant)
        ]
    }


@router.post("/offer")
async def offer(body: Offer, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Start a session with the pipeline that was loaded, or that the parameters name."""
    _check(body.sdp, core)
    given = body.initial_parameters or ScopeParameters()
    mine = Possessions(core.plane, caller)
    named = pipeline_named(given)
    if named is None:
        choice = await mine.choice(core.settings.default_pipeline)
    else:
        choice = await mine.offered(named)
    choice, ignored = choice.with_parameters(initial(given))
    await mine.tidy()
    stream = await mine.make(SESSION, choice)
    peer, session = await while_connected(request, core.offers.answer(stream, body.sdp))
    if given.paused:
        session.pause(True)
    if given.recording:
        try:
            core.recordings.start(session)
        except ExhaustedError:
            ignored = (*ignored, "recording")
    return {
        "sdp": peer.sdp,
        "type": "answer",
        "sessionId": stream.id,
        "pipeline_id": stream.pipeline,
        "ignored": ignored,
    }


def _check(sdp: str, core: Core) -> None:
    try:
        core.peers.check(sdp, publish=True, watch=True)
    except InvalidError as error:
        if error.reason != "NO_VIDEO":
            raise
        raise InvalidError(
            "the offer sends no video, and pipelines here make pictures of pictures: add a track"
            " (pc.addTrack) before createOffer",
            reason="NO_VIDEO",
            field="sdp",
        ) from None


def initial(given: ScopeParameters) -> ScopeParameters:
    """Without what the platform itself has obeyed already."""
    return given.model_copy(update=dict.fromkeys(("pipeline_ids", "graph", "recording", "paused")))


@router.patch("/offer/{sid}", status_code=204)
async def trickle(sid: str, body: Candidates, caller: CallerOf, core: CoreOf) -> Response:
    """Take candidates that the client found after its offer."""
    await core.plane.stream(sid, caller.tenant)
    await core.offers.peer(sid).add_candidates([one.candidate for one in body.candidates])
    return Response(status_code=204)


@router.delete("/offer/{sid}", status_code=204)
async def end(sid: str, caller: CallerOf, core: CoreOf) -> Response:
    """End the session, wherever it runs. Again is harmless."""
    await core.plane.delete_stream(sid, caller.tenant)
    return Response(status_code=204)
