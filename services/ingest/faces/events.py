"""`/v1/streams/{id}/events`: what happens to a stream, as server-sent events, while the client listens.

`status` (each second while there is a session: as in the stream's status), `applied` and `refused` (what
became of a revision of the parameters), `loading`, `health` and `problem` (how the runner is; who comes late
hears the newest), `moved` (it goes on with another runner), `data` (what the pipeline says), `ended` (a
session, with its reason). It goes on over the stream's sessions, and ends where one goes on, or may go on, at
another ingest process: whoever asks again is passed on to that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.responses import Response

from protos.sessions.v1 import sessions_pb2
from services.common.errors import DeadlineExceededError, NotFoundError, SluiceError, UnavailableError
from services.common.latest import DropOldest
from services.common.lifecycle import background
from services.common.trickle.protocol import CURRENT
from services.ingest.bridge.identity import GOES_ON
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import CallerOf, Core, CoreOf
from services.ingest.faces.endless import EndlessResponse
from services.ingest.faces.sessions import known_of, session_object
from services.ingest.runner_news import standing, told

router = APIRouter(prefix="/v1/streams", tags=["streams"])
STATUS_S: Final = 1.0
LOOK_S: Final = 5.0  # how often a stream that is not live here is looked up
QUIET_S: Final = 15.0  # a comment then, so that nothing between us and the client thinks the line is dead
CAPACITY: Final = 256  # events that wait for a slow client; the oldest go first, and it is told how many
CHANGING: Final = frozenset({sessions_pb2.PHASE_ALLOCATING, sessions_pb2.PHASE_MIGRATING})


@router.get("/{stream_id}/events")
async def events(stream_id: str, caller: CallerOf, core: CoreOf) -> Response:
    """Follow a stream; `text/event-stream`."""
    await core.plane.stream(stream_id, caller.tenant)
    seat = core.listening.take(stream_id, caller.tenant)
    return EndlessResponse(
        _lines(stream_id, core),
        media_type="text/event-stream",
        stall_s=core.settings.viewer_stall_s,
        done=seat.release,
    )


async def _lines(stream_id: str, core: Core) -> AsyncGenerator[bytes]:
    queue: DropOldest[bytes | None] = DropOldest(CAPACITY)
    lost = 0
    async with background(follow=_follow(stream_id, core, queue)):
        while True:
            try:
                async with asyncio.timeout(QUIET_S):
                    line = await queue.get()
            except TimeoutError:
                line = b": still here\n\n"
            if queue.dropped > lost:
                yield _event("lost", {"events": queue.dropped - lost})
                lost = queue.dropped
            if line is None:
                return
            yield line


async def _follow(stream_id: str, core: Core, queue: DropOldest[bytes | None]) -> None:
    """One session after the other, until the stream is found to be elsewhere."""
    session: BridgeSession | None = None
    while True:
        session = await core.hub.wait_for(stream_id, LOOK_S, other_than=session)
        if session is None:
            if await _elsewhere(stream_id, core):
                break
            continue
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_status(session, core, queue)),
                group.create_task(_news(session, queue)),
                group.create_task(_said(session, queue)),
            ]
            closed = await asyncio.shield(session.closed)
            for task in tasks:
                task.cancel()
        if closed.reason in GOES_ON:
            break
        ended = {"session": session.identity.session, "reason": closed.reason, "message": closed.message}
        queue.put(_event("ended", ended))
    queue.put(None)
    await asyncio.Event().wait()  # `_lines` ends with what was put last


async def _elsewhere(stream_id: str, core: Core) -> bool:
    """Whether another ingest process has the stream's session."""
    try:
        stream = await core.plane.stream(stream_id)
        if not stream.session or core.hub.of_stream(stream_id) is not None:
            return False
        there = (await core.plane.session(stream.session)).signalling
    except SluiceError:
        return False
    return there not in {"", core.settings.own_url}


async def _status(session: BridgeSession, core: Core, queue: DropOldest[bytes | None]) -> None:
    while True:
        try:
            record = await core.plane.session(session.identity.session, session.identity.tenant)
        except (NotFoundError, UnavailableError, DeadlineExceededError):
            # The record is written a moment after the bridge has the session, and may be out of reach later.
            await asyncio.sleep(STATUS_S)
            continue
        known = await known_of([record], core)
        for _ in range(1 if record.phase in CHANGING else 5):  # what the record says changes seldom
            queue.put(_event("status", session_object(record, core, known)))
            await asyncio.sleep(STATUS_S)


async def _news(session: BridgeSession, queue: DropOldest[bytes | None]) -> None:
    for state in standing(session.heard):
        queue.put(_event(*told(state)))
    known = session.heard.count
    while True:
        version = session.changed.version
        for news in session.heard.since(known):
            queue.put(_event(*told(news)))
        known = session.heard.count
        await session.changed.newer_than(version)


async def _said(session: BridgeSession, queue: DropOldest[bytes | None]) -> None:
    async for segment in session.data.read(CURRENT):  # who comes late hears the newest that was said
        text = b"".join([data async for data in segment])
        for line in text.splitlines():
            queue.put(b"event: data\ndata: " + line + b"\n\n")
    await asyncio.Event().wait()  # its end is told by the session's


def _event(name: str, fields: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()
