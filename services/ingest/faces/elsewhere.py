"""Passes on what concerns a session whose media another ingest process has, so that any of them can be asked.

The rule it keeps: what is passed on once is not passed on again; without an answer about who has the session,
it is answered here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Final

import aiohttp
import structlog
from fastapi import Request
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError, SluiceError, UnavailableError
from services.ingest.faces.context import Core, render

log = structlog.get_logger()
PASSED: Final = Counter(
    "sluice_signalling_passed_on_total", "Requests for sessions of other ingest processes.", ["outcome"]
)
MARK: Final = b"sluice-passed-on"
CONNECT_S: Final = 2.0
ANSWER_S: Final = 40.0  # above the longest wait for a viewer's stream and for an update in a picture
CHUNK_BYTES: Final = 64 * 1024
PUBLISHED: Final = "/ts/"  # answered when its body has ended

# Everything that needs the process with the media, and what follows its stream's name if it was made there.
KEYED: Final = re.compile(
    r"^/(?:whip|whep|webrtc/whep|hls|ts|live/video-to-video)/(?P<key>[^/]{1,200})(?P<rest>/.*)?$"
)
NAMED: Final = re.compile(
    r"^/(?:v1/streams|api/v1/webrtc/offer|api/v1/recordings)/(?P<stream>str_[^/.]{1,100})(?P<rest>[/.].*)?$"
)
RUN: Final = re.compile(r"^/v1/sessions/(?P<session>ses_[^/]{1,100})/latency$")
# Said of the connection between two neighbours (RFC 9110 §7.6.1), or said again by whoever passes on.
HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "date",
        "server",
    }
)
ALLOWED_BY_US: Final = "access-control-"  # each process says these itself


class Elsewhere:
    """The way to other ingest processes: middleware around the faces."""

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = await self._owner(scope) if scope["type"] == "http" else ""
        if not owner:
            await self._app(scope, receive, send)
            return
        try:
            await self._pass_on(owner, scope, receive, send)
        except UnavailableError as error:
            PASSED.labels("unreachable").inc()
            await render(error, Request(scope))(scope, receive, send)

    async def _owner(self, scope: Scope) -> str:
        """URL of the process that has what the path names; empty for this one, and when nobody can say."""
        path = scope["path"]
        found = KEYED.match(path) or NAMED.match(path) or RUN.match(path)
        if found is None or scope["method"] == "OPTIONS" or any(name == MARK for name, _ in scope["headers"]):
            return ""
        try:
            record = await self._record(found.groupdict())
        except SluiceError:
            return ""
        there = record.signalling if record is not None else ""
        return "" if there == self._core.settings.own_url else there

    async def _record(self, names: Mapping[str, str | None]) -> sessions_pb2.Session | None:
        """The session to ask for, unless it is here: the live one; for what was made there, the last too."""
        if names.get("session"):
            return await self._core.plane.session(str(names["session"]))
        name = self._stream(names)
        if not name or self._core.hub.of_stream(name) is not None:
            return None
        stream = await self._core.plane.stream(name)
        session = stream.session or (stream.last_session if names["rest"] else "")
        return await self._core.plane.session(session) if session else None

    def _stream(self, names: Mapping[str, str | None]) -> str:
        if names.get("stream"):
            return str(names["stream"])
        try:
            return self._core.keys.stream_of(str(names["key"]))[1]
        except NotFoundError:
            return ""

    async def _pass_on(self, owner: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1") not in HOP and name != b"content-length"
        ]
        headers.append((MARK.decode(), self._core.settings.own_url))
        query = scope["query_string"].decode("latin-1")
        url = f"{owner}{scope['raw_path'].decode('latin-1')}{'?' + query if query else ''}"
        body = Body(receive)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http:
            asking = http.request(
                scope["method"],
                URL(url, encoded=True),
                headers=headers,
                data=body.read() if scope["method"] in {"POST", "PUT", "PATCH"} else None,
                allow_redirects=False,
            )
            try:
                async with asyncio.timeout(None if scope["path"].startswith(PUBLISHED) else ANSWER_S):
                    answer = await asking
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("owner unreachable", owner=owner, error=type(error).__name__)
                raise UnavailableError(
                    "the process that has this session does not answer",
                    reason="OWNER_UNREACHABLE",
                    retry_after_s=2,
                ) from error
            async with answer:
                PASSED.labels("answered").inc()
                await _relay(answer, body, send)


class Body:
    """The client's body, read once; afterwards, whether the client is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._whole = False

    async def read(self) -> AsyncIterator[bytes]:
        while not self._whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise aiohttp.ClientConnectionError("the client went away")
            self._whole = not message.get("more_body", False)
            yield message.get("body", b"")

    async def left(self) -> None:
        """Return when the client has gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _relay(answer: aiohttp.ClientResponse, body: Body, send: Send) -> None:
    headers = [
        (name, value)
        for name, value in answer.raw_headers
        if (known := name.decode("latin-1").lower()) not in HOP and not known.startswith(ALLOWED_BY_US)
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    sending = asyncio.ensure_future(_copy(answer, send))
    leaving = asyncio.ensure_future(body.left())
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()
        leaving.cancel()
        await asyncio.wait({sending, leaving})


async def _copy(answer: aiohttp.ClientResponse, send: Send) -> None:
    try:
        async for data in answer.content.iter_chunked(CHUNK_BYTES):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except aiohttp.ClientError:
        return  # cut short there: the client sees a body that does not end in order
    await send({"type": "http.response.body", "body": b"", "more_body": False})
