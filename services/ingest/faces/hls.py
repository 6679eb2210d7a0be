"""`/hls/{playback_id}/index.m3u8`: HLS and low-latency HLS for players without WebRTC.

`index.m3u8` names the only rendition and gives each player a name of its own, by which viewers are counted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.common.errors import DeniedError, NotFoundError
from services.ingest.faces.context import Core, CoreOf
from services.ingest.stream_keys import PLAYBACK_PREFIX
from services.ingest.transports.hls.packager import Packager
from services.ingest.transports.hls.playlist import MediaName, Wanted, multivariant

log = structlog.get_logger()
router = APIRouter(prefix="/hls", tags=["media"])
PLAYLIST: Final = "application/vnd.apple.mpegurl"
SEGMENT: Final = "video/mp2t"
CACHED: Final = "public, max-age=60, immutable"
READ: Final = ["GET", "HEAD"]
LARGEST: Final = 1 << 53  # of a number in a query: what a player in JavaScript can count

Number = Annotated[int | None, Query(alias="_HLS_msn", ge=0, le=LARGEST)]
PartNumber = Annotated[int | None, Query(alias="_HLS_part", ge=0, le=LARGEST)]
Viewer = Annotated[str | None, Query(pattern=r"^[0-9a-zA-Z_-]{1,32}$")]


@router.api_route("/{key}/index.m3u8", methods=READ)
async def index(key: str, core: CoreOf) -> Response:
    """What there is to play, and where its playlist is; a stream that is not live is waited for."""
    packager = await _packager(key, core)
    rendition = await packager.rendition()
    text = multivariant(rendition, f"live.m3u8?viewer={secrets.token_hex(6)}")
    return _playlist(text, "no-store")  # the viewer's name is for one


@router.api_route("/{key}/live.m3u8", methods=READ)
async def live(
    key: str,
    request: Request,
    core: CoreOf,
    number: Number = None,
    part: PartNumber = None,
    viewer: Viewer = None,
) -> Response:
    """The newest segments and parts; with `_HLS_msn` and `_HLS_part` as soon as those are there."""
    packager = await _packager(key, core)
    name = viewer or (request.client.host if request.client else "")
    packager.watched_by(name, lambda: core.viewing.take(packager.stream, packager.tenant))
    return _playlist(await packager.media_playlist(Wanted(number, part)), "no-cache")


@router.api_route("/{key}/{name}.ts", methods=READ)
async def media(key: str, name: str, core: CoreOf) -> Response:
    """A segment, or a part of one; the next part is sent while it grows."""
    packager = core.hls.found(_stream(key, core))
    wanted = MediaName.parse(f"{name}.ts")
    if packager is None or wanted is None:
        raise NotFoundError("there is no such segment (any more)", reason="SEGMENT_NOT_FOUND")
    parts = await packager.parts(wanted)
    size = sum(part.size for part in parts) if parts[-1].done else None
    return Growing(packager.chunks(parts), size=size, stall_s=core.settings.viewer_stall_s)


def _stream(key: str, core: Core) -> str:
    prefix, stream = core.keys.stream_of(key)
    if prefix != PLAYBACK_PREFIX:
        raise DeniedError("this is a stream key; watch with the playback id", reason="STREAM_KEY")
    return stream


async def _packager(key: str, core: Core) -> Packager:
    return await core.hls.of(_stream(key, core))


def _playlist(text: str, caching: str) -> Response:
    return Response(text, media_type=PLAYLIST, headers={"Cache-Control": caching})


class Growing(Response):
    """A file that may still grow, for a client that may go or take nothing; `size` if it is known.

    Its name is never used for anything else, so it may be cached for as long as it is of use.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], *, size: int | None, stall_s: float) -> None:
        super().__init__(media_type=SEGMENT, headers={"Cache-Control": CACHED})
        del self.headers["content-length"]
        if size is not None:
            self.headers["Content-Length"] = str(size)
        self._chunks = chunks
        self._stall_s = stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with aclosing(self._chunks) as chunks:
                if scope["method"] != "HEAD":
                    async for data in chunks:
                        async with asyncio.timeout(self._stall_s):
                            await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            log.info("client takes nothing")  # the listener's TCP_USER_TIMEOUT ends its connection
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})
