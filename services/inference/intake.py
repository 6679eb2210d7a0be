"""Packets that wait between two tasks, bounded: complete delivery makes who puts wait, live drops."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from services.inference.packets import Media, Sound

PACKETS: Final = 120  # pictures, four seconds at 30 fps: more delay is not live
SOUNDS: Final = 400  # as long in pieces of 10 ms
BYTES: Final = 8 << 20


class Intake:
    """One task puts, one gets."""

    def __init__(self) -> None:
        self.dropped = 0  # pictures
        self.dropped_sounds = 0
        self._packets: deque[Media | Sound] = deque()
        self._sounds = 0  # how many of them
        self._bytes = 0
        self._skipping = False
        self._finished = False
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def full(self) -> bool:
        pictures = len(self._packets) - self._sounds
        return pictures >= PACKETS or self._sounds >= SOUNDS or self._bytes >= BYTES

    async def room(self) -> None:
        """Wait until it is not full."""
        while self.full:
            self._drained.clear()
            await self._drained.wait()

    def put(self, packet: Media | Sound) -> None:
        """Add to what waits, after `room`."""
        self._packets.append(packet)
        self._sounds += isinstance(packet, Sound)
        self._bytes += len(packet.data)
        self._filled.set()

    def put_newest(self, packet: Media | Sound) -> None:
        """Add to what waits; when that is full, it loses its head up to the next key frame."""
        while self.full:
            self._drop_head()
        if isinstance(packet, Media):
            if self._skipping and not packet.keyframe:
                self.dropped += 1
                return
            self._skipping = False
        self.put(packet)

    def drop_all(self) -> None:
        """Lose what waits; the next picture is a key frame."""
        while self._packets:
            self._drop()
        self._skipping = True

    def skip_to_keyframe(self) -> None:
        """Something is missing before the next packet: pictures that refer to it are of no use."""
        self._skipping = True

    async def get(self) -> Media | Sound | None:
        """The next packet; None at the end."""
        while not self._packets and not self._finished:
            self._filled.clear()
            await self._filled.wait()
        return self._take() if self._packets else None

    def finish(self) -> None:
        self._finished = True
        self._filled.set()

    def _drop_head(self) -> None:
        """Lose sound, or a picture with all that refers to it and the sound between."""
        if isinstance(self._drop(), Sound):
            return
        while self._packets and not _begins_group(self._packets[0]):
            self._drop()
        self._skipping = self._skipping or not self._packets

    def _drop(self) -> Media | Sound:
        packet = self._take()
        if isinstance(packet, Media):
            self.dropped += 1
        else:
            self.dropped_sounds += 1
        return packet

    def _take(self) -> Media | Sound:
        packet = self._packets.popleft()
        self._sounds -= isinstance(packet, Sound)
        self._bytes -= len(packet.data)
        self._drained.set()
        return packet


def _begins_group(packet: Media | Sound) -> bool:
    return isinstance(packet, Media) and packet.keyframe
