"""NATS as this project uses it: one connection, buckets changed by compare-and-set, views that stay fresh.

The traps it is written around were measured (nats-server 2.15, nats-py 2.16): default pings take minutes to
notice a hung broker; a watcher goes silently stale after a reconnection; `update()` drops a key's TTL; a
publish that timed out may have been stored; a full disk is silent, and a server may return without its store.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Final
from uuid import uuid4

import nats
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import (
    ConsumerConfig,
    DeliverPolicy,
    KeyValueConfig,
    RawStreamMsg,
    StorageType,
    StreamConfig,
)
from nats.js.kv import KV_MARKER_REASON, KV_OP, KV_PURGE, KeyValue
from prometheus_client import Counter, Gauge

from services.common.errors import ConflictError, InvalidError, SluiceError, UnavailableError
from services.common.latest import Batches, Latest
from services.common.nats_errors import translated
from services.common.telemetry import carrier, report_bug
from services.common.topology import PROBE, PROBE_SUBJECT, BucketSpec, StreamSpec
from services.common.views import BAD_MESSAGES, Entry, Filling, ParsedView, View
from services.common.watching import Watcher, watching

__all__ = ["BAD_MESSAGES", "Bucket", "Bus", "Entry", "ParsedView", "View", "connect"]
log = structlog.get_logger()

RECONNECTS: Final = Counter("sluice_nats_reconnects_total", "Times the connection to NATS was made again.")
STORING: Final = Gauge(
    "sluice_nats_storing",
    "1 while NATS stores what this process publishes; 0 when it is away, stands still or has no disk left.",
)
RESTORED: Final = Counter(
    "sluice_kv_restored_total", "Keys put back into a bucket that NATS had lost.", ["bucket"]
)
STALE: Final = Counter(
    "sluice_kv_stale_views_total",
    "Views that had not heard all of their bucket, and were made anew.",
    ["bucket"],
)
CONNECT_TIMEOUT_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 3.0
PROVE_EVERY_S: Final = (
    30.0  # a view is compared with its bucket so often, even if nothing says that it is stale
)
PROVEN_WITHIN_S: Final = 3.0  # else it is rebuilt
MAILBOX: Final = 1024  # messages of a core subject, between nats-py and who reads them
ATTEMPTS: Final = 20  # of a read-modify-compare-and-set before it is given up as contention
PROBE_EVERY_S: Final = 5.0
PROBE_PAYLOAD: Final = bytes(4096)  # a page, for which a full disk has no room
# Of probes that fail: longer than a restart, for who leaves a headless service's name is found again late.
NOT_STORING_AFTER_S: Final = 30.0
RESTORE_AT_ONCE: Final = 64  # keys on their way
STREAM_NOT_FOUND: Final = 10059
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
KEY_MAX_BYTES: Final = 512 * 1024


class Bus:
    """A connection to NATS that reconnects for ever; use it as the block that `connect` yields."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self.generation = Latest(0)  # grows with every reconnection
        self.stores = True  # False once messages were not stored for a while
        self._streams: dict[str, StreamConfig] = {}
        self._now_s = asyncio.get_running_loop().time
        self._healthy_since_s: float | None = self._now_s()

    @property
    def healthy_for_s(self) -> float:
        """How long the link has been up; 0 while it is down. Silence of others is evidence only after 3 s."""
        return 0.0 if self._healthy_since_s is None else self._now_s() - self._healthy_since_s

    def went_down(self) -> None:
        self._healthy_since_s = None

    def came_back(self) -> None:
        self._healthy_since_s = self._now_s()
        RECONNECTS.inc()
        self.generation.set(self.generation.value + 1)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish on a core subject; lost when nobody listens or the link is down."""
        with suppress(nats.errors.Error):
            await self._client.publish(subject, payload, headers=carrier())

    async def subscribe(self, subject: str) -> AsyncIterator[Msg]:
        """Iterate over a core subject; the client subscribes again by itself after a reconnection.

        Not nats-py's own iterator: it makes a task for each message, and a busy loop then hears thousands of
        heartbeats seconds late. Behind a full mailbox its own limits hold, which drop and tell.
        """
        mailbox = Batches[Msg](MAILBOX)
        subscription = await self._client.subscribe(subject, cb=mailbox.put)
        try:
            while True:
                for message in await mailbox.take():
                    yield message
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def store(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Publish to JetStream, wait until it is stored. Unavailable = unknown: repeat with the same id."""
        self._require_link()
        with translated(f"publish to {subject}"):
            await self._jetstream.publish(
                subject, payload, headers={**carrier(), "Nats-Msg-Id": message_id}, timeout=REQUEST_TIMEOUT_S
            )

    async def ensure_stream(self, spec: StreamSpec, replicas: int) -> None:
        """Make the stream if need be, and again should NATS come back without it."""
        config = StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            max_age=spec.max_age_s,
            max_bytes=spec.max_bytes,
            duplicate_window=spec.duplicate_window_s,
            num_replicas=replicas,
            storage=StorageType.FILE,
        )
        with translated(f"create stream {spec.name}"):
            await self._jetstream.add_stream(config)
        self._streams[spec.name] = config

    async def bucket(self, spec: BucketSpec, replicas: int) -> Bucket:
        """The bucket, created if need be."""
        config = KeyValueConfig(
            bucket=spec.name,
            history=1,
            replicas=replicas,
            max_value_size=KEY_MAX_BYTES,
            storage=StorageType.FILE,
            limit_marker_ttl=spec.markers_s or None,
        )
        with translated(f"create bucket {spec.name}"):
            return Bucket(self, spec, config, await self._jetstream.create_key_value(config))

    async def made(self, config: KeyValueConfig) -> tuple[datetime, int]:
        """When the bucket was made, now if NATS had lost it; and its newest revision."""
        try:
            info = await self._jetstream.stream_info(f"KV_{config.bucket}")
        except nats.js.errors.NotFoundError:
            await self._jetstream.create_key_value(config)
            info = await self._jetstream.stream_info(f"KV_{config.bucket}")
        assert info.created is not None, "a stream says when it was made"
        return info.created, info.state.last_seq

    async def watch_over(self) -> None:
        """For ever: store a message now and then, to know that it is stored, and make lost streams again.

        A server whose disk was full says nothing and stores nothing until it is restarted: only a real
        publish tells.
        """
        version, failing_since_s = self.generation.version, None
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(PROBE_EVERY_S):
                    await self.generation.newer_than(version)
            try:
                if version != self.generation.version:
                    version = await self._streams_again()
                self._require_link()  # of runners, which are too many to probe, that is all that is known
                if PROBE.name in self._streams:
                    await self.store(PROBE_SUBJECT, PROBE_PAYLOAD, message_id=uuid4().hex)
                failing_since_s = None
            except SluiceError as error:
                failing_since_s = failing_since_s or self._now_s()
                log.warning("NATS stores nothing", reason=error.reason, why=error.message)
                await asyncio.sleep(0.5)
            self._found(failing_since_s)

    async def _streams_again(self) -> int:
        """Make what a server that came back may lack; returns the generation for which that is done."""
        version = self.generation.version
        for config in tuple(self._streams.values()):
            with translated(f"create stream {config.name}"):
                await self._jetstream.add_stream(config)
        return version

    def _found(self, failing_since_s: float | None) -> None:
        STORING.set(failing_since_s is None)
        self.stores = failing_since_s is None or self._now_s() - failing_since_s < NOT_STORING_AFTER_S

    async def consume(
        self, spec: StreamSpec, durable: str, apply: Callable[[Sequence[Msg]], Awaitable[None]], *, batch: int
    ) -> None:
        """Hand batches to `apply` for ever; acked after it returns, handed again after it raises."""
        while True:
            try:
                subscription = await self._jetstream.pull_subscribe(
                    spec.subjects[0],
                    durable,
                    stream=spec.name,
                    config=ConsumerConfig(
                        durable_name=durable, ack_wait=30, max_deliver=-1, deliver_policy=DeliverPolicy.ALL
                    ),
                )
                try:
                    await self._consume(subscription, apply, batch)
                finally:
                    with suppress(nats.errors.Error):
                        await subscription.unsubscribe()
            except (nats.errors.Error, SluiceError, OSError) as error:
                log.warning("consumer interrupted", stream=spec.name, error=repr(error))
                await asyncio.sleep(0.5)

    async def _consume(
        self, subscription: Any, apply: Callable[[Sequence[Msg]], Awaitable[None]], batch: int
    ) -> None:
        generation = self.generation.version
        while self.generation.version == generation:  # a pull consumer is made anew after a reconnection
            try:
                messages = await subscription.fetch(batch, timeout=2.0)
            except (TimeoutError, nats.errors.TimeoutError):
                continue
            try:
                await apply(messages)
            except SluiceError:
                for message in messages:
                    await message.nak(delay=1)
                raise
            for message in messages:
                await message.ack()

    async def publish_with_ttl(
        self, subject: str, payload: bytes, revision: int, ttl_s: int, operation: str = ""
    ) -> int:
        """Renew a key with a TTL: the raw publish, because `update()` would make the key immortal."""
        self._require_link()
        headers = {EXPECTED: str(revision)}
        if operation:
            headers[KV_OP] = operation
        with translated(subject):
            ack = await self._jetstream.publish(subject, payload, headers=headers, msg_ttl=ttl_s)
        return int(ack.seq)

    async def publish_after(self, subject: str, payload: bytes, revision: int) -> int:
        """Store, if `revision` is the newest on the subject; raises what nats-py raises, too.

        Without its `KeyValue`, which takes longer for the same: a router does it a thousand times a second.
        """
        self._require_link()
        headers = {EXPECTED: str(revision)}
        return int((await self._jetstream.publish(subject, payload, headers=headers)).seq)

    def watching(self, bucket: str) -> AbstractAsyncContextManager[Watcher]:
        return watching(self._jetstream, bucket)

    async def newest(self, stream: str, subject: str) -> RawStreamMsg:
        """The last message on `subject`, asked of the stream's leader."""
        self._require_link()
        return await self._jetstream.get_last_msg(stream, subject)

    def _require_link(self) -> None:
        if not self._client.is_connected:
            raise UnavailableError("NATS is not reachable", reason="NATS_UNREACHABLE")


