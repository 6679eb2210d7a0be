"""What Scope serves and a platform for many does not: each refused in words, by one table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from services.ingest.faces.context import CallerOf
from services.ingest.faces.scope.answers import Detail, ScopeRoute

PLUGINS: Final = "pipelines come with the runners that an operator starts: they are not installed by a client"
MODELS: Final = "runners come with their models and adapters: nothing is downloaded for a client"
DESKTOP: Final = "OSC, DMX and tempo belong to a desktop; steer by the data channel or session/parameters"
OPERATOR: Final = "this is the operator's: see the platform's settings and logs"
CLOUD: Final = "this is the cloud: there is none behind it to connect to"
FILES: Final = "no files are kept for clients; reference images are not supported"
SOURCES: Final = "there are no sources on the server: publish by WebRTC, WHIP, RTMP, MPEG-TS or trickle"
SINGLE: Final = "this is a desktop application's state; the platform keeps none"

# Below `/api/v1`: paths, and why they are not served. Paths that end in `*` stand for all below them too.
ABSENT: Final[dict[str, str]] = {
    "restart": OPERATOR,
    "logs/*": OPERATOR,
    "keys*": OPERATOR,
    "plugins*": PLUGINS,
    "models/download": MODELS,
    "loras*": MODELS,
    "lora/*": MODELS,
    "workflow/resolve": PLUGINS,
    "assets*": FILES,
    "input-sources/*": SOURCES,
    "cloud/*": CLOUD,
    "onboarding/*": SINGLE,
    "osc/*": DESKTOP,
    "dmx/*": DESKTOP,
    "tempo/*": DESKTOP,
}
METHODS: Final = ["GET", "POST", "PUT", "PATCH", "DELETE"]

router = APIRouter(
    prefix="/api/v1", route_class=ScopeRoute, default_response_class=Detail, include_in_schema=False
)


def _refuses(words: str) -> Callable[..., Awaitable[Response]]:
    async def refuse(caller: CallerOf) -> Response:
        return Detail({"detail": words, "code": "NOT_SERVED"}, 501)

    return refuse


async def unknown(caller: CallerOf) -> Response:
    return Detail({"detail": "Not Found", "code": "NOT_FOUND"}, 404)


for _path, _words in ABSENT.items():
    if not _path.endswith("/*"):
        router.add_api_route(f"/{_path.removesuffix('*')}", _refuses(_words), methods=METHODS)
    if _path.endswith("*"):
        router.add_api_route(f"/{_path.rstrip('/*')}/{{rest:path}}", _refuses(_words), methods=METHODS)
router.add_api_route("/{rest:path}", unknown, methods=METHODS)
