"""The bodies of FLV's tags, which RTMP's messages of sound and pictures are: what codec, what part. Pure.

Both as Adobe specified them (video_file_format_spec_v10_1, annex E) and as Enhanced RTMP extends them, with
four letters for the codec.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.common.media.mpegts import Codec

VIDEO_CODECS: Final = {
    2: "Sorenson H.263",
    3: "Screen video",
    4: "VP6",
    5: "VP6 with alpha",
    6: "Screen video 2",
    8: "H.263",
    12: "HEVC",
    13: "AV1",
}
AVC: Final = 7
VIDEO_LETTERS: Final = {b"hvc1": "HEVC", b"av01": "AV1", b"vp09": "VP9", b"vp08": "VP8", b"vvc1": "VVC"}
AVC_LETTERS: Final = b"avc1"

SOUND_CODECS: Final = {
    0: "PCM",
    1: "ADPCM",
    2: "MP3",
    3: "PCM",
    4: "Nellymoser",
    5: "Nellymoser",
    6: "Nellymoser",
    7: "G.711",
    8: "G.711",
    11: "Speex",
    14: "MP3",
}
AAC: Final = 10
ENHANCED_SOUND: Final = 9
SOUND_LETTERS: Final = {b".mp3": "MP3", b"fLaC": "FLAC", b"ac-3": "AC-3", b"ec-3": "E-AC-3"}
CARRIED_LETTERS: Final = {b"mp4a": Codec.AAC, b"Opus": Codec.OPUS}

COMMAND_FRAME: Final = 5  # a frame type that carries no picture
MULTITRACK_VIDEO: Final = 6
MULTITRACK_SOUND: Final = 5
MODIFIED: Final = 7  # "ModEx": nobody sends it unasked


class Part(enum.Enum):
    """What a tag carries; whatever else there is, is not needed."""

    CONFIG = 0
    MEDIA = 1


@dataclass(frozen=True, slots=True)
class Tag:
    """The part of a tag that is of use. `shown_after_ms`: its composition time."""

    part: Part
    codec: Codec
    body: bytes
    shown_after_ms: int = 0


def read_video(data: bytes) -> Tag | None:
    """None for what says nothing about a picture. Raises InvalidError for a codec that cannot be used."""
    if not data or data[0] >> 4 & 7 == COMMAND_FRAME:
        return None
    if data[0] & 0x80:
        return _read_enhanced_video(data)
    codec = data[0] & 0x0F
    if codec != AVC:
        raise _unusable(VIDEO_CODECS.get(codec, f"video codec {codec}"))
    if len(data) < 5 or data[1] > 1:
        return None
    part = Part.MEDIA if data[1] else Part.CONFIG
    return Tag(part, Codec.H264, data[5:], int.from_bytes(data[2:5], "big", signed=True))


def _read_enhanced_video(data: bytes) -> Tag | None:
    kind, letters = data[0] & 0x0F, data[1:5]
    if kind in {MULTITRACK_VIDEO, MODIFIED}:
        raise _unusable("video of several tracks")
    if letters != AVC_LETTERS:
        raise _unusable(VIDEO_LETTERS.get(letters, "another codec"))
    if kind == 0:
        return Tag(Part.CONFIG, Codec.H264, data[5:])
    if kind == 1 and len(data) >= 8:
        return Tag(Part.MEDIA, Codec.H264, data[8:], int.from_bytes(data[5:8], "big", signed=True))
    return Tag(Part.MEDIA, Codec.H264, data[5:]) if kind == 3 else None


def read_sound(data: bytes) -> Tag | str | None:
    """The name of a codec that is not carried, or None for what says nothing about a sound."""
    if not data:
        return None
    codec = data[0] >> 4
    if codec == ENHANCED_SOUND:
        return _read_enhanced_sound(data)
    if codec != AAC:
        return SOUND_CODECS.get(codec, "unknown")
    if len(data) < 2 or data[1] > 1:
        return None
    return Tag(Part.MEDIA if data[1] else Part.CONFIG, Codec.AAC, data[2:])


def _read_enhanced_sound(data: bytes) -> Tag | str | None:
    kind, letters = data[0] & 0x0F, data[1:5]
    if kind in {MULTITRACK_SOUND, MODIFIED}:
        return "several tracks"
    codec = CARRIED_LETTERS.get(letters)
    if codec is None:
        return SOUND_LETTERS.get(letters, "unknown")
    return Tag(Part.MEDIA if kind else Part.CONFIG, codec, data[5:]) if kind <= 1 else None


def write_video(part: Part, body: bytes, *, keyframe: bool, shown_after_ms: int = 0) -> bytes:
    """An H.264 tag as every server understands it."""
    head = bytes((0x10 | AVC if keyframe else 0x20 | AVC, part.value))
    return head + shown_after_ms.to_bytes(3, "big", signed=True) + body


def write_aac(part: Part, body: bytes) -> bytes:
    """An AAC tag; the rate and so on in its first byte are fixed for AAC, whatever it has."""
    return bytes((0xAF, part.value)) + body


def _unusable(codec: str) -> InvalidError:
    return InvalidError(
        f"the stream carries {codec}; send H.264 video (ffmpeg: -c:v libx264; OBS: an H.264 encoder)",
        reason="UNSUPPORTED_CODEC",
        field="video",
    )
