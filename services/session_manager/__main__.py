"""`python -m services.session_manager`: streams and sessions."""

from __future__ import annotations

from contextlib import suppress

from protos.sessions.v1.sessions_pb2_grpc import add_SessionsServicer_to_server
from services.common import lifecycle, settings
from services.common.bus import connect
from services.common.errors import UnavailableError
from services.common.grpc_client import Channels
from services.common.grpc_server import serve_grpc
from services.common.telemetry import instance_name, telemetry
from services.common.topology import EVENTS, PROBE, REPLICAS, SESSIONS, SLOTS, STREAMS
from services.session_manager.life import Lives
from services.session_manager.neighbours import Neighbours
from services.session_manager.ownership import Ownership
from services.session_manager.reconcile import Reconciler
from services.session_manager.server import SessionsServicer
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store


async def run(settings: SessionManagerSettings) -> None:
    """Serve until terminated."""
    replica = instance_name(settings)
    async with (
        telemetry("session-manager", settings) as health,
        connect(settings.nats_url, replica) as bus,
        Channels() as channels,
    ):
        await bus.ensure_stream(EVENTS, settings.nats_replicas)
        await bus.ensure_stream(PROBE, settings.nats_replicas)
        store = Store(
            await bus.bucket(STREAMS, settings.nats_replicas),
            await bus.bucket(SESSIONS, settings.nats_replicas),
        )
        replicas = await bus.bucket(REPLICAS, settings.nats_replicas)
        slots = await bus.bucket(SLOTS, settings.nats_replicas)
        neighbours = Neighbours(channels, settings)
        async with Lives(
            replica=replica, store=store, neighbours=neighbours, bus=bus, settings=settings
        ) as lives:
            ownership = Ownership(
                replica=replica, replicas=replicas, store=store, lives=lives, bus=bus, settings=settings
            )
            reconciler = Reconciler(
                replica=replica,
                store=store,
                slots=slots,
                replicas=ownership.view,
                neighbours=neighbours,
                bus=bus,
                settings=settings,
            )
            servicer = SessionsServicer(store=store, lives=lives, neighbours=neighbours, settings=settings)

            async with (
                lifecycle.background(
                    streams=store.streams.follow(store.streams_view),
                    sessions=store.sessions.follow(store.sessions_view),
                    replicas=replicas.follow(ownership.view),
                    slots=slots.follow(reconciler.slots_view),
                    liveness=ownership.live(),
                    adoption=ownership.adopt_orphans(),
                    reconciliation=reconciler.run(),
                    events=lives.telling.publish(),
                ),
                serve_grpc(
                    lambda server: add_SessionsServicer_to_server(servicer, server),
                    settings.listen,
                    settings.shutdown_grace_s,
                ),
            ):
                health.ready(lambda: bus.stores)  # without a store it can record nothing
                await lifecycle.until_terminated()
        with suppress(UnavailableError):
            await replicas.delete(replica)  # so that others adopt at once


if __name__ == "__main__":
    lifecycle.run(run(settings.read(SessionManagerSettings)))
