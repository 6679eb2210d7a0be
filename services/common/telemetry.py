"""Traces, metrics, logs and health of every service: spans for calls and edges, histograms for frames."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.exposition import choose_encoder

from services.common.errors import SluiceError
from services.common.settings import ServiceSettings, host_port

log = structlog.get_logger()
tracer: Final = trace.get_tracer("sluice")
BUGS: Final = Counter(
    "sluice_internal_errors_total", "Failures that no error class names: bugs of ours.", ["where"]
)
TASKS: Final = Gauge(
    "sluice_asyncio_tasks", "Tasks on the event loop: more of them after the same work is a leak."
)

TICK_S: Final = 0.5
STALLED_AFTER_S: Final = 10.0  # an event loop that did not run for so long is not alive


def instance_name(settings: ServiceSettings) -> str:
    """This process's name: the setting (the pod's name in a cluster), else host and process id."""
    return settings.instance or f"{socket.gethostname()}-{os.getpid()}"


@asynccontextmanager
async def telemetry(service: str, settings: ServiceSettings) -> AsyncIterator[Health]:
    """Configure logs and traces, and serve `/metrics`, `/healthz` and `/readyz` until the block ends.

    Ready from `ready()` of what it yields, which the innermost block calls, to the end of the process.
    """
    configure_logs(service, settings.log_format, settings.log_level)
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": f"sluice-{service}", "service.instance.id": instance_name(settings)}
        )
    )
    if settings.otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=True)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    trace.set_tracer_provider(provider)
    health = Health()
    server = _serve_metrics(settings.metrics_listen, health)
    ticking = asyncio.get_running_loop().create_task(health.tick(), name="health")
    try:
        yield health
    finally:
        ticking.cancel()
        server.shutdown()
        server.server_close()
        await asyncio.to_thread(provider.shutdown)


class Health:
    """Alive = the event loop runs; ready = everything was started. Others' absence is for calls to report.

    But who can do nothing without another may say so: `ready` takes what has to hold from then on.
    """

    def __init__(self) -> None:
        self.last_tick_s = time.monotonic()
        self._holds: Callable[[], bool] | None = None

    def ready(self, holds: Callable[[], bool] = lambda: True) -> None:
        """Everything of this process is up. `holds` is called from another thread, at each probe."""
        self._holds = holds

    @property
    def serving(self) -> bool:
        return self._holds is not None and self._holds()

    async def tick(self) -> None:
        while True:
            self.last_tick_s = time.monotonic()
            TASKS.set(len(asyncio.all_tasks()))
            await asyncio.sleep(TICK_S)

    @property
    def alive(self) -> bool:
        return time.monotonic() - self.last_tick_s < STALLED_AFTER_S


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    address_family = socket.AF_INET


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Scrapes are not news."""


def _serve_metrics(listen: str, health: Health) -> WSGIServer:
    """Serve from a thread of its own, so that a blocked event loop can be reported instead of hiding."""

    def app(environ: Mapping[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
            start_response("200 OK", [("Content-Type", content_type)])
            return [encode(REGISTRY)]
        if path in {"/healthz", "/readyz"}:
            good = health.alive and (health.serving or path == "/healthz")
            start_response("200 OK" if good else "503 Service Unavailable", [])
            return [b"ok\n" if good else b"not ready\n" if health.alive else b"the event loop is stalled\n"]
        start_response("404 Not Found", [])
        return [b"not found\n"]

    host, port = host_port(listen)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    except OSError as error:
        raise OSError(f"cannot serve metrics on {listen}: {error.strerror}") from error
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True).start()
    return server


def configure_logs(service: str, log_format: str, level: str) -> None:
    """Log events with fields to standard error; every line carries service and, inside a span, the trace."""

    def add_context(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["service"] = service
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            event["trace"] = f"{span.trace_id:032x}"
        return event

    people = log_format == "console"
    renderer: Any = (
        structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
        if people
        else structlog.processors.JSONRenderer()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if people else "iso", utc=not people),
    ]
    if not people:
        # No locals: they hold keys and secrets.
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared += [add_context, structlog.processors.ExceptionRenderer(tracebacks)]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # One write a line: a runner and its engine share a pipe, and so do all services of a terminal.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)


def report_bug(where: str, error: BaseException, **fields: object) -> None:
    """Count and log a failure that nobody named; `where` is a short constant."""
    BUGS.labels(where).inc()
    log.error("internal error", where=where, exc_info=error, **fields)


@contextmanager
def span(
    name: str,
    *,
    carrier: Mapping[str, str] | None = None,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    **attributes: str | int | float | bool,
) -> Iterator[trace.Span]:
    """A span as child of the current one, or of `carrier`; a `SluiceError` marks it with its reason."""
    parent = propagate.extract(carrier) if carrier is not None else None
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=kind,
        attributes={name.replace("_", ".", 1): value for name, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield current
        except SluiceError as error:
            current.set_attribute("error.type", error.reason)
            current.set_status(trace.StatusCode.ERROR, error.message)
            raise
        except Exception as error:
            current.record_exception(error)
            current.set_status(trace.StatusCode.ERROR, type(error).__name__)
            raise


def carrier() -> dict[str, str]:
    """The current trace context as W3C headers, lower-case, for any transport."""
    headers: dict[str, str] = {}
    propagate.inject(headers)
    return headers


@contextmanager
def detached() -> Iterator[None]:
    """Make no trace current: for what goes on as long as a session, of which the trace tells the edges."""
    token = otel_context.attach(otel_context.Context())
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """Make the context in `headers` current, without a span of its own."""
    token = otel_context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        otel_context.detach(token)
