"""The newest picture of a session as a JPEG, decoded when somebody asks and never before."""

from __future__ import annotations

import asyncio
from typing import Final

import av
from av.video.reformatter import ColorRange, Colorspace

from services.common.errors import NotFoundError, UnavailableError
from services.common.media.codec import TICK, DecodedFrame, Rgb, VideoDecoder
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, unwrap
from services.common.trickle.protocol import RANDOM_ACCESS
from services.ingest.bridge.session import BridgeSession

AT_ONCE: Final = 2  # each decodes up to a group of pictures, a tenth of a second
WAIT_S: Final = 5.0
WORST_SCALE: Final = 31  # libav's quantizers for JPEG: 2 is the best, 31 the worst
BEST_SCALE: Final = 2


class Stills:
    """Decodes for those who ask, a few at once; the others wait, for a while."""

    def __init__(self) -> None:
        self._decoding = asyncio.Semaphore(AT_ONCE)

    async def newest(self, session: BridgeSession, quality: int) -> bytes:
        """A JPEG; `quality` is 1 to 100. Raises NotFoundError: there is no picture yet."""
        try:
            async with asyncio.timeout(WAIT_S), self._decoding:
                pictures = await _newest_group(session)
                return await asyncio.to_thread(_still, pictures, quality)
        except TimeoutError:
            raise UnavailableError(
                "too many pictures are asked for at once", reason="STILLS_BUSY", retry_after_s=1
            ) from None


async def _newest_group(session: BridgeSession) -> list[AccessUnit]:
    """The pictures from the newest point where a decoder can start up to the newest picture of all."""
    newest_pts = session.out_pts
    if not session.frames_out:
        raise _none()
    demuxer = Demuxer()
    pictures: list[AccessUnit] = []
    async for segment in session.play.read(RANDOM_ACCESS):
        pictures.clear()
        async for data in segment:
            pictures += [unit for unit in demuxer.feed(data) if unit.codec is Codec.H264]
            if pictures and unwrap(newest_pts, pictures[-1].pts) >= newest_pts:
                return pictures
    raise _none()  # the session ended meanwhile


def _none() -> NotFoundError:
    return NotFoundError("there is no picture of this session", reason="NO_PICTURE")


def _still(pictures: list[AccessUnit], quality: int) -> bytes:
    decoder = VideoDecoder()
    frames: list[DecodedFrame] = []
    for unit in pictures:
        frames += decoder.decode(unit.data, unit.pts)
    frames += decoder.flush()
    if not frames:
        raise _none()
    return jpeg(frames[-1].rgb(), quality)


def jpeg(rgb: Rgb, quality: int) -> bytes:
    """rgb: uint8 (H, W, 3)."""
    scale = round(WORST_SCALE + (BEST_SCALE - WORST_SCALE) * (quality - 1) / 99)
    context = av.CodecContext.create("mjpeg", "w")
    context.height, context.width = rgb.shape[:2]
    context.pix_fmt, context.time_base = "yuvj420p", TICK
    context.qmin = context.qmax = scale
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuvj420p", dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.JPEG
    )
    frame.pts, frame.time_base = 0, TICK
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])
