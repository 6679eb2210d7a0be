"""Who is calling: API keys verified by billing, remembered while it is away, forgotten when revoked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf.message import DecodeError

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.events.v1 import events_pb2
from services.common.bus import BAD_MESSAGES, Bus
from services.common.errors import (
    DeadlineExceededError,
    UnauthenticatedError,
    UnavailableError,
)
from services.common.grpc_client import Channels, call
from services.common.topology import KEYS_REVOKED
from services.ingest.settings import IngestSettings

CAPACITY: Final = 10_000  # of either cache; the oldest goes
NEGATIVE_S: Final = 5.0
KEY_MAX: Final = 200
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Caller:
    """The tenant behind a key; `key_id` is public."""

    tenant: str
    key_id: str


def bearer(header: str | None) -> str:
    """The key in an `Authorization: Bearer <key>`. Raises UnauthenticatedError when there is none."""
    scheme, _, key = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise UnauthenticatedError("send an API key: Authorization: Bearer <key>", reason="KEY_MISSING")
    return key.strip()


class Authenticator:
    """`who(key)` for every public call. Only hashes of keys are held."""

    def __init__(self, channels: Channels, bus: Bus, settings: IngestSettings) -> None:
        self._billing = billing_pb2_grpc.BillingStub(channels.to(settings.billing_address))
        self._bus = bus
        self._settings = settings
        self._known: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def who(self, key: str) -> Caller:
        """Raises UnauthenticatedError for a key that nobody issued, UnavailableError if nobody can tell."""
        if not key or len(key) > KEY_MAX:
            raise UnauthenticatedError("send an API key: Authorization: Bearer <key>", reason="KEY_MISSING")
        digest = hashlib.sha256(key.encode()).digest()
        now_s = time.monotonic()
        caller, verified_s = self._known.get(digest, (None, 0.0))
        if caller is not None and now_s - verified_s < self._settings.key_fresh_s:
            return caller
        if now_s - self._refused.get(digest, -NEGATIVE_S) < NEGATIVE_S:
            raise UnauthenticatedError("the API key is not valid", reason="KEY_INVALID")
        try:
            answer = await call(
                self._billing.Authenticate,
                billing_pb2.AuthenticateRequest(key=key),
                billing_pb2.AuthenticateResponse,
                timeout_s=3.0,
            )
        except UnauthenticatedError:
            self._known.pop(digest, None)
            _remember(self._refused, digest, now_s)
            raise
        except (UnavailableError, DeadlineExceededError) as error:
            if caller is not None and now_s - verified_s < self._settings.key_ttl_s:
                return caller
            raise UnavailableError(
                "keys cannot be verified now", reason="BILLING_UNREACHABLE", retry_after_s=2
            ) from error
        caller = Caller(answer.tenant, answer.key_id)
        _remember(self._known, digest, (caller, now_s))
        return caller

    async def forget_revoked(self) -> None:
        """Drop keys as they are revoked, for ever: a loop for `background`."""
        while True:
            async for message in self._bus.subscribe(KEYS_REVOKED):
                try:
                    revoked = events_pb2.KeyRevoked.FromString(message.data).key_id
                except DecodeError:
                    BAD_MESSAGES.labels("key_revoked").inc()
                    continue
                for digest in [d for d, (caller, _) in self._known.items() if caller.key_id == revoked]:
                    del self._known[digest]
            await asyncio.sleep(1.0)


def _remember(cache: OrderedDict[bytes, Value], digest: bytes, value: Value) -> None:
    cache[digest] = value
    cache.move_to_end(digest)
    if len(cache) > CAPACITY:
        cache.popitem(last=False)
