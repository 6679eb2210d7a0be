"""`billing.v1.Billing`: checks what was sent, asks the ledger, answers."""

from __future__ import annotations

import re
from typing import Any, Final

import grpc.aio
import structlog

from protos.billing.v1 import billing_pb2 as pb
from protos.billing.v1.billing_pb2_grpc import BillingServicer as BillingService
from protos.events.v1 import events_pb2
from services.billing import keys
from services.billing.keys import KeyId
from services.billing.ledger import (
    CREDIT_MAX_MICRO,
    SESSION_MAX_MS,
    PriceList,
    SessionAccount,
    SessionId,
    TenantId,
)
from services.billing.store import PostedEntry, Store, StoreThread
from services.common.bus import Bus
from services.common.errors import InvalidError, UnauthenticatedError
from services.common.topology import KEYS_REVOKED

log = structlog.get_logger()
Context = grpc.aio.ServicerContext[Any, Any]

TENANT: Final = re.compile(r"[a-z0-9-]{1,40}")
NAME_MAX_CHARS: Final = 200
ROWS_DEFAULT: Final = 100
ROWS_MAX: Final = 1_000


class BillingServicer(BillingService):
    """Every call of the service. It holds nothing: the ledger is the state."""

    def __init__(
        self, store: StoreThread, bus: Bus, prices: PriceList, *, currency: str, pepper: str
    ) -> None:
        self._store = store
        self._bus = bus
        self._prices = prices
        self._currency = currency
        self._pepper = pepper

    async def Authenticate(
        self, request: pb.AuthenticateRequest, context: Context
    ) -> pb.AuthenticateResponse:
        key = keys.parse(request.key)
        stored = await self._store.call(Store.key, key.id)
        if stored is None or not keys.matches(key, stored.digest, self._pepper):
            raise keys.unknown()
        if stored.revoked:
            raise UnauthenticatedError("the key was revoked", reason="KEY_REVOKED", key_id=key.id)
        return pb.AuthenticateResponse(tenant=stored.tenant, key_id=key.id)

    async def ReserveSlice(
        self, request: pb.ReserveSliceRequest, context: Context
    ) -> pb.ReserveSliceResponse:
        account = await self._store.call(
            Store.reserve,
            SessionId(_name(request.session, "session")),
            _tenant(request.tenant),
            _name(request.stream, "stream"),
            _name(request.pipeline, "pipeline"),
            _within(request.until_ms, "until_ms", 1, SESSION_MAX_MS),
        )
        return pb.ReserveSliceResponse(
            paid_until_ms=account.reserved_until_ms,
            micro_per_second=account.rates.micro_per_second,
            hold_micro_per_second=account.rates.hold_micro_per_second,
        )

    async def Settle(self, request: pb.SettleRequest, context: Context) -> pb.SettleResponse:
        account = await self._store.call(Store.settle, SessionId(_name(request.session, "session")))
        return pb.SettleResponse(posted_micro=account.posted_micro)

    async def Balance(self, request: pb.BalanceRequest, context: Context) -> pb.BalanceResponse:
        balance = await self._store.call(Store.balance, _tenant(request.tenant))
        return pb.BalanceResponse(
            balance_micro=balance.micro,
            reserved_micro=balance.held_micro,
            available_micro=balance.micro - balance.held_micro,
        )

    async def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        accounts = await self._store.call(
            Store.sessions,
            _tenant(request.tenant),
            SessionId(_short(request.session, "session")),
            _rows(request.limit),
        )
        return pb.UsageResponse(sessions=[_usage(account) for account in accounts])

    async def Prices(self, request: pb.PricesRequest, context: Context) -> pb.PricesResponse:
        return pb.PricesResponse(
            currency=self._currency,
            prices=[
                pb.Price(
                    pipeline=pipeline,
                    micro_per_second=rates.micro_per_second,
                    hold_micro_per_second=rates.hold_micro_per_second,
                )
                for pipeline, rates in sorted(self._prices.rates.items())
            ],
        )

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, context: Context
    ) -> pb.CreateTenantResponse:
        name = _short(request.name, "name")
        created = await self._store.call(Store.create_tenant, _tenant(request.tenant), name)
        if created:
            log.info("tenant created", tenant=request.tenant)
        return pb.CreateTenantResponse(created=created)

    async def CreateKey(self, request: pb.CreateKeyRequest, context: Context) -> pb.CreateKeyResponse:
        key = keys.mint()
        digest = keys.digest(key, self._pepper)
        label = _short(request.label, "label")
        await self._store.call(Store.add_key, key.id, _tenant(request.tenant), label, digest)
        log.info("key created", tenant=request.tenant, key_id=key.id)
        return pb.CreateKeyResponse(key=keys.render(key), key_id=key.id)

    async def RevokeKey(self, request: pb.RevokeKeyRequest, context: Context) -> pb.RevokeKeyResponse:
        await self._store.call(Store.revoke_key, KeyId(_name(request.key_id, "key_id")))
        # Those who verified the key remember it for up to an hour. Revoking again publishes again.
        await self._bus.publish(
            KEYS_REVOKED, events_pb2.KeyRevoked(key_id=request.key_id).SerializeToString()
        )
        log.info("key revoked", key_id=request.key_id)
        return pb.RevokeKeyResponse()

    async def AddCredit(self, request: pb.AddCreditRequest, context: Context) -> pb.AddCreditResponse:
        balance_micro = await self._store.call(
            Store.add_credit,
            _tenant(request.tenant),
            _within(request.micro, "micro", 1, CREDIT_MAX_MICRO),
            _name(request.reference, "reference"),
        )
        return pb.AddCreditResponse(balance_micro=balance_micro)

    async def ListEntries(self, request: pb.ListEntriesRequest, context: Context) -> pb.ListEntriesResponse:
        entries = await self._store.call(
            Store.entries,
            _tenant(request.tenant),
            SessionId(_short(request.session, "session")),
            _rows(request.limit),
        )
        imbalance_micro = await self._store.call(Store.imbalance_micro)
        return pb.ListEntriesResponse(
            entries=[_entry(entry) for entry in entries], imbalance_micro=imbalance_micro
        )


