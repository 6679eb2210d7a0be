"""What we ask of a container over HTTP. Every call is bounded, and every refusal is an error of ours.

Its API tells little: a wrong parameter may be a 500, and a failing update a 200.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from aiohttp import ClientConnectorError, ClientSession, ClientTimeout

from services.common.errors import ExhaustedError, InvalidError, NotFoundError, UnavailableError
from services.common.trickle.connection import TRANSPORT_ERRORS

ANSWER_BYTES: Final = 64 * 1024  # more of an answer is not read
START_WITHIN_S: Final = (
    10.0  # it answers after its stream began, and PyTrickle's may first end the one before
)
PARAMS_WITHIN_S: Final = 10.0  # an update may wait for a picture
ASK_WITHIN_S: Final = 5.0
GONE: Final = "NOBODY_LISTENS"


class Status(Enum):
    """A container's health, as it calls it, and what we say of one that does not answer."""

    LOADING = "LOADING"
    IDLE = "IDLE"
    OK = "OK"
    ERROR = "ERROR"
    GONE = "GONE"


class ContainerClient:
    """One container's. All calls raise UnavailableError when it cannot be reached or does not answer."""

    def __init__(self, http: ClientSession, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def health(self) -> Status:
        status, answer = await self._call("GET", "/health", None, ASK_WITHIN_S)
        if status >= 500:
            return Status.ERROR
        try:
            return Status(answer.get("status"))
        except ValueError:
            raise UnavailableError("the container says no health that is known", status=status) from None

    async def start(self, body: Mapping[str, Any]) -> None:
        """Raises ExhaustedError while it is busy or loads, InvalidError if it refuses."""
        status, answer = await self._call("POST", "/stream/start", body, START_WITHIN_S)
        if status in {404, 405}:
            status, answer = await self._call("POST", "/live-video-to-video", body, START_WITHIN_S)
        if status == 503:
            raise ExhaustedError(_message(answer, status))
        if status >= 400:
            raise InvalidError(_message(answer, status))

    async def stop(self, within_s: float) -> None:
        """End what runs there, if anything does."""
        status, answer = await self._call("POST", "/stream/stop", {}, within_s)
        if status >= 500:
            raise UnavailableError(_message(answer, status))

    async def update(self, params: Mapping[str, Any]) -> None:
        """Raises InvalidError if it refuses, NotFoundError if it takes no parameters this way."""
        status, answer = await self._call("POST", "/stream/params", params, PARAMS_WITHIN_S)
        if status in {404, 405}:
            raise NotFoundError("the container has no /stream/params")
        if status == 503:
            raise UnavailableError(_message(answer, status))
        if status >= 400:
            raise InvalidError(_message(answer, status))

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, within_s: float
    ) -> tuple[int, dict[str, Any]]:
        timeout = ClientTimeout(total=within_s)
        try:
            async with self._http.request(
                method, self.url + path, json=body, headers=self._headers, timeout=timeout
            ) as response:
                text = await response.content.read(ANSWER_BYTES)
        except ClientConnectorError as error:
            raise UnavailableError("nobody listens at the container's URL", reason=GONE) from error
        except TRANSPORT_ERRORS as error:
            raise UnavailableError("the container does not answer") from error
        return response.status, _object(text)


def _object(text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _message(answer: Mapping[str, Any], status: int) -> str:
    message = answer.get("message")
    return message[:500] if isinstance(message, str) else f"the container answers with {status}"
