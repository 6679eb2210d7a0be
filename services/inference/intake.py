"""Packets that wait between two tasks, bounded: complete delivery makes who puts wait, live drops."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from services.inference.packets import Media

PACKETS: Final = 120  # four seconds at 30 fps: more delay is not live
BYTES: Final = 8 << 20


class Intake:
    """One task puts, one gets."""

    def __init__(self) -> None:
        self.dropped = 0
        self._packets: deque[Media] = deque()
        self._bytes = 0
        self._skipping = False
        self._finished = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def full(self) -> bool:
        return len(self._packets) >= PACKETS or self._bytes >= BYTES

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            self._drained.clear()
            await self._drained.wait()

    def put(self, packet: Media) -> None:
        """Add to what waits, after `room`."""
        self._packets.append(packet)
        self._bytes += len(packet.data)
        self._filled.set()

    def put_newest(self, packet: Media) -> None:
        """Add to what waits; when that is full, it loses its head up to the next key frame."""
        while self.full:
            self._drop_picture_group()
        if self._skipping and not packet.keyframe:
            self.dropped += 1
            return
        self._skipping = False
        self.put(packet)

    def skip_to_keyframe(self) -> None:
        """Something is missing before the next packet: what refers to it is of no use."""
        self._skipping = True

    async def get(self) -> Media | None:
        """The next packet; None at the end."""
        while not self._packets and not self._finished:
            self._filled.clear()
            await self._filled.wait()
        return self._take() if self._packets else None

    def finish(self) -> None:
        self._finished = True
        self._filled.set()

    def _drop_picture_group(self) -> None:
        self._take()
        self.dropped += 1
        while self._packets and not self._packets[0].keyframe:
            self._take()
            self.dropped += 1
        self._skipping = self._skipping or not self._packets

    def _take(self) -> Media:
        packet = self._packets.popleft()
        self._bytes -= len(packet.data)
        self._drained.set()
        return packet
