"""Units one after the other in a file, and an MP4 of them: what was encoded stays as it is.

libav probes no file here: what a track is, it learns from a small transport stream of its first units.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, Final

import av
from av.container import OutputContainer
from av.stream import Stream

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer

TICK: Final = Fraction(1, CLOCK_HZ)
HEAD: Final = struct.Struct(">BqqI")  # codec and key frame, PTS, DTS, bytes
CODECS: Final = (Codec.H264, Codec.AAC, Codec.OPUS)
SAMPLES: Final = 8  # units of sound that tell what it is


def packed(unit: AccessUnit) -> bytes:
    """The unit as it is written."""
    kind = CODECS.index(unit.codec) << 1 | unit.keyframe
    return HEAD.pack(kind, unit.pts, unit.dts, len(unit.data)) + unit.data


def unpacked(file: BinaryIO, size: int) -> Iterator[AccessUnit]:
    """The units in the first `size` bytes, which end with a unit."""
    while file.tell() < size:
        kind, pts, dts, length = HEAD.unpack(file.read(HEAD.size))
        yield AccessUnit(CODECS[kind >> 1], pts, dts, file.read(length), bool(kind & 1))


@dataclass(slots=True)
class Reel:
    """What is known of a recording's tracks: its first picture, and the first units of its first sound."""

    picture: AccessUnit | None = None
    sounds: list[AccessUnit] = field(default_factory=list)

    def note(self, unit: AccessUnit) -> None:
        if unit.codec is Codec.H264:
            self.picture = self.picture or unit
        elif len(self.sounds) < SAMPLES and (not self.sounds or unit.codec is self.sounds[0].codec):
            self.sounds.append(unit)


def film_of(source: int, size: int, reel: Reel, directory: str | None) -> int:
    """An MP4 of the first `size` bytes of the file `source`, which is closed; a file without a name.

    It takes its time: call it in a thread.
    """
    known = Reel(reel.picture, list(reel.sounds))
    try:
        with tempfile.TemporaryFile(dir=directory) as target:
            # Opened by name, each has a place of its own in the file, and libav can read back what it wrote.
            with (
                Path(f"/proc/self/fd/{source}").open("rb") as file,
                av.open(
                    f"/proc/self/fd/{target.fileno()}", "w", format="mp4", options={"movflags": "+faststart"}
                ) as container,
            ):
                _fill(container, unpacked(file, size), known)
            return os.dup(target.fileno())
    finally:
        os.close(source)


def _fill(container: OutputContainer, units: Iterator[AccessUnit], reel: Reel) -> None:
    assert reel.picture is not None, "a tap begins with a key frame"
    samples = [[reel.picture], reel.sounds] if reel.sounds else [[reel.picture]]
    streams = {sample[0].codec: _stream(container, sample) for sample in samples}
    start = reel.picture.dts
    for unit in units:
        if unit.codec not in streams or unit.dts < start:
            continue  # another sound than the first, or one before the first picture
        packet = av.Packet(unit.data)
        packet.pts, packet.dts, packet.time_base = unit.pts - start, unit.dts - start, TICK
        packet.is_keyframe = unit.keyframe
        packet.stream = streams[unit.codec]
        container.mux(packet)


def _stream(container: OutputContainer, sample: list[AccessUnit]) -> Stream:
    """A track for units such as those of `sample`."""
    audio = sample[0].codec if sample[0].codec is not Codec.H264 else None
    muxer = Muxer(audio=audio)
    shown = muxer.begin_segment() + b"".join(muxer.write(unit) for unit in sample)
    with av.open(io.BytesIO(shown), format="mpegts") as known:
        tracks = known.streams.audio if audio else known.streams.video
        return container.add_stream_from_template(tracks[0])
