"""A session's spans, from where the installation keeps its traces: that place may be slow, large or wrong."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Final

import aiohttp
import structlog
from fastapi import APIRouter, Response
from pydantic import ValidationError

from services.common.errors import NotFoundError, SluiceError, UnavailableError
from services.ingest.faces.context import CallerOf, CoreOf
from services.ingest.faces.otlp_json import Envelope

log = structlog.get_logger()

LOOKUP_S: Final = 5.0
ANSWER_BYTES: Final = 2**20  # some 1500 spans; while they are parsed, 10 ms, no media moves
AT_ONCE: Final = 2  # answers in memory
TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def router(traces_url: str) -> APIRouter:
    """The face that looks traces up at `traces_url`, a base URL of Jaeger's query API v3; empty: nowhere."""
    face = APIRouter(prefix="/v1", tags=["account"])
    lookup = Lookup(traces_url)

    @face.get("/sessions/{session_id}/trace")
    async def trace(session_id: str, caller: CallerOf, core: CoreOf) -> Response:
        """The spans of a session that have ended so far, in the order of their start."""
        record = await core.plane.session(session_id, caller.tenant)
        found = TRACEPARENT.fullmatch(record.traceparent)
        if found is None:
            raise NotFoundError("the session has no trace", reason="TRACE_NOT_FOUND")
        return Response(await lookup.trace(found[1]), media_type="application/json")

    return face


class Lookup:
    """Asks the place that keeps traces; people do that now and then, so each question has a connection."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url.rstrip("/")
        self._free = asyncio.Semaphore(AT_ONCE)

    async def trace(self, trace_id: str) -> bytes:
        """The JSON of our own answer. Raises NotFoundError and UnavailableError, both with the trace's id."""
        if not self._base_url:
            raise NotFoundError(
                f"trace {trace_id} is where this installation sends its traces; how to look there is not set"
                " (SLUICE_INGEST_TRACES_URL)",
                reason="TRACES_NOT_CONFIGURED",
                trace=trace_id,
            )
        try:
            async with asyncio.timeout(LOOKUP_S), self._free:
                body = await self._fetch(trace_id)
                return await asyncio.to_thread(answer, trace_id, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("traces unreachable", trace=trace_id, why=f"{type(error).__name__}: {error}")
            raise UnavailableError(
                f"what keeps the traces does not answer; this one is {trace_id}",
                reason="TRACES_UNREACHABLE",
                trace=trace_id,
            ) from error

    async def _fetch(self, trace_id: str) -> bytes:
        async with (
            aiohttp.ClientSession() as http,
            http.get(
                f"{self._base_url}/api/v3/traces/{trace_id}",
                headers={"Accept-Encoding": "identity"},
                allow_redirects=False,
            ) as response,
        ):
            if response.status == 404:
                raise missing(trace_id)
            if response.status != 200:
                raise unreadable(trace_id, f"it answers {response.status}")
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > ANSWER_BYTES:
                    raise unreadable(trace_id, f"the trace has more than {ANSWER_BYTES} bytes")
            return bytes(body)


def missing(trace_id: str) -> SluiceError:
    return NotFoundError(
        f"no span of trace {trace_id} is kept: none has ended yet, it was not sampled, or it was so long ago"
        " that it had to make room",
        reason="TRACE_NOT_FOUND",
        trace=trace_id,
    )


def unreadable(trace_id: str, why: str) -> SluiceError:
    log.warning("trace unreadable", trace=trace_id, why=why)
    return UnavailableError(
        f"what keeps the traces gives no readable answer ({why}); this one is {trace_id}",
        reason="TRACES_UNREADABLE",
        trace=trace_id,
    )


def answer(trace_id: str, body: bytes) -> bytes:
    """Our answer, from what the place that keeps traces said. Pure but for the log of what cannot be read."""
    try:
        found = Envelope.model_validate_json(body).result
        spans = found.shown()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise unreadable(trace_id, f"{where}: {first['msg']}".removeprefix(": ")) from None
    if not spans:
        raise missing(trace_id)
    # One by one: the whole list in one call would keep the event loop waiting for as long as the parsing did.
    listed = ", ".join(json.dumps(span) for span in spans)
    return f'{{"trace": "{trace_id}", "dropped_spans": {found.dropped_spans}, "spans": [{listed}]}}'.encode()
