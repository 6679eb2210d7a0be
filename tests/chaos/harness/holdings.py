"""Who held which slot when, as the store of NATS says, and whether any slot was ever given twice.

The rule it keeps: what it could not see, because NATS was away meanwhile, it takes for no violation.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import nats
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.kv import KV_OP

from protos.events.v1 import events_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.topology import SESSIONS, SLOTS

TAKE_S: Final = 0.5  # how long one look at the stream waits
AGAIN_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Change:
    """One revision of a slot's key. `session` is empty where it was freed."""

    revision: int
    key: str
    session: str
    epoch: int
    contiguous: bool  # the revision of the stream just before it was seen too


@dataclass(frozen=True, slots=True)
class Claim:
    """That a session's record names a slot."""

    key: str
    epoch: int
    session: str


def double_grants(changes: Sequence[Change]) -> list[str]:
    """Every slot that went from one session to another without being free, or whose epoch did not grow."""
    found: list[str] = []
    held: dict[str, Change] = {}
    for change in changes:
        before = held.get(change.key)
        held[change.key] = change
        if before is None:
            continue
        told = f"{change.key}: {before.session or 'nobody'}@{before.epoch} -> {change.session}@{change.epoch}"
        if change.epoch < before.epoch:
            found.append(f"epoch fell, {told}")
        elif change.session and change.session != before.session:
            if change.epoch == before.epoch:
                found.append(f"epoch given twice, {told}")
            elif before.session and change.contiguous:
                found.append(f"taken while held, {told}")
    return found


def shared_claims(claims: Sequence[Claim]) -> list[str]:
    """Every slot, at one epoch, that two sessions' records name."""
    by_grant: dict[tuple[str, int], set[str]] = {}
    for claim in claims:
        by_grant.setdefault((claim.key, claim.epoch), set()).add(claim.session)
    return [f"{key}@{epoch}: {sorted(who)}" for (key, epoch), who in by_grant.items() if len(who) > 1]


class Holdings:
    """Follows both buckets in a thread from the moment it is made until `close`."""

    def __init__(self, url: str) -> None:
        self.changes: list[Change] = []
        self.claims: set[Claim] = set()
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._follow()), name="holdings", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """See what is left to be seen, then end."""
        self._stop.set()
        self._thread.join(20)

    def violations(self) -> list[str]:
        return [*double_grants([*self.changes]), *shared_claims([*self.claims])]

    async def _follow(self) -> None:
        client = await nats.connect(
            self._url, max_reconnect_attempts=-1, reconnect_time_wait=AGAIN_S, error_cb=_ignore
        )
        try:
            await asyncio.gather(self._bucket(client, SLOTS.name), self._bucket(client, SESSIONS.name))
        finally:
            await client.close()

    async def _bucket(self, client: Client, bucket: str) -> None:
        last = 0
        while not self._stop.is_set():
            with contextlib.suppress(nats.errors.Error, nats.js.errors.Error, TimeoutError, OSError):
                last = await self._from(client, bucket, last)
            await asyncio.sleep(AGAIN_S)

    async def _from(self, client: Client, bucket: str, last: int) -> int:
        """Read on from behind revision `last` until asked to end; how far that was."""
        jetstream = client.jetstream(timeout=2)
        start = (
            ConsumerConfig(deliver_policy=DeliverPolicy.BY_START_SEQUENCE, opt_start_seq=last + 1)
            if last
            else ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        )
        subscription = await jetstream.pull_subscribe(
            f"$KV.{bucket}.>", stream=f"KV_{bucket}", config=start, durable=None
        )
        try:
            while True:
                try:
                    messages = await subscription.fetch(100, timeout=TAKE_S)
                except nats.errors.TimeoutError:
                    if self._stop.is_set():
                        return last
                    await subscription.consumer_info()  # raises where the consumer, or NATS, is gone
                    continue
                for message in messages:
                    await message.ack()
                    last = self._take(bucket, message, last)
        except (nats.errors.Error, nats.js.errors.Error):
            return last

    def _take(self, bucket: str, message: Msg, last: int) -> int:
        revision = int(message.metadata.sequence.stream)
        key = message.subject.removeprefix(f"$KV.{bucket}.")
        gone = bool(message.headers and message.headers.get(KV_OP))
        if bucket == SLOTS.name and not gone:
            slot = events_pb2.Slot.FromString(message.data)
            self.changes.append(Change(revision, key, slot.session, slot.epoch, revision == last + 1))
        elif bucket == SESSIONS.name and not gone:
            record = sessions_pb2.Session.FromString(message.data)
            if record.phase != sessions_pb2.PHASE_ENDED:
                places = [(record.runner, record.slot, record.slot_epoch)]
                places.append((record.next.runner, record.next.slot, record.next.slot_epoch))
                for runner, number, epoch in places:
                    if runner:
                        self.claims.add(Claim(f"{runner}.{number}", epoch, record.id))
        return revision


async def _ignore(_: Exception) -> None:
    """Errors of the connection are what these tests are about."""
