"""What a tenant asks about: sessions, usage, balance, prices; an operator sees the sessions of all."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from services.common.errors import DeniedError, NotFoundError
from services.ingest.faces.context import CallerOf, CoreOf, tenant_for
from services.ingest.faces.sessions import known_of, session_object
from services.ingest.times import iso

router = APIRouter(prefix="/v1", tags=["account"])
Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/sessions")
async def sessions(
    caller: CallerOf,
    core: CoreOf,
    limit: Limit = 100,
    ended: Annotated[bool, Query()] = False,
    everybodys: Annotated[bool, Query(alias="all")] = False,
) -> dict[str, Any]:
    """List the tenant's sessions, newest first; with `ended` those that have ended too.

    With `all` those of every tenant, for an operator.
    """
    if everybodys and not core.settings.operates(caller.tenant):
        raise DeniedError("only an operator sees the sessions of all tenants", reason="NOT_AN_OPERATOR")
    found = await core.plane.sessions("" if everybodys else caller.tenant, limit, ended=ended)
    known = await known_of(found, core)
    shown = [session_object(record, core, known) for record in found]
    if everybodys:
        shown = [{**one, "tenant": record.tenant} for one, record in zip(shown, found, strict=True)]
    return {"data": shown}


@router.get("/sessions/{session_id}")
async def session(session_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    record = await core.plane.session(session_id, tenant_for(caller, core))
    return session_object(record, core, await known_of([record], core))


@router.post("/sessions/{session_id}/move", status_code=202)
async def move(session_id: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Wish a live session to another runner, without a gap; what became of it is in its `moves`."""
    record = await core.plane.move(session_id, tenant_for(caller, core))
    return session_object(record, core, await known_of([record], core))


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
