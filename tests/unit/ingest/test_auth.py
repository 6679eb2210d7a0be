"""Whose key it is: asked once in a while, remembered while billing is away, forgotten when revoked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from types import SimpleNamespace
from typing import cast

import pytest

from protos.billing.v1 import billing_pb2
from protos.billing.v1.billing_pb2_grpc import add_BillingServicer_to_server
from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import DeadlineExceededError, UnauthenticatedError, UnavailableError
from services.common.grpc_client import Channels
from services.common.lifecycle import background
from services.ingest import auth
from services.ingest.auth import Authenticator, Caller
from services.ingest.settings import IngestSettings
from tests.support.fakes import FakeBilling, serving


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


class Revocations:
    """NATS as far as revoked keys go."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()

    async def subscribe(self, subject: str) -> AsyncIterator[SimpleNamespace]:
        while True:
            yield SimpleNamespace(data=await self.messages.get())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(auth, "time", clock)
    return clock


@pytest.fixture
def revocations() -> Revocations:
    return Revocations()


@pytest.fixture
async def billing() -> AsyncIterator[FakeBilling]:
    fake = FakeBilling()  # type: ignore[abstract]  # only what is called
    fake.keys["good"] = billing_pb2.AuthenticateResponse(tenant="acme", key_id="key1")
    async with serving(fake, partial(add_BillingServicer_to_server, fake)):
        yield fake


@pytest.fixture
async def authenticator(
    billing: FakeBilling, revocations: Revocations, clock: Clock
) -> AsyncIterator[Authenticator]:
    settings = IngestSettings(
        stream_secret="x" * 16, billing_address=billing.address, key_fresh_s=30, key_ttl_s=3600
    )
    async with Channels() as channels:
        yield Authenticator(channels, cast("Bus", revocations), settings)


def asked(billing: FakeBilling) -> int:
    return len(billing.calls)


async def test_a_fresh_key_is_not_asked_about_again(
    authenticator: Authenticator, billing: FakeBilling, clock: Clock
) -> None:
    assert await authenticator.who("good") == Caller("acme", "key1")
    clock.now_s += 29
    assert await authenticator.who("good") == Caller("acme", "key1")
    assert asked(billing) == 1
    clock.now_s += 2
    await authenticator.who("good")
    assert asked(billing) == 2


async def test_a_key_that_nobody_issued_is_refused_and_not_asked_about_for_five_seconds(
    authenticator: Authenticator, billing: FakeBilling, clock: Clock
) -> None:
    for _ in range(3):
        with pytest.raises(UnauthenticatedError) as refusal:
            await authenticator.who("bad")
        assert refusal.value.reason == "KEY_INVALID"
    assert asked(billing) == 1
    clock.now_s += 5.1
    billing.keys["bad"] = billing_pb2.AuthenticateResponse(tenant="late", key_id="key2")
    assert (await authenticator.who("bad")).tenant == "late"


@pytest.mark.parametrize("key", ["", "x" * 201])
async def test_what_cannot_be_a_key_is_refused_without_asking(
    authenticator: Authenticator, billing: FakeBilling, key: str
) -> None:
    with pytest.raises(UnauthenticatedError) as refusal:
        await authenticator.who(key)
    assert refusal.value.reason == "KEY_MISSING"
    assert asked(billing) == 0


@pytest.mark.parametrize("error", [UnavailableError("away"), DeadlineExceededError("slow")])
async def test_a_key_that_was_good_stays_good_for_an_hour_while_billing_is_away(
    authenticator: Authenticator, billing: FakeBilling, clock: Clock, error: UnavailableError
) -> None:
    await authenticator.who("good")
    billing.fail("Authenticate", error, times=10)
    clock.now_s += 3599
    assert await authenticator.who("good") == Caller("acme", "key1")
    clock.now_s += 2
    with pytest.raises(UnavailableError) as refusal:
        await authenticator.who("good")
    assert refusal.value.reason == "BILLING_UNREACHABLE"


async def test_an_unknown_key_while_billing_is_away_is_unavailable_and_never_unauthenticated(
    authenticator: Authenticator, billing: FakeBilling
) -> None:
    await billing.die()
    with pytest.raises(UnavailableError) as refusal:
        await authenticator.who("good")
    assert refusal.value.details["retry_after_s"] == "2"


async def test_a_key_that_was_refused_since_is_no_longer_good(
    authenticator: Authenticator, billing: FakeBilling, clock: Clock
) -> None:
    await authenticator.who("good")
    clock.now_s += 31
    del billing.keys["good"]
    with pytest.raises(UnauthenticatedError):
        await authenticator.who("good")
    clock.now_s += 6
    await billing.die()
    with pytest.raises(UnavailableError):
        await authenticator.who("good")


async def test_a_revoked_key_is_asked_about_at_once_also_while_billing_is_away(
    authenticator: Authenticator, billing: FakeBilling, revocations: Revocations
) -> None:
    billing.keys["other"] = billing_pb2.AuthenticateResponse(tenant="acme", key_id="key2")
    async with background(revoked=authenticator.forget_revoked()):
        await authenticator.who("good")
        await authenticator.who("other")
        revocations.messages.put_nowait(events_pb2.KeyRevoked(key_id="key1").SerializeToString())
        await asyncio.sleep(0.05)
        await billing.die()
        with pytest.raises(UnavailableError):
            await authenticator.who("good")
        assert (await authenticator.who("other")).key_id == "key2", "nobody else's key is forgotten"


async def test_no_more_keys_are_remembered_than_there_is_room_for(
    authenticator: Authenticator, billing: FakeBilling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CAPACITY", 3)
    for number in range(5):
        billing.keys[f"k{number}"] = billing_pb2.AuthenticateResponse(tenant="acme", key_id=f"id{number}")
        await authenticator.who(f"k{number}")
    assert asked(billing) == 5
    await authenticator.who("k4")
    assert asked(billing) == 5
    await authenticator.who("k0")
    assert asked(billing) == 6


async def test_no_key_is_held_in_the_clear(authenticator: Authenticator) -> None:
    await authenticator.who("good")
    assert b"good" not in repr(authenticator.__dict__).encode()