class Bucket:
    """A key-value bucket whose every state change is a compare-and-set."""

    def __init__(self, bus: Bus, spec: BucketSpec, config: KeyValueConfig, kv: KeyValue) -> None:
        self._bus = bus
        self.name = spec.name
        self._lasting = spec.lasting
        self._config = config
        self._kv = kv
        self._updating = translated(f"update in {spec.name}", bucket=spec.name)
        self._followed = False
        self._sure_of = bus.generation.version

    async def get(self, key: str) -> Entry | None:
        newest = await self._newest(key)
        return newest if isinstance(newest, Entry) else None

    async def _newest(self, key: str) -> Entry | int:
        """What `key` holds, or the revision of what marks it as gone, 0 for a key that never was.

        By hand, because nats-py knows no marker of an expired key: it reads one as an empty value.
        """
        if not KEY.fullmatch(key):
            raise InvalidError(f"no key of a bucket: {key!r}")
        with translated(f"read {self.name}"):
            try:
                message = await self._bus.newest(f"KV_{self.name}", f"$KV.{self.name}.{key}")
            except nats.js.errors.NotFoundError as error:
                if error.err_code == STREAM_NOT_FOUND or self._unsure:
                    raise UnavailableError(
                        f"NATS lost the bucket {self.name}", reason="BUCKET_LOST"
                    ) from error
                return 0
        revision = message.seq or 0
        if message.headers and (KV_OP in message.headers or KV_MARKER_REASON in message.headers):
            return revision
        return Entry(message.data or b"", revision)

    @property
    def _unsure(self) -> bool:
        """Whether a key may be absent only because it is not restored yet: our follower has not looked."""
        return self._followed and self._sure_of != self._bus.generation.version

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Create `key`. Raises ConflictError if it exists. With a TTL, renew it by `renew` only."""
        self._bus._require_link()  # noqa: SLF001 - one module, two classes
        try:
            with translated(f"create in {self.name}", bucket=self.name):
                return await self._kv.create(key, value, msg_ttl=ttl_s)
        except ConflictError:
            newest = await self._newest(key)
            if isinstance(newest, Entry):
                raise
        if ttl_s is None:  # nothing is there but the marker of an expired key
            return await self.update(key, value, newest)
        return await self.renew(key, value, newest, ttl_s)

    async def update(self, key: str, value: bytes, revision: int) -> int:
        """Replace the value if `revision` is still the newest. Raises ConflictError otherwise."""
        if not KEY.fullmatch(key):
            raise InvalidError(f"no key of a bucket: {key!r}")
        with self._updating:
            return await self._bus.publish_after(f"$KV.{self.name}.{key}", value, revision)

    async def renew(self, key: str, value: bytes, revision: int, ttl_s: int) -> int:
        return await self._bus.publish_with_ttl(f"$KV.{self.name}.{key}", value, revision, ttl_s)

    async def withdraw(self, key: str, revision: int, ttl_s: int) -> None:
        """Delete a key of which there will be no other: unlike `delete`'s, its marker goes away too.

        Raises ConflictError if `revision` is not the newest.
        """
        await self._bus.publish_with_ttl(f"$KV.{self.name}.{key}", b"", revision, ttl_s, KV_PURGE)

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete `key`; with `revision` only if that is still the newest. Raises ConflictError otherwise."""
        self._bus._require_link()  # noqa: SLF001
        with translated(f"delete in {self.name}", bucket=self.name):
            await self._kv.delete(key, last=revision)

    async def change(self, key: str, step: Callable[[bytes | None], bytes | None]) -> tuple[bytes, int]:
        """Read, apply `step`, compare-and-set, again if somebody was faster; returns the new value.

        `step` is given None for a missing key; it returns None to leave things as they are (which must be
        something) and raises to refuse.
        """
        for attempt in range(ATTEMPTS):
            entry = await self.get(key)
            value = step(entry.value if entry else None)
            if value is None:
                assert entry is not None, f"nothing at {key} to leave as it is"
                return entry.value, entry.revision
            try:
                if entry is None:
                    return value, await self.create(key, value)
                return value, await self.update(key, value, entry.revision)
            except ConflictError:
                await asyncio.sleep(0.002 * attempt)
        raise UnavailableError(f"too much contention on {key}", reason="CONTENTION")

    async def follow(self, view: View) -> None:
        """Keep `view` equal to the bucket for ever: a loop for `background`.

        A bucket that was made anew, because NATS came back without its store, gets back what `view` had.
        """
        made: datetime | None = None
        judges, self._followed = not self._followed, True  # the first of several followers knows most
        while True:
            try:
                generation = self._bus.generation.version
                now_made, revision = await self._bus.made(self._config)
                if made is not None and made != now_made and self._lasting:
                    await self._restore(view)
                made = now_made
                if judges:
                    self._sure_of = generation
                await self._follow_once(view, now_made, revision)
            except (nats.errors.Error, SluiceError, OSError, TimeoutError) as error:
                log.warning("watch interrupted", bucket=self.name, error=repr(error))
                await asyncio.sleep(0.25)

    async def _restore(self, view: View) -> None:
        """Put back what is missing; another follower may do the same, and the first one counts."""
        log.warning("NATS lost a bucket, it is restored", bucket=self.name, keys=len(view.entries))
        entries = list(view.entries.items())
        for start in range(0, len(entries), RESTORE_AT_ONCE):
            some = entries[start : start + RESTORE_AT_ONCE]
            await asyncio.gather(*(self._put_back(key, entry.value) for key, entry in some))

    async def _put_back(self, key: str, value: bytes) -> None:
        with suppress(ConflictError):
            await self.create(key, value)
            RESTORED.labels(self.name).inc()

    async def _follow_once(self, view: View, made: datetime, revision: int) -> None:
        """Follow while everything is heard. `made` and `revision` are what the bucket said before this."""
        generation = self._bus.generation.version
        async with self._bus.watching(self.name) as watcher:
            filling = Filling(view, revision)
            due_s, expected = _now_s() + PROVE_EVERY_S, 0
            while self._bus.generation.version == generation:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.5):  # one for many of them: there are thousands a second
                        while True:
                            for update in await watcher.take():
                                filling.take(update)
                if _now_s() < due_s:
                    continue
                if not expected:
                    now_made, expected = await self._bus.made(self._config)
                    if now_made != made:
                        return
                if filling.newest >= expected:
                    due_s, expected = _now_s() + PROVE_EVERY_S, 0
                elif _now_s() > due_s + PROVEN_WITHIN_S:
                    STALE.labels(self.name).inc()
                    return


