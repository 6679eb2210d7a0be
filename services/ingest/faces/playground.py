"""The playground: the built page at `/` and `/watch/{playback_id}`, which may talk to this server alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.responses import FileResponse, HTMLResponse, Response

from services.common.errors import NotFoundError

BUILT: Final = Path(__file__).resolve().parents[1] / "playground"
# Names of assets carry a hash of what is in them; the page names them, so it is asked for anew each time.
FOREVER: Final = "public, max-age=31536000, immutable"
EACH_TIME: Final = "no-cache"
HEADERS: Final = {
    "Cache-Control": EACH_TIME,
    # `blob:`: the video file that a user chose; `data:`: nothing of ours, but browsers' own controls.
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self';"
        " object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
    ),
    "Permissions-Policy": "camera=(self), microphone=(self), display-capture=(self), geolocation=()",
    "Referrer-Policy": "no-referrer",  # in the address of a viewer's page is what lets him watch
    "X-Content-Type-Options": "nosniff",
}
# Machines differ in what their tables know of these, and with `nosniff` a wrong type is a broken page.
TYPES: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
NOT_BUILT: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Sluice</title>
<h1>The playground is not built</h1>
<p>The platform runs; its API is at <a href="/docs">/docs</a>.
Build the page with <code>make playground</code>, then reload.</p>
"""


def router(built: Path = BUILT) -> APIRouter:
    """Serve what `make playground` wrote to `built`; without it, a page that says so."""
    found = APIRouter(include_in_schema=False)

    async def page() -> Response:
        file = built / "index.html"
        if not file.is_file():
            return HTMLResponse(NOT_BUILT, 404, HEADERS)
        return FileResponse(file, headers=HEADERS)

    async def watch(playback_id: str) -> Response:
        """The same page, which finds the id in its own address."""
        assert playback_id
        return await page()

    async def asset(name: str) -> Response:
        file = built / "assets" / name
        kind = TYPES.get(file.suffix)
        if kind is None or file.parent.name != "assets" or not file.is_file():
            raise NotFoundError("no such asset")
        return FileResponse(file, media_type=kind, headers={**HEADERS, "Cache-Control": FOREVER})

    for path, endpoint in (("/", page), ("/watch/{playback_id}", watch), ("/assets/{name}", asset)):
        found.add_api_route(path, endpoint, methods=["GET", "HEAD"])
    return found
