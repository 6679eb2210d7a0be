"""Traces on one machine: the real exporter, the real receiver, and ingest, which may be told a bad place."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import fields
from typing import Any, cast

import grpc.aio
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

from deploy.local.trace_store import TraceStore
from deploy.local.traces import SERVICE, Ports, serving
from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError
from services.ingest.app import public_app
from services.ingest.auth import Caller
from services.ingest.faces import traces
from services.ingest.faces.context import Core
from services.ingest.settings import IngestSettings

TRACE = "0af7651916cd43dd8448eb211c80319c"
ROOT = "b7ad6b7169203331"
UNUSED = {field.name for field in fields(Core)} - {"settings", "authenticator", "plane"}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Doorman:
    async def who(self, key: str) -> Caller:
        return Caller(key, f"id-{key}")


class Plane:
    """The sessions of one tenant, each with its trace."""

    traceparent = f"00-{TRACE}-{ROOT}-01"

    async def session(self, session: str, tenant: str) -> sessions_pb2.Session:
        if (session, tenant) != ("ses_mine", "acme"):
            raise NotFoundError(f"there is no session {session}", reason="SESSION_NOT_FOUND")
        return sessions_pb2.Session(id=session, tenant=tenant, traceparent=self.traceparent)


@asynccontextmanager
async def looking_at(
    url: str, plane: Plane | None = None, tenant: str = "acme"
) -> AsyncIterator[httpx.AsyncClient]:
    """Ingest's public API, told that traces are at `url`."""
    core = Core(
        settings=IngestSettings(stream_secret="x" * 16, traces_url=url),
        authenticator=cast("Any", Doorman()),
        plane=cast("Any", plane or Plane()),
        **{name: cast("Any", None) for name in UNUSED},
    )
    transport = httpx.ASGITransport(public_app(core), raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {tenant}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway.test", headers=headers
    ) as client:
        yield client


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[str]:
    """A server in the place of the traces' API that says what a test wants; its URL."""
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await handler(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(5):
        await asyncio.gather(*serving)


def saying(status: str, body: bytes, headers: str = "") -> Handler:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)
        await writer.drain()

    return handler


def jaeger(*spans: dict[str, Any]) -> bytes:
    """What Jaeger answers for spans of one service."""
    named = {"key": "service.name", "value": {"stringValue": "sluice-ingest"}}
    one = {"resource": {"attributes": [named]}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}
    return json.dumps({"result": {"resourceSpans": [one]}}).encode()


@pytest.fixture
async def receiver() -> AsyncIterator[Ports]:
    async with serving(TraceStore(), otlp="127.0.0.1:0", http="127.0.0.1:0") as ports:
        yield ports


