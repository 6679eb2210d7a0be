"""What a unit costs our muxer and demuxer, and how long they keep it, beside libav's with its defaults.

The same stream (512x512 at 30 pictures/s and 1 Mbit/s, Opus in 20 ms) goes through both, one after the other.
For the delay both are a writer and a reader on threads with a pipe between them, paced as a camera would.
"""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import Final

import av
import numpy as np
from av.stream import Stream

from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Demuxer, Muxer
from tests.bench.figures import Figure, percentile, show

BENCH: Final = "mpegts"
SIDE: Final = 512
FPS: Final = 30
BITRATE: Final = 1_000_000
SOUND_BITRATE: Final = 85_000
RATE: Final = 48_000
TICK: Final = Fraction(1, CLOCK_HZ)
SECONDS: Final = 9  # of the stream
OPENING_S: Final = 3.0  # libav looks at up to a second of a stream before it gives out any of it
RUNS: Final = 8  # for the costs; the least of them is the one that nobody disturbed
KEYFRAME_EVERY: Final = 30
PIPE_BYTES: Final = 65_536


def stream(seconds: int = SECONDS) -> list[AccessUnit]:
    """Pictures with noise in them, so that the rate control has to work, and sound, in the order of time."""
    noise = np.random.default_rng(3)
    units: list[AccessUnit] = []
    video = av.CodecContext.create("libx264", "w")
    video.width = video.height = SIDE
    video.pix_fmt, video.time_base, video.framerate = "yuv420p", TICK, Fraction(FPS)
    video.bit_rate, video.gop_size = BITRATE, KEYFRAME_EVERY
    video.options = {
        "preset": "ultrafast",
        "tune": "zerolatency",
        "threads": "1",
        "maxrate": str(BITRATE),
        "bufsize": str(BITRATE // 4),
    }
    for index in range(seconds * FPS):
        pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
        pixels[:128] = noise.integers(0, 96, (128, SIDE, 3), dtype=np.uint8)
        frame = av.VideoFrame.from_ndarray(pixels)
        frame.pts, frame.time_base = CLOCK_HZ + index * CLOCK_HZ // FPS, TICK
        for packet in video.encode(frame):
            data = bytes(packet)
            pts = packet.pts or 0
            units.append(AccessUnit(Codec.H264, pts, pts, data, h264.is_keyframe(data)))
    sound = av.CodecContext.create("libopus", "w")
    sound.sample_rate, sound.layout, sound.format, sound.bit_rate = RATE, "stereo", "s16", SOUND_BITRATE
    for index in range(seconds * RATE // 960):
        samples = noise.integers(-3000, 3000, (1, 960 * 2), dtype=np.int16)
        heard = av.AudioFrame.from_ndarray(samples, "s16", "stereo")
        heard.sample_rate, heard.pts, heard.time_base = RATE, index * 960, Fraction(1, RATE)
        for packet in sound.encode(heard):
            pts = CLOCK_HZ + (packet.pts or 0) * CLOCK_HZ // RATE
            if pts >= CLOCK_HZ:  # what the encoder puts before the beginning has no picture
                units.append(AccessUnit(Codec.OPUS, pts, pts, bytes(packet), keyframe=True))
    return sorted(units, key=lambda unit: unit.dts)


# --- what a unit costs


def cost_ms(units: int, work: Callable[[], object]) -> float:
    """CPU time of `work` per unit, in ms: the least of several runs."""
    spent: list[float] = []
    for _ in range(RUNS):
        begin_s = time.process_time()
        work()
        spent.append(time.process_time() - begin_s)
    return min(spent) * 1000 / units


def muxed(units: Sequence[AccessUnit]) -> list[bytes]:
    """What our muxer writes, a piece for each unit, and tables each second."""
    muxer = Muxer(audio=Codec.OPUS)
    return [
        muxer.begin_segment() + muxer.write(unit)
        if unit.codec is Codec.H264 and unit.keyframe
        else muxer.write(unit)
        for unit in units
    ]


def demuxed(pieces: Sequence[bytes]) -> int:
    demuxer = Demuxer()
    return sum(len(demuxer.feed(piece)) for piece in pieces)


class LibavMuxer:
    """libav's muxer with its defaults, as PyAV opens it."""

    def __init__(self, out: io.RawIOBase | io.BytesIO) -> None:
        self._container = av.open(out, "w", format="mpegts")
        video = self._container.add_stream("libx264", rate=FPS)
        video.width = video.height = SIDE
        video.pix_fmt, video.time_base = "yuv420p", TICK
        sound = self._container.add_stream("libopus", rate=RATE)
        sound.time_base = TICK
        self._streams = {Codec.H264: video, Codec.OPUS: sound}

    def packet(self, unit: AccessUnit) -> av.Packet[Stream]:
        packet = av.Packet(unit.data)
        packet.pts, packet.dts, packet.time_base = unit.pts, unit.dts, TICK
        packet.is_keyframe = unit.keyframe
        packet.duration = CLOCK_HZ // (FPS if unit.codec is Codec.H264 else 50)
        packet.stream = self._streams[unit.codec]
        return packet

    def mux(self, packet: av.Packet[Stream]) -> None:
        self._container.mux(packet)

    def close(self) -> None:
        self._container.close()


def muxed_by_libav(units: Sequence[AccessUnit]) -> bytes:
    out = io.BytesIO()
    muxer = LibavMuxer(out)
    for unit in units:
        muxer.mux(muxer.packet(unit))
    muxer.close()
    return out.getvalue()


def demuxed_by_libav(data: bytes) -> int:
    with av.open(io.BytesIO(data), "r", format="mpegts") as container:
        return sum(1 for packet in container.demux() if packet.size)


# --- how long a unit is kept


@dataclass(frozen=True, slots=True)
class Delays:
    """Per picture, from its write to its being read."""

    pictures_ms: Sequence[float]

    def percentile(self, percent: float) -> float:
        return percentile(self.pictures_ms, percent)


class PipeEnd(io.RawIOBase):
    """One end of a pipe as libav wants its files: what is there is given at once."""

    def __init__(self, descriptor: int, *, writes: bool) -> None:
        self._descriptor = descriptor
        self._writes = writes

    def readable(self) -> bool:
        return not self._writes

    def writable(self) -> bool:
        return self._writes

    def read(self, size: int = -1) -> bytes:
        return os.read(self._descriptor, size if size > 0 else PIPE_BYTES)

    def write(self, data: bytes) -> int:  # type: ignore[override]  # PyAV writes bytes
        return os.write(self._descriptor, data)


def delays(
    units: Sequence[AccessUnit],
    write: Callable[[int, Iterator[AccessUnit]], None],
    read: Callable[[int], Iterator[int]],
) -> Delays:
    """`write` puts each unit that it is given into the pipe; `read` yields the PTS of pictures out of it."""
    source, sink = os.pipe()
    written: dict[int, float] = {}
    arrived: dict[int, float] = {}
    begin_s = time.monotonic()

    def paced() -> Iterator[AccessUnit]:
        for dts, due in groupby(units, key=lambda unit: unit.dts):
            time.sleep(max(0.0, begin_s + (dts - CLOCK_HZ) / CLOCK_HZ - time.monotonic()))
            for unit in due:
                if unit.codec is Codec.H264:
                    written[unit.pts] = time.monotonic()
                yield unit

    def writer() -> None:
        try:
            write(sink, paced())
        finally:
            os.close(sink)

    thread = threading.Thread(target=writer, name="writer")
    thread.start()
    try:
        for pts in read(source):
            arrived.setdefault(pts, time.monotonic())
    finally:
        thread.join()
        os.close(source)
    last_s = max(written.values()) - 1.0  # what the end of the stream flushes was not kept for its own sake
    return Delays(
        [
            (arrived[pts] - at_s) * 1000
            for pts, at_s in written.items()
            if pts in arrived and begin_s + OPENING_S <= at_s <= last_s
        ]
    )


def write_ours(sink: int, units: Iterator[AccessUnit]) -> None:
    muxer = Muxer(audio=Codec.OPUS)
    for unit in units:
        tables = muxer.begin_segment() if unit.codec is Codec.H264 and unit.keyframe else b""
        os.write(sink, tables + muxer.write(unit))


def read_ours(source: int) -> Iterator[int]:
    demuxer = Demuxer()
    while data := os.read(source, PIPE_BYTES):
        yield from (unit.pts for unit in demuxer.feed(data) if unit.codec is Codec.H264)


def write_libav(sink: int, units: Iterator[AccessUnit]) -> None:
    muxer = LibavMuxer(PipeEnd(sink, writes=True))
    for unit in units:
        muxer.mux(muxer.packet(unit))
    muxer.close()


def read_libav(source: int) -> Iterator[int]:
    with av.open(PipeEnd(source, writes=False), "r", format="mpegts") as container:
        for packet in container.demux():
            if packet.size and packet.pts is not None and packet.stream.type == "video":
                yield packet.pts


def main() -> None:
    units = stream()
    pieces = muxed(units)
    by_libav = muxed_by_libav(units)
    assert demuxed(pieces) == len(units), (demuxed(pieces), len(units))
    ours = delays(units, write_ours, read_ours)
    theirs = delays(units, write_libav, read_libav)
    show(
        [
            Figure(
                BENCH,
                "mux_ms",
                cost_ms(len(units), lambda: muxed(units)),
                "ms",
                cost_ms(len(units), lambda: muxed_by_libav(units)),
            ),
            Figure(
                BENCH,
                "demux_ms",
                cost_ms(len(units), lambda: demuxed(pieces)),
                "ms",
                cost_ms(len(units), lambda: demuxed_by_libav(by_libav)),
            ),
            Figure(BENCH, "added_ms", ours.percentile(50), "ms", theirs.percentile(50)),
            Figure(BENCH, "added_ms_p95", ours.percentile(95), "ms", theirs.percentile(95)),
            Figure(
                BENCH,
                "overhead",
                sum(map(len, pieces)) / sum(len(unit.data) for unit in units),
                "ratio",
                len(by_libav) / sum(len(unit.data) for unit in units),
            ),
        ]
    )


if __name__ == "__main__":
    main()
