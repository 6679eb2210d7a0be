"""`python -m services.router`: the object graph, stacked in the order of dependence, stopped in reverse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random, SystemRandom

from protos.router.v1.router_pb2_grpc import add_RouterServicer_to_server
from services.common import lifecycle
from services.common.bus import Bus, connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import read
from services.common.telemetry import telemetry
from services.common.topology import RUNNERS, SLOTS
from services.router.fleet import Fleet
from services.router.line import Line
from services.router.server import RouterServicer
from services.router.settings import RouterSettings
from services.router.slots import Slots


@asynccontextmanager
async def serve(bus: Bus, settings: RouterSettings, random: Random) -> AsyncIterator[int]:
    """A router on an open connection, until the block ends; yields the bound port."""
    adverts = await bus.bucket(RUNNERS, settings.nats_replicas)
    keys = await bus.bucket(SLOTS, settings.nats_replicas)
    fleet = Fleet(settings, lambda: bus.healthy_for_s)
    slots = Slots(keys, adverts, fleet)
    async with asyncio.TaskGroup() as claims:  # outlives the calls: what they took, it gives back
        line = Line(fleet, slots, claims, settings, random)
        servicer = RouterServicer(fleet, line, slots)
        async with (
            background(
                follow_adverts=adverts.follow(fleet.adverts),
                follow_slots=keys.follow(fleet.slots),
                listen=fleet.listen(bus),
                keep_time=fleet.keep_time(),
                follow_fleet=line.follow(),
                forget_gone=slots.forget_gone(),
            ),
            serve_grpc(
                lambda server: add_RouterServicer_to_server(servicer, server),
                settings.listen,
                settings.shutdown_grace_s,
            ) as port,
        ):
            yield port


async def run(settings: RouterSettings) -> None:
    """Serve until terminated."""
    async with (
        telemetry("router", settings) as health,
        connect(settings.nats_url, "router") as bus,
        serve(bus, settings, SystemRandom()),
    ):
        health.ready()
        await until_terminated()


if __name__ == "__main__":
    lifecycle.run(run(read(RouterSettings)))
