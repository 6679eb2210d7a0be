"""Streams and sessions in NATS KV: every change is a pure step under compare-and-set."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Final

from google.protobuf.message import Message

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.bus import Bucket, Entry, ParsedView
from services.common.errors import ConflictError, NotFoundError
from services.session_manager.machine import (
    ID,
    Delivery,
    Latency,
    Move,
    Phase,
    Place,
    Policy,
    Session,
    SessionId,
    StageLatency,
    Stream,
    StreamId,
    Wishes,
)
from services.session_manager.revisions import Before, Scheduled

SESSION_FIELDS: Final = [field.name for field in pb.Session.DESCRIPTOR.fields]


class Store:
    """The two buckets with their views. Reads for decisions go to the bucket, lists come from the views."""

    def __init__(self, streams: Bucket, sessions: Bucket) -> None:
        self.streams = streams
        self.sessions = sessions
        self.streams_view = ParsedView(lambda raw: stream_from_proto(pb.Stream.FromString(raw)))
        self.sessions_view = SessionsView(lambda raw: session_from_proto(pb.Session.FromString(raw)))

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
            return None if was.deleted else written(stream_to_proto(replace(was, deleted=True)), raw)

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
            return None if now == was else written(stream_to_proto(now), raw)

        if not ID.match(stream):
            raise _no_stream(stream)
        value, _ = await self.streams.change(stream, apply)
        return stream_from_proto(pb.Stream.FromString(value))

    def stream_seen(self, stream: str) -> Stream | None:
        """The stream as last heard."""
        return self.streams_view.parsed.get(stream)

    def list_streams(self, tenant: str) -> list[Stream]:
        """A tenant's streams as last heard, newest first."""
        everything = self.streams_view.parsed.values()
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
            return None if now == was else written(session_to_proto(now), raw)

        value, _ = await self.sessions.change(session, apply)
        return session_from_proto(pb.Session.FromString(value))

    async def release_stream(self, session: Session) -> None:
        """Make the stream of `session` idle, if it is its live one."""
        await self.change_stream(session.stream, lambda was: was.released_by(session.id))

    def session_seen(self, session: str) -> Session | None:
        """The session as last heard."""
        return self.sessions_view.parsed.get(session)

    def list_sessions(self) -> list[Session]:
        """Every session as last heard, newest first."""
        found = self.sessions_view.parsed.values()
        return sorted(found, key=lambda session: session.created_unix_ms, reverse=True)

    async def session_beyond(self, session: str, revision: int) -> Session:
        """Wait until another revision of the session than that one is heard."""
        with self.sessions_view.news_of(session) as news:
            while True:
                seen = self.session_seen(session)
                if seen is not None and seen.revision != revision:
                    return seen
                news.clear()
                await news.wait()


class SessionsView(ParsedView[Session]):
    """Wakes who waits for one session, and not everybody at every change of any."""

    def __init__(self, parse: Callable[[bytes], Session]) -> None:
        super().__init__(parse)
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def news_of(self, session: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the session may have changed."""
        news = asyncio.Event()
        self._waiting.setdefault(session, set()).add(news)
        try:
            yield news
        finally:
            waiting = self._waiting[session]
            waiting.discard(news)
            if not waiting:
                del self._waiting[session]

    def replace(self, entries: dict[str, Entry]) -> None:
        super().replace(entries)
        for waiting in self._waiting.values():
            for news in waiting:
                news.set()

    def put(self, key: str, entry: Entry | None) -> None:
        super().put(key, entry)
        for news in self._waiting.get(key, ()):
            news.set()


def written(record: Message, was: bytes | None) -> bytes:
    """Return `record` with what a newer version had in the place of it and this one does not know.

    In a rollout both write the same records.
    """
    message = type(record)()
    message.MergeFromString(was or b"")
    for field in message.DESCRIPTOR.fields:
        message.ClearField(field.name)
    message.MergeFrom(record)
    return message.SerializeToString()


def _no_stream(stream: str) -> NotFoundError:
    return NotFoundError(f"there is no stream {stream}", reason="STREAM_NOT_FOUND")


def session_to_proto(session: Session) -> pb.Session:
    values: dict[str, Any] = {name: getattr(session, name) for name in SESSION_FIELDS}
    return pb.Session(
        **{
            **values,
            "phase": session.phase.value,
            "delivery": session.delivery.value,
            "latency": asdict(session.latency),
            "wishes": wishes_to_proto(session.wishes),
            "next": pb.Place(**asdict(session.next)) if session.next else None,
            "moves": [move_to_proto(move) for move in session.moves],
        }
    )


def session_from_proto(message: pb.Session) -> Session:
    values: dict[str, Any] = {name: getattr(message, name) for name in SESSION_FIELDS}
    values["phase"] = Phase(message.phase)
    values["delivery"] = Delivery(message.delivery)
    values["latency"] = latency_from_proto(message.latency)
    values["wishes"] = wishes_from_proto(message.wishes)
    values["next"] = place_from_proto(message.next) if message.HasField("next") else None
    values["moves"] = tuple(move_from_proto(move) for move in message.moves)
    return Session(**values)


def wishes_to_proto(wishes: Wishes) -> pb.Wishes:
    return pb.Wishes(
        region=wishes.region,
        gpu_class=wishes.gpu_class,
        labels=wishes.labels,
        max_micro_per_second=wishes.max_micro_per_second,
        policy=wishes.policy.value,  # type: ignore[arg-type]  # the enum's values are the wire's
        priority=wishes.priority,
        max_wait_ms=wishes.max_wait_ms,
    )


def wishes_from_proto(message: pb.Wishes) -> Wishes:
    return Wishes(
        region=message.region,
        gpu_class=message.gpu_class,
        labels=dict(message.labels),
        max_micro_per_second=message.max_micro_per_second,
        policy=Policy(message.policy),
        priority=message.priority,
        max_wait_ms=message.max_wait_ms,
    )


def place_from_proto(message: pb.Place) -> Place:
    return Place(
        message.runner,
        message.address,
        message.slot,
        message.slot_epoch,
        message.epoch,
        message.boot_id,
        message.why,
    )


def move_to_proto(move: Move) -> pb.Move:
    facts = asdict(move)
    return pb.Move(**{"from": facts.pop("left"), **facts})


def move_from_proto(message: pb.Move) -> Move:
    return Move(
        unix_ms=message.unix_ms,
        left=getattr(message, "from"),
        to=message.to,
        why=message.why,
        epoch=message.epoch,
        freeze_ms=message.freeze_ms,
        lost=message.lost,
        repeated=message.repeated,
    )


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
        wishes=wishes_to_proto(stream.wishes),
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
        wishes=wishes_from_proto(message.wishes),
    )


def dumps(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True)
