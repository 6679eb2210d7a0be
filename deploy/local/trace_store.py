"""Spans of many traces in memory: bounded in every direction, and what does not fit is counted."""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, TracesData
from prometheus_client import Counter, Gauge

SPANS: Final = Counter(
    "sluice_traces_spans_total", "Spans that were received, by what became of them.", ["fate"]
)
TRACES: Final = Gauge("sluice_traces_kept", "Traces in memory.")
BYTES: Final = Gauge("sluice_traces_bytes", "Spans in memory, as they came.")

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
IDS: Final = ("traceId", "spanId", "parentSpanId")


@dataclass(frozen=True, slots=True)
class Limits:
    """What is kept at most; beyond it the trace that was written to longest ago goes."""

    traces: int = 20_000  # every request is one, so that a day of polling does not push a session's out
    spans: int = 1_000  # of one trace: a session's segments of eight hours
    span_bytes: int = 64 * 2**10  # ours have less than 2 KiB, and a bug's stack trace about 10
    total_bytes: int = 32 * 2**20  # about 100 MB of this process


@dataclass(frozen=True, slots=True)
class Kept:
    """One span as it came, with those it came from."""

    resource: bytes
    scope: bytes
    span: bytes

    def __len__(self) -> int:
        return len(self.resource) + len(self.scope) + len(self.span)


@dataclass(slots=True)
class Trace:
    """The spans of one trace in the order of their arrival, and how many were not kept."""

    spans: list[Kept] = field(default_factory=list)
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """How many spans of an export were no good, and why the last of them was not."""

    spans: int
    why: str


class TraceStore:
    """Takes exports, answers with traces. A full trace keeps its beginning and its newest: how it is now."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._traces: OrderedDict[bytes, Trace] = OrderedDict()
        self._bytes = 0

    def add(self, exported: Iterable[ResourceSpans]) -> Refused:
        """Keep what is a span; the rest is refused, and nothing of it prevents the others."""
        refused = Refused(0, "")
        for of_resource in exported:
            resource = of_resource.resource.SerializeToString()
            for of_scope in of_resource.scope_spans:
                scope = of_scope.scope.SerializeToString()
                for span in of_scope.spans:
                    why = self._fault(span)
                    if why:
                        refused = Refused(refused.spans + 1, why)
                    else:
                        self._keep(span.trace_id, Kept(resource, scope, span.SerializeToString()))
        SPANS.labels("refused").inc(refused.spans)
        self._make_room()
        TRACES.set(len(self._traces))
        BYTES.set(self._bytes)
        return refused

    def _fault(self, span: Span) -> str:
        for name, found, size in (
            ("trace id", span.trace_id, TRACE_ID_BYTES),
            ("span id", span.span_id, SPAN_ID_BYTES),
        ):
            if len(found) != size or not any(found):
                return f"a {name} has {size} bytes that are not all zero"
        if len(span.parent_span_id) not in {0, SPAN_ID_BYTES}:
            return f"a parent's span id has {SPAN_ID_BYTES} bytes, or none"
        if span.ByteSize() > self.limits.span_bytes:
            return f"a span has at most {self.limits.span_bytes} bytes"
        return ""

    def _keep(self, trace_id: bytes, kept: Kept) -> None:
        trace = self._traces.setdefault(trace_id, Trace())
        self._traces.move_to_end(trace_id)
        if len(trace.spans) == self.limits.spans:
            self._bytes -= len(trace.spans.pop(self.limits.spans // 2))
            trace.dropped += 1
            SPANS.labels("crowded_out").inc()
        trace.spans.append(kept)
        self._bytes += len(kept)
        SPANS.labels("kept").inc()

    def _make_room(self) -> None:
        while len(self._traces) > self.limits.traces or self._bytes > self.limits.total_bytes:
            _, oldest = self._traces.popitem(last=False)
            self._bytes -= sum(map(len, oldest.spans))
            SPANS.labels("evicted").inc(len(oldest.spans))

    def trace(self, trace_id: bytes) -> dict[str, Any] | None:
        """The trace as OTLP's JSON and how many of its spans are missing; None if no span of it is here."""
        found = self._traces.get(trace_id)
        if found is None:
            return None
        data = TracesData()
        groups: dict[tuple[bytes, bytes], ScopeSpans] = {}
        for kept in found.spans:
            group = groups.get((kept.resource, kept.scope))
            if group is None:
                of_resource = data.resource_spans.add()
                of_resource.resource.ParseFromString(kept.resource)
                group = groups[kept.resource, kept.scope] = of_resource.scope_spans.add()
                group.scope.ParseFromString(kept.scope)
            group.spans.add().ParseFromString(kept.span)
        return {**otlp_json(data), "droppedSpans": found.dropped}

    def facts(self) -> dict[str, int]:
        """What is kept now."""
        return {
            "traces": len(self._traces),
            "spans": sum(len(trace.spans) for trace in self._traces.values()),
            "bytes": self._bytes,
        }


def otlp_json(data: TracesData) -> dict[str, Any]:
    """OTLP's own JSON, which is protobuf's but for ids in hexadecimal and enums as numbers."""
    found = MessageToDict(data, use_integers_for_enums=True)
    for of_resource in found.get("resourceSpans", ()):
        for of_scope in of_resource["scopeSpans"]:
            for span in of_scope["spans"]:
                _hexadecimal(span)
                for link in span.get("links", ()):
                    _hexadecimal(link)
    return found


def _hexadecimal(has_ids: dict[str, Any]) -> None:
    for name in IDS:
        if name in has_ids:
            has_ids[name] = base64.b64decode(has_ids[name]).hex()
