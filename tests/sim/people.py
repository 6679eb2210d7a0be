"""Who uses the platform: publishers that come, fall silent, vanish and come back, and clients that steer."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final, cast

import grpc.aio

from protos.sessions.v1 import sessions_pb2 as pb
from protos.sessions.v1.sessions_pb2_grpc import SessionsStub
from services.common.errors import ConflictError, ExhaustedError, SluiceError
from services.common.grpc_client import call
from services.ingest.source import PublisherVanishedError
from tests.sim.clock import PROCESS, Process
from tests.sim.ingests import Camera, Ingest
from tests.sim.runners import PIPELINE

if TYPE_CHECKING:
    from tests.sim.world import World

TENANT: Final = "acme"
CALL_S: Final = 6.0
SESSIONS: Final = "sm:7002"
COMES_AFTER_S: Final = (0.0, 0.0, 0.01, 1.0, 3.0)  # often at the same moment as others
COMES_BACK_WITHIN_S: Final = 12.0


class Person:
    """One stream's owner: makes it, publishes it again and again, changes it, stops it."""

    def __init__(self, world: World, number: int, random: Random) -> None:
        self.stream = f"str_{number:010d}"
        self.process = Process(f"client{number}")
        self.accepted: dict[str, int] = {}  # what the newest accepted revision says
        self.camera: Camera | None = None
        self.wants = True
        self.refusals = 0
        self._world = world
        self._random = random

    # --- the publisher

    async def live(self) -> None:
        """Publish again and again until there is no more wish to."""
        await self._create()
        while self.wants:
            await asyncio.sleep(self._random.choice(COMES_AFTER_S))
            if self.wants:
                await self._publish()

    async def _create(self) -> None:
        stream = pb.Stream(id=self.stream, tenant=TENANT, pipeline=PIPELINE, params="{}")
        while True:
            with suppress(SluiceError):
                await self.call("CreateStream", pb.CreateStreamRequest(stream=stream), pb.Stream)
                return
            await asyncio.sleep(1.0)

    async def _publish(self) -> None:
        """One connection, until it ends whichever way."""
        ingest = self._world.any_ingest(self._random)
        if ingest is None:
            return
        camera = self.camera = Camera()
        connected = ingest.process.start(self._connection(ingest, camera), f"publisher {self.stream}")
        try:
            await asyncio.wait({connected, ingest.process.died}, return_when=asyncio.FIRST_COMPLETED)
            if connected.done() and not connected.cancelled():
                connected.result()
            self._world.weather.sometimes(
                "an ingest died under its publisher" if ingest.process.dead else "done"
            )
        except PublisherVanishedError:
            self._world.weather.sometimes("a publisher vanished")
            await asyncio.sleep(self._random.uniform(0.2, COMES_BACK_WITHIN_S))
        except ConflictError as error:
            self._world.weather.sometimes(f"a publisher was refused: {error.reason}")
        except ExhaustedError as error:
            self._world.refused(error)
        except SluiceError as error:
            self._world.weather.sometimes(f"a publisher was refused: {error.reason}")
        finally:
            self.camera = None

    async def _connection(self, ingest: Ingest, camera: Camera) -> None:
        """In the ingest's process."""
        process = PROCESS.get()
        assert process is ingest.process
        stream = await ingest.publishing.admit(ingest.keys.publish(self.stream))
        published = await ingest.publishing.publish(stream, camera)
        self._world.weather.sometimes(
            f"a session ended under its publisher: {published.ended.reason}" if published.ended else "done"
        )

    # --- the client

    async def call(self, method: str, request: Any, answer: type[Any]) -> Any:
        stub: Any = SessionsStub(cast("grpc.aio.Channel", self._world.net.to(SESSIONS)))
        return await call(getattr(stub, method), request, answer, timeout_s=CALL_S)

    async def session(self) -> str:
        """The live session; empty if there is none."""
        request = pb.GetStreamRequest(id=self.stream, tenant=TENANT)
        found: pb.Stream = await self.call("GetStream", request, pb.Stream)
        return found.session

    async def update(self) -> None:
        strength = self._random.randrange(1000)
        patch = json.dumps({"strength": strength})
        request = pb.UpdateRequest(stream=self.stream, tenant=TENANT, patch=patch)
        with suppress(SluiceError):
            answer: pb.UpdateResponse = await self.call("Update", request, pb.UpdateResponse)
            self.accepted = {"revision": answer.revision, "strength": strength}
            self._world.weather.sometimes("parameters were changed")

    async def stop(self) -> None:
        with suppress(SluiceError):
            session = await self.session()
            if session:
                request = pb.StopRequest(session=session, tenant=TENANT)
                await self.call("Stop", request, pb.StopResponse)
                self._world.weather.sometimes("a client stopped its session")

    async def move(self) -> None:
        if not hasattr(pb, "MoveRequest"):
            return
        with suppress(SluiceError):
            session = await self.session()
            if session:
                request = pb.MoveRequest(session=session, tenant=TENANT)
                await self.call("Move", request, pb.Session)
                self._world.asked_to_move(session)

    async def stopped(self) -> None:
        """Stop for good: the wish is repeated until the record says so."""
        self.wants = False
        while True:
            with suppress(SluiceError):
                session = await self.session()
                if session:
                    request = pb.StopRequest(session=session, tenant=TENANT)
                    await self.call("Stop", request, pb.StopResponse)
                elif self.camera is None:  # nor is it about to begin one
                    return
            await asyncio.sleep(1.0)
