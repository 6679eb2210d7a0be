"""Which H.264 codecs a machine has, tried and not guessed, and what goes on in software when one fails.

NVIDIA's NVENC and NVDEC are meant. The rule they have to keep is that of `codec.py`: each picture comes out
of the call that it went into. One that cannot be opened, holds a picture back or fails in the middle is
replaced by libav's in software, so a stream sees a key frame and no end.

Written against libav's source and tested without such a device: up to the failure to open one, which is real,
and with stand-ins that fail as libav does. On a device neither NVENC nor NVDEC was ever run.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import av
import numpy as np
import structlog
from av.codec.hwaccel import HWAccel

from services.common.errors import InvalidError
from services.common.media.codec import (
    NVENC,
    X264,
    DecodedFrame,
    DecoderBrokenError,
    Rgb,
    VideoDecoder,
    VideoEncoder,
)
from services.common.media.h264 import is_keyframe
from services.common.media.mpegts import CLOCK_HZ, AccessUnit

log = structlog.get_logger()

NVDEC: Final = "h264_nvdec"
LIBAV: Final = "h264"
TRIED: Final = (640, 384)  # NVENC and NVDEC refuse pictures of less than some 145 by 49 pixels
TRIED_PICTURES: Final = 4  # one that holds pictures back shows it by then
TRIED_BIT_RATE: Final = 1_000_000
# Units since the last key frame that are kept, for a software decoder to begin with: ten seconds, mostly.
KEPT_UNITS: Final = 300
KEPT_BYTES: Final = 8 << 20
HOLDS_BACK: Final = "holds pictures back"


class Wanted(enum.StrEnum):
    """What an operator may ask for."""

    AUTO = "auto"  # what works
    CPU = "cpu"
    NVIDIA = "nvidia"  # both, or nothing starts


@dataclass(frozen=True, slots=True)
class Codecs:
    """The codecs that a process uses, by libav's names (NVDEC has none of its own), and why these."""

    encoder: str = X264
    decoder: str = LIBAV
    reason: str = "not asked for others"


Failed = Callable[[str, str], None]
"""Called with a codec's name and what happened when it is given up."""

MakeEncoder = Callable[[int, int, int, float, str], VideoEncoder]
MakeDecoder = Callable[[str], VideoDecoder]


def encoder(width: int, height: int, bit_rate: int, fps: float, name: str) -> VideoEncoder:
    return VideoEncoder(width, height, bit_rate, fps=fps, encoder=name)


def decoder(name: str) -> VideoDecoder:
    """Raises av.FFmpegError where there is no such device."""
    if name == LIBAV:
        return VideoDecoder()
    # Without libav's own fallback: a decoder that silently is another one cannot be reported.
    return VideoDecoder(HWAccel("cuda", allow_software_fallback=False))


def choose(
    wanted: Wanted, *, make_encoder: MakeEncoder = encoder, make_decoder: MakeDecoder = decoder
) -> Codecs:
    """Try the device's codecs on a few pictures. Raises InvalidError if they are demanded and do not work."""
    if wanted is Wanted.CPU:
        return Codecs(reason="the setting says cpu")
    problems = {NVENC: _problem_of_encoder(make_encoder), NVDEC: _problem_of_decoder(make_decoder)}
    told = "; ".join(f"{name}: {problem or 'works'}" for name, problem in problems.items())
    if wanted is Wanted.NVIDIA and any(problems.values()):
        raise InvalidError(f"NVIDIA's codecs are demanded and do not work here: {told}", reason="NO_DEVICE")
    return Codecs(X264 if problems[NVENC] else NVENC, LIBAV if problems[NVDEC] else NVDEC, told)


