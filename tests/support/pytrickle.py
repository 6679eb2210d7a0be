"""Both sides of PyTrickle's API: a gateway of others before a worker, and our runner before a container."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from protos.inference.v1 import runner_pb2_grpc
from services.common.bus import connect
from services.common.grpc_client import channel
from services.common.lifecycle import background
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference.__main__ import serve
from services.inference.settings import InferenceSettings
from tests.support.inference import Bridge, Runner, until
from tests.support.nats import NatsServer


@dataclass
class Gateway:
    """`bridge` has the gateway's ends of the channels: it writes `in` and `control`, and reads the others."""

    bridge: Bridge
    http: ClientSession
    url: str

    @property
    def urls(self) -> dict[str, str]:
        channels = self.bridge.channels
        return {
            "subscribe_url": getattr(channels, "in"),
            "publish_url": channels.out,
            "control_url": channels.control,
            "events_url": channels.events,
            "data_url": channels.data,
        }

    async def start(self, expect: int = 200, **more: Any) -> dict[str, Any]:
        body = {"gateway_request_id": "req-1", **self.urls, **more}
        return await self.post("/stream/start", body, expect)

    async def post(self, path: str, body: object, expect: int = 200, **more: Any) -> dict[str, Any]:
        async with self.http.post(self.url + path, json=body, **more) as response:
            answer: dict[str, Any] = await response.json()
            assert response.status == expect, (response.status, answer)
            return answer

    async def get(self, path: str) -> dict[str, Any]:
        async with self.http.get(self.url + path) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def health(self) -> str:
        return str((await self.get("/health"))["status"])

    async def until_health(self, status: str, within_s: float = 10.0) -> None:
        async with asyncio.timeout(within_s):
            while await self.health() != status:
                await asyncio.sleep(0.02)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [one["event"] for one in self.bridge.events if one["event"]["type"] == kind]

    async def until_event(self, kind: str, within_s: float = 10.0) -> dict[str, Any]:
        await until(lambda: bool(self.events(kind)), within_s)
        return self.events(kind)[0]

    def control(self, message: object) -> None:
        self.bridge.control(json.dumps(message).encode())


@asynccontextmanager
async def gateway(
    trickle: tuple[Registry, int], worker_url: str, name: str = "job"
) -> AsyncIterator[Gateway]:
    """A gateway with one job at the worker that listens at `worker_url`."""
    bridge = Bridge(*trickle, name)
    async with (
        background(out=bridge.take_output(), events=bridge.take_events(), data=bridge.take_data()),
        ClientSession(timeout=ClientTimeout(total=15)) as http,
    ):
        yield Gateway(bridge, http, worker_url)


@asynccontextmanager
async def adapter(nats: NatsServer, **settings: Any) -> AsyncIterator[Runner]:
    """A runner whose sessions run on a container."""
    known = InferenceSettings(
        listen="127.0.0.1:0",
        runner="r1",
        bridge_lost_after_s=1.0,
        shutdown_grace_s=1.0,
        **{"container_channels_listen": "127.0.0.1:0", "container_start_timeout_s": 3.0, **settings},
    )
    registry = Registry()
    async with (
        connect(nats.url, "test") as bus,
        serve_trickle(trickle_app(registry), "127.0.0.1:0", 1.0) as trickle_port,
        serve(bus, known) as served,
        channel(f"127.0.0.1:{served.port}") as open_channel,
    ):
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        yield Runner(served.port, bus, (registry, trickle_port), [], stub, engine_pid=0)
