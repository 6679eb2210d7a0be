"""NATS as this project uses it: one connection, buckets changed by compare-and-set, views that stay fresh.

The traps it is written around were measured (nats-server 2.15, nats-py 2.16): default pings take minutes to
notice a hung broker; a watcher goes silently stale after a reconnection; `update()` drops a key's TTL; a
publish that timed out may have been stored.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

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
from nats.js.kv import KV_DEL, KV_MARKER_REASON, KV_OP, KV_PURGE, KeyValue
from prometheus_client import Counter

from services.common.errors import ConflictError, InvalidError, SluiceError, UnavailableError
from services.common.latest import Latest
from services.common.telemetry import carrier, report_bug
from services.common.topology import BucketSpec, StreamSpec

log = structlog.get_logger()

RECONNECTS: Final = Counter("sluice_nats_reconnects_total", "Times the connection to NATS was made again.")
BAD_MESSAGES: Final = Counter("sluice_nats_bad_messages_total", "Messages that could not be read.", ["kind"])
CONFLICTS: Final = Counter("sluice_kv_conflicts_total", "Compare-and-set that lost a race.", ["bucket"])
CONNECT_TIMEOUT_S: Final = 30.0
REQUEST_TIMEOUT_S: Final = 3.0
RESYNC_S: Final = 30.0  # a view is rebuilt so often even if nothing says that it went stale
WATCHER_LINGERS_S: Final = 5.0  # the server forgets a watcher that left; nats-py would keep it 5 minutes
ATTEMPTS: Final = 20  # of a read-modify-compare-and-set before it is given up as contention
KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+(\.[-/_=a-zA-Z0-9]+)*")
KEY_MAX_BYTES: Final = 512 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key holds, and the revision to name when it is replaced."""

    value: bytes
    revision: int


