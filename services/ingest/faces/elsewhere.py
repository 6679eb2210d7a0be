"""Passes on what concerns a session whose media another ingest process has, so that any of them can be asked.

The rule it keeps: what is passed on once is not passed on again; without an answer about who has the session,
it is answered here. A process that does not answer owns nothing any more: publishers are taken in here, and
viewers wait until their stream goes on somewhere.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp
import structlog
from fastapi import Request
from prometheus_client import Counter
from starlette.types import ASGIApp, Receive, Scope, Send
from yarl import URL

from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError, SluiceError, UnavailableError
from services.ingest.control_plane import LONGEST_WAIT_S
from services.ingest.faces.context import Core, render
from services.ingest.stream_keys import PUBLISH_PREFIX

log = structlog.get_logger()
PASSED: Final = Counter(
    "sluice_signalling_passed_on_total", "Requests for sessions of other ingest processes.", ["outcome"]
)
MARK: Final = b"sluice-passed-on"
CONNECT_S: Final = 2.0
ANSWER_S: Final = 40.0  # above the longest wait for a viewer's stream and for an update in a picture
JOIN_S: Final = LONGEST_WAIT_S + 30.0  # of a publisher by WebRTC, whose answer waits for a runner
PROBE_S: Final = 1.5  # for a process to show that it lives; a frozen one takes connections and says nothing
PROBED_S: Final = 2.0  # how long that is believed
ATTEMPTS: Final = 2  # a process may die while it is believed to live
OWNERS: Final = 100  # that are remembered as living
AGAIN_S: Final = 0.5  # how often a viewer's stream is looked up whose process does not answer
CHUNK_BYTES: Final = 64 * 1024
T = TypeVar("T")

TS: Final = "/ts/"
HLS: Final = "/hls/"
EVENTS: Final = "/events"
SCOPE: Final = "/api/"
PROBE: Final = "/v1/prices"  # any answer of any process will do
BODIES: Final = frozenset({"POST", "PUT", "PATCH"})

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


class Kind(enum.Enum):
    """What a request is for."""

    PUBLISH = enum.auto()  # comes with media, or with an offer of them
    VIEW = enum.auto()  # wants the media
    ASK = enum.auto()  # of what there is a record as well
    TALK = enum.auto()  # to a connection that only the owner has


def kind_of(method: str, path: str) -> Kind:
    """What a request for a session is for, by its path, which has a name in it."""
    keyed = KEYED.match(path)
    if keyed is None:
        return Kind.VIEW if path.endswith(EVENTS) else Kind.TALK if path.startswith(SCOPE) else Kind.ASK
    bare = keyed["rest"] in {None, "/", "/whip"}
    if method in {"POST", "PUT"} and bare:
        return Kind.PUBLISH if keyed["key"].startswith(PUBLISH_PREFIX) else Kind.VIEW
    return Kind.VIEW if method in {"GET", "HEAD"} else Kind.TALK


@dataclass(frozen=True, slots=True)
class Owner:
    """Another process, and whether what it has is a session that lives."""

    url: str
    live: bool


class Elsewhere:
    """The way to other ingest processes: middleware around the faces."""

    def __init__(self, app: ASGIApp, core: Core) -> None:
        self._app = app
        self._core = core
        self._alive: OrderedDict[str, float] = OrderedDict()  # owners, and when each answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            passed = scope["type"] == "http" and await self._passed_on(scope, receive, send)
        except UnavailableError as error:
            PASSED.labels("unreachable").inc()
            await render(error, Request(scope))(scope, receive, send)
            return
        if not passed:
            await self._app(scope, receive, send)

    async def _passed_on(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether another process answered; nothing of the body is read where none did."""
        for _ in range(ATTEMPTS):
            owner = await self._living_owner(scope)
            if not owner:
                return False
            try:
                await self._pass_on(owner, scope, receive, send)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                self._alive.pop(owner, None)  # it died a moment ago
            else:
                return True
        raise _unreachable()

    async def _living_owner(self, scope: Scope) -> str:
        """URL of the process to ask; empty for this one, also in the place of one that does not answer."""
        owner = await self._owner(scope)
        if owner is None or await self._answers(owner.url):
            return owner.url if owner else ""
        kind = kind_of(scope["method"], scope["path"])
        log.info("owner does not answer", owner=owner.url, kind=kind.name.lower())
        if kind is Kind.TALK:
            return owner.url
        if kind is Kind.VIEW and owner.live:
            return await self._another_owner(scope, owner)
        PASSED.labels("taken_here").inc()
        return ""

    async def _another_owner(self, scope: Scope, owner: Owner) -> str:
        """Who has the stream when its publisher has come back, which is waited for as for one that comes.

        Raises UnavailableError when it did not.
        """
        settings = self._core.settings
        within_s = settings.hls_wait_s if scope["path"].startswith(HLS) else settings.viewer_wait_s
        found: Owner | None = owner
        try:
            async with asyncio.timeout(within_s):
                while found is not None and not await self._answers(found.url):
                    await asyncio.sleep(AGAIN_S)
                    found = await self._owner(scope)
        except TimeoutError:
            raise _unreachable() from None
        return found.url if found else ""

    async def _answers(self, owner: str) -> bool:
        """Whether the process lives, as far as is known, or as it shows now."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._alive.get(owner, -PROBED_S) < PROBED_S:
            return True
        timeout = aiohttp.ClientTimeout(total=PROBE_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as http,
                http.request("OPTIONS", owner + PROBE, headers={MARK.decode(): self._core.settings.own_url}),
            ):
                pass
        except (aiohttp.ClientError, TimeoutError):
            self._alive.pop(owner, None)
            return False
        self._alive[owner] = asyncio.get_running_loop().time()
        self._alive.move_to_end(owner)
        if len(self._alive) > OWNERS:
            self._alive.popitem(last=False)
        return True

    async def _owner(self, scope: Scope) -> Owner | None:
        """The process that has what the path names; None for this one, and when nobody can say."""
        path = scope["path"]
        found = KEYED.match(path) or NAMED.match(path) or RUN.match(path)
        if found is None or scope["method"] == "OPTIONS" or any(name == MARK for name, _ in scope["headers"]):
            return None
        try:
            record = await self._record(found.groupdict())
        except SluiceError:
            return None
        if record is None or record.signalling in {"", self._core.settings.own_url}:
            return None
        return Owner(record.signalling, live=record.phase != sessions_pb2.PHASE_ENDED)

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
        """Raises UnavailableError, and aiohttp's own errors when there was no connection."""
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.decode("latin-1") not in HOP and name != b"content-length"
        ]
        headers.append((MARK.decode(), self._core.settings.own_url))
        query = scope["query_string"].decode("latin-1")
        url = f"{owner}{scope['raw_path'].decode('latin-1')}{'?' + query if query else ''}"
        kind, body = kind_of(scope["method"], scope["path"]), Body(receive)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as http:
            if scope["method"] not in BODIES:
                body.skip()
            asking = http.request(
                scope["method"],
                URL(url, encoded=True),
                headers=headers,
                data=body.read() if scope["method"] in BODIES else None,
                allow_redirects=False,
            )
            # An endless body is answered when it has ended.
            endless = kind is Kind.PUBLISH and scope["path"].startswith(TS)
            within_s = None if endless else JOIN_S if kind is Kind.PUBLISH else ANSWER_S
            try:
                async with asyncio.timeout(within_s):
                    answer = await body.while_there(asking)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                raise
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("owner unreachable", owner=owner, error=type(error).__name__)
                raise _unreachable() from error
            async with answer:
                PASSED.labels("answered").inc()
                await _relay(answer, body, send)


def _unreachable() -> UnavailableError:
    return UnavailableError(
        "the process that has this session does not answer", reason="OWNER_UNREACHABLE", retry_after_s=2
    )


class Body:
    """The client's body, read once; afterwards, whether the client is still there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._whole = asyncio.Event()

    async def read(self) -> AsyncIterator[bytes]:
        while not self._whole.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise aiohttp.ClientConnectionError("the client went away")
            data = message.get("body", b"")
            if not message.get("more_body", False):
                self._whole.set()
            yield data

    async def while_there(self, asking: Coroutine[Any, Any, T]) -> T:
        """Wait for an answer as long as the client does: it may be one that waits in a line."""
        answering = asyncio.ensure_future(asking)
        leaving = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise aiohttp.ClientConnectionError("the client went away")
            return answering.result()
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.wait({answering, leaving})

    async def _gone(self) -> None:
        await self._whole.wait()  # until then it is seen by who reads it
        await self.left()

    def skip(self) -> None:
        """There is none that anybody wants."""
        self._whole.set()

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
