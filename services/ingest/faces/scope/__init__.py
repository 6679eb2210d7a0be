"""Scope's HTTP surface, so that its clients run unchanged; docs/scope-api.md says what differs and why."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import APIRouter, Request

from services.ingest.faces.scope import absent, films, pipelines, sessions, signalling
from services.ingest.faces.scope.answers import Detail, ScopeRoute

STARTED_S: Final = time.time()

router = APIRouter(tags=["scope"], route_class=ScopeRoute, default_response_class=Detail)


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Alive. No key is wanted, and nothing is told that one would be needed for."""
    return {
        "status": "healthy",
        "timestamp": datetime.now(UTC).isoformat(),
        "server_start_time": STARTED_S,
        "version": request.app.version,
        "git_commit": "unknown",
    }


for _part in (signalling, pipelines, sessions, films, absent):
    router.include_router(_part.router)