class Bus:
    """A connection to NATS that reconnects for ever; use it as the block that `connect` yields."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        self.generation = Latest(0)  # grows with every reconnection
        self._healthy_since_s: float | None = time.monotonic()

    @property
    def healthy_for_s(self) -> float:
        """How long the link has been up; 0 while it is down. Silence of others is evidence only after 3 s."""
        return 0.0 if self._healthy_since_s is None else time.monotonic() - self._healthy_since_s

    def went_down(self) -> None:
        self._healthy_since_s = None

    def came_back(self) -> None:
        self._healthy_since_s = time.monotonic()
        RECONNECTS.inc()
        self.generation.set(self.generation.value + 1)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Publish on a core subject; lost when nobody listens or the link is down."""
        with suppress(nats.errors.Error):
            await self._client.publish(subject, payload, headers=carrier())

    async def subscribe(self, subject: str) -> AsyncIterator[Msg]:
        """Iterate over a core subject; the client subscribes again by itself after a reconnection."""
        subscription = await self._client.subscribe(subject)
        try:
            async for message in subscription.messages:
                yield message
        finally:
            with suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def store(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Publish to JetStream, wait until it is stored. Unavailable = unknown: repeat with the same id."""
        self._require_link()
        with _translated(f"publish to {subject}"):
            await self._jetstream.publish(
                subject, payload, headers={**carrier(), "Nats-Msg-Id": message_id}, timeout=REQUEST_TIMEOUT_S
            )

    async def ensure_stream(self, spec: StreamSpec, replicas: int) -> None:
        config = StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            max_age=spec.max_age_s,
            max_bytes=spec.max_bytes,
            duplicate_window=spec.duplicate_window_s,
            num_replicas=replicas,
            storage=StorageType.FILE,
        )
        with _translated(f"create stream {spec.name}"):
            await self._jetstream.add_stream(config)

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
        with _translated(f"create bucket {spec.name}"):
            return Bucket(self, spec.name, await self._jetstream.create_key_value(config))

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

    async def publish_with_ttl(self, subject: str, payload: bytes, revision: int, ttl_s: int) -> int:
        """Renew a key with a TTL: the raw publish, because `update()` would make the key immortal."""
        self._require_link()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        with _translated(subject):
            ack = await self._jetstream.publish(subject, payload, headers=headers, msg_ttl=ttl_s)
        return int(ack.seq)

    async def newest(self, stream: str, subject: str) -> RawStreamMsg:
        """The last message on `subject`, asked of the stream's leader."""
        self._require_link()
        return await self._jetstream.get_last_msg(stream, subject)

    def _require_link(self) -> None:
        if not self._client.is_connected:
            raise UnavailableError("NATS is not reachable", reason="NATS_UNREACHABLE")


class Bucket:
    """A key-value bucket whose every state change is a compare-and-set."""

    def __init__(self, bus: Bus, name: str, kv: KeyValue) -> None:
        self._bus = bus
        self.name = name
        self._kv = kv

    async def get(self, key: str) -> Entry | None:
        newest = await self._newest(key)
        return newest if isinstance(newest, Entry) else None

    async def _newest(self, key: str) -> Entry | int:
        """What `key` holds, or the revision of what marks it as gone, 0 for a key that never was.

        By hand, because nats-py knows no marker of an expired key: it reads one as an empty value.
        """
        if not KEY.fullmatch(key):
            raise InvalidError(f"no key of a bucket: {key!r}")
        with _translated(f"read {self.name}"):
            try:
                message = await self._bus.newest(f"KV_{self.name}", f"$KV.{self.name}.{key}")
            except nats.js.errors.NotFoundError:
                return 0
        revision = message.seq or 0
        if message.headers and (KV_OP in message.headers or KV_MARKER_REASON in message.headers):
            return revision
        return Entry(message.data or b"", revision)

    async def create(self, key: str, value: bytes, *, ttl_s: int | None = None) -> int:
        """Create `key`. Raises ConflictError if it exists. With a TTL, renew it by `renew` only."""
        self._bus._require_link()  # noqa: SLF001 - one module, two classes
        try:
            with _translated(f"create in {self.name}", bucket=self.name):
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
        self._bus._require_link()  # noqa: SLF001
        with _translated(f"update in {self.name}", bucket=self.name):
            return await self._kv.update(key, value, last=revision)

    async def renew(self, key: str, value: bytes, revision: int, ttl_s: int) -> int:
        return await self._bus.publish_with_ttl(f"$KV.{self.name}.{key}", value, revision, ttl_s)

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete `key`; with `revision` only if that is still the newest. Raises ConflictError otherwise."""
        self._bus._require_link()  # noqa: SLF001
        with _translated(f"delete in {self.name}", bucket=self.name):
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
        """Keep `view` equal to the bucket for ever: a loop for `background`."""
        while True:
            try:
                await self._follow_once(view)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.warning("watch interrupted", bucket=self.name, error=repr(error))
                await asyncio.sleep(0.25)

    async def _follow_once(self, view: View) -> None:
        generation = self._bus.generation.version
        watcher: Any = await self._kv.watchall(inactive_threshold=WATCHER_LINGERS_S)
        try:
            fresh: dict[str, Entry] | None = {}
            deadline_s = time.monotonic() + RESYNC_S
            while self._bus.generation.version == generation and time.monotonic() < deadline_s:
                try:  # not `watcher.updates`: its wait_for swallows a cancellation that comes with news
                    async with asyncio.timeout(0.5):
                        update = await anext(watcher)
                except TimeoutError:
                    continue
                if update is None:  # the end of what was there already
                    if fresh is not None:
                        view.replace(fresh)
                        fresh = None
                    continue
                gone = update.operation in {KV_DEL, KV_PURGE}
                entry = None if gone else Entry(update.value or b"", update.revision or 0)
                if fresh is None:
                    view.put(update.key, entry)
                elif entry is not None:
                    fresh[update.key] = entry
        finally:
            with suppress(nats.errors.Error):
                await watcher.stop()


class View:
    """A bucket's content as last heard; it may be stale, so decide by compare-and-set, never by a look."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.ready = asyncio.Event()
        self.changed = Latest(None)

    def replace(self, entries: dict[str, Entry]) -> None:
        self.entries = entries
        self.ready.set()
        self.changed.set(None)

    def put(self, key: str, entry: Entry | None) -> None:
        if entry is None:
            self.entries.pop(key, None)
        else:
            self.entries[key] = entry
        self.changed.set(None)


class _translated:  # noqa: N801 - used as a verb
    """Turns what nats-py raises into the error table."""

    def __init__(self, doing: str, *, bucket: str = "") -> None:
        self._doing = doing
        self._bucket = bucket

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, nats.js.errors.KeyWrongLastSequenceError):
            CONFLICTS.labels(self._bucket).inc()
            raise ConflictError(f"{self._doing}: somebody was faster", reason="CAS_CONFLICT") from error
        if isinstance(error, nats.js.errors.APIError) and error.err_code in {10071, 10164}:
            raise ConflictError(f"{self._doing}: somebody was faster", reason="CAS_CONFLICT") from error
        if isinstance(error, nats.js.errors.InvalidKeyError | nats.errors.MaxPayloadError):
            raise InvalidError(f"{self._doing}: {error}") from error
        if isinstance(error, nats.errors.Error | TimeoutError | OSError):
            raise UnavailableError(f"{self._doing}: {error!r}", reason="NATS_UNREACHABLE") from error


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
    try:
        yield bus
    finally:
        bus = None  # a connection that we close is not one that we lost
        with suppress(nats.errors.Error, TimeoutError, OSError):  # of a server that is gone
            await asyncio.wait_for(client.close(), 2.0)
