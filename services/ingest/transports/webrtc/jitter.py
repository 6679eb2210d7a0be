"""Packets in any order to frames in order: at once when they are complete, or never. Pure.

The rule it keeps: no frame with a hole and none out of order is given out. What does not come within the
patience is given up, and with it, where a frame needs those before it, everything up to the next that does
not. Sequence numbers are unwrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from services.ingest.transports.webrtc.rtp import Packet

CAPACITY: Final = 1024  # packets: a key frame of 1.2 MB
LONGEST_GAP: Final = 256  # packets; more are not worth asking for


@dataclass(frozen=True, slots=True)
class Frame:
    """The payloads of one timestamp."""

    timestamp: int
    payloads: list[bytes]
    arrived_s: float  # the last packet that it needed
    after_loss: bool  # something before it is missing


class JitterBuffer:
    """One source's packets. `begins` tells a payload with which decoding can begin; None: any (sound)."""

    def __init__(self, *, patience_s: float, begins: Callable[[bytes], bool] | None) -> None:
        self.given_up = 0  # times that something was not waited for any longer
        self.late = 0  # packets that came after that, or twice
        self._patience_s = patience_s
        self._begins = begins
        self._packets: dict[int, Packet] = {}
        self._next: int | None = None  # None: looking for where to begin
        self._past: int | None = None  # what is below it was given out, or given up
        self._highest: int | None = None
        self._parts: list[bytes] = []
        self._timestamp = 0
        self._lost = False
        self._blocked: tuple[int, float] | None = None  # the packet that is missing, and since when

    def add(self, sequence: int, packet: Packet, now_s: float) -> list[Frame]:
        """Take one packet; the frames that it completes."""
        if (self._past is not None and sequence < self._past) or sequence in self._packets:
            self.late += 1
            return []
        self._packets[sequence] = packet
        self._highest = sequence if self._highest is None else max(self._highest, sequence)
        if self._next is None and not self._begin_at(sequence, packet):
            return []
        frames = self._drain(now_s)
        if len(self._packets) > CAPACITY:
            frames += self._give_up(now_s)
        return frames

    def _begin_at(self, sequence: int, packet: Packet) -> bool:
        if self._begins is None or self._begins(packet.payload):
            self._next = sequence
            self._packets = {each: held for each, held in self._packets.items() if each >= sequence}
            return True
        if len(self._packets) > CAPACITY:
            self._packets.clear()
        return False

    @property
    def due_s(self) -> float | None:
        """When `expire` has something to give up."""
        return None if self._blocked is None else self._blocked[1] + self._patience_s

    def expire(self, now_s: float) -> list[Frame]:
        """Give up what is missing for too long; the frames that are free by that."""
        due_s = self.due_s
        return self._give_up(now_s) if due_s is not None and now_s >= due_s else []

    def missing(self) -> list[int]:
        """The packets to ask for again; none when there are too many."""
        if self._next is None or self._highest is None or self._highest - self._next > LONGEST_GAP:
            return []
        return [each for each in range(self._next, self._highest) if each not in self._packets]

    def _drain(self, now_s: float) -> list[Frame]:
        frames: list[Frame] = []
        assert self._next is not None
        while (packet := self._packets.pop(self._next, None)) is not None:
            if self._parts and packet.timestamp != self._timestamp:
                self._emit(frames, now_s)  # it ended without a marker
            self._timestamp = packet.timestamp
            self._parts.append(packet.payload)
            self._next += 1
            if packet.marker or self._begins is None:
                self._emit(frames, now_s)
        self._past = self._next
        if not self._packets:
            self._blocked = None
        elif self._blocked is None or self._blocked[0] != self._next:
            self._blocked = self._next, now_s
        return frames

    def _emit(self, frames: list[Frame], now_s: float) -> None:
        parts, self._parts = self._parts, []
        if any(parts):  # else it is padding
            frames.append(Frame(self._timestamp, parts, now_s, self._lost))
            self._lost = False

    def _give_up(self, now_s: float) -> list[Frame]:
        self.given_up += 1
        self._lost = True
        self._parts = []
        self._blocked = None
        begins = self._begins
        start = min(
            (each for each, held in self._packets.items() if begins is None or begins(held.payload)),
            default=None,
        )
        self._next = start
        if start is None:
            self._packets.clear()
            return []
        self._packets = {each: held for each, held in self._packets.items() if each >= start}
        return self._drain(now_s)
