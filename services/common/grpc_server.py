"""A gRPC server whose servicers contain no try: one interceptor translates errors, traces and counts."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from services.common.errors import SluiceError
from services.common.settings import host_port
from services.common.telemetry import report_bug, span

DOMAIN: Final = "sluice"
CALLS: Final = Counter("sluice_grpc_calls_total", "Finished gRPC calls by result.", ["method", "result"])
SECONDS: Final = Histogram(
    "sluice_grpc_call_seconds",
    "Duration of unary gRPC calls.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
MAX_MESSAGE_BYTES: Final = 4 * 1024 * 1024


@asynccontextmanager
async def serve_grpc(
    register: Callable[[grpc.aio.Server], None], listen: str, grace_s: float
) -> AsyncIterator[int]:
    """Serve what `register` adds; yields the bound port. Raises OSError when the port is taken."""
    _require_free(listen)
    server = grpc.aio.server(
        interceptors=[_Translator()],
        options=[
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a share of its calls
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.max_connection_age_ms", 300_000),  # so that clients look for new pods; open streams go on
        ],
    )
    register(server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace_s)


def _require_free(listen: str) -> None:
    """Find a taken port before gRPC does, whose core writes a page of its own about it."""
    host, port = host_port(listen)
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise OSError(f"cannot listen on {listen}: {error.strerror}") from error


def status_of(error: SluiceError) -> status_pb2.Status:
    """The rich status of `error`: its reason and details travel as `ErrorInfo`."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={**error.details, "class": type(error).__name__}
    )
    packed = any_pb2.Any()
    packed.Pack(info)
    code = grpc.StatusCode[error.grpc_status].value[0]
    return status_pb2.Status(code=code, message=error.message, details=[packed])


class _Translator(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # grpc answers UNIMPLEMENTED
        method = str(handler_call_details.method).lstrip("/")
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                _unary(method, handler.unary_unary),  # type: ignore[arg-type]
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                _streaming(method, handler.unary_stream),  # type: ignore[arg-type]
                handler.request_deserializer,
                handler.response_serializer,
            )
        raise AssertionError(f"{method}: streaming requests are not used in this project")


Context = grpc.aio.ServicerContext[Any, Any]


def _unary(method: str, behaviour: Callable[[Any, Context], Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: Context) -> Any:
        started_s = time.perf_counter()
        try:
            with span(method, carrier=_metadata(context), kind=SpanKind.SERVER, rpc_system="grpc"):
                answer = await behaviour(request, context)
        except Exception as error:  # noqa: BLE001 - the translator
            await _abort(method, context, error)
        finally:
            SECONDS.labels(method).observe(time.perf_counter() - started_s)
        CALLS.labels(method, "OK").inc()
        return answer

    return call


def _streaming(
    method: str, behaviour: Callable[[Any, Context], AsyncIterator[Any]]
) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for answer in behaviour(request, context):
                yield answer
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the translator
            await _abort(method, context, error)
        CALLS.labels(method, "OK").inc()

    return call


def _metadata(context: Context) -> dict[str, str]:
    pairs = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}


async def _abort(method: str, context: Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):  # the servicer answered by itself, UNIMPLEMENTED say
        raise error
    if isinstance(error, SluiceError):
        CALLS.labels(method, error.reason).inc()
        status = rpc_status.to_status(status_of(error))
    else:
        CALLS.labels(method, "INTERNAL").inc()
        report_bug("grpc", error, method=method)
        status = rpc_status.to_status(
            status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="internal error")
        )
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")
