"""`python -m services.billing`: the object graph, stacked in the order of dependence, stopped in reverse."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from protos.billing.v1.billing_pb2_grpc import add_BillingServicer_to_server
from services.billing.audit import audit
from services.billing.consumer import Consumer
from services.billing.server import BillingServicer
from services.billing.settings import BillingSettings
from services.billing.store import StoreThread, open_store
from services.common import lifecycle
from services.common.bus import Bus, connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import read
from services.common.telemetry import telemetry
from services.common.topology import PROBE, USAGE

log = structlog.get_logger()


@asynccontextmanager
async def serve(store: StoreThread, bus: Bus, settings: BillingSettings) -> AsyncIterator[int]:
    """Billing on an open ledger and an open connection, until the block ends; yields the bound port."""
    await bus.ensure_stream(USAGE, settings.nats_replicas)
    await bus.ensure_stream(PROBE, settings.nats_replicas)
    servicer = BillingServicer(
        store,
        bus,
        settings.price_list,
        currency=settings.currency,
        pepper=settings.key_pepper.get_secret_value(),
    )
    async with (
        background(consume=Consumer(bus, store).run(), audit=audit(store)),
        serve_grpc(
            lambda server: add_BillingServicer_to_server(servicer, server),
            settings.listen,
            settings.shutdown_grace_s,
        ) as port,
    ):
        yield port


async def run(settings: BillingSettings) -> None:
    """Serve until terminated."""
    async with (
        telemetry("billing", settings) as health,
        open_store(settings.database_url, settings.price_list, settings.lapse_margin_ms) as store,
        connect(settings.nats_url, "billing") as bus,
        serve(store, bus, settings) as port,
    ):
        log.info("serving", port=port, database=settings.database_url)
        health.ready()
        await until_terminated()


if __name__ == "__main__":
    lifecycle.run(run(read(BillingSettings)))
