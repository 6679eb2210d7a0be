"""What is published: a file, a camera or a URL, opened, and read as units in the order of their times.

The rule it keeps: a damaged part costs that part. Blocking: it is called in a thread of its own.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast
from urllib.parse import urlsplit

import av
from av.audio.stream import AudioStream
from av.stream import Disposition
from av.video.stream import VideoStream

from services.common.errors import InvalidError
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from sluice.live.pictures import Encoded, Passed, can_pass, file_can_pass
from sluice.live.sounds import sounds_of
from sluice.transform.clip import is_known, opened

URL_SCHEMES: Final = frozenset({"http", "https", "rtmp", "rtmps"})
PACED_SCHEMES: Final = frozenset({"http", "https"})  # a file of a server, or HLS, whose segments come at once
OPEN_S: Final = 10.0
READ_S: Final = 10.0  # an input that gives nothing for so long has ended
LIMIT: Final = (1920, 1080)
CAMERA: Final = {"framerate": "30", "video_size": "1280x720"}
HELD_UNITS: Final = 400  # ten seconds of pictures that wait for the sound of their time, or the reverse
FRAME_TICKS: Final = CLOCK_HZ // 30  # between the end of a file and its beginning


class Kind(enum.Enum):
    """How an input's clock is treated."""

    FILE = enum.auto()  # it is read at its own speed, and may wait
    PACED = enum.auto()  # the same, but it cannot be read twice
    LIVE = enum.auto()  # it sets the speed, and waits for nobody


@dataclass(frozen=True, slots=True)
class Place:
    """Where an input is. `name` is for people, and has no password in it."""

    kind: Kind
    url: str
    name: str
    format: str | None = None


def place_of(source: str) -> Place:
    """What `source` says: a URL, or else a file."""
    parts = urlsplit(source)
    if "://" not in source:
        return Place(Kind.FILE, source, Path(source).name)
    if parts.scheme not in URL_SCHEMES or not parts.hostname:
        raise InvalidError(f"{source!r} is no URL of {', '.join(sorted(URL_SCHEMES))}, and no file")
    kind = Kind.PACED if parts.scheme in PACED_SCHEMES else Kind.LIVE
    return Place(kind, source, f"{parts.scheme}://{parts.hostname}")


def camera(device: str) -> Place:
    return Place(Kind.LIVE, device, Path(device).name, "v4l2")


class Input:
    """An open input. `units` is read once."""

    def __init__(self, place: Place) -> None:
        """Raises InvalidError, one sentence, when it cannot be opened or has no video."""
        self.place = place
        self._container = _opened(place)
        try:
            self._video = _video_of(self._container, place)
            passes = can_pass(self._video, LIMIT) and (
                place.kind is not Kind.FILE or file_can_pass(Path(place.url))
            )
            self._pictures = Passed(self._video) if passes else Encoded(self._video, LIMIT)
            self._audio: AudioStream | None = next(
                (stream for stream in self._container.streams.audio if is_known(stream)), None
            )
            self._sounds = None if self._audio is None else sounds_of(self._audio)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    @property
    def sound(self) -> Codec | None:
        return None if self._sounds is None else self._sounds.codec

    @property
    def duration_s(self) -> float | None:
        return self._container.duration / av.time_base if self._container.duration else None

    def described(self) -> str:
        """What is done with it, in a few words."""
        heard = {None: "no sound", Codec.AAC: "AAC", Codec.OPUS: "Opus"}[self.sound]
        passed = isinstance(self._pictures, Passed)
        context = self._video.codec_context
        size = f"{context.width}x{context.height}"
        return f"{size} {'H.264 as it is' if passed else f'{context.name}, encoded to H.264'}, {heard}"

    def want_keyframe(self) -> None:
        """The next picture should be one to begin with, where that is ours to say."""
        self._pictures.want_keyframe()

    def units(self) -> Iterator[AccessUnit]:
        """Pictures and sound; of an input that can wait in the order of their times."""
        return (
            self._read() if self.place.kind is Kind.LIVE else in_order(self._read(), self._sounds is not None)
        )

    def _read(self) -> Iterator[AccessUnit]:
        streams = [stream for stream in (self._video, self._audio) if stream is not None]
        try:
            for packet in self._container.demux(*streams):
                if not packet.size:
                    continue  # the end of a stream, which is said below
                if isinstance(packet.stream, VideoStream):
                    yield from self._pictures.take(cast("av.Packet[VideoStream]", packet))
                elif self._sounds is not None:
                    yield from self._sounds.take(cast("av.Packet[AudioStream]", packet))
        except (av.FFmpegError, OSError):
            pass  # it is cut off here
        yield from self._pictures.take(None)
        if self._sounds is not None:
            yield from self._sounds.take(None)


def units_of(first: Input, *, loop: bool) -> Iterator[AccessUnit]:
    """The units of an input; in a `loop` again and again, on one clock.

    Raises InvalidError at the end of one in which no picture was.
    """
    offset, end, pictures = 0, 0, 0
    for unit in first.units():
        end = max(end, unit.pts)
        pictures += unit.codec is Codec.H264
        yield unit
    if not pictures:
        raise InvalidError(f"{first.place.name}: nothing in it can be read")
    while loop:
        offset, begin = end + FRAME_TICKS, None
        with Input(first.place) as again:
            for unit in again.units():
                begin = unit.dts if begin is None else begin
                moved = replace(unit, pts=unit.pts - begin + offset, dts=unit.dts - begin + offset)
                end = max(end, moved.pts)
                yield moved
        if begin is None:
            return  # there is nothing in it any more


def in_order(units: Iterator[AccessUnit], audible: bool) -> Iterator[AccessUnit]:
    """`units` by their decoding times; containers may have a second of sound before its pictures."""
    if not audible:
        yield from units
        return
    waiting: dict[bool, deque[AccessUnit]] = {True: deque(), False: deque()}
    for unit in units:
        waiting[unit.codec is Codec.H264].append(unit)
        while all(waiting.values()) or any(len(queue) > HELD_UNITS for queue in waiting.values()):
            yield _earliest(waiting)
    while any(waiting.values()):
        yield _earliest(waiting)


def _earliest(waiting: dict[bool, deque[AccessUnit]]) -> AccessUnit:
    return min((queue for queue in waiting.values() if queue), key=lambda queue: queue[0].dts).popleft()


def _opened(place: Place) -> av.container.InputContainer:
    if place.format is None and place.kind is Kind.FILE:
        return opened(Path(place.url))
    try:
        if place.format is not None:
            return _opened_camera(place)
        return av.open(place.url, "r", timeout=(OPEN_S, READ_S))
    except (av.FFmpegError, OSError) as error:
        if place.format is not None:
            raise InvalidError(_no_camera(place.url)) from error
        raise InvalidError(f"{place.name} cannot be read ({error.strerror or error})") from error


def _opened_camera(place: Place) -> av.container.InputContainer:
    try:
        return av.open(place.url, "r", format=place.format, options=CAMERA)
    except av.ArgumentError:
        return av.open(place.url, "r", format=place.format)  # at the size and rate that it has


def _no_camera(device: str) -> str:
    if not Path(device).exists():
        found = sorted(str(path) for path in Path("/dev").glob("video*"))
        others = f"; there is {', '.join(found)}" if found else ", and no other: is one plugged in?"
        return f"there is no camera at {device}{others}"
    return f"{device} is no camera that can be used now: does another program have it, and may you read it?"


def _video_of(container: av.container.InputContainer, place: Place) -> VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and is_known(stream):
            return stream
    raise InvalidError(f"{place.name} has no video in it")
