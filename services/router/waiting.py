"""Who waits for a slot, at all routers, in the order of service: by priority, then by arrival.

The rules it keeps: a waiter is a key with a TTL, which its router renews, so that one whose router died is
forgotten soon; a caller that asks again, of whichever router, keeps its place; who leaves is deleted at once.
Nothing is written for who need not wait.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from protos.events.v1 import events_pb2 as events
from services.common.bus import Bucket, Entry
from services.common.errors import ConflictError, UnavailableError
from services.common.latest import Latest
from services.router.placement import SessionId, Wish, wish_from_text
from services.router.views import MarkedView
from services.router.wall import now_unix_us

log = structlog.get_logger()

SEEN: Final = Gauge("sluice_alloc_queue_seen", "Waiters of all routers, as this one sees them.")

TTL_S: Final = 6  # how long a dead router's waiters stand before the others
RENEW_EVERY_S: Final = 2.0
RENEW_AT_ONCE: Final = 64
MARKER_S: Final = 1  # of one who left: who follows the bucket has heard of it by then
OVERDUE_US: Final = 5_000_000  # beyond its deadline a waiter of another router counts no more
PRIORITY_MAX: Final = 100


@dataclass(slots=True, eq=False)
class Waiter:
    """One wish for a slot that is not met yet; of this router or, as far as it tells, of another."""

    key: str  # in the order of service
    session: SessionId
    wish: Wish
    priority: int
    arrived_unix_us: int
    until_unix_us: int
    router: str
    revision: int = 0  # of its key; 0: there is none
    shown: bool = False  # its key is to be kept
    writing: bool = False
    left: bool = False
    superseded: bool = False  # another router has its place: the session's caller asked there

    def to_bytes(self) -> bytes:
        return events.Waiter(
            session=self.session,
            pipeline=self.wish.requirements.pipeline,
            priority=self.priority,
            arrived_unix_ms=self.arrived_unix_us // 1000,
            until_unix_ms=self.until_unix_us // 1000,
            router=self.router,
            wish=self.wish.text(),
        ).SerializeToString()


@dataclass(frozen=True, slots=True)
class Standing:
    """A waiter and its rank among those for the same pipeline; 1 is served next."""

    waiter: Waiter
    position: int


class Queue:
    """Every router has one, and all show nearly the same: a bucket's content, and who came just now."""

    def __init__(self, bucket: Bucket, router: str) -> None:
        self.view = MarkedView(self._entry_changed)
        self.changed = Latest(None)  # set when one left for whom others may have had to wait
        self._bucket = bucket
        self._router = router
        self._standing: dict[str, Waiter] = {}
        self._keys: dict[Wish, list[str]] = {}  # equal wishes, in the order of service
        self._own: dict[Waiter, None] = {}
        self._elsewhere: dict[SessionId, Waiter] = {}  # those of other routers
        self._arrived_unix_us = 0
        self.own_standing = 0

    # --- one's own

    def join(self, session: SessionId, wish: Wish, priority: int, wait_s: float) -> Waiter:
        """Stand at the end of the line, or in the place where another router had the session wait."""
        self._arrived_unix_us = now_us = max(now_unix_us(), self._arrived_unix_us + 1)
        waiter = Waiter(
            key=f"{PRIORITY_MAX - priority:03d}.{now_us:016d}.{session}",
            session=session,
            wish=wish,
            priority=priority,
            arrived_unix_us=now_us,
            until_unix_us=now_us + round(wait_s * 1e6),
            router=self._router,
        )
        other = self._elsewhere.get(session)
        if other is not None and other.priority == priority:
            self._forget(other)
            waiter.key, waiter.revision = other.key, other.revision
            waiter.arrived_unix_us = other.arrived_unix_us
        self._own[waiter] = None
        self.stand(waiter)
        return waiter

    def stand(self, waiter: Waiter) -> None:
        """Be offered what comes free: at first, and again after stepping out."""
        if waiter.superseded or waiter.left or self._standing.get(waiter.key) is waiter:
            return
        self._standing[waiter.key] = waiter
        insort(self._keys.setdefault(waiter.wish, []), waiter.key)
        self.own_standing += waiter in self._own

    def step_out(self, waiter: Waiter) -> None:
        """Be offered nothing for a while; the place is kept."""
        if self._standing.get(waiter.key) is not waiter:
            return
        del self._standing[waiter.key]
        self.own_standing -= waiter in self._own
        keys = self._keys[waiter.wish]
        del keys[bisect_left(keys, waiter.key)]
        if not keys:
            del self._keys[waiter.wish]

    async def show(self, waiter: Waiter) -> None:
        """Let the other routers see that it waits; `keep_alive` goes on with it."""
        waiter.shown = True
        await self._write(waiter)

    def leave(self, waiter: Waiter) -> bool:
        """Wait no more; whether `withdraw` is to be called, for others see it."""
        waiter.left = True
        self.step_out(waiter)
        self._own.pop(waiter, None)
        return waiter.revision > 0 and not waiter.writing

    async def withdraw(self, waiter: Waiter) -> None:
        """Delete the key of one who left."""
        try:
            await self._bucket.withdraw(waiter.key, waiter.revision, MARKER_S)
        except (ConflictError, UnavailableError) as error:  # it has another owner, or it lapses by itself
            log.debug("waiter not withdrawn", session=waiter.session, reason=error.reason)

    async def keep_alive(self) -> None:
        """Renew what is shown of one's own: a loop for `background`."""
        while True:
            SEEN.set(len(self._standing))
            await asyncio.sleep(RENEW_EVERY_S)
            shown = [waiter for waiter in self._own if waiter.shown]
            for first in range(0, len(shown), RENEW_AT_ONCE):
                await asyncio.gather(
                    *(self._write(waiter) for waiter in shown[first : first + RENEW_AT_ONCE])
                )

    async def _write(self, waiter: Waiter) -> None:
        if waiter.writing or waiter.left or waiter.superseded:
            return
        waiter.writing = True
        try:
            await self._store(waiter, waiter.to_bytes())
        except UnavailableError as error:  # the next round tries again
            log.debug("waiter not shown", session=waiter.session, reason=error.reason)
        finally:
            waiter.writing = False
        if waiter.left and waiter.revision:
            await self.withdraw(waiter)

    async def _store(self, waiter: Waiter, value: bytes) -> None:
        try:
            if waiter.revision:
                waiter.revision = await self._bucket.renew(waiter.key, value, waiter.revision, TTL_S)
            else:
                waiter.revision = await self._bucket.create(waiter.key, value, ttl_s=TTL_S)
        except ConflictError:
            found = await self._bucket.get(waiter.key)
            if found is None:  # it lapsed while the link was down
                waiter.revision = 0
            elif found.value == value:  # it was stored, only the answer got lost
                waiter.revision = found.revision
            else:
                self._supersede(waiter)

    def _supersede(self, waiter: Waiter) -> None:
        """Another router took the place over. What the session is granted there, this caller is given too."""
        self.step_out(waiter)
        waiter.superseded = True
        waiter.revision = 0

    # --- everybody's

    def _entry_changed(self, key: str, entry: Entry | None) -> None:
        standing = self._standing.get(key)
        if entry is None:
            if standing in self._own:
                standing.revision = 0  # it lapsed; the next round shows it again
            elif standing is not None:
                self._forget(standing)
                self.changed.set(None)
            return
        waiter = _from_entry(key, entry)
        if waiter is None:
            log.warning("waiter refused", key=key)
        elif waiter.router == self._router:
            if standing in self._own:
                standing.revision = max(standing.revision, entry.revision)
        elif standing is not None and standing not in self._own and standing.wish == waiter.wish:
            standing.revision, standing.router = entry.revision, waiter.router
            standing.until_unix_us = waiter.until_unix_us
        else:
            if standing in self._own:
                self._supersede(standing)
            elif standing is not None:
                self._forget(standing)
            self._elsewhere[waiter.session] = waiter
            self.stand(waiter)

    def _forget(self, waiter: Waiter) -> None:
        self.step_out(waiter)
        if self._elsewhere.get(waiter.session) is waiter:
            del self._elsewhere[waiter.session]

    def serve(self, offer: Callable[[Waiter], bool]) -> None:
        """Offer to all, the first first; who is refused (False) is refused for all with the same wish."""
        groups = [(keys[0], number, list(keys)) for number, keys in enumerate(self._keys.values())]
        heapq.heapify(groups)
        served = dict.fromkeys(range(len(groups)), 0)
        now_us = now_unix_us()
        while groups:
            key, number, keys = groups[0]
            served[number] += 1
            waiter = self._standing.get(key)
            refused = waiter is not None and self._counts(waiter, now_us) and not offer(waiter)
            if not refused and served[number] < len(keys):
                heapq.heapreplace(groups, (keys[served[number]], number, keys))
            else:
                heapq.heappop(groups)

    def _counts(self, waiter: Waiter, now_us: int) -> bool:
        return waiter in self._own or now_us <= waiter.until_unix_us + OVERDUE_US

    def position(self, waiter: Waiter) -> int:
        """Its rank among those who wait for the same pipeline; 1 is served next."""
        pipeline = waiter.wish.requirements.pipeline
        return 1 + sum(
            bisect_left(keys, waiter.key)
            for wish, keys in self._keys.items()
            if wish.requirements.pipeline == pipeline
        )

    def waiting(self, pipeline: str) -> int:
        """How many wait for `pipeline`."""
        return sum(len(keys) for wish, keys in self._keys.items() if wish.requirements.pipeline == pipeline)

    def standings(self) -> list[Standing]:
        """Who waits, the next one first."""
        ranks: dict[str, int] = {}
        standings = []
        for _, waiter in sorted(self._standing.items()):
            pipeline = waiter.wish.requirements.pipeline
            ranks[pipeline] = ranks.get(pipeline, 0) + 1
            standings.append(Standing(waiter, ranks[pipeline]))
        return standings


def _from_entry(key: str, entry: Entry) -> Waiter | None:
    """The waiter that another router shows; None for what is none."""
    try:
        proto = events.Waiter.FromString(entry.value)
        wish = wish_from_text(proto.wish)
    except (DecodeError, ValueError):
        return None
    return Waiter(
        key=key,
        session=SessionId(proto.session),
        wish=wish,
        priority=proto.priority,
        arrived_unix_us=proto.arrived_unix_ms * 1000,
        until_unix_us=proto.until_unix_ms * 1000,
        router=proto.router,
        revision=entry.revision,
    )
