"""The spans that a test's code makes, kept by the real SDK."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import telemetry
from services.ingest.bridge import chapters


class Spans:
    """What ended so far."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def every(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.every() if span.name == name]

    def attributes(self, name: str) -> list[dict[str, object]]:
        return [dict(span.attributes or {}) for span in self.named(name)]


def recording(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Keep what is traced until the test ends."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (telemetry, chapters):
        monkeypatch.setattr(module, "tracer", provider.get_tracer("test"))
    return Spans(exporter)
