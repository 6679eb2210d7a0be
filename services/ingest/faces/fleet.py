"""What there is to run on: what the fleet offers, its runners, and how an operator empties one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict

from protos.events.v1 import events_pb2
from protos.router.v1 import router_pb2
from services.common.errors import DeniedError
from services.ingest.faces.context import CallerOf, CoreOf, tenant_for

router = APIRouter(prefix="/v1", tags=["fleet"])
CODECS: Final = "codecs"  # the label by which a runner says what it can encode
CODEC: Final = re.compile(r"[\w.-]+")


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
                "waiting": offer.waiting,
                "min_micro_per_second": offer.min_micro_per_second or None,
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
    """List the runners with their slots; whose session holds a slot is shown to its tenant and to operators.

    `penalty`: of recent failures, 0..1; from 0.5 on it gets no session as long as there is another.
    """
    tenant = tenant_for(caller, core)
    mine = {record.id for record in await core.plane.sessions(tenant, 1000, ended=False)}
    return {
        "data": [
            {
                "runner": view.advert.runner,
                "pipelines": [offer.name for offer in view.advert.pipelines],
                "region": view.advert.region,
                "gpu_class": view.advert.gpu_class,
                "version": view.advert.version,
                "micro_per_second": view.advert.micro_per_second or None,
                "penalty": round(view.penalty, 2),
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


class DrainBody(BaseModel):
    """What an operator sends to empty a runner, or to take that back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    cancel: bool = False


@router.post("/runners/{runner}/drain")
async def drain(
    runner: Annotated[str, Path(max_length=200)],
    caller: CallerOf,
    core: CoreOf,
    body: DrainBody | None = None,
) -> dict[str, Any]:
    """Let a runner take no session any more, and move those it has; again tells how many are left.

    For operators. With `cancel` it takes sessions again.
    """
    if not core.settings.operates(caller.tenant):
        raise DeniedError("only an operator drains runners", reason="NOT_AN_OPERATOR")
    left = await core.plane.drain_runner(runner, cancel=body is not None and body.cancel)
    return {"runner": runner, "sessions": left}
