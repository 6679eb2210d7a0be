"""`/v1/channels`: trickle channels of a tenant's own, for whatever bytes, at addresses nobody can guess."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from services.common.trickle.registry import OpenChannel
from services.ingest.faces.context import CallerOf, Core, CoreOf

router = APIRouter(prefix="/v1/channels", tags=["channels"])


class ChannelBody(BaseModel):
    """What a client sends to make a channel."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    content_type: str = Field("application/octet-stream", max_length=100, pattern=r"^[\w.+-]+/[\w.+-]+$")


@router.post("", status_code=201)
async def create(body: ChannelBody, request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Make a channel; it is closed when it is deleted, or idle for as long as the settings allow."""
    opened = core.channels.create(caller.tenant, body.name, body.content_type)
    return channel_object(opened, core, request)


@router.get("")
async def get_all(request: Request, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """List the tenant's channels on this ingest process."""
    return {"data": [channel_object(opened, core, request) for opened in core.channels.of(caller.tenant)]}


@router.delete("/{name}")
async def delete(name: str, caller: CallerOf, core: CoreOf) -> dict[str, Any]:
    """Close a channel: readers get what is left of it and then its end."""
    core.channels.delete(caller.tenant, name)
    return {"success": True, "data": {}}


def channel_object(opened: OpenChannel, core: Core, request: Request) -> dict[str, Any]:
    """Both URLs are credentials: who has one may read, or write, and needs no key."""
    base = core.trickle_url(request)
    return {
        "name": opened.name.partition("/")[2],
        "content_type": opened.channel.content_type,
        "read_url": base + opened.read_path,
        "write_url": base + opened.write_path,
        "head": opened.channel.head,
    }
