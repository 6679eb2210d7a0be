"""What surrounds the edge in `edge_cpu`: the neighbours it asks, runners that return the bytes, and clients.

Each runs in a process of its own, says on its pipe when it is ready and obeys it. Nothing encodes or decodes:
clients send and count what is encoded already, and runners copy it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc.aio
import numpy as np
import uvloop

from protos.ingest.v1 import bridge_pb2
from protos.ingest.v1.bridge_pb2_grpc import BridgeStub
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from services.common.grpc_client import call, channel, stream
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import Bulkhead, until_terminated
from services.common.media.codec import VideoEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.common.telemetry import report_bug
from services.common.trickle.connection import trickle_session
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from tests.support.nats import nats_server
from tests.support.rtc import Client

SIDE: Final = 512
FPS: Final = 30
BIT_RATE: Final = 1_000_000
FRAME: Final = CLOCK_HZ // FPS
SECONDS: Final = 4  # of the clip, which is sent again and again
SOUND_S: Final = 0.02
SOUND_TICKS: Final = 1800
SOUND: Final = b"\xfc" + bytes(211)  # 85 kbit/s of Opus, for those who do not listen
PAID_MS: Final = 3_600_000


# --- neighbours


class Sessions(sessions_pb2_grpc.SessionsServicer):
    """Every stream exists, each is its own tenant's, and each session gets a runner that copies."""

    def __init__(self, tasks: Bulkhead) -> None:
        self._tasks = tasks

    async def GetStream(self, request: sessions_pb2.GetStreamRequest, context: Any) -> sessions_pb2.Stream:
        return sessions_pb2.Stream(id=request.id, tenant=request.id, pipeline="passthrough", params="{}")

    async def StartSession(
        self, request: sessions_pb2.StartSessionRequest, context: Any
    ) -> sessions_pb2.StartSessionResponse:
        opening = bridge_pb2.OpenRequest(
            session=request.session, epoch=1, paid_until_ms=PAID_MS, runner="copies"
        )
        async with channel(request.bridge) as bridge:
            opened = await call(BridgeStub(bridge).Open, opening, bridge_pb2.OpenResponse, timeout_s=5)
        self._tasks.start(f"copy/{request.session}", copy(opened.channels))
        self._tasks.start(f"care/{request.session}", care(request.session, request.bridge))
        return sessions_pb2.StartSessionResponse(session=sessions_pb2.Session(id=request.session))


async def copy(channels: bridge_pb2.Channels) -> None:
    """A runner that touches nothing: every byte goes out as it came in."""
    async with (
        trickle_session() as http,
        Subscriber(http, getattr(channels, "in"), start=0) as reader,
        Publisher(http, channels.out) as writer,
    ):
        async for segment in reader:
            async with writer.segment() as out:
                async for data in segment:
                    await out.write(data)
        await writer.close()


async def care(session: str, address: str) -> None:
    """Follow the reports, as the session-manager does."""
    async with channel(address) as bridge:
        request = bridge_pb2.ReportRequest(session=session)
        async for _ in stream(BridgeStub(bridge).Report, request, bridge_pb2.BridgeReport):
            pass


def serve_sessions(tasks: Bulkhead, server: grpc.aio.Server) -> None:
    servicer = Sessions(tasks)  # type: ignore[abstract]  # only what is called
    sessions_pb2_grpc.add_SessionsServicer_to_server(servicer, server)


def neighbours(parent: Connection) -> None:
    """NATS and the session-manager; says where they are."""

    async def serve() -> None:
        failed = partial(report_bug, "bench")
        with tempfile.TemporaryDirectory() as directory:
            async with (
                nats_server(Path(directory)) as nats,
                Bulkhead(lambda _, error: failed(error)) as tasks,
                serve_grpc(
                    lambda server: serve_sessions(tasks, server),
                    "127.0.0.1:0",
                    0,
                ) as port,
            ):
                parent.send((nats.url, f"127.0.0.1:{port}"))
                await until_terminated()

    uvloop.run(serve())


# --- clients


@dataclass(frozen=True, slots=True)
class Sent:
    """How a publishers' process did: the pictures it sent, and how late."""

    pictures: int
    late_ms: Sequence[float]


def clip() -> list[AccessUnit]:
    """Moving shapes on noise that stands, a key frame each second."""
    encoder = VideoEncoder(SIDE, SIDE, BIT_RATE)
    ground = np.random.default_rng(7).integers(80, 120, (SIDE, SIDE, 3), np.uint8)
    units = []
    for number in range(SECONDS * FPS):
        rgb = ground.copy()
        left = number * 7 % (SIDE - 96)
        rgb[150:246, left : left + 96] = np.roll(ground[:96, :96], number, axis=0) + 90
        units += encoder.encode(rgb, number * FRAME, keyframe=number % FPS == 0)
    return units


async def publish_one(
    client: Client, units: Sequence[AccessUnit], phase_s: float, late_ms: list[float]
) -> None:
    """Send the clip for ever, at its pace, with its sound."""
    begun_s = time.monotonic() + phase_s
    heard = 0
    for number in count():
        due_s = begun_s + number / FPS
        await asyncio.sleep(due_s - time.monotonic())
        late_ms.append((time.monotonic() - due_s) * 1000)
        pts = number * FRAME
        await client.send(replace(units[number % len(units)], pts=pts, dts=pts))
        while heard * SOUND_S <= number / FPS:
            at = heard * SOUND_TICKS
            await client.send(AccessUnit(Codec.OPUS, at, at, SOUND, keyframe=True))
            heard += 1


def publishers(urls: Sequence[str], parent: Connection) -> None:
    """Publish to each of `urls`; told "measure" forgets what was, told "report" says how it went."""

    async def serve() -> None:
        units = clip()
        dice = random.Random(7)
        late_ms: list[float] = []
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            for url in urls:
                client = Client(http)
                await client.publish(url)
                group.create_task(publish_one(client, units, dice.random() / FPS, late_ms))
            await asyncio.to_thread(parent.send, sum(len(unit.data) for unit in units) * 8 / SECONDS)
            while await asyncio.to_thread(parent.recv) == "measure":
                late_ms.clear()
                await asyncio.to_thread(parent.recv)
                await asyncio.to_thread(parent.send, Sent(len(late_ms), list(late_ms)))

    uvloop.run(serve())


def viewers(urls: Sequence[str], parent: Connection) -> None:
    """Watch each of `urls`; asked anything says how many pictures came and how many packets were lost."""

    async def serve() -> None:
        seen: list[int] = [0]

        def take(unit: AccessUnit) -> None:
            seen[0] += unit.codec is Codec.H264

        async with aiohttp.ClientSession() as http:
            clients = [Client(http) for _ in urls]
            for client, url in zip(clients, urls, strict=True):
                await client.watch(url, take)
            await asyncio.to_thread(parent.send, None)
            while True:
                await asyncio.to_thread(parent.recv)
                lost = sum(units.lost for client in clients for units in client.receiving.values())
                await asyncio.to_thread(parent.send, (seen[0], lost))

    uvloop.run(serve())


def through_echo(url: str, parent: Connection) -> None:
    """Send one stream to an echo that decodes and encodes, and take what it returns."""

    async def serve() -> None:
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            client = Client(http)
            await client.echo(url, lambda unit: None)
            group.create_task(publish_one(client, clip(), 0.0, []))
            await asyncio.to_thread(parent.send, None)

    uvloop.run(serve())
