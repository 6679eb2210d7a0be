"""A small client of the public HTTP API: the calls that the `sluice` command makes, as typed coroutines.

    async with SluiceClient("http://localhost:8000", key) as client:
        stream = await client.create_stream(pipeline="effects", params={"prompt": "watercolor"})
        ...
        await client.delete_stream(stream.id)

The rule it keeps: the key goes to the API only, never to a publish or play URL, which carry their own.
Proxies of the environment are not used: a stream is long, and both ways at once.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx

from sluice import upload

CONNECT_S: Final = 5.0
CALL_S: Final = 30.0  # above the server's own bound of a call to another service, 20 s
QUIET_S: Final = 60.0  # a play stream that sends nothing for so long is given up

Json = dict[str, Any]
Delivery = Literal["live", "complete"]


class ApiError(Exception):
    """The server refused. `code` is AREA/REASON and stable, `message` is a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    @property
    def reason(self) -> str:
        return self.code.rpartition("/")[2]


class UnreachableError(Exception):
    """Nothing answers at the address, or the connection broke; the message is a sentence with the address."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What there is to know of a stream to publish and to watch it."""

    id: str
    publish_url: str
    play_url: str
    revision: int
    whep_url: str = ""
    hls_url: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """One run of a stream. What only a running one has is None when the server has it not (any more)."""

    id: str
    phase: str
    end_reason: str | None
    end_message: str | None
    cost_micro: int | None  # an estimate
    fps_in: float | None = None
    fps_out: float | None = None
    latency_ms: float | None = None
    viewers: int | None = None


