"""What every public face needs: who calls, the core behind it, and one shape for what went wrong."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from services.common.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    SluiceError,
    TooLargeError,
    UnauthenticatedError,
)
from services.common.settings import host_port
from services.common.telemetry import report_bug
from services.ingest import in_line
from services.ingest.auth import Authenticator, Caller, bearer
from services.ingest.bridge.hub import Hub
from services.ingest.control_plane import ControlPlane
from services.ingest.offers import Offers
from services.ingest.publishing import Publishing
from services.ingest.recordings import Recordings
from services.ingest.seats import Seats
from services.ingest.settings import IngestSettings
from services.ingest.steering import Steering
from services.ingest.stills import Stills
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.hls.packagers import Packagers
from services.ingest.transports.rtmp.pushes import Pushes
from services.ingest.transports.trickle import BASE_PATH, PublicChannels
from services.ingest.transports.webrtc.conversation import Conversations
from services.ingest.transports.webrtc.peers import Peers

VANISHED: Final = 499  # nobody reads it; nginx's word in logs for a client that closed the request
EVENT_READERS: Final = 20  # of one stream; each costs a message a second
EVENT_READERS_PER_TENANT: Final = 100


@dataclass(frozen=True, slots=True)
class Core:
    """One core, many faces: what a face turns its dialect into calls of."""

    settings: IngestSettings
    authenticator: Authenticator
    plane: ControlPlane
    hub: Hub
    keys: StreamKeys
    publishing: Publishing
    pushes: Pushes
    channels: PublicChannels
    steering: Steering
    viewing: Seats
    listening: Seats  # to a stream's events
    # To be entered, in this order:
    hls: Packagers
    conversations: Conversations
    recordings: Recordings
    peers: Peers
    offers: Offers
    # and this one not:
    stills: Stills

    def trickle_url(self, request: Request) -> str:
        """Where clients reach the public trickle channels, without a slash at the end."""
        if self.settings.public_trickle_url:
            return self.settings.public_trickle_url.rstrip("/")
        _, port = host_port(self.settings.public_trickle_listen)
        return f"http://{request.url.hostname}:{port}{BASE_PATH.rstrip('/')}"

    def rtmp_url(self, request: Request) -> str:
        """Where clients publish by RTMP, without a slash at the end."""
        if self.settings.public_rtmp_url:
            return self.settings.public_rtmp_url.rstrip("/")
        _, port = host_port(self.settings.rtmp_listen)
        return f"rtmp://{request.url.hostname}:{port}/live"

    def whep_url(self, request: Request, stream: str) -> str:
        """Where a stream is watched by WHEP; players of Livepeer's know such URLs by a word in the path."""
        return f"{self.base_url(request)}/webrtc/whep/{self.keys.playback(stream)}"

    def base_url(self, request: Request) -> str:
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


def assemble(
    *,
    settings: IngestSettings,
    authenticator: Authenticator,
    plane: ControlPlane,
    hub: Hub,
    keys: StreamKeys,
    publishing: Publishing,
    pushes: Pushes,
    channels: PublicChannels,
) -> Core:
    """The core with the parts that are made of others."""
    viewing = Seats("viewers", per_stream=settings.max_viewers, per_tenant=settings.max_viewers_per_tenant)
    listening = Seats("event readers", per_stream=EVENT_READERS, per_tenant=EVENT_READERS_PER_TENANT)
    steering = Steering(plane)
    conversations = Conversations(hub=hub, plane=plane, steering=steering, settings=settings)
    peers = Peers(hub=hub, plane=plane, feed=publishing.feed, viewing=viewing, settings=settings)
    return Core(
        settings=settings,
        authenticator=authenticator,
        plane=plane,
        hub=hub,
        keys=keys,
        publishing=publishing,
        pushes=pushes,
        channels=channels,
        steering=steering,
        viewing=viewing,
        listening=listening,
        hls=Packagers(hub=hub, plane=plane, settings=settings),
        conversations=conversations,
        recordings=Recordings(settings),
        peers=peers,
        offers=Offers(
            plane=plane, publishing=publishing, keys=keys, peers=peers, conversations=conversations
        ),
        stills=Stills(),
    )


def core(request: Request) -> Core:
    found = request.app.state.core
    assert isinstance(found, Core)
    return found


async def caller(request: Request) -> Caller:
    """The tenant behind `Authorization: Bearer <key>`, or, where that is allowed, this machine's own."""
    header = request.headers.get("authorization")
    found = core(request)
    if header is None and not knows_nobody(request):
        return await found.authenticator.who(found.settings.loopback_key)
    return await found.authenticator.who(bearer(header))


def knows_nobody(request: Request) -> bool:
    """Whether a request has no key, and its client is not let in without one."""
    if request.headers.get("authorization") is not None:
        return False
    return not (core(request).settings.loopback_key and _local(request))


def _local(request: Request) -> bool:
    """Whether a client of this machine calls, and not a page of some site through that client's browser.

    A page's origin is what its browser says; a name that was made to point here (DNS rebinding) is in `Host`.
    """
    origin = request.headers.get("origin")
    places = [request.client.host if request.client else "", request.url.hostname or ""]
    if origin is not None:
        places.append(urlsplit(origin).hostname or "")
    return all(_loopback(place) for place in places)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def tenant_for(who: Caller, core: Core) -> str:
    """Whose sessions a caller may see and move: its own; an operator's, everybody's, which is empty."""
    return "" if core.settings.operates(who.tenant) else who.tenant


T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do what may take long for as long as the client waits for it. Its body is to be read before.

    Raises ClientDisconnect when the client went away; the work is cancelled then.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


CoreOf = Annotated[Core, Depends(core)]
CallerOf = Annotated[Caller, Depends(caller)]


def render(error: SluiceError, request: Request, status: int | None = None) -> JSONResponse:
    """The error body of Daydream's clients: all seven keys, or their SDK cannot read it.

    `status`: for what HTTP itself refuses and our taxonomy has no class for, such as 405.
    """
    status = status or error.http_status
    area = "STREAMS" if "/streams" in request.url.path else "SLUICE"
    current = trace.get_current_span().get_span_context()
    headers = {}
    if "retry_after_s" in error.details:
        headers["Retry-After"] = str(max(1, round(float(error.details["retry_after_s"]))))
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(
        {
            "success": False,
            "error": error.message,
            "code": f"{area}/{error.reason}",
            "status": status,
            "details": in_line.shown(error.details) or None,
            "requestId": request.headers.get("x-request-id", "")[:100] or secrets.token_hex(8),
            "traceId": f"{current.trace_id:032x}" if current.is_valid else None,
        },
        status,
        headers,
    )


def translate_errors(app: FastAPI) -> None:
    """Install the one HTTP translator."""

    @app.exception_handler(SluiceError)
    async def known(request: Request, error: SluiceError) -> JSONResponse:
        return render(error, request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        return render(InvalidError(f"{field}: {first['msg']}", field=field), request)

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> JSONResponse:
        kinds: dict[int, type[SluiceError]] = {404: NotFoundError, 403: DeniedError, 413: TooLargeError}
        kind = kinds.get(error.status_code, InvalidError)
        return render(kind(str(error.detail)), request, error.status_code)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=VANISHED)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        report_bug("http", error, path=request.url.path)
        return render(SluiceError("internal error"), request)
