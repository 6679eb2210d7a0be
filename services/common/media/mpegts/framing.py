"""Finds the packets in a byte stream, and finds them again after garbage. Pure.

They come bare, or each behind a time of 4 bytes (M2TS, Blu-ray), or each before 16 bytes of Reed-Solomon code
(DVB). The rule it keeps: which packets are found does not depend on how the bytes are cut into pieces.
"""

from __future__ import annotations

import re
from typing import Final

from services.common.media.mpegts.damage import Tally
from services.common.media.mpegts.packets import PACKET, SYNC

TIMED: Final = 192
CODED: Final = 204

# A sync byte begins a packet if another one stands where the next packet would begin; for the formats that
# hardly anybody sends, it takes two more, for garbage must not be mistaken for them.
BEGINS: Final = re.compile(
    rb"\x47(?:(?=.{187}(\x47))|(?=.{191}\x47.{191}(\x47))|(?=.{203}\x47.{203}(\x47)))", re.DOTALL
)
STRIDES: Final = (0, PACKET, TIMED, CODED)  # by BEGINS's groups
# A sync byte of which the bytes to come may still show that it begins a packet.
OPEN: Final = re.compile(
    rb"\x47(?=.{0,203}\Z|.{191}\x47.{0,191}\Z|.{203}\x47.{0,203}\Z)",
    re.DOTALL,
)
FURTHEST: Final = 2 * CODED  # how far behind a sync byte these look


class Framing:
    """Bytes in pieces of any size in, whole packets out."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._rest = b""  # a packet whose end is still to come; after a loss of sync, what may be one
        self._synced = True
        self._stride = PACKET
        self._to_skip = 0  # what stands between two packets and has not come yet

    def take(self, data: bytes) -> list[bytes]:
        """The packets that `data` completes, in runs: each is one packet behind the other."""
        if self._rest:
            data = self._rest + data
        position = self._to_skip
        runs: list[bytes] = []
        while True:
            if not self._synced:
                position = self._search(data, position)
                if not self._synced:
                    break
            run, position = self._run(data, position)
            if run:
                runs.append(run)
            if position + PACKET > len(data):
                break
            self._synced = False
            self._tally.resyncs += 1
        self._to_skip = max(0, position - len(data))
        self._rest = data[position:]
        return runs

    def end(self) -> bool:
        """The input's end: whether it cut something off. What follows starts at a packet's first byte."""
        self._tally.bytes_skipped += len(self._rest)
        cut_off = bool(self._rest)
        self._rest, self._synced, self._stride, self._to_skip = b"", True, PACKET, 0
        return cut_off

    def _run(self, data: bytes, position: int) -> tuple[bytes, int]:
        """The packets from `position` on up to the first that does not begin like one, and where that is."""
        stride = self._stride
        count = max(0, (len(data) - position - PACKET) // stride + 1)
        starts = data[position : position + count * stride : stride]
        if starts.count(SYNC) != count:
            count -= len(starts.lstrip(SYNC))
        end = position + count * stride
        if stride == PACKET:
            return data[position:end], end
        return b"".join([data[at : at + PACKET] for at in range(position, end, stride)]), end

    def _search(self, data: bytes, position: int) -> int:
        """Where the next packet begins, or may begin, which the bytes to come will tell."""
        begins = BEGINS.search(data, position)
        begin = begins.start() if begins else len(data)
        unsure = OPEN.search(data, max(position, len(data) - FURTHEST))
        if unsure and unsure.start() < begin:
            begin = unsure.start()
        elif begins:
            assert begins.lastindex is not None
            self._synced, self._stride = True, STRIDES[begins.lastindex]
        self._tally.bytes_skipped += begin - position
        return begin