@pytest.fixture
async def provider(receiver: Ports) -> AsyncIterator[TracerProvider]:
    """The SDK as our services use it."""
    made = TracerProvider(resource=Resource.create({"service.name": "sluice-test"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"http://127.0.0.1:{receiver.otlp}", insecure=True)
    made.add_span_processor(BatchSpanProcessor(exporter))
    yield made
    await asyncio.to_thread(made.shutdown)


async def export(receiver: Ports, body: bytes, method: str = "Export") -> ExportTraceServiceResponse:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{receiver.otlp}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{method}")
        return ExportTraceServiceResponse.FromString(await call(body))


async def refused(client: httpx.AsyncClient, status: int, reason: str) -> dict[str, Any]:
    answer = await client.get("/v1/sessions/ses_mine/trace")
    found: dict[str, Any] = answer.json()
    assert (answer.status_code, found["code"]) == (status, f"SLUICE/{reason}"), found
    return found


# --- from the exporter to the tenant


async def test_what_a_service_exports_its_tenant_sees_in_order(
    receiver: Ports, provider: TracerProvider
) -> None:
    tracer = provider.get_tracer("test")
    with (
        tracer.start_as_current_span("session.open", attributes={"session.pipeline": "effects"}) as root,
        tracer.start_as_current_span("session.grant", attributes={"n": 2, "x": [0.5, 1.5]}) as child,
    ):
        child.set_status(Status(StatusCode.ERROR, "no slot is free"))
    assert await asyncio.to_thread(provider.force_flush, 5_000)
    trace = f"{root.get_span_context().trace_id:032x}"
    plane = Plane()
    plane.traceparent = f"00-{trace}-{ROOT}-01"
    async with looking_at(f"http://127.0.0.1:{receiver.http}/", plane) as client:
        answer = await client.get("/v1/sessions/ses_mine/trace")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["trace"], shown["dropped_spans"]) == (trace, 0)
    opened, granted = shown["spans"]
    assert opened["name"] == "session.open"
    assert (opened["service"], opened["parent"], opened["error"]) == ("sluice-test", None, False)
    assert opened["attributes"] == {"session.pipeline": "effects"}
    assert granted["parent"] == opened["id"]
    assert granted["attributes"] == {"n": 2, "x": [0.5, 1.5], "error.message": "no slot is free"}
    assert granted["error"] is True
    assert 0 <= granted["start_unix_ns"] - opened["start_unix_ns"] <= opened["duration_ns"]


async def test_jaegers_own_answer_is_read() -> None:
    # The snapshot of Jaeger's GetTrace, jaegertracing/jaeger, apiv3/snapshots/GetTrace.json
    body = jaeger(
        {
            "kind": 2,
            "name": "foobar",
            "spanId": "0000000000000002",
            "status": {"code": 2},
            "traceId": "1" * 32,
        }
    )
    async with answering(saying("200 OK", body)) as url, looking_at(url) as client:
        answer = await client.get("/v1/sessions/ses_mine/trace")
    assert answer.json() == {
        "trace": TRACE,
        "dropped_spans": 0,
        "spans": [
            {
                "id": "0000000000000002",
                "parent": None,
                "service": "sluice-ingest",
                "name": "foobar",
                "start_unix_ns": 0,
                "duration_ns": 0,
                "attributes": {},
                "error": True,
            }
        ],
    }


async def test_every_kind_of_attribute_arrives_as_json() -> None:
    values: dict[str, dict[str, Any]] = {
        "text": {"stringValue": "a"},
        "empty": {"stringValue": ""},
        "large": {"intValue": "9007199254740993"},
        "small": {"intValue": 0},
        "part": {"doubleValue": 0.5},
        "none": {"doubleValue": "NaN"},
        "no": {"boolValue": False},
        "raw": {"bytesValue": "AAE="},
        "list": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "b"}]}},
        "map": {"kvlistValue": {"values": [{"key": "k", "value": {"boolValue": True}}]}},
        "nothing": {},
    }
    attributes = [{"key": key, "value": value} for key, value in values.items()]
    body = jaeger({"spanId": ROOT, "name": "one", "attributes": attributes, "newer": {"field": 1}})
    async with answering(saying("200 OK", body)) as url, looking_at(url) as client:
        answer = await client.get("/v1/sessions/ses_mine/trace")
    assert answer.json()["spans"][0]["attributes"] == {
        "text": "a",
        "empty": "",
        "large": 9_007_199_254_740_993,
        "small": 0,
        "part": 0.5,
        "none": "nan",
        "no": False,
        "raw": "AAE=",
        "list": [1, "b"],
        "map": {"k": True},
        "nothing": None,
    }


async def test_a_trace_is_its_tenants_alone(receiver: Ports) -> None:
    async with looking_at(f"http://127.0.0.1:{receiver.http}", tenant="other") as client:
        await refused(client, 404, "SESSION_NOT_FOUND")
        del client.headers["Authorization"]
        await refused(client, 401, "KEY_MISSING")


async def test_without_a_place_to_look_the_traces_id_is_told() -> None:
    async with looking_at("") as client:
        found = await refused(client, 404, "TRACES_NOT_CONFIGURED")
    assert found["details"] == {"trace": TRACE}
    assert TRACE in found["error"]


async def test_a_trace_that_is_not_kept_is_not_found(receiver: Ports) -> None:
    async with looking_at(f"http://127.0.0.1:{receiver.http}") as client:
        found = await refused(client, 404, "TRACE_NOT_FOUND")
    assert found["details"] == {"trace": TRACE}
    async with answering(saying("200 OK", b'{"result": {}}')) as url, looking_at(url) as client:
        await refused(client, 404, "TRACE_NOT_FOUND")


@pytest.mark.parametrize("traceparent", ["", "00-xyz", f"00-{TRACE}-{ROOT}", f"00-../..{TRACE}-{ROOT}-01"])
async def test_a_session_without_a_trace_asks_nobody(traceparent: str) -> None:
    plane = Plane()
    plane.traceparent = traceparent
    async with looking_at("http://127.0.0.1:9", plane) as client:
        await refused(client, 404, "TRACE_NOT_FOUND")


# --- a place that is not well