def _problem_of_encoder(make: MakeEncoder) -> str | None:
    width, height = TRIED
    try:
        tried = make(width, height, TRIED_BIT_RATE, 30.0, NVENC)
        for index in range(TRIED_PICTURES):
            picture = np.full((height, width, 3), 40 * index, np.uint8)
            units = tried.encode(picture, index * CLOCK_HZ // 30, keyframe=index == TRIED_PICTURES - 1)
            if len(units) != 1:
                return HOLDS_BACK
            if units[0].keyframe is not (index in {0, TRIED_PICTURES - 1}):
                return "does not make key frames where they are asked for"
    except av.FFmpegError as error:
        return _said(error)
    return None


def _problem_of_decoder(make: MakeDecoder) -> str | None:
    width, height = TRIED
    source = VideoEncoder(width, height, TRIED_BIT_RATE)
    try:
        tried = make(NVDEC)
        for index in range(TRIED_PICTURES):
            (unit,) = source.encode(np.full((height, width, 3), 40 * index, np.uint8), index, keyframe=False)
            frames = tried.decode(unit.data, unit.pts)
            if [(frame.pts, frame.rgb().shape) for frame in frames] != [(index, (height, width, 3))]:
                return HOLDS_BACK if not frames else "gives other pictures than it was given"
    except (av.FFmpegError, DecoderBrokenError) as error:
        return _said(error)
    return None


def _said(error: Exception) -> str:
    """What went wrong, without libav's list of options."""
    return f"fails ({error.strerror})" if isinstance(error, av.FFmpegError) else f"fails ({error})"


def _unheard(codec: str, problem: str) -> None:
    """Nobody counts."""


class SteadyEncoder:
    """A `VideoEncoder` that goes on in software when its device fails, with the picture that it failed at."""

    def __init__(
        self,
        width: int,
        height: int,
        bit_rate: int,
        *,
        fps: float,
        codecs: Codecs,
        failed: Failed = _unheard,
        make: MakeEncoder = encoder,
    ) -> None:
        self._size = width, height
        self._rate = bit_rate, fps
        self._failed = failed
        self._make = make
        self._name = codecs.encoder
        try:
            self._encoder = make(width, height, bit_rate, fps, self._name)
        except av.FFmpegError as error:
            if self.in_software:
                raise
            self._encoder = self._replaced(_said(error))

    @property
    def in_software(self) -> bool:
        return self._name == X264

    def aim(self, bit_rate: int, *, fps: float) -> float:
        """As that of `VideoEncoder`."""
        self._rate = bit_rate, fps
        return self._encoder.aim(bit_rate, fps=fps)

    def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        """As that of `VideoEncoder`; a key frame where software takes over."""
        if self.in_software:
            return self._encoder.encode(rgb, pts, keyframe=keyframe)
        try:
            units = self._encoder.encode(rgb, pts, keyframe=keyframe)
        except av.FFmpegError as error:
            problem = _said(error)
        else:
            if units:
                return units
            problem = HOLDS_BACK
        self._encoder = self._replaced(problem)
        return self._encoder.encode(rgb, pts, keyframe=True)

    def _replaced(self, problem: str) -> VideoEncoder:
        log.warning("codec failed", codec=self._name, problem=problem, instead=X264)
        self._failed(self._name, problem)
        self._name = X264
        return self._make(*self._size, *self._rate, X264)


class SteadyDecoder:
    """A `VideoDecoder` that goes on in software when its device fails, from the last key frame on.

    What has been decoded since that key frame is decoded once more, and not given out twice.
    """

    def __init__(self, codecs: Codecs, *, failed: Failed = _unheard, make: MakeDecoder = decoder) -> None:
        self._failed = failed
        self._make = make
        self._name = codecs.decoder
        self._kept: list[tuple[bytes, int]] = []  # units from a key frame on, while a device decodes
        self._kept_bytes = 0
        self._given_pts: int | None = None  # of the last picture
        self._errors = 0  # of a decoder that was given up
        try:
            self._decoder = make(self._name)
        except av.FFmpegError as error:
            if self._name == LIBAV:
                raise
            self._decoder = self._replaced(_said(error))

    @property
    def errors(self) -> int:
        return self._errors + self._decoder.errors

    def decode(self, data: bytes, pts: int) -> list[DecodedFrame]:
        """As that of `VideoDecoder`, but never raises."""
        if self._name == LIBAV:
            return self._decoder.decode(data, pts)
        self._keep(data, pts)
        try:
            frames = self._decoder.decode(data, pts)
        except DecoderBrokenError as error:
            return self._begin_again(error)
        if frames:
            self._given_pts = frames[-1].pts
        return frames

    def flush(self) -> list[DecodedFrame]:
        """As that of `VideoDecoder`."""
        try:
            return self._decoder.flush()
        except DecoderBrokenError as error:
            return [*self._begin_again(error), *self._decoder.flush()]

    def _keep(self, data: bytes, pts: int) -> None:
        if is_keyframe(data):
            self._kept, self._kept_bytes = [(data, pts)], len(data)
        elif self._kept:
            self._kept.append((data, pts))
            self._kept_bytes += len(data)
            if len(self._kept) > KEPT_UNITS or self._kept_bytes > KEPT_BYTES:
                self._kept = []  # software will wait for the next key frame

    def _begin_again(self, error: DecoderBrokenError) -> list[DecodedFrame]:
        self._errors += self._decoder.errors
        self._decoder = self._replaced(_said(error))
        kept, self._kept = self._kept, []
        given_pts = self._given_pts
        return [
            frame
            for unit in kept
            for frame in self._decoder.decode(*unit)
            if given_pts is None or frame.pts > given_pts
        ]

    def _replaced(self, problem: str) -> VideoDecoder:
        log.warning("codec failed", codec=self._name, problem=problem, instead=LIBAV)
        self._failed(self._name, problem)
        self._name = LIBAV
        return self._make(LIBAV)


@dataclass(frozen=True, slots=True)
class Equipment:
    """The codecs of a process, and who is told when one of a stream is given up."""

    codecs: Codecs = Codecs()
    failed: Failed = _unheard

    def after(self, encoder: SteadyEncoder | None) -> Equipment:
        """For the next encoder of the same stream: a device that failed it is not tried again."""
        if encoder is None or not encoder.in_software:
            return self
        return replace(self, codecs=replace(self.codecs, encoder=X264))

    def encoder(self, width: int, height: int, bit_rate: int, *, fps: float) -> SteadyEncoder:
        return SteadyEncoder(width, height, bit_rate, fps=fps, codecs=self.codecs, failed=self.failed)

    def decoder(self) -> SteadyDecoder:
        return SteadyDecoder(self.codecs, failed=self.failed)
