"""What every public face needs: who calls, the core behind it, and one shape for what went wrong."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from opentelemetry import trace
from starlette.exceptions import HTTPException

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
from services.ingest.auth import Authenticator, Caller, bearer
from services.ingest.bridge.hub import Hub
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import Publishing
from services.ingest.settings import IngestSettings
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.trickle import BASE_PATH, PublicChannels


@dataclass(frozen=True, slots=True)
class Core:
    """One core, many faces: what a face turns its dialect into calls of."""

    settings: IngestSettings
    authenticator: Authenticator
    plane: ControlPlane
    hub: Hub
    keys: StreamKeys
    publishing: Publishing
    channels: PublicChannels

    def trickle_url(self, request: Request) -> str:
        """Where clients reach the public trickle channels, without a slash at the end."""
        if self.settings.public_trickle_url:
            return self.settings.public_trickle_url.rstrip("/")
        _, port = host_port(self.settings.public_trickle_listen)
        return f"http://{request.url.hostname}:{port}{BASE_PATH.rstrip('/')}"

    def base_url(self, request: Request) -> str:
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


def core(request: Request) -> Core:
    found = request.app.state.core
    assert isinstance(found, Core)
    return found


async def caller(request: Request) -> Caller:
    """The tenant behind `Authorization: Bearer <key>`."""
    return await core(request).authenticator.who(bearer(request.headers.get("authorization")))


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
            "details": error.details or None,
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

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        report_bug("http", error, path=request.url.path)
        return render(SluiceError("internal error"), request)
