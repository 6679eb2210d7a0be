"""gRPC as production code meets it: real stubs and servicers, real messages and errors, a played wire.

The rules it keeps: a call that failed may have been carried out; a deadline ends it on both sides; a
peer that died is noticed at once, one that is cut off or stands still after the keep-alive's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from services.common import grpc_server
from tests.sim.clock import PROCESS, Process
from tests.sim.weather import Weather

KEEPALIVE_S: Final = 13.0  # 10 s without a sign, 3 s for the answer to a ping
REFUSED_S: Final = 0.003
LOOK_S: Final = 0.1
NO_METADATA: Final = grpc.aio.Metadata()


def unavailable(details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, NO_METADATA, NO_METADATA, details)


class Context:
    """What a servicer sees of a call."""

    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.failure: grpc.aio.AioRpcError | None = None
        self._metadata = metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = NO_METADATA
    ) -> NoReturn:
        self.failure = grpc.aio.AioRpcError(
            code, NO_METADATA, grpc.aio.Metadata(*tuple(trailing_metadata)), details
        )
        raise grpc.aio.AbortError


class Server:
    """As much of `grpc.aio.Server` as the generated code uses to add a servicer."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.methods: dict[str, Any] = {}
        self.calls: dict[asyncio.Task[Any], None] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers come once more, by name."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for name, handler in handlers.items():
            self.methods[f"/{service}/{name}"] = handler

    def start(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = self.process.start(work, name)
        self.calls[task] = None
        task.add_done_callback(lambda done: self.calls.pop(done, None))
        return task


class Net:
    """Who listens where, and who cannot reach whom."""

    def __init__(self, weather: Weather, random: Random) -> None:
        self.weather = weather
        self.random = random
        self.servers: dict[str, Server] = {}
        self._cut: set[frozenset[str]] = set()

    # --- servers

    @asynccontextmanager
    async def serve(self, register: Callable[[Any], None], listen: str, grace_s: float) -> AsyncIterator[int]:
        """In the place of `serve_grpc`."""
        process = PROCESS.get()
        assert process is not None, "who serves is a process"
        server = Server(process)
        register(server)
        self.servers[listen] = server
        try:
            yield int(listen.rpartition(":")[2])
        finally:
            if self.servers.get(listen) is server:
                del self.servers[listen]
            calls = tuple(server.calls)
            if calls:
                await asyncio.wait(calls, timeout=grace_s)
            for call in calls:
                call.cancel()

    def find(self, address: str) -> Server | None:
        """Who listens at `address`; of a service's name, which has no number, any of its processes."""
        if address in self.servers:
            return self.servers[address]
        name, _, port = address.partition(":")
        there = [
            server
            for listen, server in sorted(self.servers.items())
            if listen.startswith(name) and listen.endswith(f":{port}") and not server.process.dead
        ]
        return self.random.choice(there) if there else None

    def to(self, address: str) -> Channel:
        process = PROCESS.get()
        assert process is not None, "who calls is a process"
        return Channel(self, process, address)

    # --- the wire

    def cut(self, one: str, other: str) -> None:
        self._cut.add(frozenset((one, other)))

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))

    def heal_all(self) -> None:
        self._cut.clear()

    def reaches(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self._cut

    async def hop(self, sender: Process, receiver: Process, *, slow: bool = False) -> None:
        """One way; over a cut wire it takes until somebody mends it. Raises ConnectionError."""
        await asyncio.sleep(self.weather.hop_s() + (self.weather.slows_call_s() if slow else 0.0))
        waited_s = 0.0
        while not self.reaches(sender.name, receiver.name):
            await asyncio.sleep(LOOK_S)
            waited_s += LOOK_S
            if waited_s > KEEPALIVE_S:
                raise ConnectionError("cut off")
        if receiver.dead or sender.dead:
            raise ConnectionError("the peer is gone")

    async def call(
        self,
        client: Process,
        address: str,
        method: str,
        request: bytes,
        *,
        timeout_s: float | None,
        metadata: tuple[tuple[str, str], ...],
        wait_for_ready: bool,
    ) -> Any:
        """A unary call, in the client's task."""
        if client.dead:
            raise unavailable("this process is dead")
        server, waited_s = self.find(address), 0.0
        while server is None or server.process.dead:
            await asyncio.sleep(REFUSED_S)
            waited_s += REFUSED_S
            if not wait_for_ready:
                raise unavailable("connection refused")
            if timeout_s is not None and waited_s > timeout_s:
                raise _too_late()
            server = self.find(address)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(client, server, method, request, metadata)
        except TimeoutError:
            self.weather.sometimes("a call timed out")
            raise _too_late() from None
        except ConnectionError as error:
            raise unavailable(str(error)) from None

    async def _exchange(
        self,
        client: Process,
        server: Server,
        method: str,
        request: bytes,
        metadata: tuple[tuple[str, str], ...],
    ) -> Any:
        breaks = self.weather.breaks_call()
        breaks_when = self.random.random() if breaks else 1.0
        await self.hop(client, server.process, slow=True)
        if breaks_when < 0.3:
            self.weather.sometimes("a call broke before it arrived")
            raise ConnectionError("connection reset")
        handler = server.methods[method]
        context = Context(metadata)
        answering = server.start(self._answer(handler, request, context, method), method)
        try:
            if breaks_when < 0.5:
                await asyncio.sleep(self.random.uniform(0.0, 0.01))
                self.weather.sometimes("a call broke under way")
                raise ConnectionError("connection reset")
            await self._until_done(answering, server.process)
        except BaseException:
            # gRPC cancels the servicer of a call whose caller gave up; the message that says so needs time.
            server.process.call(answering.cancel, after_s=self.weather.hop_s())
            raise
        if answering.cancelled():
            raise ConnectionError("the server stopped")
        answer = answering.result()
        if breaks:
            self.weather.sometimes("a call was carried out and nobody heard")
            raise ConnectionError("connection reset")
        await self.hop(server.process, client, slow=True)
        if context.failure is not None:
            raise context.failure
        return answer

    async def _answer(self, handler: Any, request: bytes, context: Context, method: str) -> Any:
        behave = grpc_server._unary(method.lstrip("/"), handler.unary_unary)
        try:
            answer = await behave(handler.request_deserializer(request), context)
        except grpc.aio.AbortError:
            return None
        return handler.response_serializer(answer)

    async def _until_done(self, task: asyncio.Task[Any], process: Process) -> None:
        """Raises ConnectionError when the process dies first, or stands still for too long."""
        still_s = 0.0
        while not task.done():
            await asyncio.wait({task, process.died}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
            if process.dead:
                raise ConnectionError("the peer is gone")
            still_s = still_s + 1.0 if process.frozen else 0.0
            if still_s > KEEPALIVE_S:
                raise ConnectionError("keepalive watchdog timeout")


class Channel:
    """As much of `grpc.aio.Channel` as generated stubs use."""

    def __init__(self, net: Net, process: Process, address: str) -> None:
        self._net = net
        self._process = process
        self._address = address

    def unary_unary(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: object
    ) -> Unary:
        return Unary(
            self._net, self._process, self._address, method, request_serializer, response_deserializer
        )

    def unary_stream(
        self, method: str, request_serializer: Any, response_deserializer: Any, **_: object
    ) -> Streaming:
        return Streaming(
            self._net, self._process, self._address, method, request_serializer, response_deserializer
        )

    async def close(self, grace: float | None = None) -> None:
        """There is nothing to close."""


class _Method:
    def __init__(
        self, net: Net, process: Process, address: str, method: str, serialize: Any, parse: Any
    ) -> None:
        self._method = method.encode()
        self._name = method
        self._net = net
        self._process = process
        self._address = address
        self._serialize = serialize
        self._parse = parse


class Unary(_Method):
    """A method that is awaited."""

    async def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: tuple[tuple[str, str], ...] = (),
        wait_for_ready: bool = False,
    ) -> Any:
        answer = await self._net.call(
            self._process,
            self._address,
            self._name,
            self._serialize(request),
            timeout_s=timeout,
            metadata=metadata,
            wait_for_ready=wait_for_ready,
        )
        return self._parse(answer)


class Streaming(_Method):
    """A method that is iterated over."""

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Responses:
        return Responses(
            self._net,
            self._process,
            self._address,
            self._name,
            self._serialize(request),
            self._parse,
            metadata,
        )


class Responses:
    """One server stream. What was sent before it broke still arrives."""

    def __init__(
        self,
        net: Net,
        process: Process,
        address: str,
        method: str,
        request: bytes,
        parse: Any,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        self._net = net
        self._process = process
        self._address = address
        self._method = method
        self._request = request
        self._parse = parse
        self._metadata = metadata
        self._items: list[bytes] = []
        self._news = asyncio.Event()
        self._over: Exception | None = None
        self._ended = False
        self._pump: asyncio.Task[Any] | None = None
        self._watching: asyncio.Task[Any] | None = None
        self._server: Server | None = None

    def __aiter__(self) -> Responses:
        return self

    async def __anext__(self) -> Any:
        if self._watching is None:
            self._watching = self._process.start(self._run(), f"stream {self._method}")
        while not self._items and not self._ended:
            self._news.clear()
            await self._news.wait()
        if self._items:
            return self._parse(self._items.pop(0))
        if self._over is not None:
            raise self._over
        raise StopAsyncIteration

    def cancel(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._cancel_pump()
        self._end(asyncio.CancelledError())

    def _cancel_pump(self) -> None:
        if self._pump is not None and self._server is not None:
            self._server.process.call(self._pump.cancel, after_s=self._net.weather.hop_s())

    def _end(self, error: BaseException | None) -> None:
        if not self._ended:
            self._ended = True
            self._over = error if isinstance(error, Exception) else None
            self._news.set()

    def _put(self, item: bytes) -> None:
        self._items.append(item)
        self._news.set()

    async def _run(self) -> None:
        """Connect, begin, and notice what becomes of the other end: in the client's process."""
        server = self._server = self._net.find(self._address)
        if self._process.dead or server is None or server.process.dead:
            await asyncio.sleep(REFUSED_S)
            self._end(unavailable("connection refused"))
            return
        try:
            await self._net.hop(self._process, server.process, slow=True)
            context = Context(self._metadata)
            self._pump = server.start(self._send(server, context), f"answer {self._method}")
            await self._follow(server)
            await self._net.hop(server.process, self._process)
        except ConnectionError as error:
            self._cancel_pump()
            self._end(unavailable(str(error)))
        else:
            cancelled = self._pump.cancelled()
            self._end(context.failure or (unavailable("the server stopped") if cancelled else None))

    async def _follow(self, server: Server) -> None:
        assert self._pump is not None
        away_s = 0.0
        while not self._pump.done():
            await asyncio.wait(
                {self._pump, server.process.died}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            if server.process.dead:
                await asyncio.sleep(self._net.weather.hop_s())
                raise ConnectionError("the peer is gone")
            away = server.process.frozen or not self._net.reaches(self._process.name, server.process.name)
            away_s = away_s + 1.0 if away else 0.0
            if away_s > KEEPALIVE_S:
                self._net.weather.sometimes("a stream broke by keep-alive")
                raise ConnectionError("keepalive watchdog timeout")
            if self._net.weather.breaks_call() and self._net.random.random() < 0.05:
                self._net.weather.sometimes("a stream broke")
                raise ConnectionError("connection reset")

    async def _send(self, server: Server, context: Context) -> None:
        """In the server's process."""
        handler = server.methods[self._method]
        behave = grpc_server._streaming(self._method.lstrip("/"), handler.unary_stream)
        answers = behave(handler.request_deserializer(self._request), context)
        try:
            async for answer in answers:
                item = handler.response_serializer(answer)
                await self._net.hop(server.process, self._process)
                self._process.call(self._put, item)
        except (grpc.aio.AbortError, ConnectionError):
            return
        finally:
            await answers.aclose()  # type: ignore[attr-defined]


def _too_late() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.DEADLINE_EXCEEDED, NO_METADATA, NO_METADATA, "Deadline Exceeded"
    )
