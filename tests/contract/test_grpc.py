"""Calls between services over real gRPC: what one raises the other catches, and nothing else gets through."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from protos.router.v1 import router_pb2 as router
from protos.router.v1.router_pb2_grpc import RouterServicer, RouterStub, add_RouterServicer_to_server
from services.common.errors import (
    ERRORS,
    ConflictError,
    DeadlineExceededError,
    SluiceError,
    UnavailableError,
)
from services.common.grpc_client import Channels, call, channel, stream
from services.common.grpc_server import serve_grpc
from services.common.telemetry import BUGS, span

if TYPE_CHECKING:
    from protos.router.v1.router_pb2_grpc import RouterAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


class Scripted(RouterServicer):
    """Raises what a test puts into `raises`, and remembers the trace of each call."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.takes_s = 0.0
        self.traces: list[int] = []

    async def Release(self, request: router.ReleaseRequest, context: Context) -> router.ReleaseResponse:
        self.traces.append(trace.get_current_span().get_span_context().trace_id)
        await asyncio.sleep(self.takes_s)
        if self.raises is not None:
            raise self.raises
        return router.ReleaseResponse(released=7)

    async def Watch(
        self, request: router.WatchRequest, context: Context
    ) -> AsyncIterator[router.RunnersResponse]:
        for number in range(3):
            yield router.RunnersResponse(
                runners=[router.RunnerView(heartbeat_age_ms=number)],
            )
        if self.raises is not None:
            raise self.raises

    async def Grant(self, request: router.GrantRequest, context: Context) -> router.GrantResponse:
        raise NotImplementedError

    async def Runners(self, request: router.RunnersRequest, context: Context) -> router.RunnersResponse:
        raise NotImplementedError

    async def Capacity(self, request: router.CapacityRequest, context: Context) -> router.CapacityResponse:
        raise NotImplementedError

    async def Queue(self, request: router.QueueRequest, context: Context) -> router.QueueResponse:
        raise NotImplementedError


@pytest.fixture
def servicer() -> Scripted:
    return Scripted()


@pytest.fixture
async def port(servicer: Scripted) -> AsyncIterator[int]:
    async with serve_grpc(
        lambda server: add_RouterServicer_to_server(servicer, server), "127.0.0.1:0", 0.5
    ) as bound:
        yield bound


@pytest.fixture
async def stub(port: int) -> AsyncIterator[RouterAsyncStub]:
    async with channel(f"127.0.0.1:{port}") as open_channel:
        yield RouterStub(open_channel)


async def release(stub: RouterAsyncStub, timeout_s: float = 5.0) -> router.ReleaseResponse:
    return await call(stub.Release, router.ReleaseRequest(), router.ReleaseResponse, timeout_s=timeout_s)


async def watched(stub: RouterAsyncStub) -> AsyncIterator[int]:
    async for answer in stream(stub.Watch, router.WatchRequest(), router.RunnersResponse):
        yield answer.runners[0].heartbeat_age_ms


async def _append(source: AsyncIterator[int], to: list[int]) -> None:
    async for number in source:
        to.append(number)  # noqa: PERF401 - what came before a failure counts


async def test_answers_come_back(stub: RouterAsyncStub) -> None:
    assert (await release(stub)).released == 7
    assert [number async for number in watched(stub)] == [0, 1, 2]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
async def test_every_error_arrives_as_it_was_raised(
    servicer: Scripted, stub: RouterAsyncStub, kind: type[SluiceError]
) -> None:
    servicer.raises = kind("so it is: ü", reason="SPECIAL", field="nails", count=3)
    with pytest.raises(SluiceError) as unary:
        await release(stub)
    numbers: list[int] = []
    with pytest.raises(SluiceError) as streaming:
        await _append(watched(stub), numbers)
    assert numbers == [0, 1, 2]
    for caught in (unary.value, streaming.value):
        assert type(caught) is kind
        assert caught.message == "so it is: ü"
        assert caught.reason == "SPECIAL"
        assert caught.details == {"field": "nails", "count": "3"}


async def test_without_a_reason_the_class_s_own_arrives(servicer: Scripted, stub: RouterAsyncStub) -> None:
    servicer.raises = ConflictError("no")
    with pytest.raises(ConflictError) as refused:
        await release(stub)
    assert (refused.value.reason, refused.value.details) == ("CONFLICT", {})


async def test_a_bug_is_internal_counted_and_tells_nothing(servicer: Scripted, stub: RouterAsyncStub) -> None:
    before = BUGS.labels("grpc")._value.get()
    servicer.raises = ValueError("the password is swordfish")
    with pytest.raises(grpc.aio.AioRpcError) as raw:
        await stub.Release(router.ReleaseRequest())
    assert raw.value.code() is grpc.StatusCode.INTERNAL
    assert "swordfish" not in repr(raw.value)
    assert not any("swordfish" in str(pair) for pair in raw.value.trailing_metadata() or ())
    with pytest.raises(UnavailableError) as refused:
        await release(stub)
    assert refused.value.reason == "INTERNAL"
    with pytest.raises(UnavailableError):
        assert [number async for number in watched(stub)] == []
    assert BUGS.labels("grpc")._value.get() == before + 3


async def test_an_answer_that_takes_too_long_is_a_deadline(servicer: Scripted, stub: RouterAsyncStub) -> None:
    servicer.takes_s = 5.0
    with pytest.raises(DeadlineExceededError):
        await release(stub, timeout_s=0.1)


async def test_nobody_there_is_unavailable() -> None:
    async with channel("127.0.0.1:1") as nowhere:
        with pytest.raises(UnavailableError):
            await release(RouterStub(nowhere))


async def test_a_taken_port_is_an_error(port: int, servicer: Scripted) -> None:
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        async with serve_grpc(
            lambda server: add_RouterServicer_to_server(servicer, server), f"127.0.0.1:{port}", 0.5
        ):
            pass


async def test_the_trace_goes_on_in_the_server(servicer: Scripted, stub: RouterAsyncStub) -> None:
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    with span("test") as outer:
        await release(stub)
    assert servicer.traces == [outer.get_span_context().trace_id]
    assert servicer.traces != [0]


async def test_channels_are_opened_once_an_address(port: int) -> None:
    async with Channels() as channels:
        address = f"127.0.0.1:{port}"
        assert channels.to(address) is channels.to(address)
        assert (await release(RouterStub(channels.to(address)))).released == 7


async def test_a_channel_that_leads_nowhere_makes_room_for_another_one(port: int) -> None:
    async with Channels(capacity=2) as channels:
        used = channels.to(f"127.0.0.1:{port}")
        await release(RouterStub(used))
        dead = channels.to("127.0.0.1:1")
        channels.to("127.0.0.1:2")
        assert channels.to(f"127.0.0.1:{port}") is used, "it is connected"
        assert channels.to("127.0.0.1:1") is not dead


async def test_ipv6_is_served_where_there_is_any(servicer: Scripted) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with (
        serve_grpc(lambda server: add_RouterServicer_to_server(servicer, server), "[::1]:0", 0.5) as bound,
        channel(f"[::1]:{bound}") as open_channel,
    ):
        assert (await release(RouterStub(open_channel))).released == 7
