"""A TCP proxy that delays, throttles, falls silent and resets, between any two processes of a platform.

The rule it keeps: it never changes a byte. One thread has all proxies; faults may be set from any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

CHUNK: Final = 16 * 1024
LINGER_RESET: Final = struct.pack("ii", 1, 0)  # close() sends RST
LOOK_S: Final = 0.02
READY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to bytes. `silent`: they are taken and kept back, as over a half-open connection."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0  # 0: as fast as it goes
    silent: bool = False


NONE: Final = Fault()


class Proxy:
    """Listens on a port of its own for one target; made by `proxies`."""

    def __init__(self, target: str, loop: asyncio.AbstractEventLoop) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._loop = loop
        self._open: set[asyncio.StreamWriter] = set()
        self._silenced: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closing = False
        self.fault = NONE
        self.connections = 0
        self.address = ""

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()[:2]
        self.address = f"{host}:{port}"

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self._closing = True
        for writer in self._open:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def reset(self) -> None:
        """Break every open connection with a RST."""
        self._loop.call_soon_threadsafe(self._reset)

    def half_open(self) -> None:
        """From now on nothing passes over the connections that are open; new ones are as good as any."""
        self._loop.call_soon_threadsafe(lambda: self._silenced.update(self._open))

    def _reset(self) -> None:
        for writer in self._open:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(*self._target)
                self._open |= {writer, back}
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._pass(reader, back))
                        group.create_task(self._pass(there, writer))
                finally:
                    self._open -= {writer, back}
                    self._silenced -= {writer, back}
                    back.transport.abort()
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction, until its end; the end of one is passed on and leaves the other."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1024)

        async def take() -> None:
            while True:
                data = await reader.read(CHUNK)
                await due.put((self._loop.time() + self.fault.delay_s, data))
                if not data:
                    return

        async def give() -> None:
            while True:
                at_s, data = await due.get()
                await asyncio.sleep(max(0.0, at_s - self._loop.time()))
                while not self._closing and (self.fault.silent or writer in self._silenced):
                    await asyncio.sleep(LOOK_S)
                if self.fault.bytes_per_s:
                    await asyncio.sleep(len(data) / self.fault.bytes_per_s)
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(take())
                group.create_task(give())
        except* OSError:
            writer.transport.abort()  # a broken connection is passed on as one


class Proxies:
    """All proxies of a scene."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.made: list[Proxy] = []

    def to(self, target: str) -> Proxy:
        proxy = Proxy(target, self._loop)
        asyncio.run_coroutine_threadsafe(proxy.listen(), self._loop).result(READY_S)
        self.made.append(proxy)
        return proxy


@contextmanager
def proxies() -> Iterator[Proxies]:
    """A thread for proxies; when the block ends, all are closed."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxies", daemon=True)
    thread.start()
    made = Proxies(loop)
    try:
        yield made
    finally:
        for proxy in made.made:
            asyncio.run_coroutine_threadsafe(proxy.close(), loop).result(READY_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(READY_S)
        loop.close()
