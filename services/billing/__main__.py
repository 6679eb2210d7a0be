"""`python -m services.billing`: who pays, and how much."""

from __future__ import annotations

import structlog

from protos.billing.v1.billing_pb2_grpc import add_BillingServicer_to_server
from services.billing.audit import audit
from services.billing.consumer import Consumer
from services.billing.server import BillingServicer
from services.billing.settings import BillingSettings
from services.billing.store import open_store
from services.common import lifecycle
from services.common.bus import connect
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background, until_terminated
from services.common.settings import read
from services.common.telemetry import telemetry
from services.common.topology import USAGE

log = structlog.get_logger()


async def serve(settings: BillingSettings) -> None:
    """Serve until terminated."""
    prices = settings.price_list
    async with (
        telemetry("billing", settings),
        open_store(settings.database_url, prices, settings.lapse_margin_ms) as store,
        connect(settings.nats_url, "billing") as bus,
    ):
        await bus.ensure_stream(USAGE, settings.nats_replicas)
        servicer = BillingServicer(
            store, bus, prices, currency=settings.currency, pepper=settings.key_pepper.get_secret_value()
        )
        async with (
            serve_grpc(
                lambda server: add_BillingServicer_to_server(servicer, server),
                settings.listen,
                settings.shutdown_grace_s,
            ) as port,
            background(consume=Consumer(bus, store).run(), audit=audit(store)),
        ):
            log.info("serving", port=port, database=settings.database_url)
            await until_terminated()


def main() -> None:
    lifecycle.run(serve(read(BillingSettings)))


if __name__ == "__main__":
    main()
