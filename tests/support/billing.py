"""A billing service as its callers see it: a real server, and calls that raise our own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from protos.billing.v1 import billing_pb2 as pb
from protos.billing.v1.billing_pb2_grpc import BillingStub
from protos.events.v1 import events_pb2
from services.billing.__main__ import serve
from services.billing.settings import BillingSettings
from services.billing.store import open_store
from services.common.bus import connect
from services.common.grpc_client import call, channel

if TYPE_CHECKING:
    from protos.billing.v1.billing_pb2_grpc import BillingAsyncStub

TIMEOUT_S = 5.0


class BillingClient:
    """The calls that most tests make."""

    def __init__(self, stub: BillingAsyncStub) -> None:
        self.stub = stub

    async def create_tenant(self, tenant: str, credit_micro: int = 0) -> None:
        request = pb.CreateTenantRequest(tenant=tenant, name=tenant)
        await call(self.stub.CreateTenant, request, pb.CreateTenantResponse, timeout_s=TIMEOUT_S)
        if credit_micro:
            credit = pb.AddCreditRequest(tenant=tenant, micro=credit_micro, reference="opening")
            await call(self.stub.AddCredit, credit, pb.AddCreditResponse, timeout_s=TIMEOUT_S)

    async def create_key(self, tenant: str) -> pb.CreateKeyResponse:
        request = pb.CreateKeyRequest(tenant=tenant, label="test")
        return await call(self.stub.CreateKey, request, pb.CreateKeyResponse, timeout_s=TIMEOUT_S)

    async def authenticate(self, key: str) -> pb.AuthenticateResponse:
        request = pb.AuthenticateRequest(key=key)
        return await call(self.stub.Authenticate, request, pb.AuthenticateResponse, timeout_s=TIMEOUT_S)

    async def reserve(self, session: str, until_ms: int, tenant: str = "acme") -> pb.ReserveSliceResponse:
        request = pb.ReserveSliceRequest(
            session=session, tenant=tenant, stream="stream", pipeline="sepia", until_ms=until_ms
        )
        return await call(self.stub.ReserveSlice, request, pb.ReserveSliceResponse, timeout_s=TIMEOUT_S)

    async def balance(self, tenant: str = "acme") -> pb.BalanceResponse:
        request = pb.BalanceRequest(tenant=tenant)
        return await call(self.stub.Balance, request, pb.BalanceResponse, timeout_s=TIMEOUT_S)

    async def usage(self, tenant: str = "acme") -> dict[str, pb.SessionUsage]:
        """What each session used, by its id."""
        request = pb.UsageRequest(tenant=tenant, limit=1000)
        answer = await call(self.stub.Usage, request, pb.UsageResponse, timeout_s=TIMEOUT_S)
        return {each.session: each for each in answer.sessions}

    async def entries(self, tenant: str = "acme") -> pb.ListEntriesResponse:
        request = pb.ListEntriesRequest(tenant=tenant, limit=1000)
        return await call(self.stub.ListEntries, request, pb.ListEntriesResponse, timeout_s=TIMEOUT_S)


@asynccontextmanager
async def billing_client(address: str) -> AsyncIterator[BillingClient]:
    """Calls of the service at `address`."""
    async with channel(address) as open_channel:
        yield BillingClient(BillingStub(open_channel))


@asynccontextmanager
async def billing(nats_url: str, database: Path) -> AsyncIterator[BillingClient]:
    """A service in this process, on a connection and a port of its own."""
    settings = BillingSettings(
        listen="127.0.0.1:0", shutdown_grace_s=0.5, database_url=f"sqlite:///{database}"
    )
    async with (
        open_store(settings.database_url, settings.price_list, settings.lapse_margin_ms) as store,
        connect(nats_url, "billing") as bus,
        serve(store, bus, settings) as port,
        billing_client(f"127.0.0.1:{port}") as client,
    ):
        yield client


def window(
    seq: int, session: str = "s1", tenant: str = "acme", source: str = "ingest-1", epoch: int = 1
) -> events_pb2.UsageWindow:
    """Five seconds of delivery."""
    return events_pb2.UsageWindow(
        id=f"{session}:{epoch}:{seq}",
        session=session,
        epoch=epoch,
        seq=seq,
        tenant=tenant,
        stream="stream",
        pipeline="sepia",
        from_ms=seq * 5_000,
        to_ms=(seq + 1) * 5_000,
        unit="delivered_ms",
        quantity=5_000,
        source=source,
    )
