"""The bytes of one segment, and the readers that wait for more of them or are pushed to.

Bytes are kept as they came and are not copied while they come; whoever reads later gets them in bounded runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

# The most that one step of a reader copies: replaying 8 MiB must not stall the loop.
RUN_BYTES: Final = 256 * 1024
SMALL_BYTES: Final = 1024  # pieces below are put together: a piece has 33 bytes of its own
PIECE_BYTES: Final = 16 * 1024


@dataclass(slots=True)
class Cursor:
    """How far a reader has come: so many bytes, so many pieces and a part of one."""

    taken: int = 0
    piece: int = 0
    offset: int = 0


class Segment:
    """Grows piece by piece; a piece is `bytes`, or a `bytearray` that grows while it is the last."""

    __slots__ = (
        "cut",
        "ended",
        "followers",
        "generation",
        "index",
        "on_end",
        "pieces",
        "size",
        "waiters",
    )

    def __init__(self, index: int, generation: int) -> None:
        self.index = index
        self.generation = generation
        self.pieces: list[bytes | bytearray] = []
        self.size = 0
        self.ended = False
        self.cut = False  # it ended before its writer said so
        self.on_end: Callable[[], None] | None = None
        self.waiters: set[asyncio.Future[None]] = set()
        self.followers: dict[asyncio.Future[Cursor], Callable[[bytes], bool]] = {}

    def append(self, data: bytes) -> None:
        size = len(data)
        self.size += size
        if size >= SMALL_BYTES:
            self.pieces.append(data)
        elif self.pieces and isinstance(last := self.pieces[-1], bytearray) and len(last) < PIECE_BYTES:
            last += data
        else:
            self.pieces.append(bytearray(data))
        if self.followers:
            full = [done for done, sink in self.followers.items() if not sink(data)]
            if full:
                self._release(full)
        if self.waiters:
            wake(self.waiters)

    def end(self, *, cut: bool) -> None:
        if not self.ended:
            self.ended = True
            self.cut = cut and self.size > 0
            wake(self.waiters)
            self._release(tuple(self.followers))
            if self.on_end is not None:
                self.on_end()

    def take(self, cursor: Cursor) -> bytes:
        """The next run after `cursor`, which moves; b"" when all that is there was taken."""
        run: list[bytes | bytearray] = []
        room = RUN_BYTES
        while room and cursor.piece < len(self.pieces):
            piece = self.pieces[cursor.piece]
            part = piece[cursor.offset : cursor.offset + room]
            run.append(part)
            room -= len(part)
            cursor.offset += len(part)
            if cursor.offset < len(piece):
                break
            if cursor.piece == len(self.pieces) - 1 and isinstance(piece, bytearray):
                break  # it may grow
            cursor.piece, cursor.offset = cursor.piece + 1, 0
        cursor.taken += RUN_BYTES - room
        return b"".join(run)

    async def follow(self, sink: Callable[[bytes], bool]) -> Cursor:
        """Give `sink` what is appended, until the end or until it returns False; returns how far that was."""
        done: asyncio.Future[Cursor] = asyncio.get_running_loop().create_future()
        self.followers[done] = sink
        try:
            return await done
        finally:
            self.followers.pop(done, None)

    def end_cursor(self) -> Cursor:
        """After all that is there."""
        last = self.pieces[-1] if self.pieces else b""
        if isinstance(last, bytearray):
            return Cursor(self.size, len(self.pieces) - 1, len(last))
        return Cursor(self.size, len(self.pieces))

    def _release(self, followers: Iterable[asyncio.Future[Cursor]]) -> None:
        for done in followers:
            del self.followers[done]
            if not done.done():
                done.set_result(self.end_cursor())


def wake(waiters: set[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    waiters.clear()


async def woken(waiters: set[asyncio.Future[None]]) -> None:
    """Wait for the next `wake`; each on its own future, for cancelling a shared one would end them all."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.add(waiter)
    try:
        await waiter
    finally:
        waiters.discard(waiter)
