"""How many pictures are under way between a muxer and a demuxer, counted and not timed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable

import av

from services.common.media.mpegts import AccessUnit, Codec, Demuxer, Muxer
from tests.bench.mpegts import LibavMuxer, stream

PICTURES = 90  # three seconds, for libav looks at one or two before it gives anything out
PATIENCE_S = 20


class Line(io.RawIOBase):
    """What a muxer writes a demuxer reads, and `wait_until_read` returns when it asks for more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._data = bytearray()
        self._starving = False
        self._ended = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # PyAV writes bytes
        with self._changed:
            self._data += data
            self._starving = False
            self._changed.notify_all()
        return len(data)

    def read(self, size: int = -1) -> bytes:
        with self._changed:
            while not self._data and not self._ended:
                self._starving = True
                self._changed.notify_all()
                assert self._changed.wait(PATIENCE_S)
            taken = bytes(self._data[:size])
            del self._data[:size]
            return taken

    def wait_until_read(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._starving, PATIENCE_S)

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def under_way_in_libav(units: list[AccessUnit]) -> int:
    """Pictures that libav has taken and not given out when the last but a few is written."""
    line = Line()
    given = 0

    def read() -> None:
        nonlocal given
        with av.open(line, "r", format="mpegts") as container:
            for packet in container.demux():
                given += packet.size > 0 and packet.stream.type == "video"

    reader = threading.Thread(target=read)
    reader.start()
    muxer = LibavMuxer(line)
    written = 0
    for unit in units:
        muxer.mux(muxer.packet(unit))
        written += unit.codec is Codec.H264
    line.wait_until_read()
    under_way = written - given
    muxer.close()
    line.end()
    reader.join(PATIENCE_S)
    assert given == written
    return under_way


def most_under_way(units: list[AccessUnit], pass_on: Callable[[AccessUnit], int]) -> int:
    """The most pictures that were ever written and not read; `pass_on` says how many came out."""
    written = given = most = 0
    for unit in units:
        written += unit.codec is Codec.H264
        given += pass_on(unit)
        most = max(most, written - given)
    return most


def test_no_picture_is_ever_under_way_where_libav_keeps_some() -> None:
    units = stream(PICTURES // 30)
    muxer, demuxer = Muxer(audio=Codec.OPUS), Demuxer()
    demuxer.feed(muxer.begin_segment())

    def through_ours(unit: AccessUnit) -> int:
        return sum(found.codec is Codec.H264 for found in demuxer.feed(muxer.write(unit)))

    assert most_under_way(units, through_ours) == 0
    assert under_way_in_libav(units) >= 2