def _tenant(value: str) -> TenantId:
    if not TENANT.fullmatch(value):
        raise InvalidError("a tenant is 1 to 40 of a-z, 0-9 and -", field="tenant")
    return TenantId(value)


def _name(value: str, field: str) -> str:
    if not value:
        raise InvalidError(f"{field} is missing", field=field)
    return _short(value, field)


def _short(value: str, field: str) -> str:
    if len(value) > NAME_MAX_CHARS:
        raise InvalidError(f"{field} is longer than {NAME_MAX_CHARS} characters", field=field)
    return value


def _within(value: int, field: str, least: int, most: int) -> int:
    if not least <= value <= most:
        raise InvalidError(f"{field} is {least} to {most}, not {value}", field=field)
    return value


def _rows(limit: int) -> int:
    return _within(limit, "limit", 0, ROWS_MAX) or ROWS_DEFAULT


def _usage(account: SessionAccount) -> pb.SessionUsage:
    return pb.SessionUsage(
        session=account.session,
        stream=account.stream,
        pipeline=account.pipeline,
        delivered_ms=account.metered.delivered_ms,
        paused_ms=account.metered.paused_ms,
        cost_micro=account.posted_micro,
        micro_per_second=account.rates.micro_per_second,
        opened_unix_ms=account.opened_unix_ms,
        settled=account.settled_unix_ms is not None,
        written_off_micro=account.written_off_micro,
        final=account.final,
    )


def _entry(entry: PostedEntry) -> pb.Entry:
    return pb.Entry(
        transaction=entry.transaction,
        account=entry.account,
        micro=entry.micro,
        cause=entry.cause,
        unix_ms=entry.unix_ms,
        session=entry.session,
    )
