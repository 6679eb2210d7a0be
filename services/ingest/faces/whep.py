"""`/whep/{playback_id}`: watch by WebRTC (draft-ietf-wish-whep). Until the stream is live, a still."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.common.errors import SluiceError
from services.ingest.faces import signalling
from services.ingest.faces.context import Core, CoreOf
from services.ingest.stream_keys import PLAYBACK_PREFIX

router = APIRouter(tags=["media"])


@router.post("/whep/{key}")
@router.post("/webrtc/whep/{key}", include_in_schema=False)  # some players go by "webrtc" in the path
async def watch(key: str, request: Request, core: CoreOf) -> Response:
    """Watch: the body is an SDP offer, the answer is complete. The resource in `Location` ends it."""
    try:
        return await _watch(key, request, core)
    except SluiceError as error:
        return signalling.refusal(error, request)


async def _watch(key: str, request: Request, core: Core) -> Response:
    name = signalling.stream_of(core, key, PLAYBACK_PREFIX)
    offer = await signalling.read_offer(request)
    core.peers.check(offer, publish=False, watch=True)
    stream = await core.plane.stream(name)
    talk = partial(core.conversations.begin, stream=stream.id, tenant=stream.tenant, may_steer=False)
    peer = await core.peers.connect(offer, tenant=stream.tenant, watch=stream.id, on_channel=talk)
    return signalling.created(core, request, peer, f"/whep/{key}")


signalling.add_resources(router, ("/whep/{key}", "/webrtc/whep/{key}"), PLAYBACK_PREFIX)
