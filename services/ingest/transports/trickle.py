"""The public trickle listener's channels: streams by their keys, and tenants' own.

A stream is published by writing to its stream key and watched by reading its playback id, with any client of
the protocol. Other channels are made by the API, by a `POST` with an API key, or, where a setting allows it,
by whoever writes to a free name. The alias is the credential; nothing here is asked of the control plane for
a stream that runs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

import structlog
from prometheus_client import Counter

from protos.inference.v1 import runner_pb2
from services.common.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    RateLimitedError,
    SluiceError,
)
from services.common.lifecycle import Bulkhead
from services.common.telemetry import report_bug
from services.common.trickle.channel import Channel, ChannelReader, SegmentReader
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import OpenChannel, Registry
from services.common.trickle.resolve import Ask, Purpose
from services.ingest.auth import Authenticator, bearer
from services.ingest.bridge.hub import Hub
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import Published, Publishing, end_error
from services.ingest.settings import IngestSettings
from services.ingest.source import PublisherVanishedError
from services.ingest.stream_keys import PLAYBACK_PREFIX, PUBLISH_PREFIX, StreamKeys

log = structlog.get_logger()
PUBLIC: Final = Counter("sluice_public_channels_total", "Channels that clients made, by how.", ["kind"])

BASE_PATH: Final = "/trickle/"
PLAYED: Final = 1000  # playback ids whose last channel is known, to say that it is closed
CLOSED_S: Final = 10.0  # how long after its last byte a stream that ended is told from an idle one
# The bridge keeps up with a publisher, and nobody else reads its channel.
PUBLISHED: Final = ChannelLimits(depth=2, history_s=0.0)
# Bytes bound it, not the reference's five segments, of which a burst of messages would be lost.
OWN: Final = ChannelLimits(depth=64, segment_bytes=2 * 2**20, channel_bytes=4 * 2**20)


@dataclass(frozen=True, slots=True)
class OwnChannel:
    """A channel that a tenant made."""

    tenant: str
    opened: OpenChannel


class PublicChannels:
    """`resolve` is for the listener, the rest for the API. Every stream that is published here has a task."""

    def __init__(
        self,
        *,
        registry: Registry,
        hub: Hub,
        plane: ControlPlane,
        keys: StreamKeys,
        publishing: Publishing,
        authenticator: Authenticator,
        settings: IngestSettings,
    ) -> None:
        self._registry = registry
        self._hub = hub
        self._plane = plane
        self._keys = keys
        self._publishing = publishing
        self._authenticator = authenticator
        self._settings = settings
        self._limits = replace(OWN, idle_s=settings.channel_idle_s)
        self._played: OrderedDict[str, Channel] = OrderedDict()
        self._own: dict[str, OwnChannel] = {}
        self._tasks = Bulkhead(lambda key, error: report_bug("public_trickle", error, stream=key))

    async def __aenter__(self) -> PublicChannels:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    async def resolve(self, ask: Ask) -> Channel:
        """Return the channel behind an alias that nobody opened. Raises what the client is to see."""
        if ask.alias.startswith(PUBLISH_PREFIX):
            return await self._published(ask)
        if ask.alias.startswith(PLAYBACK_PREFIX):
            return await self._watched(ask)
        return await self._made(ask)

    # --- streams

    async def _published(self, ask: Ask) -> Channel:
        _, stream_id = self._keys.stream_of(ask.alias)
        if ask.purpose is Purpose.READ:
            raise DeniedError("this is a stream key; watch with the playback id", reason="STREAM_KEY")
        stream = await self._plane.stream(stream_id)
        if stream.delivery == runner_pb2.DELIVERY_COMPLETE:
            raise InvalidError(
                "a `complete` stream holds its publisher back, which trickle cannot: publish it to /ts",
                reason="COMPLETE_NOT_SERVED",
                field="delivery",
            )
        opened = self._registry.open(
            stream_id, content_type="video/MP2T", limits=PUBLISHED, write_alias=ask.alias
        )
        self._tasks.start(stream_id, self._feed(ask.alias, stream_id, opened.channel))
        return opened.channel

    async def _feed(self, key: str, name: str, channel: Channel) -> None:
        """Feed the stream from its channel, one publisher after the other, and end the channel with it."""
        why: SluiceError | None = None
        try:
            published = await self._publish(key, channel.read(0))
            why = end_error(published.ended) if published and published.ended else None
        except SluiceError as error:
            why = error
        finally:
            self._registry.close(name, why)

    async def _publish(self, key: str, reader: ChannelReader) -> Published | None:
        """None: the channel was closed before anything came."""
        first = await anext(reader, None)  # a POST may be parked for as long as its channel may be idle
        while first is not None:
            body = Body(reader, first)
            try:
                return await self._publishing.publish_ts(key, body.bytes())
            except PublisherVanishedError:
                first = body.following
        return None

    async def _watched(self, ask: Ask) -> Channel:
        _, stream_id = self._keys.stream_of(ask.alias)
        if ask.purpose is Purpose.WRITE:
            raise DeniedError("this is a playback id; publish with the stream key", reason="PLAYBACK_ID")
        session = self._hub.of_stream(stream_id)
        if session is None:
            ended = self._played.get(ask.alias)
            now_s = asyncio.get_running_loop().time()
            if ended is not None and ended.closed and now_s - ended.active_at < CLOSED_S:
                return ended
            await self._plane.stream(stream_id)
            session = await self._hub.wait_for(stream_id, self._settings.viewer_wait_s)
        if session is None:
            raise NotFoundError("nobody publishes this stream now", reason="NOT_LIVE")
        self._played[ask.alias] = session.play
        self._played.move_to_end(ask.alias)
        if len(self._played) > PLAYED:
            self._played.popitem(last=False)
        return session.play

    # --- tenants' own

    async def _made(self, ask: Ask) -> Channel:
        """A name that is free: made by whoever may, by writing to it."""
        if ask.purpose is not Purpose.WRITE or self._settings.channel_creation == "api":
            raise NotFoundError("Stream not found", reason="CHANNEL_NOT_FOUND")
        tenant = ""
        if self._settings.channel_creation == "key":
            tenant = (await self._authenticator.who(bearer(ask.authorization))).tenant
        return self._open(tenant, ask.alias, ask.content_type, alias=ask.alias).channel

    def create(self, tenant: str, name: str, content_type: str) -> OpenChannel:
        """Make a channel with unguessable addresses. Raises ConflictError, RateLimitedError."""
        return self._open(tenant, name, content_type, alias=None)

    def _open(self, tenant: str, name: str, content_type: str, *, alias: str | None) -> OpenChannel:
        mine = self.of(tenant)
        if len(mine) >= self._settings.max_channels_per_tenant:
            raise RateLimitedError(
                f"at most {self._settings.max_channels_per_tenant} channels",
                reason="TOO_MANY_CHANNELS",
                retry_after_s=10,
            )
        full_name = f"{tenant}/{name}"
        opened = self._registry.open(
            full_name,
            content_type=content_type,
            limits=self._limits,
            read_alias=alias,
            write_alias=alias,
            announce=alias is not None,
        )
        self._own[full_name] = OwnChannel(tenant, opened)
        PUBLIC.labels("api" if alias is None else "post").inc()
        return opened

    def of(self, tenant: str) -> list[OpenChannel]:
        """The tenant's channels that are open."""
        for name, own in list(self._own.items()):
            if own.opened.channel.closed:  # by a DELETE, or it was idle
                del self._own[name]
        return [own.opened for own in self._own.values() if own.tenant == tenant]

    def delete(self, tenant: str, name: str) -> None:
        """Close a channel. Raises NotFoundError."""
        full_name = f"{tenant}/{name}"
        found = self._own.pop(full_name, None)
        if found is None or found.opened.channel.closed:
            raise NotFoundError(f"there is no channel {name}", reason="CHANNEL_NOT_FOUND")
        self._registry.close(full_name)


class Body:
    """One publisher's bytes: they end with the channel, and break off where another publisher begins."""

    def __init__(self, reader: ChannelReader, first: SegmentReader) -> None:
        self._reader = reader
        self._first = first
        self.following: SegmentReader | None = None  # the other publisher's first

    async def bytes(self) -> AsyncIterator[bytes]:
        """Raises PublisherVanishedError where another publisher begins."""
        segment: SegmentReader | None = self._first
        while segment is not None:
            async for data in segment:
                yield data
            segment = await anext(self._reader, None)
            if segment is not None and segment.restarted:
                self.following = segment
                raise PublisherVanishedError
