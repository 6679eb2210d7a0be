"""What WHIP (RFC 9725) and WHEP (draft-ietf-wish-whep) have in common: offers, answers and resources."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from services.common.errors import DeniedError, InvalidError, NotFoundError, SluiceError, TooLargeError
from services.ingest.faces.context import Core, CoreOf, render
from services.ingest.stream_keys import PUBLISH_PREFIX
from services.ingest.transports.webrtc.peers import Peer
from services.ingest.transports.webrtc.sdp import LARGEST_OFFER, split_fragment

SDP: Final = "application/sdp"
FRAGMENT: Final = "application/trickle-ice-sdpfrag"
# What HTTP has a status for and our taxonomy no class: by the error's reason.
STATUSES: Final = {
    "NO_CODEC": 406,
    "NO_VIDEO": 422,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "PRECONDITION_REQUIRED": 428,
    "PRECONDITION_FAILED": 412,
}


def stream_of(core: Core, key: str, prefix: str) -> str:
    """The stream of `key`, which must be of that kind. Raises NotFoundError, DeniedError."""
    found, stream = core.keys.stream_of(key)
    if found != prefix:
        raise DeniedError(
            "this is the wrong one of the two: a stream key publishes, a playback id watches",
            reason="WRONG_KIND_OF_KEY",
        )
    return stream


def refusal(error: SluiceError, request: Request) -> Response:
    """An error in the one body of all faces, with WebRTC's statuses."""
    return render(error, request, STATUSES.get(error.reason))


async def read_offer(request: Request) -> str:
    """The offer in the body. Raises InvalidError, TooLargeError."""
    return await _read(request, SDP)


async def _read(request: Request, media_type: str) -> str:
    said = request.headers.get("content-type", media_type).partition(";")[0].strip().lower()
    if said != media_type:
        raise InvalidError(f"the body is to be {media_type}", reason="UNSUPPORTED_MEDIA_TYPE")
    body = await request.body()
    if len(body) > LARGEST_OFFER:
        raise TooLargeError(f"an offer has at most {LARGEST_OFFER} bytes", reason="SDP_TOO_LARGE")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise InvalidError("the body is no UTF-8", reason="BAD_SDP", field="body") from None


def created(core: Core, request: Request, peer: Peer, path: str) -> Response:
    """201 with the answer. `path`: of the resource, below the base URL."""
    answer = Response(peer.sdp, 201, media_type=SDP)
    answer.headers["Location"] = f"{core.base_url(request)}{path}/{peer.id}"
    answer.headers["ETag"] = f'"{peer.etag}"'
    answer.headers["Accept-Patch"] = FRAGMENT
    _add_ice_servers(answer, core, peer.id)
    return answer


def _add_ice_servers(answer: Response, core: Core, who: str) -> None:
    """The `Link` headers: as many as there are servers."""
    for server in core.peers.ice_servers(who):
        for link in server.link_headers():
            answer.headers.append("Link", link)


def _options(core: Core) -> Response:
    """What may be posted, and with which ICE servers: before there is an offer."""
    answer = Response(status_code=204)
    answer.headers["Accept-Post"] = SDP
    answer.headers["Allow"] = "POST, OPTIONS"
    _add_ice_servers(answer, core, "options")
    return answer


def _resource(core: Core, key: str, prefix: str, name: str) -> Peer:
    """The connection of that name, if it does what `key` allows with its stream. Raises NotFoundError."""
    stream = stream_of(core, key, prefix)
    peer = core.peers.peer(name)
    published = None if peer.session is None else peer.session.identity.stream
    if stream != (published if prefix == PUBLISH_PREFIX else None if published else peer.watching):
        raise NotFoundError("there is no such WebRTC connection", reason="PEER_NOT_FOUND")
    return peer


async def _patch(request: Request, peer: Peer) -> Response:
    """Candidates, or an ICE restart: RFC 9725 §4.3."""
    found = split_fragment(await _read(request, FRAGMENT))
    expected = request.headers.get("if-match")
    if expected is None:
        raise InvalidError("say with If-Match which ICE session it is for", reason="PRECONDITION_REQUIRED")
    if expected.strip() == "*":
        if found.ufrag and found.ufrag != peer.remote_ufrag:
            text = await peer.restart(found.ufrag, found.password)
            return Response(text, 200, media_type=FRAGMENT, headers={"ETag": f'"{peer.etag}"'})
    elif peer.etag not in {each.strip().strip('"') for each in expected.split(",")}:
        raise InvalidError("the ICE session is another one by now", reason="PRECONDITION_FAILED")
    await peer.add_candidates(found.candidates)
    return Response(status_code=204)


def add_resources(router: APIRouter, paths: Iterable[str], prefix: str) -> None:
    """Serve, below each of `paths`, what there is besides the offer; `prefix`: of the keys in them."""

    async def patch(key: str, name: str, request: Request, core: CoreOf) -> Response:
        """The client's candidates, or an ICE restart."""
        try:
            return await _patch(request, _resource(core, key, prefix, name))
        except SluiceError as error:
            return refusal(error, request)

    async def delete(key: str, name: str, core: CoreOf) -> Response:
        """End the connection; what it publishes is done."""
        stream = stream_of(core, key, prefix)
        if prefix == PUBLISH_PREFIX and core.peers.finish_interrupted(name, stream):
            return Response(status_code=200)
        await _resource(core, key, prefix, name).close("deleted", "the client ended it", orderly=True)
        return Response(status_code=200)

    async def options(key: str, core: CoreOf) -> Response:
        """What may be posted, and the ICE servers for it."""
        stream_of(core, key, prefix)
        return _options(core)

    async def reserved(key: str, core: CoreOf) -> Response:
        """RFC 9725 §4.1 keeps GET and HEAD for later; some clients try HEAD before they post."""
        stream_of(core, key, prefix)
        return Response(status_code=405, headers={"Allow": "POST, OPTIONS", "Accept-Post": SDP})

    async def gone(key: str, name: str, core: CoreOf) -> Response:
        """The same of a connection."""
        _resource(core, key, prefix, name)
        return Response(status_code=405, headers={"Allow": "PATCH, DELETE", "Accept-Patch": FRAGMENT})

    for path in paths:
        add = partial(router.add_api_route, include_in_schema=False)
        add(path, options, methods=["OPTIONS"])
        add(path, reserved, methods=["GET", "HEAD"])
        add(path + "/{name}", patch, methods=["PATCH"])
        add(path + "/{name}", delete, methods=["DELETE"])
        add(path + "/{name}", gone, methods=["GET", "HEAD"])
