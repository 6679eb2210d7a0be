"""The file that comes out: returned pictures, not encoded again, with the clip's own sound beside them.

The rule it keeps: it is under its name whole or not at all. Blocking: it is called in a thread of its own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
from av.video.stream import VideoStream

from services.common.errors import InvalidError
from services.common.media.codec import TICK
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Muxer
from sluice.transform.sound import ResultSound, SoundTrack

CONTAINERS: Final = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
FASTSTART: Final = {"movflags": "+faststart"}  # the index at the front: it plays while it downloads


def container_of(path: Path) -> str:
    """The container that the name asks for. Raises InvalidError for another suffix."""
    if path.suffix.lower() not in CONTAINERS:
        raise InvalidError(f"{path}: the output is .mp4, .m4v, .mov or .mkv")
    return CONTAINERS[path.suffix.lower()]


@contextmanager
def whole_or_none(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block succeeds, and else is removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
    except OSError as error:
        raise InvalidError(f"{path} cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class Result:
    """A file in the making. Times are ticks from the clip's first picture.

    Pictures keep their distance from the sound: whichever of the two begins first in the clip is at 0.
    """

    def __init__(self, path: Path, container: str, *, start_s: Fraction, sound: ResultSound) -> None:
        self._output = av.open(
            str(path.absolute()), "w", format=container, options=FASTSTART if container != "matroska" else {}
        )
        self._sound = sound
        first_s = start_s if sound.start_s is None else min(start_s, sound.start_s)
        self._origin_s = first_s
        self._start_s = start_s
        self._shift = round((start_s - first_s) * CLOCK_HZ)
        self._track: VideoStream | None = None
        self._sound_track: SoundTrack | None = None
        self._held: AccessUnit | None = None  # a picture lasts until the next, so it waits for that

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(av.FFmpegError, OSError):  # finished it is closed already, and else it is thrown away
            self._output.close()

    def add(self, unit: AccessUnit) -> None:
        """Add the next picture; the first one brings the parameter sets."""
        if self._track is None:
            self._track = self._begin(unit)
        elif self._held is not None:
            self._write(self._held, unit.pts)
        self._held = unit
        if self._sound_track is not None:
            self._sound_track.write_until(self._start_s + Fraction(unit.pts, CLOCK_HZ))

    def finish(self, end_ticks: int) -> None:
        """Write the last picture, which lasts until `end_ticks`, the rest of the sound, and the index."""
        if self._held is not None:
            self._write(self._held, max(end_ticks, self._held.pts + 1))
        if self._sound_track is not None:
            self._sound_track.finish()
        self._output.close()

    def _begin(self, unit: AccessUnit) -> VideoStream:
        muxer = Muxer()
        sample = muxer.begin_segment() + muxer.write(unit)
        with av.open(io.BytesIO(sample), format="mpegts") as probe:
            track = self._output.add_stream_from_template(probe.streams.video[0])
        self._sound_track = self._sound.into(self._output, self._origin_s)
        return track

    def _write(self, unit: AccessUnit, until: int) -> None:
        assert self._track is not None
        packet = av.Packet(unit.data)
        packet.pts = packet.dts = unit.pts + self._shift
        packet.duration = until - unit.pts
        packet.time_base = TICK
        packet.is_keyframe = unit.keyframe
        packet.stream = self._track
        self._output.mux_one(packet)
