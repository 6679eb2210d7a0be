"""`python -m deploy.local.traces`: takes spans by OTLP, keeps them in memory, serves them as Jaeger would.

What anybody sends ends one call, never the process. Jaeger itself can stand in its place.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import grpc
import grpc.aio
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deploy.local.trace_store import TRACE_ID_BYTES, TraceStore
from services.common import lifecycle
from services.common.errors import InvalidError
from services.common.grpc_server import serve_grpc
from services.common.http_server import serve_http
from services.common.telemetry import configure_logs

SERVICE: Final = "opentelemetry.proto.collector.trace.v1.TraceService"
TRACE_ID: Final = re.compile(r"(?:[0-9a-fA-F]{16}){1,2}")
GRACE_S: Final = 1.0


class Receiver(grpc.GenericRpcHandler):
    """OTLP's `TraceService`. It reads the bytes itself, so that what is no export is refused by name."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if handler_call_details.method != f"/{SERVICE}/Export":
            return None
        return grpc.unary_unary_rpc_method_handler(self._export)

    async def _export(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            exported = ExportTraceServiceRequest.FromString(request)
        except DecodeError as error:
            raise InvalidError(f"this is no ExportTraceServiceRequest: {error}") from None
        refused = self._store.add(exported.resource_spans)
        answer = ExportTraceServiceResponse()
        if refused.spans:
            answer.partial_success.CopyFrom(
                ExportTracePartialSuccess(rejected_spans=refused.spans, error_message=refused.why)
            )
        return answer.SerializeToString()


def query_app(store: TraceStore) -> FastAPI:
    """The part of Jaeger's query API v3 that finds a trace by its id, and what is kept."""
    app = FastAPI(title="Sluice's traces on one machine", openapi_url=None, telemetry={"tracing": False})

    @app.get("/api/v3/traces/{trace_id}")
    async def trace(trace_id: str) -> Response:
        if not TRACE_ID.fullmatch(trace_id):
            return _failure(400, "malformed parameter trace_id: 16 or 32 hexadecimal digits")
        found = store.trace(int(trace_id, 16).to_bytes(TRACE_ID_BYTES, "big"))
        if found is None:
            return _failure(404, "No traces found")
        return JSONResponse({"result": found})

    @app.get("/")
    async def index() -> dict[str, Any]:
        return {"service": "sluice-traces", "kept": store.facts(), "limits": asdict(store.limits)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    return app


def _failure(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"httpCode": status, "message": message}}, status)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where it can be reached."""

    otlp: int
    http: int


@asynccontextmanager
async def serving(store: TraceStore, *, otlp: str, http: str) -> AsyncIterator[Ports]:
    """Receive and answer until the block ends. Raises OSError when a port is taken."""
    async with (
        serve_grpc(
            lambda server: server.add_generic_rpc_handlers((Receiver(store),)), otlp, GRACE_S
        ) as by_grpc,
        serve_http(query_app(store), http, GRACE_S) as by_http,
    ):
        yield Ports(otlp=by_grpc, http=by_http)


async def run(*, otlp: str, http: str) -> None:
    """Serve until terminated."""
    configure_logs("traces", "console", "info")
    async with serving(TraceStore(), otlp=otlp, http=http):
        await lifecycle.until_terminated()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Keeps the newest traces of this machine in memory.")
    parser.add_argument("--otlp", default="127.0.0.1:4317", help="OTLP over gRPC, host:port")
    parser.add_argument("--http", default="127.0.0.1:4319", help="Jaeger's query API v3, host:port")
    chosen = parser.parse_args()
    lifecycle.run(run(otlp=chosen.otlp, http=chosen.http))
