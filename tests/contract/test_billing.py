"""The billing service over real gRPC and a real nats-server."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from protos.billing.v1 import billing_pb2 as pb
from protos.events.v1 import events_pb2
from services.common.bus import Bus, connect
from services.common.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnauthenticatedError,
    UnavailableError,
)
from services.common.grpc_client import call
from services.common.topology import KEYS_REVOKED, usage, usage_confirmed
from tests.support.billing import TIMEOUT_S, BillingClient, billing, window
from tests.support.nats import nats_server


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[tuple[BillingClient, Bus]]:
    """Billing with a tenant `acme` that has credit, and a meter's connection to NATS."""
    async with (
        nats_server(tmp_path / "nats") as nats,
        billing(nats.url, tmp_path / "billing.sqlite3") as client,
        connect(nats.url, "meter") as bus,
    ):
        await client.create_tenant("acme", credit_micro=1_000_000)
        yield client, bus


async def until(check: Callable[[], Awaitable[bool]], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.02)


async def publish(bus: Bus, item: events_pb2.UsageWindow, attempt: int = 0) -> None:
    subject = usage(item.tenant, item.session)
    await bus.store(subject, item.SerializeToString(), message_id=f"{item.id}#{attempt}")


async def published(bus: Bus, item: events_pb2.UsageWindow) -> bool:
    """Try once, as an outbox does again and again."""
    try:
        await publish(bus, item)
    except UnavailableError:
        return False
    return True


@asynccontextmanager
async def heard(bus: Bus, subject: str) -> AsyncIterator[asyncio.Queue[bytes]]:
    """What is published on a core subject from now on."""
    messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen() -> None:
        async for message in bus.subscribe(subject):
            messages.put_nowait(message.data)

    async with asyncio.TaskGroup() as group:
        listening = group.create_task(listen())
        await asyncio.sleep(0.1)  # the subscription is at the server
        yield messages
        listening.cancel()


async def test_a_key_authenticates_until_it_is_revoked_and_the_revocation_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, bus), heard(bus, KEYS_REVOKED) as revoked:
        created = await client.create_key("acme")
        answer = await client.authenticate(created.key)
        assert (answer.tenant, answer.key_id) == ("acme", created.key_id)

        request = pb.RevokeKeyRequest(key_id=created.key_id)
        await call(client.stub.RevokeKey, request, pb.RevokeKeyResponse, timeout_s=TIMEOUT_S)
        async with asyncio.timeout(5):
            event = events_pb2.KeyRevoked.FromString(await revoked.get())
        assert event.key_id == created.key_id
        with pytest.raises(UnauthenticatedError) as refused:
            await client.authenticate(created.key)
        assert refused.value.reason == "KEY_REVOKED"


async def test_a_wrong_secret_is_answered_as_an_unknown_key_is(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, _):
        created = await client.create_key("acme")
        for key in (created.key[:-1] + "x", "sk_nobody_secret", "nonsense"):
            with pytest.raises(UnauthenticatedError) as refused:
                await client.authenticate(key)
            assert refused.value.reason == "UNKNOWN_KEY"


