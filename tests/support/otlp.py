"""A real OTLP/gRPC receiver that keeps the spans it is sent, and prints a trace as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Span:
    """What a trace's tree shows of one span."""

    trace: str
    id: str
    parent: str
    service: str
    name: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str]
    error: bool


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects everything in memory, in the order of arrival."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.endpoint = ""

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            service = next(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.spans += [
                    Span(
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        service=service.removeprefix("sluice-"),
                        name=span.name,
                        start_ns=span.start_time_unix_nano,
                        end_ns=span.end_time_unix_nano,
                        attributes={a.key: a.value.string_value for a in span.attributes},
                        error=span.status.code == 2,
                    )
                    for span in scope.spans
                ]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace_of(self, session: str) -> list[Span]:
        """The trace in which `session` was opened, in order of start."""
        (root,) = [
            s for s in self.spans if s.name == "session.open" and s.attributes.get("session.id") == session
        ]
        return sorted((s for s in self.spans if s.trace == root.trace), key=lambda span: span.start_ns)

    def tree(self, session: str) -> str:
        spans = self.trace_of(session)
        known = {span.id for span in spans}
        lines: list[str] = []

        def show(span: Span, depth: int) -> None:
            at_ms = (span.start_ns - spans[0].start_ns) / 1e6
            took_ms = (span.end_ns - span.start_ns) / 1e6
            name = "  " * depth + span.name + (" !" if span.error else "")
            lines.append(f"{at_ms:9.1f} ms {took_ms:8.1f} ms  {span.service:<16} {name}")
            for child in spans:
                if child.parent == span.id:
                    show(child, depth + 1)

        for span in spans:
            if span.parent not in known:
                show(span, 0)
        return "\n".join(lines)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(1).wait()
