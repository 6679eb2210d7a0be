"""Clients that cannot come in the usual way: pages of other origins, and those with their key in the URL."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

# What a page may read of an answer: RFC 9725's, and the one that Livepeer's clients look for.
EXPOSED: Final = ("Location", "ETag", "Link", "Livepeer-Playback-URL", "Retry-After", "Accept-Patch")
PREFIX: Final = "/k/"
PREFLIGHT_S: Final = 86_400


class KeyInPath:
    """`/k/<key>/anything` is `/anything` with that key, for clients that cannot send a header.

    A key in the `Authorization` header wins.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX):
            scope = _unfolded(scope)
        await self._app(scope, receive, send)


def _unfolded(scope: Scope) -> Scope:
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    _, _, key, *rest = raw.split(b"/", 3)
    headers = list(scope["headers"])
    if not any(name == b"authorization" for name, _ in headers):
        headers.append((b"authorization", b"Bearer " + unquote(key.decode("latin-1")).encode()))
    path = b"/" + (rest[0] if rest else b"")
    return {**scope, "raw_path": path, "path": unquote(path.decode("latin-1")), "headers": headers}


def open_to_pages(app: FastAPI) -> None:
    """Let pages of any origin call: what protects a call is its key, and never a cookie."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=PREFLIGHT_S,
    )
