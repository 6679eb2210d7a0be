"""A clip's pictures as they are shown: upright, one size, each once, times in ticks from the first one.

The rule it keeps: a picture's time is the file's, whatever its frame rate does. A damaged part of a file
costs that part. Blocking: it is called in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import av
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from services.common.errors import InvalidError
from services.common.media.codec import TICK
from services.common.media.mpegts import CLOCK_HZ
from sluice.transform.picture import SMALLEST_SIDE, Framer, Orientation, fitted, matrix_of

NO_VIDEOS: Final = frozenset({"image2", "tty"})  # libav reads a picture, and a text, as a video


class Clip:
    """An open clip. `frames` is read once, from beginning to end."""

    def __init__(self, path: Path, limit: tuple[int, int]) -> None:
        """Raises InvalidError, one sentence, if there is no video in `path`."""
        self.damaged = 0  # packets that gave no picture
        self.count = 0  # pictures so far, without repeated ones
        self.end_ticks = 0  # where the last one so far ends
        self._container = opened(path)
        try:
            stream = _video_of(self._container, path)
            stream.thread_type = "AUTO"
            self._stream = stream
            self._rest = self._decoded()
            first = self._first = _first_of(self._rest, path)
            orientation = Orientation.of(first)
            self.size = self._size(first, orientation, limit, path)
            self.matrix = matrix_of(first)
            self._framer = Framer(self.size, orientation, self.matrix)
        except BaseException:
            self._container.close()
            raise
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.fps = min(max(rate, Fraction(1)), Fraction(240))
        self._time_base = stream.time_base or TICK
        self.start_s = Fraction(0) if first.pts is None else first.pts * self._time_base
        self.duration_s = self._duration_s()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """Every picture, yuv420p without a time, and its ticks."""
        ticks = -1
        for frame in self._all_frames():
            now = self._ticks(frame)
            if now <= ticks:
                continue  # two at one time: nobody could have seen the first
            ticks = now
            shown = self._framer.picture(frame)
            self.count += 1
            self.end_ticks = ticks + self._length(frame)
            yield ticks, shown

    def _all_frames(self) -> Iterator[av.VideoFrame]:
        yield self._first
        yield from self._rest

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self._packets():
            try:
                yield from self._stream.decode(packet)
            except av.FFmpegError:
                self.damaged += 1

    def _packets(self) -> Iterator[av.Packet[VideoStream] | None]:
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    yield packet
        except av.FFmpegError:
            self.damaged += 1  # the file is cut off here
        yield None

    def _ticks(self, frame: av.VideoFrame) -> int:
        if frame.pts is None:  # a raw stream has no times, only a rate
            return round(self.count * CLOCK_HZ / self.fps)
        return round((frame.pts * self._time_base - self.start_s) * CLOCK_HZ)

    def _length(self, frame: av.VideoFrame) -> int:
        seconds = frame.duration * self._time_base if frame.duration else 1 / self.fps
        return max(1, round(seconds * CLOCK_HZ))

    def _duration_s(self) -> float | None:
        if self._stream.duration:
            return float(self._stream.duration * self._time_base)
        return self._container.duration / av.time_base if self._container.duration else None

    def _size(
        self, first: av.VideoFrame, orientation: Orientation, limit: tuple[int, int], path: Path
    ) -> tuple[int, int]:
        aspect = self._stream.sample_aspect_ratio
        if not aspect or not Fraction(1, 8) < aspect < 8:
            aspect = Fraction(1)
        width, height = round(first.width * aspect), first.height
        if min(width, height) < SMALLEST_SIDE:
            raise InvalidError(f"{path}: a picture of {width}x{height} is too small to send")
        return fitted(*((height, width) if orientation.transpose else (width, height)), limit)


def opened(path: Path) -> av.container.InputContainer:
    """Open `path` for reading. Raises InvalidError that says in one sentence why that cannot be."""
    if path.is_dir():
        raise InvalidError(f"{path} is a directory")
    try:
        if not path.stat().st_size:
            raise InvalidError(f"{path} is empty")
        return av.open(str(path.absolute()))  # a relative name with a colon would be a URL to libav
    except FileNotFoundError:
        raise InvalidError(f"{path} does not exist") from None
    except PermissionError:
        raise InvalidError(f"{path} may not be read") from None
    except (av.FFmpegError, OSError) as error:
        raise InvalidError(f"{path} is not a video, or not a whole one ({error.strerror})") from error


def is_known(stream: Stream) -> bool:
    """Whether libav can decode it; if not there is, against PyAV's types, no context."""
    return getattr(stream, "codec_context", None) is not None


def _video_of(container: av.container.InputContainer, path: Path) -> VideoStream:
    if container.format.name in NO_VIDEOS or container.format.name.endswith("_pipe"):
        raise InvalidError(f"{path} is not a video")
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and is_known(stream):
            return stream
    raise InvalidError(f"{path} has no video in it, only {_kinds(container)}")


def _first_of(frames: Iterator[av.VideoFrame], path: Path) -> av.VideoFrame:
    for frame in frames:
        return frame
    raise InvalidError(f"{path}: no picture in it can be decoded")


def _kinds(container: av.container.InputContainer) -> str:
    kinds = {"picture" if stream.type == "video" else stream.type for stream in container.streams}
    return ", ".join(sorted(kinds)) or "nothing"