@pytest.mark.parametrize(
    "handler",
    [
        saying("500 Internal Server Error", b"{}"),
        saying("200 OK", b""),
        saying("200 OK", b"<html>"),
        saying("200 OK", b"[]"),
        saying("200 OK", b'{"result": {"resourceSpans": 7}}'),
        saying("200 OK", jaeger({"name": "no id"})),
        saying("200 OK", jaeger({"spanId": ROOT, "startTimeUnixNano": "soon"})),
        saying("200 OK", b'{"a":' * 100_000),
        saying("302 Found", b"", "Location: http://127.0.0.1:9/secret\r\n"),
        saying("200 OK", b" " * (traces.ANSWER_BYTES + 1)),
    ],
    ids=["500", "empty", "html", "list", "number", "no id", "no time", "deep", "redirect", "large"],
)
async def test_an_answer_that_cannot_be_read_is_the_places_fault(handler: Handler) -> None:
    async with answering(handler) as url, looking_at(url) as client:
        found = await refused(client, 503, "TRACES_UNREADABLE")
    assert found["details"] == {"trace": TRACE}


async def test_an_answer_without_an_end_is_not_read_to_it() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 65_536)
            await writer.drain()

    async with answering(endless) as url, looking_at(url) as client:
        await refused(client, 503, "TRACES_UNREADABLE")


async def test_a_place_that_is_gone_breaks_off_or_is_silent_is_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Says nothing."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(traces, "LOOKUP_S", 0.2)
    async with looking_at("http://127.0.0.1:9") as client:
        await refused(client, 503, "TRACES_UNREACHABLE")
    for handler in (breaks_off, silent):
        async with answering(handler) as url, looking_at(url) as client:
            found = await refused(client, 503, "TRACES_UNREACHABLE")
            assert "127.0.0.1" not in str(found), "where it is, is the platform's own business"


async def test_few_answers_are_in_memory_however_many_ask() -> None:
    asked = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read()

    async with answering(silent) as url, looking_at(url) as client, asyncio.timeout(10):
        asking = [asyncio.ensure_future(client.get("/v1/sessions/ses_mine/trace")) for _ in range(20)]
        while asked < traces.AT_ONCE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert asked == traces.AT_ONCE
        for each in asking:
            each.cancel()
        await asyncio.wait(asking)


# --- the receiver


async def test_what_is_no_export_is_refused_by_name_and_the_receiver_goes_on(
    receiver: Ports, provider: TracerProvider
) -> None:
    for body, code, word in (
        (b"\xff\xff garbage", grpc.StatusCode.INVALID_ARGUMENT, "ExportTraceServiceRequest"),
        (b"x" * 5_000_000, grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await export(receiver, body)
        assert error.value.code() is code
        assert word in str(error.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await export(receiver, b"", "Import")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with provider.get_tracer("test").start_as_current_span("after"):
        pass
    assert await asyncio.to_thread(provider.force_flush, 5_000)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{receiver.http}") as client:
        assert (await client.get("/")).json()["kept"]["spans"] == 1


async def test_an_exporter_is_told_how_many_of_its_spans_were_refused(receiver: Ports) -> None:
    request = ExportTraceServiceRequest()
    spans = request.resource_spans.add().scope_spans.add().spans
    spans.add(trace_id=bytes.fromhex(TRACE), span_id=bytes.fromhex(ROOT), name="good")
    spans.add(trace_id=b"bad", span_id=bytes.fromhex(ROOT))
    answer = await export(receiver, request.SerializeToString())
    assert answer.partial_success.rejected_spans == 1
    assert "trace id" in answer.partial_success.error_message
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{receiver.http}") as client:
        metrics = (await client.get("/metrics")).text
    assert 'sluice_traces_spans_total{fate="refused"}' in metrics


async def test_the_query_api_answers_as_jaegers(receiver: Ports) -> None:
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name="short")
    span.trace_id, span.span_id = bytes(8) + bytes.fromhex("a3ce929d0e0e4736"), bytes.fromhex(ROOT)
    await export(receiver, request.SerializeToString())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{receiver.http}/api/v3/traces/") as client:
        for spelled in ("a3ce929d0e0e4736", "0" * 16 + "A3CE929D0E0E4736"):
            found = (await client.get(spelled)).json()["result"]["resourceSpans"]
            assert found[0]["scopeSpans"][0]["spans"][0]["name"] == "short"
        for wrong, status in (("xyz", 400), (TRACE[:-1], 400), (TRACE + "00", 400), (TRACE, 404)):
            answer = await client.get(wrong)
            assert answer.status_code == status
            assert answer.json()["error"]["httpCode"] == status
            assert answer.json()["error"]["message"]
