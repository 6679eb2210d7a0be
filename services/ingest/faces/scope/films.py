"""`/api/v1/recordings/{sid}/...`: a session's output as an MP4, while it runs and a while longer."""

from __future__ import annotations

import os
from typing import Any

from fastapi import APIRouter
from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from services.common.errors import NotFoundError
from services.ingest.faces.context import CallerOf, Core, CoreOf
from services.ingest.faces.scope.answers import Detail, ScopeRoute
from services.ingest.faces.scope.possessions import HEADLESS_ID, Possessions
from services.ingest.recordings import Film

router = APIRouter(prefix="/api/v1/recordings", route_class=ScopeRoute, default_response_class=Detail)


@router.post("/{sid}/start")
async def start(sid: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    stream = await Possessions(core.plane, caller).find(sid)
    session = core.hub.of_stream(stream.id)
    if session is None:
        raise NotFoundError(f"Session {sid} not found", reason="SESSION_NOT_FOUND")
    return {"status": "started" if core.recordings.start(session) else "already_recording"}


@router.post("/{sid}/stop")
async def stop(sid: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """End the recording; it can be fetched from now on, also when the session is over."""
    stream = await _stream(sid, caller, core)
    try:
        recording = core.recordings.of(stream, caller.tenant)
    except NotFoundError:
        await Possessions(core.plane, caller).find(sid)
        return {"status": "not_recording"}
    return {"status": "stopped" if await recording.stop() else "not_recording"}


@router.get("/{sid}")
async def fetch(sid: str, caller: CallerOf, core: CoreOf) -> Response:
    """What was recorded so far; a recording that runs goes on."""
    stream = await _stream(sid, caller, core)
    return FilmResponse(await core.recordings.film(stream, caller.tenant))


async def _stream(sid: str, caller: CallerOf, core: Core) -> str:
    """The stream that a recording is kept by; one that has ended has no record any more."""
    if sid != HEADLESS_ID:
        return sid
    return (await Possessions(core.plane, caller).find(sid)).id


class FilmResponse(FileResponse):
    """Sends a file that has no name, and closes it. Ranges are `FileResponse`'s."""

    def __init__(self, film: Film) -> None:
        super().__init__(f"/proc/self/fd/{film.descriptor}", media_type="video/mp4", filename=film.name)
        self._descriptor = film.descriptor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._descriptor)
