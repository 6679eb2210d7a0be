"""What a tenant asks about: sessions, usage, balance, prices; and what the fleet offers."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from protos.events.v1 import events_pb2
from protos.router.v1 import router_pb2
from services.common.errors import NotFoundError
from services.ingest.faces.context import CallerOf, CoreOf
from services.ingest.faces.shapes import session_object
from services.ingest.times import iso

router = APIRouter(prefix="/v1", tags=["account"])
CODECS: Final = "codecs"  # the label by which a runner says what it can encode
CODEC: Final = re.compile(r"[\w.-]+")
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/sessions")
async def sessions(
    caller: CallerOf, core: CoreOf, limit: Limit = 100, ended: Annotated[bool, Query()] = False
) -> dict[str, Any]:
    """List the tenant's sessions, newest first; with `ended=true` those that have ended too."""
    found = await core.plane.sessions(caller.tenant, limit, ended=ended)
    return {"data": [session_object(record, core) for record in found]}


@router.get("/sessions/{session_id}")
async def session(session_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    record = await core.plane.session(session_id, caller.tenant)
    return session_object(record, core)


@router.get("/sessions/{session_id}/latency")
async def latency(session_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Where the time of its newest pictures goes, stage by stage; of an ended session, of its last ones."""
    record = await core.plane.session(session_id, caller.tenant)
    live = core.hub.of_stream(record.stream)
    here = live is not None and live.identity.session == record.id
    found = live.latency() if live is not None and here else record.latency
    if not found.pictures:
        raise NotFoundError(
            "no picture of this session is known from end to end (while it runs, only the ingest process that"
            " has its publisher knows)",
            reason="NO_LATENCY",
            session=record.id,
        )
    return {
        "session": record.id,
        "pipeline": record.pipeline,
        "live": here,
        "pictures": found.pictures,
        "stages": [
            {"stage": item.stage, "p50_ms": item.p50_us / 1000, "p95_ms": item.p95_us / 1000}
            for item in found.stages
        ],
    }


@router.delete("/sessions/{session_id}")
async def stop(session_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Stop a session; its stream stays and can be published again."""
    await core.plane.stop_session(session_id, caller.tenant)
    return {"success": True, "data": {}}


@router.get("/usage")
async def usage(
    caller: CallerOf, core: CoreOf, limit: Limit = 100, session: Annotated[str, Query(max_length=64)] = ""
) -> dict[str, Any]:
    """What was used and what it cost, a line per session, as the ledger has it."""
    found = await core.plane.usage(caller.tenant, session, limit)
    balance = await core.plane.balance(caller.tenant)
    return {
        "data": [
            {
                "session": line.session,
                "stream": line.stream,
                "pipeline": line.pipeline,
                "delivered_ms": line.delivered_ms,
                "paused_ms": line.paused_ms,
                "cost_micro": line.cost_micro,
                "written_off_micro": line.written_off_micro,
                "micro_per_second": line.micro_per_second,
                "opened_at": iso(line.opened_unix_ms),
                "settled": line.settled,
                "final": line.final,
            }
            for line in found
        ],
        "balance_micro": balance.balance_micro,
        "available_micro": balance.available_micro,
    }


@router.get("/balance")
async def balance(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    found = await core.plane.balance(caller.tenant)
    return {
        "balance_micro": found.balance_micro,
        "reserved_micro": found.reserved_micro,
        "available_micro": found.available_micro,
    }


@router.get("/prices")
async def prices(core: CoreOf) -> dict[str, Any]:
    found = await core.plane.prices()
    return {
        "currency": found.currency,
        "data": [
            {
                "pipeline": price.pipeline,
                "micro_per_second": price.micro_per_second,
                "hold_micro_per_second": price.hold_micro_per_second,
            }
            for price in found.prices
        ],
    }


@router.get("/pipelines")
async def pipelines(core: CoreOf) -> dict[str, Any]:
    """What can be had: the schema of its parameters, how many slots are free, and on what it runs.

    `warm`: a runner has it loaded, so that a stream starts without a wait. `devices` and `codecs` are what
    its runners say of themselves.
    """
    offers, runners = await asyncio.gather(core.plane.capacity(), core.plane.runners())
    return {
        "data": [
            {
                "pipeline": offer.pipeline,
                "version": offer.version,
                "description": offer.description,
                "params_schema": json.loads(offer.params_schema),
                "processes_audio": offer.processes_audio,
                "slots": offer.slots,
                "free": offer.free,
                **_places(offer.pipeline, [view.advert for view in runners]),
            }
            for offer in offers
        ]
    }


def _places(pipeline: str, adverts: Sequence[events_pb2.RunnerAdvert]) -> dict[str, Any]:
    """Where a pipeline runs, over all runners that offer it."""
    found = [(advert, mine) for advert in adverts for mine in advert.pipelines if mine.name == pipeline]
    codecs = [CODEC.findall(advert.labels[CODECS]) for advert, _ in found if CODECS in advert.labels]
    return {
        "warm": any(mine.warm for _, mine in found),
        "devices": sorted({advert.gpu_class for advert, _ in found if advert.gpu_class}),
        "codecs": sorted({codec for named in codecs for codec in named}),
    }


@router.get("/runners")
async def runners(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """List the runners with their slots; whose session holds a slot is shown to its tenant only."""
    mine = {record.id for record in await core.plane.sessions(caller.tenant, 1000, ended=False)}
    return {
        "data": [
            {
                "runner": view.advert.runner,
                "pipelines": [offer.name for offer in view.advert.pipelines],
                "region": view.advert.region,
                "gpu_class": view.advert.gpu_class,
                "heartbeat_age_ms": view.heartbeat_age_ms if view.heartbeat_age_ms >= 0 else None,
                "slots": [
                    {
                        "slot": slot.slot,
                        "state": router_pb2.SlotState.Name(slot.state).removeprefix("SLOT_STATE_").lower(),
                        "session": slot.session if slot.session in mine else None,
                    }
                    for slot in view.slots
                ],
            }
            for view in await core.plane.runners()
        ]
    }
