"""A container of somebody else's that copies its input, and misbehaves in the ways that PyTrickle's do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession, web

from services.common.errors import SluiceError
from services.common.lifecycle import background
from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import CURRENT
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from services.inference.serving import serve_aiohttp


@dataclass
class Manners:
    """How it behaves; each default is what a good one does."""

    busy_starts: int = 0  # which it answers with 503
    refuses_start: bool = False
    stop_hangs: bool = False
    params_status: int = 200
    params_break_it: bool = False  # answered with 200, and its health says ERROR for ever (W14)
    ends_on_control_only: bool = False  # it notices the end of its input when control speaks (W13)
    stalls_after: int = 0  # segments; then nothing comes out
    cuts_its_last: bool = False  # the last segment breaks off, and the channel is not closed (W12)


@dataclass
class StandIn:
    """What the container was told, and what it says."""

    url: str = ""
    status: str = "IDLE"
    manners: Manners = field(default_factory=Manners)
    started: list[dict[str, Any]] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)
    stopped: int = 0
    control: list[dict[str, Any]] = field(default_factory=list)
    _streams: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    _stream: asyncio.Task[None] | None = None
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> None:
        """End the stream by itself."""
        if self._stream is not None:
            self._stream.cancel()
        self.status = "IDLE"

    async def say(self, kind: str, message: object) -> None:
        """Write to `events` or `data` of the newest stream, as PyTrickle does: no `/next`, one POST."""
        url = f"{self.started[-1][f'{kind}_url']}/-1"
        async with trickle_session() as http, http.post(url, data=json.dumps(message)) as answer:
            assert answer.status == 200, answer.status

    # --- its HTTP API

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.post("/stream/start", self._start),
                web.post("/stream/stop", self._stop),
                web.post("/stream/params", self._update),
            ]
        )
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": self.status})

    async def _start(self, request: web.Request) -> web.Response:
        if self.manners.busy_starts:
            self.manners.busy_starts -= 1
            return _answer(503, "Pipeline is still initializing. Please wait for IDLE status.")
        if self.manners.refuses_start:
            return _answer(400, "Error starting stream: nobody likes it")
        self.started.append(await request.json())
        self.status = "OK"
        self._stream = self._streams.create_task(self._run(self.started[-1]))
        return _answer(200, "Stream started successfully")

    async def _stop(self, _: web.Request) -> web.Response:
        self.stopped += 1
        if self.manners.stop_hangs:
            await asyncio.sleep(20)
        self.end()
        return _answer(200, "Stream stopped successfully")

    async def _update(self, request: web.Request) -> web.Response:
        self.params.append(await request.json())
        if self.manners.params_break_it:
            self.status = "ERROR"
        return _answer(self.manners.params_status, "Parameter update failed: nobody likes it")

    # --- its stream

    async def _run(self, job: dict[str, Any]) -> None:
        self._heard.clear()
        async with trickle_session() as http, background(control=self._listen(http, job["control_url"])):
            await self._copy(http, job)
            if self.manners.ends_on_control_only:
                self._heard.clear()
                await self._heard.wait()
        self.status = "IDLE"

    async def _copy(self, http: ClientSession, job: dict[str, Any]) -> None:
        count = 0
        async with (
            Subscriber(http, job["subscribe_url"], start=CURRENT) as subscriber,
            Publisher(http, job["publish_url"]) as publisher,
        ):
            with suppress(SluiceError):
                async for segment in subscriber:
                    count += 1
                    if self.manners.stalls_after and count > self.manners.stalls_after:
                        continue
                    async with publisher.segment() as copy:
                        async for data in segment:
                            await copy.write(data)
            if not self.manners.cuts_its_last:
                await publisher.flush()

    async def _listen(self, http: ClientSession, url: str) -> None:
        async with Subscriber(http, url, start=CURRENT) as subscriber:
            with suppress(SluiceError):
                async for segment in subscriber:
                    self.control.append(json.loads(b"".join([data async for data in segment]) or b"{}"))
                    self._heard.set()
        await asyncio.Event().wait()


def _answer(status: int, message: str) -> web.Response:
    word = "success" if status == 200 else "error"
    return web.json_response({"status": word, "message": message}, status=status)


@asynccontextmanager
async def stand_in(**manners: Any) -> AsyncIterator[StandIn]:
    container = StandIn(manners=Manners(**manners))
    async with container._streams, serve_aiohttp(container.app(), "127.0.0.1:0", 0.1) as port:
        container.url = f"http://127.0.0.1:{port}"
        yield container
        container.end()
