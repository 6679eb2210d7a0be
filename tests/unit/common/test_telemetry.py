from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

from services.common.telemetry import carrier, detached


def test_detached_work_is_in_no_trace_and_its_caller_still_is() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("session.open"):
        assert "traceparent" in carrier()
        with detached():
            assert carrier() == {}
        assert "traceparent" in carrier()
