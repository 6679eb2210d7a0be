"""`/ts/{key}`: plain endless MPEG-TS, published by one POST (or PUT) and watched by one GET.

What FFmpeg does by itself: `ffmpeg ... -f mpegts http://host/ts/<stream key>` and
`ffplay http://host/ts/<playback id>`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from services.common.errors import DeniedError, NotFoundError, SluiceError
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import VANISHED, CoreOf, render
from services.ingest.faces.endless import EndlessResponse
from services.ingest.publishing import end_error
from services.ingest.source import PublisherVanishedError
from services.ingest.stream_keys import PLAYBACK_PREFIX

router = APIRouter(prefix="/ts", tags=["media"])
DRAIN_S: Final = 1.0


@router.post("/{key}")
@router.put("/{key}", include_in_schema=False)
async def publish(key: str, request: Request, core: CoreOf) -> Response:
    """Publish until the body ends. The answer comes then, or as soon as the platform ends the session."""
    try:
        published = await core.publishing.publish_ts(key, _chunks(request))
        if published.ended is None:
            return JSONResponse({"success": True, "session": published.session})
        answer = render(end_error(published.ended), request)
    except PublisherVanishedError:
        return Response(status_code=VANISHED)
    except SluiceError as error:
        answer = render(error, request)
    answer.headers["Connection"] = "close"
    return EarlyAnswer(answer)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect:
        raise PublisherVanishedError from None


class EarlyAnswer(Response):
    """An answer to a client that may still be sending, which is read for a moment more.

    Closed at once, its connection would be reset, and the answer lost with what was on its way.
    """

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def keep_open(message: Message) -> None:
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await self._answer(scope, receive, keep_open)
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get("/{key}")
async def play(key: str, core: CoreOf) -> Response:
    """Watch: an endless `video/mp2t` body; an idle stream is waited for, for a while."""
    prefix, stream_id = core.keys.stream_of(key)
    if prefix != PLAYBACK_PREFIX:
        raise DeniedError("this is a stream key; watch with the playback id", reason="STREAM_KEY")
    stream = await core.plane.stream(stream_id)
    session = await core.hub.wait_for(stream_id, core.settings.viewer_wait_s)
    if session is None:
        raise NotFoundError("nobody publishes this stream now", reason="NOT_LIVE")
    seat = core.viewing.take(stream_id, stream.tenant)
    return EndlessResponse(
        watched(session),
        media_type="video/mp2t",
        stall_s=core.settings.viewer_stall_s,
        done=seat.release,
    )


async def watched(session: BridgeSession) -> AsyncGenerator[bytes]:
    async for segment in session.watch():
        async for data in segment:
            through_pts = session.out_pts
            yield data
            session.seen(through_pts)