class SluiceClient:
    """Speaks to one installation, as one tenant. Methods raise ApiError and UnreachableError."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        self._authorization = {"Authorization": f"Bearer {key}"}
        self._tls = ssl.create_default_context()
        self._http = httpx.AsyncClient(
            verify=self._tls, trust_env=False, timeout=httpx.Timeout(CALL_S, connect=CONNECT_S)
        )

    async def __aenter__(self) -> SluiceClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._http.aclose()

    # --- streams

    async def create_stream(
        self,
        *,
        pipeline: str | None = None,
        params: Mapping[str, Any] | None = None,
        delivery: Delivery = "live",
        name: str = "",
    ) -> Stream:
        """Create a stream, of the server's default pipeline if none is named; a publisher starts it."""
        body: Json = {"params": dict(params or {}), "delivery": delivery, "name": name}
        if pipeline is not None:
            body["pipeline"] = pipeline
        return _stream(await self._call("POST", "/v1/streams", json_body=body))

    async def get_stream(self, stream: str) -> Stream:
        return _stream(await self._call("GET", f"/v1/streams/{stream}"))

    async def update_stream(
        self, stream: str, params: Mapping[str, Any], *, apply_at_ms: int | None = None
    ) -> Stream:
        """Change parameters at once, or at a media time of the running session; 0 is its first picture."""
        body: Json = {"params": dict(params)}
        if apply_at_ms is not None:
            body["apply_at_ms"] = apply_at_ms
        return _stream(await self._call("PATCH", f"/v1/streams/{stream}", json_body=body))

    async def delete_stream(self, stream: str) -> None:
        """End the stream's session, if it has one, and forget the stream."""
        await self._call("DELETE", f"/v1/streams/{stream}")

    async def status(self, stream: str) -> Session | None:
        """The stream's newest session; None before there was one."""
        answer = await self._call("GET", f"/v1/streams/{stream}/status", expect=("data",))
        shown = answer["data"].get("sluice")
        return _session(shown) if shown else None

    # --- sessions, fleet, money

    async def session(self, session: str) -> Session:
        return _session(await self._call("GET", f"/v1/sessions/{session}", expect=("session", "phase")))

    async def stop(self, session: str) -> None:
        """End a session; its stream stays and can be published again."""
        await self._call("DELETE", f"/v1/sessions/{session}")

    async def sessions(self, *, ended: bool = False, everybodys: bool = False) -> Json:
        """The tenant's sessions, newest first; with `everybodys`, which an operator may, those of all."""
        asked = {"ended": ended, "all": everybodys}
        query = {name: "true" for name, wanted in asked.items() if wanted}
        return await self._call("GET", "/v1/sessions", query=query, expect=("data",))

    async def session_object(self, session: str) -> Json:
        """A session with all that the server says of it."""
        return await self._call("GET", f"/v1/sessions/{session}", expect=("session", "phase", "moves"))

    async def move(self, session: str) -> Json:
        """Wish a session to another runner; what became of it is in its `moves`."""
        return await self._call("POST", f"/v1/sessions/{session}/move", expect=("session", "moves"))

    async def drain(self, runner: str, *, cancel: bool = False) -> int:
        """Let a runner take nothing more, or again; how many sessions are left on it."""
        path = f"/v1/runners/{quote(runner, safe='')}/drain"
        answer = await self._call("POST", path, json_body={"cancel": cancel}, expect=("sessions",))
        return int(answer["sessions"])

    async def newest_session(self) -> str:
        """The id of the tenant's newest session, live or ended."""
        found = (await self.sessions(ended=True))["data"]
        if not found:
            raise ApiError(404, "CLIENT/NO_SESSION", "you have no session yet: publish a stream first")
        return str(found[0]["session"])

    async def latency(self, session: str) -> Json:
        """Where the time of a session's newest pictures goes."""
        path = f"/v1/sessions/{session}/latency"
        return await self._call("GET", path, expect=("session", "pipeline", "live", "pictures", "stages"))

    async def trace(self, session: str) -> Json:
        """The spans of a session that have ended so far."""
        return await self._call("GET", f"/v1/sessions/{session}/trace", expect=("trace", "spans"))

    async def runners(self) -> Json:
        return await self._call("GET", "/v1/runners", expect=("data",))

    async def pipelines(self) -> Json:
        return await self._call("GET", "/v1/pipelines", expect=("data",))

    async def prices(self) -> Json:
        return await self._call("GET", "/v1/prices", expect=("currency", "data"))

    async def usage(self, session: str = "") -> Json:
        """What was used and what it cost, a line per session; of one session if it is named."""
        query = {"session": session} if session else {}
        return await self._call("GET", "/v1/usage", query=query, expect=("data",))

    # --- media

    async def publish(self, url: str, chunks: AsyncIterator[bytes]) -> str:
        """Send MPEG-TS until `chunks` end or the server does; the session's id.

        The server's answer counts as soon as it is there, also in the middle of the chunks.
        """
        try:
            status, body = await upload.post(url, chunks, tls=self._tls)
        except (OSError, TimeoutError) as error:
            raise UnreachableError(f"publishing to {_place(url)} broke: {_why(error)}") from error
        if status >= 400:
            raise _api_error(status, body)
        return str(_object(status, body, ("session",))["session"])

    async def watch(self, url: str) -> AsyncGenerator[bytes, None]:
        """The bytes of a play stream, as they come, until the server ends it."""
        timeout = httpx.Timeout(QUIET_S, connect=CONNECT_S)
        try:
            headers = {"Accept-Encoding": "identity"}
            async with self._http.stream("GET", url, headers=headers, timeout=timeout) as response:
                if response.is_error:
                    raise _api_error(response.status_code, await response.aread())
                async for chunk in response.aiter_raw():
                    yield chunk
        except httpx.TransportError as error:
            raise UnreachableError(f"watching {_place(url)} broke: {_why(error)}") from error

    async def _call(
        self,
        method: str,
        path: str,
        *,
        json_body: Json | None = None,
        query: Mapping[str, str] | None = None,
        expect: tuple[str, ...] = (),
    ) -> Json:
        """One call of the API; its JSON object, which has the keys of `expect`."""
        try:
            response = await self._http.request(
                method, self._url + path, json=json_body, params=query, headers=self._authorization
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UnreachableError(f"nothing answers: is `make run` running? ({self._url})") from error
        except httpx.TransportError as error:
            raise UnreachableError(f"{self._url} broke off: {_why(error)}") from error
        if response.is_error:
            raise _api_error(response.status_code, response.content)
        return _object(response.status_code, response.content, expect)


def _object(status: int, body: bytes, expect: tuple[str, ...]) -> Json:
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or any(key not in answer for key in expect):
        raise ApiError(status, "CLIENT/NOT_SLUICE", "what answers there does not speak Sluice's API")
    return answer


def _api_error(status: int, body: bytes) -> ApiError:
    """The error of a body with Daydream's seven keys, or of whatever else a proxy made of it."""
    try:
        answer = json.loads(body)
        return ApiError(status, str(answer["code"]), str(answer["error"]))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"CLIENT/HTTP_{status}", f"the server answered {status}")


def _stream(answer: Json) -> Stream:
    try:
        return Stream(
            id=answer["id"],
            publish_url=answer["publish_url"],
            play_url=answer["play_url"],
            revision=answer["revision"],
            whep_url=answer.get("whep_url") or "",
            hls_url=answer.get("hls_url") or "",
        )
    except KeyError:
        raise ApiError(200, "CLIENT/NOT_SLUICE", "what answers there does not speak Sluice's API") from None


def _session(answer: Json) -> Session:
    return Session(
        id=answer["session"],
        phase=answer["phase"],
        end_reason=answer.get("end_reason"),
        end_message=answer.get("end_message"),
        cost_micro=answer.get("cost_micro"),
        fps_in=answer.get("fps_in"),
        fps_out=answer.get("fps_out"),
        latency_ms=answer.get("latency_ms"),
        viewers=answer.get("viewers"),
    )


def _place(url: str) -> str:
    """The host of a media URL, whose path is a secret."""
    return httpx.URL(url).netloc.decode()


def _why(error: Exception) -> str:
    return str(error) or {"TimeoutError": "no answer in time"}.get(type(error).__name__, type(error).__name__)
