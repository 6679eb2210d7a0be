"""How many may watch: seats of each stream, and of each tenant over all streams, in this process."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.errors import RateLimitedError


class Seats:
    """Takes and releases. `what` is who sits there, in the plural, for the words of a refusal."""

    def __init__(self, what: str, *, per_stream: int, per_tenant: int) -> None:
        self._what = what
        self._per_stream = per_stream
        self._per_tenant = per_tenant
        self._streams: Counter[str] = Counter()
        self._tenants: Counter[str] = Counter()

    def of(self, stream: str) -> int:
        """How many there are of a stream."""
        return self._streams[stream]

    def take(self, stream: str, tenant: str) -> Seat:
        """Raises RateLimitedError: the stream, or its tenant, has no seat left."""
        for taken, limit, whose in (
            (self._streams[stream], self._per_stream, "of a stream"),
            (self._tenants[tenant], self._per_tenant, "of a tenant"),
        ):
            if taken >= limit:
                raise RateLimitedError(
                    f"at most {limit} {self._what} {whose}",
                    reason=f"TOO_MANY_{self._what.upper().replace(' ', '_')}",
                    retry_after_s=5,
                    limit=limit,
                )
        self._streams[stream] += 1
        self._tenants[tenant] += 1
        return Seat(self, stream, tenant)

    @asynccontextmanager
    async def __call__(self, stream: str, tenant: str) -> AsyncIterator[None]:
        """A seat for as long as the block lasts. Raises as `take`."""
        seat = self.take(stream, tenant)
        try:
            yield
        finally:
            seat.release()

    def _leave(self, stream: str, tenant: str) -> None:
        for counted, key in ((self._streams, stream), (self._tenants, tenant)):
            counted[key] -= 1
            if not counted[key]:
                del counted[key]


class Seat:
    """One that is taken."""

    def __init__(self, seats: Seats, stream: str, tenant: str) -> None:
        self._seats = seats
        self._stream = stream
        self._tenant = tenant
        self._taken = True

    def release(self) -> None:
        """Again is harmless."""
        if self._taken:
            self._taken = False
            self._seats._leave(self._stream, self._tenant)  # noqa: SLF001 - the two halves of one thing
