"""Which of a tenant's streams are Scope's: those of its sessions, and the one that remembers what is loaded.

The rule it keeps: nothing of it is in this process's memory, so that any ingest process answers alike.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from protos.inference.v1 import runner_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError, NotFoundError, SluiceError, UnavailableError
from services.ingest.auth import Caller
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import new_id
from services.ingest.transports.webrtc import parameters
from services.ingest.transports.webrtc.parameters import ScopeParameters

LOADED: Final = "scope: loaded pipeline"
SESSION: Final = "scope: session"
HEADLESS: Final = "scope: headless session"
HEADLESS_ID: Final = "headless"  # what Scope's clients call that session in paths
ALL: Final = 1000
STALE_MS: Final = 600_000  # an idle session's stream of that age was left behind by a process that was killed


@dataclass(frozen=True, slots=True)
class Choice:
    """A pipeline, and the parameters that its sessions begin with."""

    pipeline: str
    params: dict[str, Any]
    properties: dict[str, Any]  # of the pipeline's schema
    processes_audio: bool

    def with_parameters(self, given: ScopeParameters) -> tuple[Choice, tuple[str, ...]]:
        """The choice with `given` on top, and what of that means nothing to the pipeline."""
        steering = parameters.steering(given, self.properties)
        params = {name: value for name, value in steering.patch.items() if value is not None}
        made = Choice(self.pipeline, {**self.params, **params}, self.properties, self.processes_audio)
        return made, steering.ignored


class Possessions:
    """A tenant's, as the session-manager has them."""

    def __init__(self, plane: ControlPlane, caller: Caller) -> None:
        self._plane = plane
        self._caller = caller

    async def named(self, *names: str) -> Sequence[sessions_pb2.Stream]:
        """The streams with these names, newest first."""
        found = await self._plane.streams(self._caller.tenant, ALL)
        return [stream for stream in found if stream.name in names]

    async def live(self) -> Sequence[sessions_pb2.Stream]:
        """Those that have a session, newest first."""
        return [stream for stream in await self.named(SESSION, HEADLESS) if stream.session]

    async def find(self, sid: str) -> sessions_pb2.Stream:
        """The stream of a session as a client names it. Raises NotFoundError."""
        if sid != HEADLESS_ID:
            return await self._plane.stream(sid, self._caller.tenant)
        for stream in await self.named(HEADLESS):
            return stream
        raise NotFoundError("No active headless session", reason="SESSION_NOT_FOUND")

    async def loaded(self) -> sessions_pb2.Stream | None:
        for stream in await self.named(LOADED):
            return stream
        return None

    async def choice(self, default: str) -> Choice:
        """What was loaded, or the pipeline `default`. Raises UnavailableError, InvalidError."""
        record = await self.loaded()
        if record is None:
            return await self.offered(default)
        properties = json.loads(record.params_schema or "{}").get("properties", {})
        return Choice(record.pipeline, json.loads(record.params), properties, record.processes_audio)

    async def offered(self, pipeline: str) -> Choice:
        """A pipeline with its own defaults. Raises UnavailableError, InvalidError: no runner offers it."""
        offers: dict[str, router_pb2.PipelineCapacity] = {
            offer.pipeline: offer for offer in await self._plane.capacity()
        }
        if not offers:
            raise UnavailableError("no runner is up that could say what it offers", reason="NO_RUNNERS")
        if pipeline not in offers:
            raise InvalidError(
                f"there is no pipeline {pipeline!r}; available: {', '.join(sorted(offers))}", field="pipeline"
            )
        offer = offers[pipeline]
        properties = json.loads(offer.params_schema or "{}").get("properties", {})
        return Choice(pipeline, {}, properties, offer.processes_audio)

    async def make(self, name: str, choice: Choice) -> sessions_pb2.Stream:
        """Write a stream; its parameters are checked by its pipeline's schema. Raises InvalidError."""
        return await self._plane.create_stream(
            sessions_pb2.Stream(
                id=new_id("str"),
                tenant=self._caller.tenant,
                name=name,
                pipeline=choice.pipeline,
                params=json.dumps(choice.params),
                delivery=runner_pb2.DELIVERY_LIVE,
                author=self._caller.key_id,
            )
        )

    async def load(self, choice: Choice) -> sessions_pb2.Stream:
        """Remember `choice`; the newest counts, so there is never none in between."""
        before = await self.named(LOADED)
        made = await self.make(LOADED, choice)
        await self.forget(before)
        return made

    async def forget(self, streams: Sequence[sessions_pb2.Stream]) -> None:
        for stream in streams:
            await self._plane.delete_stream(stream.id, stream.tenant)

    async def tidy(self) -> None:
        """Forget streams whose ingest process was killed before it could."""
        now_ms = time.time_ns() // 1_000_000
        with suppress(SluiceError):
            left = [
                stream
                for stream in await self.named(SESSION)
                if not stream.session and now_ms - stream.created_unix_ms > STALE_MS
            ]
            await self.forget(left)


def pipeline_named(given: ScopeParameters) -> str | None:
    """The one pipeline that a client names in its initial parameters; its graph says more, and so wins.

    Raises InvalidError for several: there is one pipeline a session.
    """
    named = given.pipeline_ids or []
    nodes = (given.graph or {}).get("nodes")
    if isinstance(nodes, list):
        in_graph = [
            str(node.get("pipeline_id"))
            for node in nodes
            if isinstance(node, dict) and node.get("type") == "pipeline"
        ]
        named = in_graph or named
    if len(named) > 1:
        raise InvalidError(
            f"one pipeline a session; {', '.join(named)[:200]} are {len(named)}",
            reason="ONE_PIPELINE",
            field="pipeline_ids",
        )
    return named[0] if named else None
