"""`/whip/{stream_key}`: publish by WebRTC (RFC 9725). The key is in the URL, or the bearer token."""

from __future__ import annotations

from functools import partial
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.common.errors import SluiceError
from services.ingest.auth import bearer
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces import signalling
from services.ingest.faces.context import Core, CoreOf, while_connected
from services.ingest.stream_keys import PUBLISH_PREFIX
from services.ingest.transports.webrtc.peers import Peer

router = APIRouter(tags=["media"])
HANGS_S: Final = 2.0  # a publisher that sent nothing for so long is replaced by its next connection


@router.post("/whip/{key}")
@router.post("/live/video-to-video/{key}/whip", include_in_schema=False)
async def publish(key: str, request: Request, core: CoreOf) -> Response:
    """Publish: the body is an SDP offer, the answer is complete. The resource in `Location` ends it."""
    try:
        return await _publish(key, request, core)
    except SluiceError as error:
        return signalling.refusal(error, request)


@router.post("/whip", include_in_schema=False)
async def publish_by_token(request: Request, core: CoreOf) -> Response:
    """The same, for encoders that want the key by itself."""
    try:
        return await _publish(bearer(request.headers.get("authorization")), request, core)
    except SluiceError as error:
        return signalling.refusal(error, request)


async def _publish(key: str, request: Request, core: Core) -> Response:
    stream = signalling.stream_of(core, key, PUBLISH_PREFIX)
    offer = await signalling.read_offer(request)
    core.peers.check(offer, publish=True, watch=False)
    await _replace_hanging(core, stream)
    session = await while_connected(request, core.publishing.join(key))
    peer = await _connect(core, session, offer)
    answer = signalling.created(core, request, peer, f"/whip/{key}")
    playback = core.keys.playback(stream)
    answer.headers["Livepeer-Playback-URL"] = f"{core.base_url(request)}/webrtc/whep/{playback}"
    return answer


async def _replace_hanging(core: Core, stream: str) -> None:
    """Let go a connection whose page was reloaded: it would keep the stream busy until it is missed."""
    before = core.peers.publisher_of(stream)
    if before is not None and before.silent_s > HANGS_S:
        await before.close("replaced", "the publisher connected again")


async def _connect(core: Core, session: BridgeSession, offer: str) -> Peer:
    identity = session.identity
    talk = partial(core.conversations.begin, stream=identity.stream, tenant=identity.tenant, may_steer=True)
    try:
        return await core.peers.connect(offer, tenant=identity.tenant, publish=session, on_channel=talk)
    except BaseException:
        session.leave()
        raise


signalling.add_resources(router, ("/whip/{key}", "/live/video-to-video/{key}/whip"), PUBLISH_PREFIX)
