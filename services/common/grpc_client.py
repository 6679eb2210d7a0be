"""Calls to other services: each with a bound, the trace's context, and errors of our own taxonomy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind

from services.common import errors
from services.common.errors import SluiceError
from services.common.telemetry import carrier, span

Answer = TypeVar("Answer")
CONNECTED: Final = frozenset({grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.CONNECTING})
MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024  # ten thousand runners, listed
CLASSES: Final = {kind.__name__: kind for kind in errors.ERRORS}


def channel(address: str) -> grpc.aio.Channel:
    """A channel to `host:port`; in a cluster the name of a headless service, balanced round robin."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.lb_policy_name", "round_robin"),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),  # a restarted neighbour is used again within a second
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
        ],
    )


class Channels:
    """Channels by address, for callers that learn addresses as they go; closed with the block.

    Pods come and go, each with an address of its own: beyond `capacity` a channel that leads nowhere just now
    makes room, the one that was not asked for longest first. gRPC itself calls one idle that nobody uses.
    """

    CAPACITY: Final = 1024

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._channels: dict[str, grpc.aio.Channel] = {}  # the newest asked for is last
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Channels:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for open_channel in self._channels.values():
            await open_channel.close(0)
        if self._closing:
            await asyncio.wait(self._closing)

    def to(self, address: str) -> grpc.aio.Channel:
        found = self._channels.pop(address, None)
        if found is None:
            if len(self._channels) >= self._capacity:
                self._make_room()
            found = channel(address)
        self._channels[address] = found
        return found

    def _make_room(self) -> None:
        for address, old in self._channels.items():
            if old.get_state() not in CONNECTED:
                del self._channels[address]
                closing = asyncio.get_running_loop().create_task(old.close(0))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
                return


async def call(
    method: Callable[..., Any],
    request: Any,
    answer: type[Answer],
    *,
    timeout_s: float,
    wait_for_ready: bool = False,
) -> Answer:
    """Call a unary `method`. Raises what the server raised, Unavailable, or DeadlineExceeded.

    `wait_for_ready`: for a neighbour that is known to be there. Calls of one that was just restarted fail
    unsent otherwise, for up to a second until gRPC connects again.
    """
    name = _name(method)
    with span(name, kind=SpanKind.CLIENT, rpc_system="grpc"):
        try:
            result = await method(
                request,
                timeout=timeout_s,
                metadata=tuple(carrier().items()),
                wait_for_ready=wait_for_ready,
            )
        except grpc.aio.AioRpcError as error:
            raise translate(error, name) from error
    assert isinstance(result, answer), (type(result), answer)
    return result


async def stream(method: Callable[..., Any], request: Any, answer: type[Answer]) -> AsyncIterator[Answer]:
    """Iterate over a server stream; ends as the server ends it, raises as `call` does."""
    responses = method(request, metadata=tuple(carrier().items()))
    try:
        async for response in responses:
            assert isinstance(response, answer), (type(response), answer)
            yield response
    except grpc.aio.AioRpcError as error:
        raise translate(error, _name(method)) from error
    finally:
        responses.cancel()


def translate(error: grpc.aio.AioRpcError, method: str) -> SluiceError:
    """The error of our taxonomy that `error` carries, or the one that its status stands for."""
    message = error.details() or error.code().name
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            details = {key: value for key, value in info.metadata.items() if key != "class"}
            kind = CLASSES.get(info.metadata.get("class", ""), errors.UnavailableError)
            return kind(message, reason=info.reason, **details)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError(f"{method} did not answer in time")
    for kind in errors.ERRORS:
        if kind.grpc_status == error.code().name:
            return kind(message)
    return errors.UnavailableError(f"{method}: {message}", reason=error.code().name)


def _name(method: Callable[..., Any]) -> str:
    raw: object = getattr(method, "_method", b"")  # grpc.aio keeps the path here; only a name for people
    return raw.decode().lstrip("/") if isinstance(raw, bytes) else str(raw).lstrip("/")
