"""Transport streams for tests: units that look real, streams of libav's muxer, and packets made by hand."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final

import av
import numpy as np

from services.common.media import h264
from services.common.media.mpegts import AccessUnit, Codec, Demuxer, DemuxStats
from services.common.media.mpegts.muxer import PMT_PID, stamp
from services.common.media.mpegts.packets import Track
from services.common.media.mpegts.tables import association, in_packets, section

DATA: Final = Path(__file__).parents[1] / "data"
INTACT: Final = DemuxStats()
TICK: Final = Fraction(1, 90_000)

Timed = list[tuple[int, int, bytes]]


@cache
def made_by_libav(audio: str, b_frames: int = 0, frames: int = 60, pes_payload_size: int = 2930) -> bytes:
    """A transport stream from libav's encoders and its muxer: 320x180 at 30 frames/s, and stereo."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts", options={"pes_payload_size": str(pes_payload_size)}) as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 320, 180, "yuv420p"
        video.time_base = video.codec_context.time_base = TICK
        video.codec_context.max_b_frames = b_frames
        video.codec_context.gop_size = 15
        video.codec_context.options = {"preset": "ultrafast", "bf": str(b_frames)}
        sound = container.add_stream(audio, rate=48_000)
        assert isinstance(sound, av.AudioStream)
        noise = np.random.default_rng(7)
        for index in range(frames):
            pixels = np.full((180, 320, 3), index * 4 % 256, np.uint8)
            pixels[:40] = noise.integers(0, 256, (40, 320, 3), dtype=np.uint8)
            picture = av.VideoFrame.from_ndarray(pixels)
            picture.pts, picture.time_base = 90_000 + index * 3000, TICK
            container.mux(video.encode(picture))
            samples = noise.normal(0, 0.1, (2, 1600)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48_000, 48_000 + index * 1600, Fraction(1, 48_000)
            container.mux(sound.encode(frame))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return out.getvalue()


def read_by_libav(stream: bytes) -> dict[str, Timed]:
    """Per codec of the first program, what libav reads: times, and bytes without delimiters."""
    found: dict[str, Timed] = {}
    with av.open(io.BytesIO(stream), "r", format="mpegts") as container:
        chosen = [streams[0] for streams in (container.streams.video, container.streams.audio) if streams]
        for packet in container.demux(chosen):
            if packet.size:
                assert packet.pts is not None
                assert packet.dts is not None
                timed = packet.pts, packet.dts, h264.strip_delimiter(bytes(packet))
                found.setdefault(packet.stream.codec_context.name, []).append(timed)
    return found


def read(stream: bytes, lost: DemuxStats = INTACT) -> list[AccessUnit]:
    demuxer = Demuxer()
    units = demuxer.feed(stream) + demuxer.end_segment()
    assert demuxer.lost == lost
    return units


def timed(units: Sequence[AccessUnit], codec: Codec) -> Timed:
    return [(unit.pts, unit.dts, unit.data) for unit in units if unit.codec is codec]


def picture(index: int, size: int = 4000, *, keyframe: bool = False, pts: int | None = None) -> AccessUnit:
    """What looks like a picture to whoever does not decode it; no two are alike."""
    head = (
        b"\x00\x00\x00\x01\x67\x42\x00\x00\x00\x01\x68\xce\x00\x00\x00\x01\x65"
        if keyframe
        else b"\x00\x00\x00\x01\x41"
    )
    body = bytes(random.Random(index).choices(range(1, 256), k=size))
    pts = 90_000 + 3000 * index if pts is None else pts
    return AccessUnit(Codec.H264, pts, pts, head + body, keyframe)


def opus(index: int, size: int = 160) -> AccessUnit:
    pts = 90_000 + 1800 * index
    packet = b"\xfc" + bytes(random.Random(index).choices(range(256), k=size))  # CELT, 20 ms, one frame
    return AccessUnit(Codec.OPUS, pts, pts, packet, keyframe=True)


def adts(index: int, size: int = 200) -> bytes:
    length = size + 7
    head = struct.pack(
        ">BBBBBBB", 0xFF, 0xF1, 0x4C, 0x80 | length >> 11, length >> 3 & 0xFF, (length & 7) << 5 | 0x1F, 0xFC
    )
    return head + bytes(random.Random(index).choices(range(200), k=size))


def aac(index: int, size: int = 200) -> AccessUnit:
    pts = 90_000 + 1920 * index
    return AccessUnit(Codec.AAC, pts, pts, adts(index, size), keyframe=True)


def packets_of(stream: bytes) -> list[bytes]:
    assert len(stream) % 188 == 0
    return [stream[at : at + 188] for at in range(0, len(stream), 188)]


def pid_of(packet: bytes) -> int:
    return int.from_bytes(packet[1:3], "big") & 0x1FFF


def counters_are_continuous(stream: bytes) -> bool:
    last: dict[int, int] = {}
    for packet in packets_of(stream):
        if packet[3] & 0x10:
            pid, counter = pid_of(packet), packet[3] & 15
            if counter != (last.get(pid, counter - 1) + 1) & 15:
                return False
            last[pid] = counter
    return True


def program_map(*streams: tuple[int, int, bytes]) -> bytes:
    entries = b"".join(
        struct.pack(">BHH", kind, 0xE000 | pid, 0xF000 | len(descriptors)) + descriptors
        for kind, pid, descriptors in streams
    )
    return section(2, 1, struct.pack(">HH", 0xFFFF, 0xF000) + entries)


def packetized(pid: int, payload: bytes) -> bytes:
    return Track(pid).packets(payload)


def tables(*streams: tuple[int, int, bytes]) -> bytes:
    pat = packetized(0, in_packets(association(1, PMT_PID)))
    return pat + packetized(PMT_PID, in_packets(program_map(*streams)))


def pes(payload: bytes, pts: int) -> bytes:
    return struct.pack(">IHBBB", 0x1C0, len(payload) + 8, 0x84, 0x80, 5) + stamp(2, pts) + payload


def unbounded(unit: AccessUnit) -> bytes:
    """The PES packet of a picture that does not say how long it is, as FFmpeg writes them."""
    head = b"\x00\x00\x01\xe0\x00\x00\x80\x80\x05" + stamp(2, unit.pts)
    return head + h264.ACCESS_UNIT_DELIMITER + unit.data


def untold(index: int, packets: int = 4) -> tuple[AccessUnit, bytes]:
    """A picture of which nothing tells the end: it states no length, and its last packet is full."""
    empty = len(unbounded(picture(index, 0, keyframe=True)))
    unit = picture(index, packets * 184 - empty, keyframe=True)
    return unit, unbounded(unit)
