"""HTTP by hand: requests whose bodies stay open, answers that are read as they come, and sudden ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

ANSWER_S: Final = 10.0


class Http:
    """A connection on which requests with open bodies are written by hand."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(*self._place)

    @property
    def answered(self) -> bool:
        return self._reader is not None and (bool(self._reader._buffer) or self._reader.at_eof())  # type: ignore[attr-defined]

    async def begin(self, method: str, path: str, *headers: str) -> None:
        await self.write("\r\n".join((f"{method} {path} HTTP/1.1", "Host: edge", *headers, "", "")).encode())

    async def chunk(self, data: bytes) -> None:
        if data:
            await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def write(self, data: bytes) -> None:
        assert self._writer is not None
        if self._writer.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self._writer.write(data)
        async with asyncio.timeout(ANSWER_S):
            await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer. Raises ConnectionError when there is none."""
        assert self._reader is not None
        async with asyncio.timeout(ANSWER_S):
            try:
                head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            except asyncio.IncompleteReadError:
                raise ConnectionResetError("the server closed the connection") from None
            body = b""
            if b"content-length:" in head:
                size = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                body = await self._reader.readexactly(size)
        return int(head.split()[1]), body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The pieces of a chunked body, as they come. Raises ConnectionError where it breaks off."""
        assert self._reader is not None
        try:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError("the server closed the connection") from None

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
