"""`/v1/streams` as Daydream's shipped clients call it, which is our own API too, extended.

Ours are `delivery`, `wishes`, `apply_at_ms`, `?wait=applied`; what is answered is in `shapes.py`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError, NotFoundError
from services.ingest.auth import Caller
from services.ingest.control_plane import LONGEST_WAIT_S
from services.ingest.faces.context import CallerOf, Core, CoreOf, caller, knows_nobody
from services.ingest.faces.sessions import Known, known_of
from services.ingest.faces.shapes import POLICIES, public_part, status_object, stream_object
from services.ingest.publishing import new_id
from services.ingest.steering import AT_START
from services.ingest.times import media_ms, media_pts
from services.ingest.transports.rtmp.target import validate_target

router = APIRouter(prefix="/v1/streams", tags=["streams"])
legacy = APIRouter(prefix="/beta/streams", include_in_schema=False)

# The pipeline ids that older shipped clients send; all of them are StreamDiffusion with a model.
LEGACY_PIPELINES: Final = {
    "pip_qpUgXycjWF6YMeSL": {},
    "pip_SD-turbo": {"model_id": "stabilityai/sd-turbo"},
    "pip_SDXL-turbo": {"model_id": "stabilityai/sdxl-turbo"},
    "pip_SD15": {"model_id": "Lykon/dreamshaper-8"},
}
STREAMDIFFUSION: Final = "streamdiffusion"


Word = Annotated[str, Field(max_length=100)]


class WishesBody(BaseModel):
    """What a stream asks of where it runs; a wish that nobody knows is refused, for it would not be met."""

    model_config = ConfigDict(extra="forbid", strict=True)

    region: Word = ""
    gpu_class: Word = ""
    labels: dict[Word, Word] = Field({}, max_length=20)
    max_price_per_second: int | None = Field(None, ge=1, le=1_000_000_000_000)  # micro-units
    policy: Literal["balanced", "cheapest", "fastest"] = "balanced"
    priority: int = Field(0, ge=-100, le=100)
    max_wait_s: float | None = Field(None, gt=0, le=LONGEST_WAIT_S)

    def to_proto(self) -> sessions_pb2.Wishes:
        return sessions_pb2.Wishes(
            region=self.region,
            gpu_class=self.gpu_class,
            labels=self.labels,
            max_micro_per_second=self.max_price_per_second or 0,
            policy=next(value for value, name in POLICIES.items() if name == self.policy),
            priority=self.priority,
            max_wait_ms=round((self.max_wait_s or 0) * 1000),
        )


class StreamBody(BaseModel):
    """What clients send to create or change a stream; unknown fields are other versions' and are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field("", max_length=200)
    pipeline: str = Field("", max_length=100)
    params: dict[str, Any] = {}
    pipeline_id: str = Field("", max_length=100)
    pipeline_params: dict[str, Any] = {}
    prompt: str | list[Any] | None = None
    prompts: str | list[Any] | None = None
    output_rtmp_url: str | None = Field(None, max_length=2000)
    delivery: Literal["live", "complete"] = "live"
    apply_at_ms: Annotated[int, Field(ge=0, le=7 * 86_400_000)] | None = None
    wishes: WishesBody | None = None

    def wanted(self) -> tuple[str, dict[str, Any]]:
        """The pipeline's name, empty if none was named, and the parameters, whichever body they came in."""
        params = {**self.pipeline_params, **self.params}
        inner = str(params.pop("pipeline_id", ""))
        legacy = self.pipeline_id or inner
        prompt = self.prompt if self.prompt is not None else self.prompts
        if prompt is not None:
            params.setdefault("prompt", prompt)
        if self.pipeline or not legacy:
            return self.pipeline, params
        return STREAMDIFFUSION, {**LEGACY_PIPELINES.get(legacy, {}), **params}


