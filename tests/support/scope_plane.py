"""A control plane in dictionaries that offers two real pipelines, as a session-manager and a router would."""

from __future__ import annotations

import json
import time

from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError
from services.common.json_objects import merge_patch
from services.common.param_schema import validate, with_defaults
from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.passthrough import Passthrough
from sluice.pipeline import Pipeline, schema
from tests.support.house import Plane

OFFERED: dict[str, type[Pipeline]] = {"effects": Effects, "passthrough": Passthrough}


class ScopePlane(Plane):
    """Streams have their pipeline's defaults and are checked by its schema; the newest is listed first."""

    async def capacity(self) -> list[router_pb2.PipelineCapacity]:
        return [
            router_pb2.PipelineCapacity(
                pipeline=name,
                description=pipeline.description,
                version=pipeline.version,
                params_schema=json.dumps(schema(pipeline)),
                slots=2,
                free=1,
            )
            for name, pipeline in OFFERED.items()
        ]

    async def create_stream(self, stream: sessions_pb2.Stream) -> sessions_pb2.Stream:
        if stream.pipeline not in OFFERED:
            raise InvalidError(f"there is no pipeline {stream.pipeline!r}", field="pipeline")
        rules = schema(OFFERED[stream.pipeline])
        params = with_defaults(json.loads(stream.params), rules)
        validate(params, rules)
        made = await super().create_stream(stream)
        made.params, made.params_schema = json.dumps(params), json.dumps(rules)
        made.created_unix_ms = time.time_ns() // 1_000_000
        return made

    async def streams(self, tenant: str, limit: int) -> list[sessions_pb2.Stream]:
        found = await super().streams(tenant, len(self.known))
        return found[::-1][:limit]

    async def update(self, request: sessions_pb2.UpdateRequest) -> sessions_pb2.UpdateResponse:
        self._call()
        self.updates.append(request)
        stream = await self.stream(request.stream, request.tenant)
        rules = json.loads(stream.params_schema)
        merged = merge_patch(json.loads(stream.params), json.loads(request.patch))
        assert isinstance(merged, dict)
        stream.params = json.dumps(with_defaults(merged, rules))
        stream.revision += 1
        return sessions_pb2.UpdateResponse(stream=stream, revision=stream.revision, applies=self.applies)

    async def delete_stream(self, stream: str, tenant: str) -> None:
        if stream in self.known and self.known[stream].tenant == tenant:
            del self.known[stream]