@asynccontextmanager
async def connect(url: str, name: str) -> AsyncIterator[Bus]:
    """Connect and stay connected. Raises UnavailableError if NATS is not there within 30 s."""
    bus: Bus | None = None

    async def disconnected() -> None:
        if bus is not None:
            bus.went_down()
            log.warning("NATS is gone")

    async def reconnected() -> None:
        if bus is not None:
            bus.came_back()
            log.info("NATS is back")

    async def failed(error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            report_bug("nats", error)

    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            client = await nats.connect(
                url,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                ping_interval=1,
                max_outstanding_pings=2,
                pending_size=8 * 1024 * 1024,
                disconnected_cb=disconnected,
                reconnected_cb=reconnected,
                error_cb=failed,
            )
    except (TimeoutError, nats.errors.Error, OSError) as error:
        raise UnavailableError(f"no NATS at {url}", reason="NATS_UNREACHABLE") from error
    bus = Bus(client)
    watching = asyncio.get_running_loop().create_task(bus.watch_over(), name="watch over NATS")
    watching.add_done_callback(_tell)
    try:
        yield bus
    finally:
        watching.cancel()
        await asyncio.wait([watching], timeout=2.0)
        bus = None  # a connection that we close is not one that we lost
        with suppress(nats.errors.Error, TimeoutError, OSError):  # of a server that is gone
            await asyncio.wait_for(client.close(), 2.0)


def _tell(watching: asyncio.Task[None]) -> None:
    """Nobody awaits it, and without it lost streams are not made again."""
    if not watching.cancelled() and (error := watching.exception()) is not None:
        report_bug("nats", error)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
