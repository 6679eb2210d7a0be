"""The gRPC face of streams and sessions: validates what was asked; `Lives` and `Store` do the work."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import grpc
import grpc.aio

from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from protos.sessions.v1 import sessions_pb2_grpc
from services.common.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from services.common.json_objects import json_object
from services.common.param_schema import validate, with_defaults
from services.session_manager.draining import drain
from services.session_manager.failover import FAILURES, FORCED
from services.session_manager.life import Lives
from services.session_manager.machine import (
    ID,
    Delivery,
    Phase,
    Policy,
    Reason,
    SessionId,
    Stream,
    StreamId,
    Wishes,
)
from services.session_manager.neighbours import MAX_WAIT_S, Neighbours, position_to_proto
from services.session_manager.rejoining import Rejoining
from services.session_manager.revisions import merged, whole
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import (
    Store,
    session_to_proto,
    stream_to_proto,
    wishes_from_proto,
)
from services.session_manager.telling import now_unix_ms
from services.session_manager.updating import Updating

NAME_MAX: Final = 200
PARAMS_MAX_BYTES: Final = 128 * 1024
LIST_MAX: Final = 1000
WATCH_EVERY_S: Final = 0.1
MAX_PRIORITY: Final = 100
MAX_LABELS: Final = 16
MAX_WORD: Final = 63  # as Kubernetes' label values
WHY: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
Context = grpc.aio.ServicerContext[object, object]


class SessionsServicer(sessions_pb2_grpc.SessionsServicer):
    """`sluice.sessions.v1.Sessions`."""

    def __init__(
        self, *, store: Store, lives: Lives, neighbours: Neighbours, settings: SessionManagerSettings
    ) -> None:
        self._store = store
        self._lives = lives
        self._neighbours = neighbours
        self._settings = settings
        self._updating = Updating(store=store, neighbours=neighbours, settings=settings, aside=lives.aside)
        self._rejoining = Rejoining(store=store, neighbours=neighbours, settings=settings)

    async def CreateStream(self, request: pb.CreateStreamRequest, context: Context) -> pb.Stream:
        wanted = request.stream
        stream_id = identifier(wanted.id, "stream.id")
        if not wanted.tenant:
            raise InvalidError("the stream has no tenant", field="stream.tenant")
        if len(wanted.name) > NAME_MAX:
            raise InvalidError(f"a name has at most {NAME_MAX} characters", field="name")
        mine = self._store.list_streams(wanted.tenant)
        if len(mine) >= self._settings.max_streams_per_tenant:
            raise RateLimitedError(
                f"a tenant has at most {self._settings.max_streams_per_tenant} streams",
                reason="TOO_MANY_STREAMS",
            )
        offer = await self._offer(wanted.pipeline)
        schema = json_object(offer.params_schema, "params_schema")
        params = with_defaults(parameters(wanted.params, "params"), schema)
        validate(params, schema)
        stream = Stream(
            id=StreamId(stream_id),
            tenant=wanted.tenant,
            name=wanted.name,
            pipeline=wanted.pipeline,
            params=params,
            params_schema=schema,
            created_unix_ms=now_unix_ms(),
            delivery=delivery(wanted.delivery),
            output_rtmp_url=wanted.output_rtmp_url,
            processes_audio=offer.processes_audio,
            author=wanted.author,
            wishes=wishes(wanted.wishes),
        )
        return stream_to_proto(await self._store.create_stream(stream))

    async def _offer(self, pipeline: str) -> router_pb2.PipelineCapacity:
        offers = {offer.pipeline: offer for offer in await self._neighbours.capacity()}
        if not offers:
            raise UnavailableError("no runner is up that could say what it offers", reason="NO_RUNNERS")
        if pipeline not in offers:
            raise InvalidError(
                f"there is no pipeline {pipeline!r}; available: {', '.join(sorted(offers))}", field="pipeline"
            )
        return offers[pipeline]

    async def GetStream(self, request: pb.GetStreamRequest, context: Context) -> pb.Stream:
        return stream_to_proto(await self._store.stream(request.id, request.tenant))

    async def ListStreams(self, request: pb.ListStreamsRequest, context: Context) -> pb.ListStreamsResponse:
        found = self._store.list_streams(request.tenant)[: limit(request.limit)]
        return pb.ListStreamsResponse(streams=[stream_to_proto(stream) for stream in found])

    async def DeleteStream(
        self, request: pb.DeleteStreamRequest, context: Context
    ) -> pb.DeleteStreamResponse:
        try:
            stream = await self._store.retire_stream(request.id, request.tenant)
        except NotFoundError:
            return pb.DeleteStreamResponse()
        if stream.session:
            with suppress(NotFoundError):  # its record is gone: long ended
                await self._lives.end(stream.session, Reason.STREAM_DELETED, "the stream was deleted")
        await self._store.streams.delete(stream.id)
        return pb.DeleteStreamResponse()

    async def StartSession(
        self, request: pb.StartSessionRequest, context: Context
    ) -> pb.StartSessionResponse:
        session_id = identifier(request.session, "session")
        if not request.bridge:
            raise InvalidError("the bridge's address is missing", field="bridge")
        stream = await self._store.stream(request.stream)
        session = await self._lives.start(stream, SessionId(session_id), request.bridge, request.signalling)
        return pb.StartSessionResponse(session=session_to_proto(session))

    async def Update(self, request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        patch = parameters(request.patch, "patch")
        if request.apply_at_pts < 0:
            raise InvalidError("a media time is not negative", field="apply_at_pts")

        made: dict[str, object] = {}

        def step(was: Stream) -> Stream:
            nonlocal made
            made = whole(with_reset(patch, was), was.params)
            if request.pipeline and request.pipeline != was.pipeline:
                raise ConflictError(
                    f"the stream runs {was.pipeline}; another pipeline needs a new stream",
                    reason="PIPELINE_FIXED",
                    field="pipeline",
                )
            if request.expected_revision and request.expected_revision != was.revision:
                raise ConflictError(
                    f"the parameters are at revision {was.revision}",
                    reason="REVISION_MOVED",
                    revision=was.revision,
                )
            if not patch:
                return was
            validate(with_defaults(merged(was.params, made), was.params_schema), was.params_schema)
            return was.patched(made, request.apply_at_pts)

        stream = await self._store.change_stream(request.stream, step, request.tenant)
        applies = await self._updating.tell(stream, made, request.apply_at_pts)
        return pb.UpdateResponse(stream=stream_to_proto(stream), revision=stream.revision, applies=applies)

    async def Stop(self, request: pb.StopRequest, context: Context) -> pb.StopResponse:
        session = await self._store.session(request.session, request.tenant)
        await self._lives.end(session.id, request.reason or Reason.STOPPED, request.message)
        return pb.StopResponse()

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Session:
        return session_to_proto(await self._store.session(request.session, request.tenant))

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        found = [
            session
            for session in self._store.list_sessions()
            if (not request.tenant or session.tenant == request.tenant)
            and (request.ended or session.phase is not Phase.ENDED)
        ]
        return pb.ListResponse(sessions=[session_to_proto(s) for s in found[: limit(request.limit)]])

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Session]:
        view = self._store.sessions_view
        revisions: dict[str, int] = {session.id: session.revision for session in self._store.list_sessions()}
        version = view.changed.version
        while True:
            version, _ = await view.changed.newer_than(version)
            for session in tuple(view.parsed.values()):
                if request.tenant and session.tenant != request.tenant:
                    continue
                if revisions.get(session.id) != session.revision:
                    revisions[session.id] = session.revision
                    yield session_to_proto(session)
            await asyncio.sleep(WATCH_EVERY_S)  # it looks at every record, of thousands of changes a second

    async def Rejoin(self, request: pb.RejoinRequest, context: Context) -> pb.RejoinResponse:
        if not request.bridge:
            raise InvalidError("the bridge's address is missing", field="bridge")
        session, resume = await self._rejoining.rejoin(request.stream, request.bridge, request.signalling)
        return pb.RejoinResponse(session=session_to_proto(session), resume=position_to_proto(resume))

    async def Move(self, request: pb.MoveRequest, context: Context) -> pb.Session:
        why = request.why or "asked"
        if not WHY.fullmatch(why) or why in FAILURES | FORCED:
            raise InvalidError("why is a word of a wish, not of a failure", field="why")
        session = await self._store.session(request.session, request.tenant)
        moved = await self._store.change_session(session.id, lambda was: was.wished_elsewhere(why))
        return session_to_proto(moved)

    async def DrainRunner(self, request: pb.DrainRunnerRequest, context: Context) -> pb.DrainRunnerResponse:
        left = await drain(
            request.runner, cancel=request.cancel, store=self._store, neighbours=self._neighbours
        )
        return pb.DrainRunnerResponse(sessions=left)


def wishes(wanted: pb.Wishes) -> Wishes:
    """What a stream asks of where it runs. Raises InvalidError that names the field."""
    if not -MAX_PRIORITY <= wanted.priority <= MAX_PRIORITY:
        raise InvalidError(f"a priority is -{MAX_PRIORITY} to {MAX_PRIORITY}", field="wishes.priority")
    if not 0 <= wanted.max_wait_ms <= MAX_WAIT_S * 1000:
        raise InvalidError(f"a wait is at most {MAX_WAIT_S:g} s", field="wishes.max_wait_ms")
    if wanted.max_micro_per_second < 0:
        raise InvalidError("a price is not negative", field="wishes.max_micro_per_second")
    if wanted.policy not in {policy.value for policy in Policy}:
        raise InvalidError("a policy is balanced, cheapest or fastest", field="wishes.policy")
    words = {"region": [wanted.region], "gpu_class": [wanted.gpu_class]}
    words["labels"] = [word for pair in wanted.labels.items() for word in pair]
    for field, said in words.items():
        if len(said) > 2 * MAX_LABELS or any(len(word) > MAX_WORD for word in said):
            raise InvalidError(
                f"at most {MAX_LABELS} labels, of {MAX_WORD} characters", field=f"wishes.{field}"
            )
    return wishes_from_proto(wanted)


def identifier(value: str, field: str) -> str:
    if not ID.match(value):
        raise InvalidError(f"{field} must look like str_ or ses_ and 8 to 40 letters and digits", field=field)
    return value


def delivery(value: int) -> Delivery:
    try:
        return Delivery(value or Delivery.LIVE.value)
    except ValueError:
        raise InvalidError("delivery is live or complete", field="delivery") from None


def parameters(text: str, field: str) -> dict[str, object]:
    if len(text) > PARAMS_MAX_BYTES:
        raise InvalidError(f"{field} has more than {PARAMS_MAX_BYTES} bytes", field=field)
    return json_object(text, field)


def with_reset(patch: dict[str, object], stream: Stream) -> dict[str, object]:
    """Return `patch` with null, which removes in a merge patch, replaced by the parameter's default."""
    defaults = with_defaults({}, stream.params_schema)
    return {name: defaults.get(name) if value is None else value for name, value in patch.items()}


def limit(asked: int) -> int:
    if not 0 <= asked <= LIST_MAX:
        raise InvalidError(f"limit is between 0 and {LIST_MAX}", field="limit")
    return asked or 100