async def test_the_windows_of_an_ingest_process_that_was_thought_dead_are_not_paid_a_second_time(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (client, bus):
        await client.reserve("s1", 60_000)
        for seq in range(6):  # it stood still at 15 s, woke up, and measured on
            await publish(bus, window(seq))
        for seq in range(3, 8):  # its successor has the session from 15 s on
            await publish(bus, window(seq, epoch=2, source="ingest-2"))

        async def posted() -> bool:
            used = await client.usage()
            return "s1" in used and used["s1"].delivered_ms == 40_000

        await until(posted)
        await publish(bus, window(6, source="ingest-1"))  # and on
        await publish(bus, window(8, epoch=2, source="ingest-2"))

        async def all_posted() -> bool:
            return (await client.usage())["s1"].delivered_ms == 45_000

        await until(all_posted)
        used = (await client.usage())["s1"]
        assert used.cost_micro == 45_000
        assert (await client.balance()).balance_micro == 1_000_000 - 45_000
        journal = await client.entries()
        assert journal.imbalance_micro == 0
        assert sum(each.micro for each in journal.entries if each.account == "earnings") == 45_000


async def test_a_session_is_reserved_metered_and_settled(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, bus):
        slice_ = await client.reserve("s1", 30_000)
        assert (slice_.paid_until_ms, slice_.micro_per_second, slice_.hold_micro_per_second) == (
            30_000,
            1000,
            100,
        )
        await publish(bus, window(0))

        async def posted() -> bool:
            return (await client.usage())["s1"].delivered_ms == 5_000

        await until(posted)
        balance = await client.balance()
        assert (balance.balance_micro, balance.reserved_micro, balance.available_micro) == (
            995_000,
            25_000,
            970_000,
        )
        request = pb.SettleRequest(session="s1")
        settled = await call(client.stub.Settle, request, pb.SettleResponse, timeout_s=TIMEOUT_S)
        assert settled.posted_micro == 5_000
        assert (await client.usage())["s1"].settled
        assert (await client.balance()).available_micro == 995_000
        with pytest.raises(ConflictError) as refused:
            await client.reserve("s1", 60_000)
        assert refused.value.reason == "SESSION_SETTLED"


async def test_a_tenant_without_credit_is_asked_to_pay(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, _):
        await client.create_tenant("poor")
        with pytest.raises(PaymentRequiredError) as refused:
            await client.reserve("s1", 30_000, tenant="poor")
        assert refused.value.reason == "INSUFFICIENT_CREDIT"


async def test_windows_that_are_published_twice_are_billed_once_and_confirmed_twice(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, bus), heard(bus, usage_confirmed("ingest-1")) as confirmations:
        for attempt in range(2):
            for seq in range(20):
                await publish(bus, window(seq), attempt)
        confirmed: list[str] = []
        async with asyncio.timeout(10):
            while len(confirmed) < 40:
                confirmed += events_pb2.UsageConfirmed.FromString(await confirmations.get()).ids
        assert sorted(confirmed) == sorted([window(seq).id for seq in range(20)] * 2)
        assert (await client.usage())["s1"].delivered_ms == 100_000
        assert (await client.balance()).balance_micro == 900_000
        entries = await client.entries()
        assert entries.imbalance_micro == 0
        assert len(entries.entries) == 2 + 20 * 2


async def test_each_source_is_told_of_its_own_windows(tmp_path: Path) -> None:
    async with (
        running(tmp_path) as (_, bus),
        heard(bus, usage_confirmed("ingest-1")) as first,
        heard(bus, usage_confirmed("ingest-2")) as second,
    ):
        await publish(bus, window(0, session="s1", source="ingest-1"))
        await publish(bus, window(0, session="s2", source="ingest-2"))
        async with asyncio.timeout(10):
            assert events_pb2.UsageConfirmed.FromString(await first.get()).ids == ["s1:1:0"]
            assert events_pb2.UsageConfirmed.FromString(await second.get()).ids == ["s2:1:0"]


async def test_garbage_is_set_aside_and_blocks_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, bus), heard(bus, usage_confirmed("ingest-1")) as confirmations:
        await bus.store("usage.acme.s1", b"\xff\xfe garbage", message_id="g1")
        await bus.store("usage.acme.s1", b"", message_id="g2")
        await publish(bus, window(0, tenant="nobody", session="s9"))
        await publish(bus, window(0))
        confirmed: set[str] = set()
        async with asyncio.timeout(10):
            while len(confirmed) < 2:
                confirmed.update(events_pb2.UsageConfirmed.FromString(await confirmations.get()).ids)
        assert confirmed == {"s9:1:0", "s1:1:0"}  # an outbox keeps nothing that the database has
        assert (await client.usage())["s1"].delivered_ms == 5_000
    connection = sqlite3.connect(tmp_path / "billing.sqlite3")
    poison = connection.execute("SELECT subject, raw, error FROM poison ORDER BY error").fetchall()
    connection.close()
    assert [(subject, error.partition(":")[0]) for subject, _, error in poison] == [
        ("usage.acme.s1", "no id"),
        ("usage.acme.s1", "not a UsageWindow"),
        ("usage.nobody.s9", "unknown tenant"),
    ]
    assert poison[1][1] == b"\xff\xfe garbage"


