"""`/api/v1/pipeline...`, `models`, `hardware`: what can be had, in the words of Scope's clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError
from services.ingest.bridge.identity import ORDERLY
from services.ingest.faces.context import CallerOf, Core, CoreOf
from services.ingest.faces.scope.answers import Detail, ScopeRoute
from services.ingest.faces.scope.possessions import Possessions
from services.ingest.runner_news import WHILE_IT_GOES_ON
from services.ingest.times import iso
from services.ingest.transports.webrtc import parameters

router = APIRouter(prefix="/api/v1", route_class=ScopeRoute, default_response_class=Detail)
ERRORS: Final = 10  # of the newest sessions, in a status
SESSIONS: Final = 100
# What JSON Schema calls a type, in the words of a node's parameters.
PARAM_TYPES: Final = {"number": "number", "integer": "number", "boolean": "boolean"}


class LoadItem(BaseModel):
    """One node of a client's graph."""

    model_config = ConfigDict(extra="ignore")

    node_id: str = Field("", max_length=200)
    pipeline_id: str = Field(max_length=200)
    load_params: dict[str, Any] | None = None


class Load(BaseModel):
    """Both the current and the older form."""

    model_config = ConfigDict(extra="ignore")

    pipelines: list[LoadItem] | None = Field(None, max_length=64)
    pipeline_ids: list[str] | None = Field(None, max_length=64)
    load_params: dict[str, Any] | None = None

    def wanted(self) -> tuple[str, dict[str, Any]]:
        """The pipeline, and the parameters to begin with. Raises InvalidError unless there is one."""
        if self.pipelines:
            ids = [item.pipeline_id for item in self.pipelines]
            params = self.pipelines[0].load_params
        else:
            ids, params = self.pipeline_ids or [], self.load_params
        if not ids:
            raise InvalidError("Either pipelines or pipeline_ids must be given", field="pipelines")
        if len(ids) > 1:
            raise InvalidError(
                f"one pipeline a session; {', '.join(ids)[:200]} are {len(ids)}",
                reason="ONE_PIPELINE",
                field="pipelines",
            )
        return ids[0], params or {}


