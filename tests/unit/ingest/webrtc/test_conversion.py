"""What does not pass through: codecs in a thread, and the still of a stream without a picture."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext

from services.common.media.codec import VideoDecoder
from services.common.media.h264 import is_keyframe, picture_size
from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioEncoder
from services.ingest.placeholder import AWAY, LETTERS, WAITING, draw, stills
from services.ingest.source import PushedSource
from services.ingest.transports.webrtc import h264_rtp, vpx_rtp
from services.ingest.transports.webrtc.answer import plan
from services.ingest.transports.webrtc.audience import still_payloads
from services.ingest.transports.webrtc.conversion import (
    WAITING_UNITS,
    Conversion,
    Converter,
    SoundConverter,
    VideoConverter,
)
from services.ingest.transports.webrtc.jitter import Frame
from services.ingest.transports.webrtc.publication import Publication
from services.ingest.transports.webrtc.sdp import parse_offer
from tests.support.media import FRAME, SIZE, pictures
from tests.unit.ingest.webrtc.offers import h264, offer, opus, section, vpx


def test_h264_becomes_vp8_and_vp8_h264_picture_by_picture() -> None:
    there, back = VideoConverter("H264", "VP8"), VideoConverter("VP8", "H264")
    for index, unit in enumerate(pictures(5)):
        (vp8,) = there.convert(unit.data, unit.pts, keyframe=index == 3)
        assert vp8.keyframe == (index in {0, 3})
        (again,) = back.convert(vp8.data, vp8.pts, keyframe=index == 2)
        assert (again.codec, again.pts) == (Codec.H264, unit.pts)
        assert again.keyframe == (index in {0, 2})
        assert VideoDecoder().errors == 0
        if again.keyframe:
            assert picture_size(again.data) == SIZE


def test_what_cannot_be_decoded_gives_nothing() -> None:
    converter = VideoConverter("VP8", "H264")
    assert converter.convert(b"\x00garbage", 0, keyframe=True) == []
    assert converter.errors == 1


def test_aac_becomes_opus() -> None:
    tone = np.broadcast_to(np.sin(np.arange(48_000, dtype=np.float32) / 20) / 4, (2, 48_000))
    converter = SoundConverter()
    units = [
        opus
        for unit in AudioEncoder(Codec.AAC).encode(np.ascontiguousarray(tone), 90_000)
        for opus in converter.convert(unit.data, unit.pts, keyframe=True)
    ]
    assert len(units) > 40
    assert {unit.codec for unit in units} == {Codec.OPUS}
    assert {second.pts - first.pts for first, second in pairwise(units)} == {1800}


class Slow(Converter):
    """Takes its time; remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[tuple[int, bool]] = []

    def convert(self, data: bytes, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        self.given.append((pts, keyframe))
        return [AccessUnit(Codec.H264, pts, pts, data, keyframe)]


@asynccontextmanager
async def converting(conversion: Conversion) -> AsyncIterator[None]:
    task = asyncio.ensure_future(conversion.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_thread_that_is_late_costs_the_pictures_up_to_the_next_key_frame() -> None:
    asked: list[None] = []
    came: list[AccessUnit] = []
    slow = Slow()
    with ThreadPoolExecutor(1) as executor:
        conversion = Conversion(slow, executor, deliver=came.append, ask_keyframe=lambda: asked.append(None))
        conversion.put(b"a", -1, keyframe=False)  # nothing can be decoded before a key frame
        for index in range(WAITING_UNITS + 5):
            conversion.put(b"a", index, keyframe=index == 0)
        assert len(asked) == 1
        conversion.put(b"a", 100, keyframe=True)
        conversion.put(b"a", 101, keyframe=False)
        conversion.want_keyframe()
        conversion.put(b"a", 102, keyframe=False)
        async with converting(conversion), asyncio.timeout(5):
            while len(came) < 3:
                await asyncio.sleep(0.01)
    assert slow.given == [(100, True), (101, False), (102, True)]


# --- a publisher's frames


def frame(timestamp: int, payloads: list[bytes], *, after_loss: bool = False) -> Frame:
    return Frame(timestamp, payloads, timestamp / 90_000, after_loss)


class Publishing:
    """A publication and its source."""

    def __init__(self, executor: ThreadPoolExecutor, formats: list[str]) -> None:
        self.asked = 0
        self.source = PushedSource(first_within_s=5, fastest_mbps=50, ask_keyframe=self._ask)
        found = plan(
            parse_offer(offer(section("video", "0", formats), section("audio", "1", opus()))),
            publish=True,
            watch=False,
        )
        video = found.receiving("video")
        assert video is not None
        self.publication = Publication(self.source, video, found.receiving("audio"), executor)

    def _ask(self) -> None:
        self.asked += 1

    async def came(self) -> list[AccessUnit]:
        self.source.end()
        return [unit for units in [each async for each in self.source] for unit in units]


@pytest.fixture
async def publishing() -> AsyncIterator[Publishing]:
    with ThreadPoolExecutor(1) as executor:
        yield Publishing(executor, h264(96))


async def test_pictures_and_sound_come_out_with_their_times(publishing: Publishing) -> None:
    publication = publishing.publication
    publication.audio(frame(0, [b"too soon"]))
    for unit in pictures(3):
        publication.video(frame(unit.pts, h264_rtp.payloads(unit.data)))
    publication.audio(Frame(4800, [b"sound"], 0.1, after_loss=False))
    units = await publishing.came()
    assert [unit.pts for unit in units if unit.codec is Codec.H264] == [0, FRAME, 2 * FRAME]
    (sound,) = [unit for unit in units if unit.codec is Codec.OPUS]
    assert (sound.data, sound.pts) == (b"sound", 9000)


async def test_after_a_loss_nothing_comes_before_a_key_frame(publishing: Publishing) -> None:
    units = pictures(30)
    for index, unit in enumerate(units):
        if index != 2:
            publishing.publication.video(frame(unit.pts, h264_rtp.payloads(unit.data), after_loss=index == 3))
    came = [unit.pts // FRAME for unit in await publishing.came()]
    assert came == [0, 1, 25, 26, 27, 28, 29]
    assert publishing.asked


async def test_parameter_sets_that_come_by_themselves_are_put_before_the_picture(
    publishing: Publishing,
) -> None:
    key = pictures(1)[0]
    payloads = h264_rtp.payloads(key.data)
    nals = [nal for nal in key.data.split(b"\0\0\0\1") if nal]
    sets, slices = [nal for nal in nals if nal[0] & 31 in {7, 8}], [nal for nal in nals if nal[0] & 31 == 5]
    assert sets
    assert len(payloads) == 1
    publishing.publication.video(frame(0, sets))
    publishing.publication.video(frame(3000, slices))
    (unit,) = await publishing.came()
    assert is_keyframe(unit.data)
    assert picture_size(unit.data) == SIZE


async def test_a_key_frame_that_nobody_can_decode_is_not_passed_on(publishing: Publishing) -> None:
    slices = [nal for nal in pictures(1)[0].data.split(b"\0\0\0\1") if nal and nal[0] & 31 == 5]
    publishing.publication.video(frame(0, slices))
    publishing.publication.video(frame(3000, [b"\x7c\x05cut"]))
    assert await publishing.came() == []
    assert publishing.asked == 2


async def test_vp8_of_a_publisher_becomes_h264() -> None:
    to_vp8 = VideoConverter("H264", "VP8")
    with ThreadPoolExecutor(1) as executor:
        made = Publishing(executor, vpx(96, "VP8"))
        conversion = made.publication.conversion
        assert conversion is not None
        async with converting(conversion):
            for unit in pictures(5):
                (vp8,) = to_vp8.convert(unit.data, unit.pts, keyframe=False)
                made.publication.video(frame(unit.pts, vpx_rtp.vp8_payloads(vp8.data)))
            async with asyncio.timeout(5):
                first = await made.source.first_picture()
        assert first[0].codec is Codec.H264
        assert made.publication.keyframe_wanted()


async def test_vp9_of_a_publisher_becomes_h264() -> None:
    encoder = av.CodecContext.create("libvpx-vp9", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 64, 48, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}
    with ThreadPoolExecutor(1) as executor:
        made = Publishing(executor, vpx(96, "VP9"))
        conversion = made.publication.conversion
        assert conversion is not None
        async with converting(conversion):
            for index in range(5):
                pixels = np.full((48, 64, 3), index * 20, np.uint8)
                picture = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p")
                picture.pts = index
                for packet in encoder.encode(picture):
                    flags = 0x8C if packet.is_keyframe else 0xCC  # whole; predicted or not
                    payload = bytes((flags, index)) + bytes(packet)
                    assert vpx_rtp.vp9_is_keyframe(bytes(packet)) == packet.is_keyframe
                    made.publication.video(frame(index * 3600, [payload]))
            async with asyncio.timeout(5):
                (first, *_) = await made.source.first_picture()
        assert picture_size(first.data) == SIZE


# --- the still


@pytest.mark.parametrize("lines", [WAITING, AWAY])
def test_every_letter_of_the_still_is_drawn(lines: tuple[str, ...]) -> None:
    assert set("".join(lines)) <= set(LETTERS)
    picture = draw(512, 512, lines)
    assert picture.shape == (512, 512, 3)
    assert 0.005 < np.mean(picture[:, :, 0] > 100) < 0.2


@pytest.mark.parametrize("size", [(512, 512), (1280, 720), (48, 17), (360, 641)])
def test_the_still_is_two_different_key_frames_of_any_size(size: tuple[int, int]) -> None:
    first, second = stills(*size)
    assert first != second
    decoder = VideoDecoder()
    frames = [*decoder.decode(first, 0), *decoder.decode(second, 1)]
    assert len(frames) == 2
    assert decoder.errors == 0
    for codec in ("H264", "VP8"):
        one, two = still_payloads(codec, *size)
        assert one
        assert two
