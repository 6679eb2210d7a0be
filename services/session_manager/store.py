"""Streams and sessions in NATS KV: every change is a pure step under compare-and-set."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.bus import Bucket, View
from services.common.errors import ConflictError, NotFoundError
from services.session_manager.machine import (
    ID,
    Before,
    Delivery,
    Latency,
    Phase,
    Scheduled,
    Session,
    SessionId,
    StageLatency,
    Stream,
    StreamId,
)

SESSION_FIELDS: Final = [field.name for field in pb.Session.DESCRIPTOR.fields]


class Store:
    """The two buckets with their views. Reads for decisions go to the bucket, lists come from the views."""

    def __init__(self, streams: Bucket, sessions: Bucket) -> None:
        self.streams = streams
        self.sessions = sessions
        self.streams_view = View()
        self.sessions_view = View()

    async def stream(self, stream: str, tenant: str = "") -> Stream:
        """The stream. Raises NotFoundError, also when it is another tenant's."""
        entry = await self.streams.get(stream) if ID.match(stream) else None
        found = stream_from_proto(pb.Stream.FromString(entry.value)) if entry else None
        if found is None or found.deleted or (tenant and found.tenant != tenant):
            raise _no_stream(stream)
        return found

    async def create_stream(self, stream: Stream) -> Stream:
        """Create it; the same tenant's second create of an id returns what is there."""
        try:
            await self.streams.create(stream.id, stream_to_proto(stream).SerializeToString())
        except ConflictError:
            return await self.stream(stream.id, stream.tenant)
        return stream

    async def retire_stream(self, stream: str, tenant: str) -> Stream:
        """Mark it deleted: nobody finds, changes or claims it from here on. Again is harmless."""

        def apply(raw: bytes | None) -> bytes | None:
            was = stream_from_proto(pb.Stream.FromString(raw)) if raw is not None else None
            if was is None or was.tenant != tenant:
                raise _no_stream(stream)
            return None if was.deleted else stream_to_proto(replace(was, deleted=True)).SerializeToString()

        if not ID.match(stream):
            raise _no_stream(stream)
        value, _ = await self.streams.change(stream, apply)
        return stream_from_proto(pb.Stream.FromString(value))

    async def change_stream(self, stream: str, step: Callable[[Stream], Stream], tenant: str = "") -> Stream:
        def apply(raw: bytes | None) -> bytes | None:
            was = stream_from_proto(pb.Stream.FromString(raw)) if raw is not None else None
            if was is None or was.deleted or (tenant and was.tenant != tenant):
                raise _no_stream(stream)
            now = step(was)
            return None if now == was else stream_to_proto(now).SerializeToString()

        if not ID.match(stream):
            raise _no_stream(stream)
        value, _ = await self.streams.change(stream, apply)
        return stream_from_proto(pb.Stream.FromString(value))

    def list_streams(self, tenant: str) -> list[Stream]:
        """A tenant's streams as last heard, newest first."""
        everything = (
            stream_from_proto(pb.Stream.FromString(entry.value))
            for entry in self.streams_view.entries.values()
        )
        mine = [stream for stream in everything if stream.tenant == tenant and not stream.deleted]
        return sorted(mine, key=lambda stream: stream.created_unix_ms, reverse=True)

    async def session(self, session: str, tenant: str = "") -> Session:
        entry = await self.sessions.get(session) if ID.match(session) else None
        found = session_from_proto(pb.Session.FromString(entry.value)) if entry else None
        if found is None or (tenant and found.tenant != tenant):
            raise NotFoundError(f"there is no session {session}", reason="SESSION_NOT_FOUND")
        return found

    async def create_session(self, session: Session) -> Session:
        """Create it. Raises ConflictError if the id is taken."""
        await self.sessions.create(session.id, session_to_proto(session).SerializeToString())
        return session

    async def change_session(self, session: str, step: Callable[[Session], Session]) -> Session:
        def apply(raw: bytes | None) -> bytes | None:
            if raw is None:
                raise NotFoundError(f"there is no session {session}", reason="SESSION_NOT_FOUND")
            was = session_from_proto(pb.Session.FromString(raw))
            now = step(was)
            return None if now == was else session_to_proto(now).SerializeToString()

        value, _ = await self.sessions.change(session, apply)
        return session_from_proto(pb.Session.FromString(value))

    def session_seen(self, session: str) -> Session | None:
        """The session as last heard."""
        entry = self.sessions_view.entries.get(session)
        return session_from_proto(pb.Session.FromString(entry.value)) if entry else None

    def list_sessions(self) -> list[Session]:
        """Every session as last heard, newest first."""
        found = [
            session_from_proto(pb.Session.FromString(entry.value))
            for entry in self.sessions_view.entries.values()
        ]
        return sorted(found, key=lambda session: session.created_unix_ms, reverse=True)


def _no_stream(stream: str) -> NotFoundError:
    return NotFoundError(f"there is no stream {stream}", reason="STREAM_NOT_FOUND")


def session_to_proto(session: Session) -> pb.Session:
    values: dict[str, Any] = asdict(session)
    return pb.Session(**{**values, "phase": session.phase.value, "delivery": session.delivery.value})


def session_from_proto(message: pb.Session) -> Session:
    values: dict[str, Any] = {name: getattr(message, name) for name in SESSION_FIELDS}
    values["phase"] = Phase(message.phase)
    values["delivery"] = Delivery(message.delivery)
    values["latency"] = latency_from_proto(message.latency)
    return Session(**values)


def latency_from_proto(message: bridge_pb2.Latency) -> Latency:
    stages = (StageLatency(item.stage, item.p50_us, item.p95_us) for item in message.stages)
    return Latency(message.pictures, tuple(stages))


def patch_to_proto(item: Scheduled) -> runner_pb2.Patch:
    return runner_pb2.Patch(revision=item.revision, patch=dumps(item.patch), apply_at_pts=item.apply_at_pts)


def stream_to_proto(stream: Stream) -> pb.Stream:
    return pb.Stream(
        id=stream.id,
        tenant=stream.tenant,
        name=stream.name,
        pipeline=stream.pipeline,
        params=dumps(stream.params),
        revision=stream.revision,
        params_schema=dumps(stream.params_schema),
        delivery=stream.delivery.value,  # type: ignore[arg-type]  # the enum's values are the wire's
        created_unix_ms=stream.created_unix_ms,
        session=stream.session,
        output_rtmp_url=stream.output_rtmp_url,
        scheduled=[patch_to_proto(item) for item in stream.scheduled],
        last_session=stream.last_session,
        deleted=stream.deleted,
        processes_audio=stream.processes_audio,
        author=stream.author,
        history=[
            pb.Before(revision=one.revision, values=dumps(one.values), added=one.added)
            for one in stream.history
        ],
    )


def stream_from_proto(message: pb.Stream) -> Stream:
    return Stream(
        id=StreamId(message.id),
        tenant=message.tenant,
        name=message.name,
        pipeline=message.pipeline,
        params=json.loads(message.params),
        revision=message.revision,
        params_schema=json.loads(message.params_schema),
        delivery=Delivery(message.delivery),
        created_unix_ms=message.created_unix_ms,
        session=SessionId(message.session),
        output_rtmp_url=message.output_rtmp_url,
        scheduled=tuple(
            Scheduled(item.revision, json.loads(item.patch), item.apply_at_pts) for item in message.scheduled
        ),
        last_session=message.last_session,
        deleted=message.deleted,
        processes_audio=message.processes_audio,
        author=message.author,
        history=tuple(
            Before(one.revision, json.loads(one.values), tuple(one.added)) for one in message.history
        ),
    )


def dumps(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
