"""The public HTTP application: thin faces over one core."""

from __future__ import annotations

from typing import Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from opentelemetry.trace import SpanKind
from prometheus_client import Counter
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.telemetry import span
from services.ingest.faces import (
    account,
    channels,
    events,
    fleet,
    hls,
    playground,
    scope,
    streams,
    traces,
    ts,
    whep,
    whip,
)
from services.ingest.faces.context import Core, translate_errors
from services.ingest.faces.elsewhere import Elsewhere
from services.ingest.faces.reach import KeyInPath, open_to_pages

REQUESTS: Final = Counter(
    "sluice_http_requests_total", "Public HTTP requests.", ["method", "route", "status"]
)
METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
)  # others are invented
BODY_BYTES: Final = 1 << 20  # parameters are at most an eighth of it
MEDIA: Final = "/ts/"
HLS: Final = "/hls/"  # a player asks ten times a second: its spans would be all that is seen
EVENTS: Final = "/events"
OUTPUT: Final = "/session/output.ts"

# FastAPI's own spans have the path in them, and in our paths there are stream keys.
NO_TELEMETRY: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}


def public_app(core: Core) -> FastAPI:
    app = FastAPI(title="Sluice", version="1", docs_url="/docs", redoc_url=None, telemetry=NO_TELEMETRY)
    app.state.core = core
    translate_errors(app)
    for face in (streams, events, account, fleet, channels, ts, hls, whip, whep):
        app.include_router(face.router)
    app.include_router(streams.legacy)
    app.include_router(scope.router)
    app.include_router(traces.router(core.settings.traces_url))
    app.include_router(playground.router())

    app.add_middleware(Bounded)
    app.add_middleware(Elsewhere, core=core)
    app.add_middleware(Observed)
    open_to_pages(app)
    app.add_middleware(KeyInPath)
    return app


def _endless(path: str) -> bool:
    """Whether a span would show nothing before its end; `session.open` is the trace of such calls."""
    return path.startswith((MEDIA, HLS)) or path.endswith((EVENTS, OUTPUT))


class Bounded:
    """Refuses a body that no call can mean, before it is in memory; media has limits of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(MEDIA):
            await self._app(scope, receive, send)
            return
        left = BODY_BYTES

        async def bounded() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"a body has at most {BODY_BYTES} bytes")
            return message

        await self._app(scope, bounded, send)


class Observed:
    """Counts every request, and gives those that end a span that continues the client's trace."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _endless(scope["path"]):
                await self._app(scope, receive, observed)
            else:
                headers = {
                    name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
                }
                with span("HTTP", carrier=headers, kind=SpanKind.SERVER) as current:
                    await self._app(scope, receive, observed)
                    route = getattr(scope.get("route"), "path", "unmatched")
                    current.update_name(f"{scope['method']} {route}")
                    current.set_attribute("http.response.status_code", status)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route, str(status)).inc()
