"""A session's voices at a gateway: its events, what the pipeline says, and the parameters that it is sent.

The rule it keeps: a channel that the gateway did not ask for costs nothing, and none of them ends the stream.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import structlog
from aiohttp import ClientSession

from services.common.errors import SluiceError
from services.common.lifecycle import background
from services.common.trickle.protocol import CURRENT
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from services.inference.address import Address
from services.inference.announcer import Announcer
from services.inference.control import IGNORED, RETRY_S
from services.inference.remarks import RemarkWriter
from services.inference.steering import Steering
from services.inference.worker_api.dialect import HEARTBEAT, STATES, StreamState, wrapped
from services.inference.worker_api.requests import Urls

log = structlog.get_logger()

HEARTBEAT_S: Final = 10.0  # a gateway gives a job up that says nothing for 30 s
REMARKS_EVERY_S: Final = 1 / 3  # as PyTrickle sends them
LONGEST_CONTROL_BYTES: Final = 4 << 20  # prompts and graphs, with room; more is no message


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class GatewayEvents:
    """Translates what the session tells; `state` is also what the worker's own status says."""

    def __init__(self, urls: Urls, state: StreamState) -> None:
        self.state = state
        self._urls = urls
        self._announcer = Announcer(Address(urls.events)) if urls.events else None
        self._now_s = asyncio.get_running_loop().time

    @property
    def full(self) -> bool:
        """Never: what a gateway does not take is dropped."""
        return False

    def emit(self, kind: str, **facts: object) -> None:
        """Say that something happened."""
        self._send({"type": kind, "timestamp": now_ms(), **facts})

    def tell(self, **event: object) -> None:
        match event:
            case {"type": "health", "state": str(state)}:
                self._enter(STATES.get(state, self.state.state))
            case {"type": "problem", "message": str(message), **rest}:
                self._failed(message)
                if rest.get("action") == "restarting":
                    self.state.restarts += 1
                    self.state.restart_ms = now_ms()
                    self.emit("restart", restart_count=self.state.restarts, restart_time=now_ms())
            case {"type": "refused" | "error", "message": str(message)}:
                self._failed(message)
        if event["type"] in {"finished", "error"}:
            self.emit("stream_stopped")

    def status(self, **event: object) -> None:
        """Of each second: how many pictures came in and went out."""
        decoded, inferred = event["decoded"], event["inferred"]
        assert isinstance(decoded, int), decoded
        assert isinstance(inferred, int), inferred
        state, now = self.state, self._now_s()
        state.ingress.count(decoded, now)
        state.egress.count(inferred, now)
        if decoded and state.input_ms is None:
            self.emit("receive_first_ingest_segment")
        if inferred and state.output_ms is None:
            self.emit("send_first_processed_segment")
        if state.ingress.fps or (decoded and state.input_ms is None):
            state.input_ms = now_ms()
        if state.egress.fps or (inferred and state.output_ms is None):
            state.output_ms = now_ms()

    async def delivered(self, within_s: float) -> None:
        if self._announcer is not None:
            await self._announcer.delivered(within_s)

    async def run(self, session: ClientSession) -> None:
        if self._announcer is None:
            await asyncio.Event().wait()
            return
        async with background(announcer=self._announcer.run(session), heartbeats=self._beat()):
            await asyncio.Event().wait()

    async def _beat(self) -> None:
        while True:
            urls, params = self._urls, self.state.params
            self._send(
                {
                    "type": "heartbeat",
                    "timestamp": now_ms(),
                    "urls": {
                        "subscribe": urls.subscribe,
                        "publish": urls.publish,
                        "control": urls.control,
                        "events": urls.events,
                        "data": urls.data,
                    },
                    "dimensions": {"width": params.get("width"), "height": params.get("height")},
                    "fps": self.state.fps(),
                },
                HEARTBEAT,
            )
            self._send(self.state.status(now_ms()))
            await asyncio.sleep(HEARTBEAT_S)

    def _enter(self, state: str) -> None:
        if self.state.enter(state, now_ms()):
            self._send(self.state.status(now_ms()))

    def _failed(self, message: str) -> None:
        self.state.failed(message, now_ms())
        self.emit("error", message=message, time=now_ms())

    def _send(self, event: Mapping[str, object], queue: str | None = None) -> None:
        if self._announcer is not None and not self._announcer.full:
            self._announcer.tell(**(wrapped(event) if queue is None else wrapped(event, queue)))


class GatewayRemarks(RemarkWriter):
    """What the pipeline says as PyTrickle sends it: three times a second one JSON array of strings a line."""

    def __init__(self, url: str) -> None:
        super().__init__(Address(url), every_s=REMARKS_EVERY_S)
        self._wanted = bool(url)

    def put(self, pts: int, text: str) -> None:
        if self._wanted:
            super().put(pts, text)

    def line(self, pts: int, text: str) -> bytes:
        return json.dumps(text).encode()

    def body(self, lines: list[bytes]) -> bytes:
        return b"[" + b", ".join(lines) + b"]\n"


class GatewayControl:
    """Parameters, one JSON message a segment, from the newest on; `take` raises what is wrong with them."""

    def __init__(self, url: str, take: Callable[[object], Awaitable[None]], events: GatewayEvents) -> None:
        self._url = url
        self._take = take
        self._events = events

    async def run(self, http: ClientSession, steering: Steering) -> None:
        if self._url:
            await self._listen(http)
        await asyncio.Event().wait()  # its end is not the session's

    async def _listen(self, http: ClientSession) -> None:
        async with Subscriber(http, self._url, start=CURRENT) as subscriber:
            while True:
                try:
                    async for segment in subscriber:
                        await self._hear(await _whole(segment))
                    break
                except SluiceError as error:
                    log.warning("control cannot be read", error=error.message)
                    await asyncio.sleep(RETRY_S)

    async def _hear(self, text: bytes | None) -> None:
        message = _parse(text)
        if message is None:
            IGNORED.inc()
        elif message and message.get("keep") != "alive":
            try:
                await self._take(message)
            except SluiceError as error:
                self._events.tell(type="refused", message=error.message)


def _parse(text: bytes | None) -> dict[str, Any] | None:
    """The object in `text`; an empty one for a segment that only keeps its channel open."""
    if text is None:
        return None
    if not text.strip():
        return {}
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


async def _whole(segment: ReceivedSegment) -> bytes | None:
    """All of a segment, however it was cut on the way; None if it is too long to be a message."""
    parts, size = [], 0
    async for data in segment:
        size += len(data)
        if size <= LONGEST_CONTROL_BYTES:
            parts.append(data)
    return b"".join(parts) if size <= LONGEST_CONTROL_BYTES else None