@router.post("", status_code=201)
async def create(body: StreamBody, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Create a stream. Nothing is allocated until somebody publishes to it."""
    pipeline, params = body.wanted()
    if body.output_rtmp_url:
        validate_target(body.output_rtmp_url, private=core.settings.rtmp_push_private)
    complete = body.delivery == "complete"
    stream = await core.plane.create_stream(
        sessions_pb2.Stream(
            id=new_id("str"),
            tenant=caller.tenant,
            name=body.name,
            pipeline=pipeline or core.settings.default_pipeline,
            params=json.dumps(params),
            delivery=runner_pb2.DELIVERY_COMPLETE if complete else runner_pb2.DELIVERY_LIVE,
            author=caller.key_id,
            output_rtmp_url=body.output_rtmp_url or "",
            wishes=body.wishes.to_proto() if body.wishes else None,
        )
    )
    return stream_object(stream, core, request)


@router.get("")
async def get_all(
    request: Request, caller: CallerOf, core: CoreOf, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """List the tenant's streams, newest first."""
    found = await core.plane.streams(caller.tenant, limit)
    return {"success": True, "data": [stream_object(stream, core, request) for stream in found]}


@router.get("/{stream_id}")
async def get_by_id(stream_id: str, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    return stream_object(await core.plane.stream(stream_id, caller.tenant), core, request)


@router.patch("/{stream_id}")
async def update(
    stream_id: str,
    body: StreamBody,
    request: Request,
    caller: CallerOf,
    core: CoreOf,
    wait: Annotated[Literal["applied"] | None, Query()] = None,
) -> dict[str, Any]:
    """Change parameters, while the stream runs too: all of them or, if one is wrong, none.

    `apply_at_ms`: media time, 0 = the first picture of the running session. `?wait=applied` answers when the
    change is in a picture.
    """
    return await _changed(stream_id, body, request, caller, core, wait=wait)


@legacy.post("/{stream_id}/prompts")
async def prompts(
    stream_id: str, body: StreamBody, request: Request, caller: CallerOf, core: CoreOf
) -> dict[str, Any]:
    """Change the prompt as Daydream's first clients did."""
    return await _changed(stream_id, body, request, caller, core)


async def _changed(
    stream_id: str,
    body: StreamBody,
    request: Request,
    caller: Caller,
    core: Core,
    *,
    wait: Literal["applied"] | None = None,
) -> dict[str, Any]:
    pipeline, params = body.wanted()
    if body.wishes is not None:
        raise InvalidError(
            "wishes: they are a stream's from its beginning; make another stream", field="wishes"
        )
    change = await core.steering.change(
        stream_id,
        caller.tenant,
        params,
        pipeline=pipeline,
        apply_at_pts=0 if body.apply_at_ms is None else media_pts(body.apply_at_ms),
    )
    applied: dict[str, Any] = {"revision": change.revision, "applies": change.applies, "pts_ms": None}
    session = core.hub.of_stream(stream_id)
    if wait == "applied" and change.applies != AT_START and session is not None:
        shown = await core.steering.applied(session, change)
        applied |= {"applies": shown.applies, "pts_ms": media_ms(shown.pts)}
    return {**stream_object(change.stream, core, request), "update": applied}


@router.delete("/{stream_id}")
async def delete(stream_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """End the stream's session, if it has one, and forget the stream."""
    await core.plane.stream(stream_id, caller.tenant)
    await core.plane.delete_stream(stream_id, caller.tenant)
    return {"success": True, "data": {}}


@router.delete("")
async def delete_by_query(
    stream_id: Annotated[str, Query(alias="id")], caller: CallerOf, core: CoreOf
) -> dict[str, Any]:
    return await delete(stream_id, caller, core)


@router.get("/{stream_id}/status")
async def status(stream_id: str, request: Request, core: CoreOf) -> dict[str, Any]:
    """What the stream is doing, in Daydream's words and, under `sluice`, in ours.

    Without a key: its state and where it is watched, for clients that know only its unguessable id.
    """
    if knows_nobody(request):
        stream = await core.plane.stream(stream_id)
        whole = status_object(stream, await _newest(stream, core), Known(), core, request)
        return {**whole, "data": public_part(whole["data"])}
    who = await caller(request)
    stream = await core.plane.stream(stream_id, who.tenant)
    newest = await _newest(stream, core)
    known = Known() if newest is None else await known_of([newest], core)
    return status_object(stream, newest, known, core, request)


async def _newest(stream: sessions_pb2.Stream, core: Core) -> sessions_pb2.Session | None:
    try:
        return await core.plane.session(stream.last_session) if stream.last_session else None
    except NotFoundError:
        return None
