"""What a session's pipeline remembers, kept at its bridge for the runner that may go on with it.

The rule it keeps: nothing waits for it, and of snapshots only the newest is of use. One that did not arrive
whole is told from one that did, so what is read back is what was written, or nothing.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from typing import Final

import structlog
from aiohttp import ClientSession

from services.common.trickle.connection import TRANSPORT_ERRORS, index_header, segment_url
from services.common.trickle.protocol import LATEST
from services.common.trickle.publisher import Publisher
from services.inference.address import Address
from services.inference.upstream import keep_publishing

log = structlog.get_logger()

SEAL: Final = struct.Struct(">4sII")  # a mark, the snapshot's length and its CRC-32; then the snapshot
MARK: Final = b"SLS1"
LARGEST_BYTES: Final = SEAL.size + (1 << 20)  # what an engine lets through, sealed
WITHIN_S: Final = 1.0
NOTHING: Final = b""  # a snapshot that says: begin without
TRIES: Final = 2  # the newest may have been cut with the runner that wrote it


class StateWriter:
    """`run` writes what `put` leaves, one segment each, and the newest again at another bridge."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._newest: bytes | None = None
        self._fresh = asyncio.Event()

    def put(self, snapshot: bytes) -> None:
        self._newest = snapshot
        self._fresh.set()

    async def run(self, http: ClientSession) -> None:
        """A loop for `background`."""
        await self._address.at_each(lambda url: self._write(http, url))

    async def _write(self, http: ClientSession, url: str) -> None:
        if not url:
            await asyncio.Event().wait()
        if self._newest is not None:
            self._fresh.set()
        await self._fresh.wait()  # a pipeline that remembers nothing costs no connection
        await keep_publishing(http, url, "application/octet-stream", self._publish, lambda: None)

    async def _publish(self, publisher: Publisher) -> None:
        await self._fresh.wait()
        self._fresh.clear()
        if self._newest is not None:
            async with publisher.segment() as segment:
                await segment.write(sealed(self._newest))


async def read_back(http: ClientSession, url: str) -> bytes | None:
    """The newest snapshot that was written whole; None when there is none, or not in time."""
    try:
        async with asyncio.timeout(WITHIN_S):
            async with http.get(segment_url(url, "next")) as response:
                head = index_header(response, LATEST) or 0
            for index in range(head - 1, max(head - 1 - TRIES, -1), -1):
                snapshot = unsealed(await _segment(http, url, index))
                if snapshot is not None:
                    return snapshot if snapshot != NOTHING else None
    except TRANSPORT_ERRORS as error:
        log.warning("the pipeline begins without its snapshot", why=repr(error))
    return None


async def _segment(http: ClientSession, url: str, index: int) -> bytes:
    data = bytearray()
    async with http.get(segment_url(url, index)) as response:
        async for part in response.content.iter_any():
            data += part
            if len(data) > LARGEST_BYTES:
                return b""
    return bytes(data)


def sealed(snapshot: bytes) -> bytes:
    return SEAL.pack(MARK, len(snapshot), zlib.crc32(snapshot)) + snapshot


def unsealed(data: bytes) -> bytes | None:
    """The snapshot in `data`; None when that is not all of one."""
    if len(data) < SEAL.size:
        return None
    mark, length, checksum = SEAL.unpack_from(data)
    snapshot = data[SEAL.size :]
    whole = (mark, length, checksum) == (MARK, len(snapshot), zlib.crc32(snapshot))
    return snapshot if whole else None