@router.post("/pipeline/load", response_model=None)
async def load(body: Load, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Choose the pipeline of this tenant's next sessions; those that run go on with theirs.

    Nothing is loaded that is not loaded: runners hold their pipelines ready. What cannot be had is refused
    here and now, and what was chosen before stays chosen.
    """
    pipeline, load_params = body.wanted()
    mine = Possessions(core.plane, caller)
    choice, ignored = (await mine.offered(pipeline)).with_parameters(parameters.read(load_params))
    await mine.load(choice)
    return {"message": "Pipeline loading initiated successfully", "ignored": ignored}


@router.get("/pipeline/status", response_model=None)
async def status(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """What the next session runs, what the newest one loads, and how the tenant's last sessions failed.

    Reading it clears nothing.
    """
    mine = Possessions(core.plane, caller)
    record = await mine.loaded()
    offers = {offer.pipeline: offer for offer in await core.plane.capacity()}
    pipeline = record.pipeline if record else core.settings.default_pipeline
    offer = offers.get(pipeline)
    stage = _loading_stage(await mine.live(), core)
    standing = "loaded" if offer else "not_loaded"
    return {
        "status": "loading" if stage else standing,
        "pipeline_id": pipeline if offer or record else None,
        "load_params": json.loads(record.params) if record else None,
        "loaded_lora_adapters": None,
        "error": None,
        "loading_stage": stage or (None if offer else "no runner offers it now"),
        "produces_video": True,
        "produces_audio": bool(offer and offer.processes_audio),
        "free_slots": offer.free if offer else 0,
        "errors": await _failures(caller, core),
    }


def _loading_stage(live: Sequence[sessions_pb2.Stream], core: Core) -> str | None:
    """What the newest session whose pipeline loads is at, if its media passes this process."""
    for stream in live:
        session = core.hub.of_stream(stream.id)
        loading = session.heard.loading if session is not None else None
        if loading is not None and loading.why != WHILE_IT_GOES_ON:
            return f"{loading.stage}, {loading.percent} %"
    return None


async def _failures(caller: CallerOf, core: Core) -> list[dict[str, Any]]:
    found = await core.plane.sessions(caller.tenant, SESSIONS, ended=True)
    failed = [record for record in found if record.end_reason and record.end_reason not in ORDERLY]
    return [
        {
            "session_id": record.stream,
            "pipeline_id": record.pipeline,
            "reason": record.end_reason,
            "error": record.end_message or record.end_reason,
            "at": iso(record.ended_unix_ms),
        }
        for record in failed[:ERRORS]
    ]


@router.get("/pipelines/schemas")
async def schemas(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Every pipeline that a runner offers."""
    return {"pipelines": {offer.pipeline: schema_of(offer) for offer in await core.plane.capacity()}}


def schema_of(offer: router_pb2.PipelineCapacity) -> dict[str, Any]:
    """All keys that Scope's schemas have; what a client need not care about is its neutral value."""
    config = json.loads(offer.params_schema or "{}")
    properties = config.get("properties", {})
    return {
        "id": offer.pipeline,
        "name": offer.pipeline,
        "description": offer.description,
        "version": offer.version,
        "supported_modes": ["video"],
        "default_mode": "video",
        "supports_prompts": "prompt" in properties or "prompts" in properties,
        "default_temporal_interpolation_method": "linear",
        "default_temporal_interpolation_steps": properties.get(parameters.LENGTH, {}).get("default", 0),
        "default_spatial_interpolation_method": "linear",
        "docs_url": None,
        "estimated_vram_gb": None,
        "requires_models": False,
        "supports_lora": "lora_scales" in properties,
        "supports_vace": "vace_context_scale" in properties,
        "supports_cache_management": "manage_cache" in properties,
        "supports_kv_cache_bias": "kv_cache_attention_bias" in properties,
        "supports_quantization": False,
        "min_dimension": 1,
        "recommended_quantization_vram_threshold": None,
        "modified": False,
        "produces_video": True,
        "produces_audio": offer.processes_audio,
        "usage": [],
        "inputs": ["video", "audio"] if offer.processes_audio else ["video"],
        "outputs": ["video", "audio"] if offer.processes_audio else ["video"],
        "config_schema": config,
        "mode_defaults": {"video": {}},
        "plugin_name": None,
    }


@router.get("/nodes/definitions")
async def nodes(caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Each pipeline is a node with one way in and one out; there are no others."""
    return {"nodes": [node_of(offer) for offer in await core.plane.capacity()]}


def node_of(offer: router_pb2.PipelineCapacity) -> dict[str, Any]:
    schema = schema_of(offer)
    return {
        "node_type_id": offer.pipeline,
        "display_name": offer.pipeline,
        "category": "pipeline",
        "description": offer.description,
        "inputs": [_port(kind) for kind in schema["inputs"]],
        "outputs": [_port(kind) for kind in schema["outputs"]],
        "params": [
            {
                "name": name,
                "param_type": "select" if "enum" in fact else PARAM_TYPES.get(fact.get("type"), "string"),
                "default": fact.get("default"),
                "description": fact.get("description", ""),
                "ui": None,
                "convertible_to_input": False,
            }
            for name, fact in schema["config_schema"].get("properties", {}).items()
        ],
        "continuous": True,
        "pipeline_meta": schema,
        "plugin_name": None,
    }


def _port(kind: str) -> dict[str, Any]:
    return {
        "name": kind,
        "port_type": kind,
        "required": kind == "video",
        "description": "",
        "default_value": None,
    }


@router.get("/models/status")
async def models(caller: CallerOf, pipeline_id: str = "") -> dict[str, Any]:
    """Runners come with their models."""
    return {"downloaded": True, "progress": None}


@router.get("/hardware/info")
async def hardware(caller: CallerOf) -> dict[str, Any]:
    """Of the gateway, which has no GPU; `/v1/runners` lists the machines that have."""
    nowhere = {"available": False, "reason": "sources and sinks on a desktop", "install_hint": None}
    return {"vram_gb": None, "spout": nowhere, "ndi": nowhere, "syphon": nowhere}


@router.get("/input-sources")
async def sources(caller: CallerOf) -> dict[str, Any]:
    return {"input_sources": []}


@router.get("/assets")
async def assets(caller: CallerOf) -> dict[str, Any]:
    return {"assets": []}


@router.get("/loras")
async def loras(caller: CallerOf) -> dict[str, Any]:
    return {"lora_files": []}
