"""`python -m services.inference`: the object graph of one runner, stopped in the reverse of its order."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from protos.inference.v1.runner_pb2_grpc import add_RunnerServicer_to_server
from services.common import lifecycle
from services.common.bus import Bus, connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import host_port, read
from services.common.telemetry import instance_name, telemetry
from services.inference.container.host import ContainerHost, container_host
from services.inference.engine_host import EngineHost
from services.inference.leaving import let_sessions_go
from services.inference.presence import Presence
from services.inference.server import RunnerServicer
from services.inference.serving import serve_aiohttp
from services.inference.settings import InferenceSettings
from services.inference.slots import Slots
from services.inference.supervisor import supervised
from services.inference.worker_api.app import worker_app
from services.inference.worker_api.worker import Worker


@dataclass(frozen=True, slots=True)
class Runner:
    """One that serves: where, and what it has."""

    name: str
    port: int
    slots: Slots


@asynccontextmanager
async def serve(bus: Bus, settings: InferenceSettings) -> AsyncIterator[Runner]:
    """A runner on an open connection, until the block ends."""
    async with _host(settings) as host:
        slots = Slots(settings, host)
        name = settings.runner_name(instance_name(settings))
        presence = Presence(settings, host, slots, name, lambda: _labels(host))
        servicer = RunnerServicer(slots, presence)
        async with (
            serve_grpc(
                lambda server: add_RunnerServicer_to_server(servicer, server),
                settings.listen,
                settings.shutdown_grace_s,
            ) as port,
            slots,
            _gateways(settings, host, slots),
        ):
            if not settings.address:
                presence.address = f"{host_port(settings.listen)[0]}:{port}"
            async with background(heartbeats=presence.beat(bus), advert=presence.advertise(bus)):
                yield Runner(name, port, slots)
            slots.leave()
            await presence.leave(bus)


@asynccontextmanager
async def _host(settings: InferenceSettings) -> AsyncIterator[EngineHost | ContainerHost]:
    """What runs the sessions: an engine of ours, or a container of somebody else's."""
    if settings.has_container:
        async with container_host(settings) as host:
            yield host
    else:
        async with supervised(settings) as supervisor:
            yield EngineHost(settings, supervisor)


def _labels(host: EngineHost | ContainerHost) -> Mapping[str, str]:
    """What the router may be asked for and nobody has to set."""
    if isinstance(host, ContainerHost):
        return {}
    return {kind: name for kind, name in host.supervisor.codecs.items() if kind in {"encoder", "decoder"}}


@asynccontextmanager
async def _gateways(
    settings: InferenceSettings, host: EngineHost | ContainerHost, slots: Slots
) -> AsyncIterator[None]:
    """Others' gateways may use this runner as their worker, if it is told so."""
    if not settings.worker_listen or isinstance(host, ContainerHost):
        yield
        return
    worker = Worker(host, slots, host.session_for, settings.worker_pipeline)
    app = worker_app(worker, settings.worker_token.get_secret_value())
    async with serve_aiohttp(app, settings.worker_listen, settings.shutdown_grace_s):
        yield


async def run(settings: InferenceSettings) -> None:
    """Serve until terminated: by SIGTERM, once its sessions have gone to others; by SIGINT, at once."""
    async with (
        telemetry("inference", settings) as health,
        connect(settings.nats_url, "inference") as bus,
        serve(bus, settings) as runner,
    ):
        health.ready()
        if await until_terminated() is signal.SIGTERM:
            await let_sessions_go(
                runner.slots,
                runner.name,
                session_manager=settings.session_manager_address,
                within_s=settings.drain_s,
            )


if __name__ == "__main__":
    lifecycle.run(run(read(InferenceSettings)))