async def test_a_window_that_meets_a_bug_of_ours_is_set_aside_and_the_others_are_billed(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (client, bus):
        connection = sqlite3.connect(tmp_path / "billing.sqlite3")
        connection.execute(  # stands for the bug: what no validation foresaw fails while it is posted
            "CREATE TRIGGER bug BEFORE INSERT ON session_account WHEN NEW.session = 'cursed' "
            "BEGIN SELECT RAISE(ABORT, 'cursed'); END"
        )
        connection.close()
        for seq in range(4):
            await publish(bus, window(seq))
        await publish(bus, window(0, session="cursed"))
        for seq in range(4, 8):
            await publish(bus, window(seq))

        async def posted() -> bool:
            return (await client.balance()).balance_micro == 1_000_000 - 8 * 5_000

        await until(posted)
        assert set(await client.usage()) == {"s1"}
    connection = sqlite3.connect(tmp_path / "billing.sqlite3")
    ((error,),) = connection.execute("SELECT error FROM poison").fetchall()
    connection.close()
    assert error.startswith("internal error: IntegrityError")


async def test_windows_wait_while_the_database_is_busy_and_are_then_billed(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, bus):
        await publish(bus, window(0))

        async def posted() -> bool:
            return "s1" in await client.usage()

        await until(posted)
        other = sqlite3.connect(tmp_path / "billing.sqlite3", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await publish(bus, window(1))
        await asyncio.sleep(0.3)
        other.execute("ROLLBACK")
        other.close()

        async def both() -> bool:
            return (await client.usage())["s1"].delivered_ms == 10_000

        await until(both)


async def test_billing_goes_on_after_nats_was_killed(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "nats") as nats,
        billing(nats.url, tmp_path / "billing.sqlite3") as client,
        connect(nats.url, "meter") as bus,
    ):
        await client.create_tenant("acme", credit_micro=1_000_000)

        async def billed(windows: int) -> bool:
            return (await client.balance()).balance_micro == 1_000_000 - windows * 5_000

        await publish(bus, window(0))
        await until(lambda: billed(1))  # what is in flight at a kill comes again only after 30 s
        await nats.kill()
        assert await billed(1)  # calls need no NATS
        await nats.start()
        await until(lambda: published(bus, window(1)))
        await until(lambda: billed(2))


async def test_prices_are_told_with_their_currency(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, _):
        answer = await call(client.stub.Prices, pb.PricesRequest(), pb.PricesResponse, timeout_s=TIMEOUT_S)
        assert answer.currency == "USD"
        assert [(each.pipeline, each.micro_per_second) for each in answer.prices] == [("*", 1000)]


async def test_a_tenant_is_created_once_and_a_payment_credited_once(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, _):
        request = pb.CreateTenantRequest(tenant="acme", name="again")
        again = await call(client.stub.CreateTenant, request, pb.CreateTenantResponse, timeout_s=TIMEOUT_S)
        assert not again.created
        credit = pb.AddCreditRequest(tenant="acme", micro=5, reference="invoice-7")
        for _ in range(2):
            answer = await call(client.stub.AddCredit, credit, pb.AddCreditResponse, timeout_s=TIMEOUT_S)
            assert answer.balance_micro == 1_000_005
        credit.micro = 6
        with pytest.raises(ConflictError) as refused:
            await call(client.stub.AddCredit, credit, pb.AddCreditResponse, timeout_s=TIMEOUT_S)
        assert refused.value.reason == "REFERENCE_REUSED"


SLICE = pb.ReserveSliceRequest(session="s", tenant="acme", stream="x", pipeline="p", until_ms=1000)


def changed(**fields: Any) -> pb.ReserveSliceRequest:
    request = pb.ReserveSliceRequest()
    request.CopyFrom(SLICE)
    for name, value in fields.items():
        setattr(request, name, value)
    return request


async def test_a_field_that_cannot_be_is_named(tmp_path: Path) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("ReserveSlice", changed(session=""), "session"),
        ("ReserveSlice", changed(session="s" * 201), "session"),
        ("ReserveSlice", changed(tenant="No!"), "tenant"),
        ("ReserveSlice", changed(stream=""), "stream"),
        ("ReserveSlice", changed(pipeline=""), "pipeline"),
        ("ReserveSlice", changed(until_ms=0), "until_ms"),
        ("ReserveSlice", changed(until_ms=2**62), "until_ms"),
        ("Settle", pb.SettleRequest(), "session"),
        ("Balance", pb.BalanceRequest(), "tenant"),
        ("Usage", pb.UsageRequest(tenant="acme", limit=1001), "limit"),
        ("Usage", pb.UsageRequest(tenant="acme", limit=-1), "limit"),
        ("Usage", pb.UsageRequest(tenant="acme", session="s" * 201), "session"),
        ("CreateTenant", pb.CreateTenantRequest(tenant="a" * 41), "tenant"),
        ("CreateTenant", pb.CreateTenantRequest(tenant="acme\n"), "tenant"),
        ("CreateTenant", pb.CreateTenantRequest(tenant="a", name="n" * 201), "name"),
        ("CreateKey", pb.CreateKeyRequest(tenant="acme", label="n" * 201), "label"),
        ("RevokeKey", pb.RevokeKeyRequest(), "key_id"),
        ("AddCredit", pb.AddCreditRequest(tenant="acme", reference="r"), "micro"),
        ("AddCredit", pb.AddCreditRequest(tenant="acme", micro=-1, reference="r"), "micro"),
        ("AddCredit", pb.AddCreditRequest(tenant="acme", micro=10**16, reference="r"), "micro"),
        ("AddCredit", pb.AddCreditRequest(tenant="acme", micro=1), "reference"),
        ("ListEntries", pb.ListEntriesRequest(tenant=""), "tenant"),
    ]
    async with running(tmp_path) as (client, _):
        for method, request, field in cases:
            with pytest.raises(InvalidError) as refused:
                await call(getattr(client.stub, method), request, object, timeout_s=TIMEOUT_S)
            assert refused.value.details["field"] == field, (method, request)


