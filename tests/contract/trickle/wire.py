"""A real server on port 0 and a client that speaks HTTP by hand, so that tests see exact bytes in time."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import REGISTRY

from services.common.trickle.listener import ListenerLimits
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import OpenChannel, Registry
from services.common.trickle.resolve import Resolve, autocreating
from services.common.trickle.server import serve_trickle, trickle_app

QUIET_S = 0.05  # on loopback an answer that was to come has come by then
SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it
DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # one BPF instruction: keep 0 bytes of every packet


@dataclass(frozen=True)
class Served:
    registry: Registry
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(
        self,
        name: str = "c",
        *,
        limits: ChannelLimits | None = None,
        content_type: str = "video/MP2T",
    ) -> OpenChannel:
        """A channel whose name is its alias for reading and for writing."""
        return self.registry.open(
            name,
            content_type=content_type,
            limits=limits or ChannelLimits(),
            read_alias=name,
            write_alias=name,
        )


@asynccontextmanager
async def serving(
    *,
    linger_s: float = 0.0,
    max_channels: int = 100,
    autocreate: ChannelLimits | None = None,
    resolve: Resolve | None = None,
    limits: ListenerLimits | None = None,
    continue_interval_s: float = 10.0,
    reader_stall_s: float = 30.0,
    base_path: str = "/",
    changefeed: bool = False,
) -> AsyncIterator[Served]:
    registry = Registry(max_channels=max_channels, linger_s=linger_s, changefeed=changefeed)
    app = trickle_app(
        registry,
        base_path=base_path,
        resolve=autocreating(registry, autocreate) if autocreate is not None else resolve,
        limits=limits,
        continue_interval_s=continue_interval_s,
        reader_stall_s=reader_stall_s,
    )
    async with serve_trickle(app, "127.0.0.1:0", 1.0) as port:
        yield Served(registry, port)


@dataclass(frozen=True)
class Answer:
    """A response's head as it came; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def until(condition: Callable[[], bool], seconds: float = 2.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Connection:
    """One socket; what was sent and what came are plain bytes."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, plain: socket.socket
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.socket = plain

    def request(self, method: str, path: str, *headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    def post(self, path: str, *headers: str) -> None:
        self.request("POST", path, "Transfer-Encoding: chunked", *headers)

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> None:
        self.writer.write(b"0\r\n\r\n")

    async def quiet(self) -> bool:
        """True when nothing comes for a while."""
        try:
            async with asyncio.timeout(QUIET_S):
                await self.reader.readexactly(1)
        except TimeoutError:
            return True
        return False

    async def head(self, within_s: float = 3.0) -> Answer:
        async with asyncio.timeout(within_s):
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = raw.removesuffix("\r\n\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if line)
        return Answer(int(status.split()[1]), {name.lower(): value for name, value in headers.items()})

    async def answer(self, within_s: float = 3.0) -> Answer:
        """The whole response, of a length or chunked."""
        head = await self.head(within_s)
        return Answer(head.status, head.headers, await self.body_of(head))

    async def body_of(self, head: Answer) -> bytes:
        if head.status == 100:
            return b""
        if "content-length" in head.headers:
            async with asyncio.timeout(3):
                return await self.reader.readexactly(int(head.headers["content-length"]))
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> AsyncIterator[bytes]:
        while data := await self.next_chunk():
            yield data

    async def next_chunk(self) -> bytes:
        """One chunk as it was framed; b"" is the last one."""
        async with asyncio.timeout(3):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def next_chunk_after_head(self) -> bytes:
        assert (await self.head()).status == 200
        return await self.next_chunk()

    async def hung_up(self) -> bool:
        """True when the server ends the connection soon."""
        try:
            async with asyncio.timeout(1.5):
                await self.reader.read()
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        return True

    def kill(self) -> None:
        self.writer.transport.abort()

    def vanish(self) -> None:
        """Behave like a host without power: nothing that arrives is seen, so nothing is acknowledged."""
        program = ctypes.create_string_buffer(DROP_ALL)
        self.socket.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(program))
        )


@asynccontextmanager
async def connect(served: Served) -> AsyncIterator[Connection]:
    plain = socket.create_connection(("127.0.0.1", served.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    try:
        yield Connection(reader, writer, plain)
    finally:
        writer.transport.abort()


async def ask(served: Served, method: str, path: str, *headers: str) -> Answer:
    """One request on a connection of its own."""
    async with connect(served) as connection:
        connection.request(method, path, *headers)
        return await (connection.head() if method == "HEAD" else connection.answer())


async def put(served: Served, path: str, *chunks: bytes) -> Answer:
    """POST one whole segment."""
    async with connect(served) as connection:
        connection.post(path)
        for chunk in chunks:
            connection.chunk(chunk)
        connection.end()
        return await connection.answer()
