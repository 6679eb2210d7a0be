from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from deploy.local.trace_store import Limits, TraceStore

TRACE = bytes.fromhex("0af7651916cd43dd8448eb211c80319c")


def span(number: int, trace: bytes = TRACE, **facts: Any) -> Span:
    return Span(
        **{"trace_id": trace, "span_id": number.to_bytes(8, "big"), "name": f"span {number}", **facts}
    )


def exported(*spans: Span, service: str = "sluice-ingest") -> list[ResourceSpans]:
    named = KeyValue(key="service.name", value=AnyValue(string_value=service))
    scope = ScopeSpans(scope=InstrumentationScope(name="sluice"), spans=spans)
    return [ResourceSpans(resource=Resource(attributes=[named]), scope_spans=[scope])]


def names(store: TraceStore, trace: bytes = TRACE) -> list[str]:
    found = store.trace(trace)
    assert found is not None
    return [
        each["name"]
        for of_resource in found["resourceSpans"]
        for of_scope in of_resource["scopeSpans"]
        for each in of_scope["spans"]
    ]


def test_a_trace_is_otlp_json_with_hexadecimal_ids_and_numbers_for_enums() -> None:
    store = TraceStore()
    times: dict[str, Any] = {
        "start_time_unix_nano": 1_700_000_000_000_000_001,
        "end_time_unix_nano": 1_700_000_000_000_000_002,
    }
    counted = KeyValue(key="session.frames_in", value=AnyValue(int_value=750))
    failed = Status(code=Status.STATUS_CODE_ERROR, message="no slot")
    store.add(exported(span(1, kind=Span.SPAN_KIND_SERVER, attributes=[counted], status=failed, **times)))
    link = Span.Link(trace_id=TRACE, span_id=b"12345678")
    store.add(exported(span(2, parent_span_id=(1).to_bytes(8, "big"), links=[link]), service="sluice-router"))
    assert json.loads(json.dumps(store.trace(TRACE))) == {
        "resourceSpans": [
            {
                "resource": {
                    "attributes": [{"key": "service.name", "value": {"stringValue": "sluice-ingest"}}]
                },
                "scopeSpans": [
                    {
                        "scope": {"name": "sluice"},
                        "spans": [
                            {
                                "traceId": TRACE.hex(),
                                "spanId": "0000000000000001",
                                "name": "span 1",
                                "kind": 2,
                                "startTimeUnixNano": "1700000000000000001",
                                "endTimeUnixNano": "1700000000000000002",
                                "attributes": [{"key": "session.frames_in", "value": {"intValue": "750"}}],
                                "status": {"message": "no slot", "code": 2},
                            }
                        ],
                    }
                ],
            },
            {
                "resource": {
                    "attributes": [{"key": "service.name", "value": {"stringValue": "sluice-router"}}]
                },
                "scopeSpans": [
                    {
                        "scope": {"name": "sluice"},
                        "spans": [
                            {
                                "traceId": TRACE.hex(),
                                "spanId": "0000000000000002",
                                "parentSpanId": "0000000000000001",
                                "name": "span 2",
                                "links": [{"traceId": TRACE.hex(), "spanId": b"12345678".hex()}],
                            }
                        ],
                    }
                ],
            },
        ],
        "droppedSpans": 0,
    }


def test_spans_of_one_process_are_told_of_it_once() -> None:
    store = TraceStore()
    for number in range(1, 4):
        store.add(exported(span(number)))
    found = store.trace(TRACE)
    assert found is not None
    assert len(found["resourceSpans"]) == 1
    assert names(store) == ["span 1", "span 2", "span 3"]


def test_a_trace_that_nobody_sent_is_not_there() -> None:
    assert TraceStore().trace(TRACE) is None


def test_a_full_trace_keeps_its_beginning_and_its_newest_and_says_what_it_lost() -> None:
    store = TraceStore(Limits(spans=4))
    for number in range(1, 8):
        store.add(exported(span(number)))
    assert names(store) == ["span 1", "span 2", "span 6", "span 7"]
    found = store.trace(TRACE)
    assert found is not None
    assert found["droppedSpans"] == 3
    assert store.facts()["spans"] == 4


def test_the_trace_that_was_written_to_longest_ago_makes_room() -> None:
    store = TraceStore(Limits(traces=2))
    first, second, third = (bytes([number]) * 16 for number in (1, 2, 3))
    for trace in (first, second, first, third):
        store.add(exported(span(len(names(store, trace)) + 1 if store.trace(trace) else 1, trace)))
    assert store.trace(second) is None
    assert len(names(store, first)) == 2
    assert store.trace(third) is not None


def test_the_bytes_of_all_traces_are_bounded() -> None:
    store = TraceStore(Limits(total_bytes=2_000))
    for number in range(1, 100):
        store.add(exported(span(number, bytes([number]) * 16, name="x" * 100)))
    facts = store.facts()
    assert facts["bytes"] <= 2_000
    assert facts["traces"] == facts["spans"] > 5
    assert store.trace(bytes([99]) * 16) is not None


def test_one_trace_larger_than_everything_leaves_an_empty_store() -> None:
    store = TraceStore(Limits(total_bytes=100))
    store.add(exported(*(span(number, name="x" * 50) for number in range(1, 9))))
    assert store.facts() == {"traces": 0, "spans": 0, "bytes": 0}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (span(1, trace_id=b""), "a trace id has 16 bytes"),
        (span(1, trace_id=b"short"), "a trace id has 16 bytes"),
        (span(1, trace_id=bytes(16)), "not all zero"),
        (span(1, span_id=b"x" * 9), "a span id has 8 bytes"),
        (span(1, span_id=bytes(8)), "not all zero"),
        (span(1, parent_span_id=b"x"), "a parent's span id"),
        (span(1, name="x" * 70_000), "at most 65536 bytes"),
    ],
)
def test_what_is_no_span_is_refused_and_its_neighbours_are_kept(bad: Span, why: str) -> None:
    store = TraceStore()
    refused = store.add(exported(span(2), bad, span(3)))
    assert refused.spans == 1
    assert why in refused.why
    assert names(store) == ["span 2", "span 3"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40)), max_size=60))
def test_whatever_comes_no_limit_is_passed_and_nothing_is_forgotten_in_the_count(
    sent: list[tuple[int, int]],
) -> None:
    limits = Limits(traces=3, spans=5, span_bytes=1_000, total_bytes=1_500)
    store = TraceStore(limits)
    for trace, size in sent:
        store.add(exported(span(size, bytes([trace]) * 16, name="x" * size)))
        facts = store.facts()
        assert facts["traces"] <= limits.traces
        assert facts["bytes"] <= limits.total_bytes
        assert facts["spans"] <= limits.traces * limits.spans
    kept = [store.trace(bytes([trace]) * 16) for trace in range(1, 7)]
    assert sum(found is not None for found in kept) == store.facts()["traces"]