async def test_what_does_not_exist_is_not_found(tmp_path: Path) -> None:
    cases: list[tuple[str, Any, str]] = [
        ("ReserveSlice", changed(tenant="nobody"), "TENANT_NOT_FOUND"),
        ("Settle", pb.SettleRequest(session="nothing"), "SESSION_NOT_FOUND"),
        ("CreateKey", pb.CreateKeyRequest(tenant="nobody"), "TENANT_NOT_FOUND"),
        ("RevokeKey", pb.RevokeKeyRequest(key_id="nobody"), "KEY_NOT_FOUND"),
        ("ListEntries", pb.ListEntriesRequest(tenant="nobody"), "TENANT_NOT_FOUND"),
    ]
    async with running(tmp_path) as (client, _):
        for method, request, reason in cases:
            with pytest.raises(NotFoundError) as refused:
                await call(getattr(client.stub, method), request, object, timeout_s=TIMEOUT_S)
            assert refused.value.reason == reason


async def test_a_refusal_carries_its_grpc_status(tmp_path: Path) -> None:
    async with running(tmp_path) as (client, _):
        with pytest.raises(SluiceError) as refused:
            await client.authenticate("nonsense")
        cause = refused.value.__cause__
        assert isinstance(cause, grpc.aio.AioRpcError)
        assert cause.code() is grpc.StatusCode.UNAUTHENTICATED
