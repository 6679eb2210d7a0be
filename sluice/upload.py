"""One POST whose answer may come before its body has ended.

A platform says at once that there is no runner or no credit, while its publisher still has an hour to send.
An HTTP client that reads the answer only behind the body would send on, get a reset, and never see why.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

import h11

CONNECT_S: Final = 5.0
STALL_S: Final = 60.0  # the server takes nothing, or says nothing after the end of the body, for so long
LAST_WORD_S: Final = 5.0  # for the answer that was on its way when the connection broke
READ_BYTES: Final = 64 * 1024
ANSWER_BYTES: Final = 1 << 20


async def post(url: str, chunks: AsyncIterator[bytes], *, tls: ssl.SSLContext) -> tuple[int, bytes]:
    """Send `chunks` as MPEG-TS; the answer's status and body. Raises OSError, TimeoutError."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    async with asyncio.timeout(CONNECT_S):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=tls if secure else None
        )
    connection = h11.Connection(h11.CLIENT)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    headers = [
        ("Host", parts.netloc.rpartition("@")[2]),
        ("Content-Type", "video/mp2t"),
        ("Transfer-Encoding", "chunked"),
    ]
    _write(writer, connection, h11.Request(method="POST", target=target or "/", headers=headers))
    sending = asyncio.ensure_future(_send(writer, connection, chunks))
    answering = asyncio.ensure_future(_answer(reader, connection))
    try:
        await asyncio.wait({sending, answering}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        broken = sending.exception()
        if broken is not None and not isinstance(broken, OSError):
            raise broken
        try:
            async with asyncio.timeout(LAST_WORD_S if broken else STALL_S):
                return await answering
        except (OSError, TimeoutError):
            raise broken or TimeoutError("no answer to the end of the stream") from None
    finally:
        sending.cancel()
        answering.cancel()
        await asyncio.wait({sending, answering})
        for task in (sending, answering):
            if not task.cancelled():
                task.exception()  # it is taken note of; what there is to say was raised above
        writer.transport.abort()


def _write(writer: asyncio.StreamWriter, connection: h11.Connection, event: h11.Event) -> None:
    data = connection.send(event)
    if data:
        writer.write(data)


async def _send(
    writer: asyncio.StreamWriter, connection: h11.Connection, chunks: AsyncIterator[bytes]
) -> None:
    async for chunk in chunks:
        _write(writer, connection, h11.Data(data=chunk))
        async with asyncio.timeout(STALL_S):
            await writer.drain()
    _write(writer, connection, h11.EndOfMessage())
    async with asyncio.timeout(STALL_S):
        await writer.drain()


async def _answer(reader: asyncio.StreamReader, connection: h11.Connection) -> tuple[int, bytes]:
    status, body = 0, bytearray()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            if isinstance(event, h11.EndOfMessage) or len(body) > ANSWER_BYTES:
                return status, bytes(body)
            if isinstance(event, h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError as error:
        raise ConnectionResetError("the server broke off in the middle of an answer") from error
    raise ConnectionResetError("the server closed the connection without an answer")
