from __future__ import annotations

from opentelemetry.sdk.trace import TracerProvider

from services.common.telemetry import Health, carrier, detached


def test_detached_work_is_in_no_trace_and_its_caller_still_is() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("session.open"):
        assert "traceparent" in carrier()
        with detached():
            assert carrier() == {}
        assert "traceparent" in carrier()


def test_ready_is_who_is_up_as_long_as_it_has_what_it_cannot_do_without() -> None:
    health, stores = Health(), True
    assert not health.serving
    health.ready(lambda: stores)
    assert health.serving
    stores = False
    assert not health.serving
    stores = True
    assert health.serving
    plain = Health()
    plain.ready()
    assert plain.serving
