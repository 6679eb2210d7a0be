"""`python -m services.inference`: the object graph of one runner, stopped in the reverse of its order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protos.inference.v1.runner_pb2_grpc import add_RunnerServicer_to_server
from services.common import lifecycle
from services.common.bus import Bus, connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import host_port, read
from services.common.telemetry import instance_name, telemetry
from services.inference.engine_host import EngineHost
from services.inference.presence import Presence
from services.inference.server import RunnerServicer
from services.inference.settings import InferenceSettings
from services.inference.slots import Slots
from services.inference.supervisor import supervised


@asynccontextmanager
async def serve(bus: Bus, settings: InferenceSettings) -> AsyncIterator[int]:
    """A runner on an open connection, until the block ends; yields the bound port."""
    async with supervised(settings) as supervisor:
        host = EngineHost(settings, supervisor)
        slots = Slots(settings, host)
        presence = Presence(settings, host, slots, settings.runner_name(instance_name(settings)))
        servicer = RunnerServicer(slots, presence)
        async with (
            serve_grpc(
                lambda server: add_RunnerServicer_to_server(servicer, server),
                settings.listen,
                settings.shutdown_grace_s,
            ) as port,
            slots,
        ):
            if not settings.address:
                presence.address = f"{host_port(settings.listen)[0]}:{port}"
            async with background(heartbeats=presence.beat(bus), advert=presence.advertise(bus)):
                yield port
            slots.draining = True
            await presence.leave(bus)


async def run(settings: InferenceSettings) -> None:
    """Serve until terminated."""
    async with (
        telemetry("inference", settings) as health,
        connect(settings.nats_url, "inference") as bus,
        serve(bus, settings),
    ):
        health.ready()
        await until_terminated()


if __name__ == "__main__":
    lifecycle.run(run(read(InferenceSettings)))
