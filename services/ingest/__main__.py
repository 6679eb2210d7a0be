"""`python -m services.ingest`: the public faces and the bridge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from protos.ingest.v1.bridge_pb2_grpc import add_BridgeServicer_to_server
from services.common import lifecycle, settings
from services.common.bus import connect
from services.common.grpc_client import Channels
from services.common.grpc_server import serve_grpc
from services.common.http_server import serve_http
from services.common.telemetry import instance_name, telemetry
from services.common.topology import PROBE, USAGE
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.ingest.app import public_app
from services.ingest.auth import Authenticator
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.outbox import Outbox, outbox
from services.ingest.bridge.server import BridgeServicer
from services.ingest.control_plane import ControlPlane
from services.ingest.faces.context import assemble
from services.ingest.publishing import Publishing
from services.ingest.settings import IngestSettings
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes
from services.ingest.transports.rtmp.server import serve_rtmp
from services.ingest.transports.trickle import BASE_PATH, PublicChannels

CHANNELS_PER_SESSION: Final = 15  # `in`, `play`, `data`, and six for each of two runners
# A slow runner of a `complete` stream reads the last segments long after their publisher left.
LINGER_S: Final = 60.0
FLUSH_S: Final = 2.0


@asynccontextmanager
async def flushed(box: Outbox) -> AsyncIterator[None]:
    """Leave the block only when the last windows of its sessions were sent, if that is possible."""
    yield
    await box.flush(FLUSH_S)


async def run(settings: IngestSettings) -> None:
    """Serve until terminated."""
    instance = instance_name(settings)
    registry = Registry(max_channels=settings.max_sessions * CHANNELS_PER_SESSION, linger_s=LINGER_S)
    async with (
        telemetry("ingest", settings) as health,
        connect(settings.nats_url, instance) as bus,
        Channels() as channels,
        outbox(settings.outbox_path, bus) as box,
    ):
        await bus.ensure_stream(USAGE, settings.nats_replicas)
        await bus.ensure_stream(PROBE, settings.nats_replicas)
        authenticator = Authenticator(channels, bus, settings)
        plane = ControlPlane(channels, settings)
        keys = StreamKeys(settings.stream_secret.encode())
        trickle_url = settings.trickle_url or f"http://{settings.trickle_listen}"
        bridge_address = settings.bridge_address or settings.bridge_listen
        async with (
            lifecycle.background(
                sweep=registry.sweep(),
                deliver_usage=box.deliver(),
                confirm_usage=box.confirm(),
                forget_revoked_keys=authenticator.forget_revoked(),
            ),
            serve_trickle(trickle_app(registry), settings.trickle_listen, settings.shutdown_grace_s),
            flushed(box),
            Pushes(settings) as pushes,
            Hub(registry, box, settings) as hub,
            serve_grpc(
                lambda server: add_BridgeServicer_to_server(BridgeServicer(hub, trickle_url), server),
                settings.bridge_listen,
                settings.shutdown_grace_s,
            ),
        ):
            publishing = Publishing(
                hub=hub,
                plane=plane,
                keys=keys,
                bridge_address=bridge_address,
                pushes=pushes,
                settings=settings,
            )
            public = Registry(
                max_channels=settings.max_sessions + settings.max_channels,
                changefeed=settings.channel_changefeed,
            )
            public_channels = PublicChannels(
                registry=public,
                hub=hub,
                plane=plane,
                keys=keys,
                publishing=publishing,
                authenticator=authenticator,
                settings=settings,
            )
            core = assemble(
                settings=settings,
                authenticator=authenticator,
                plane=plane,
                hub=hub,
                keys=keys,
                publishing=publishing,
                pushes=pushes,
                channels=public_channels,
            )
            public_trickle = trickle_app(public, base_path=BASE_PATH, resolve=public_channels.resolve)
            async with (
                lifecycle.background(sweep_public=public.sweep()),
                public_channels,
                core.hls,
                core.conversations,
                core.recordings,
                core.peers,
                core.offers,
                serve_trickle(public_trickle, settings.public_trickle_listen, settings.shutdown_grace_s),
                serve_http(public_app(core), settings.listen, settings.shutdown_grace_s),
                serve_rtmp(publishing, settings),
            ):
                health.ready()
                await lifecycle.until_terminated()
                hub.close_all("the ingest process ends")


if __name__ == "__main__":
    lifecycle.run(run(settings.read(IngestSettings)))
