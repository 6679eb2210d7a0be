"""Messages of sound and pictures to access units and back: the place where FLV ends. Pure.

The rule it keeps: what cannot be used costs itself, counted; only pictures of another codec end a publisher.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from services.common.errors import InvalidError
from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.transports.rtmp import aac, amf, avc, tags
from services.ingest.transports.rtmp.chunks import MASK_32, Kind, Message
from services.ingest.transports.rtmp.tags import Part

TICKS_PER_MS: Final = CLOCK_HZ // 1000
# Twelve days: no clock jumps so far, but libav's takes only 31 of its 32 bits and begins again after them.
FARTHEST_MS: Final = 1 << 30
LARGEST_OPUS: Final = 3 * 1276 * 2  # RFC 6716 §3.2.5: six frames of 20 ms
LONGEST_REORDERING_MS: Final = (1 << 23) - 1  # what a tag's 24 bits hold


class TagReader:
    """A publisher's messages as access units on an unwrapped clock of 90 kHz."""

    def __init__(self) -> None:
        self.damaged = 0  # pictures and sounds that were not whole, or came before their configuration
        self.left_out = ""  # the sound that is not carried, by its name
        self._video: avc.AvcConfig | None = None
        self._sound: Codec | None = None
        self._aac: aac.AacConfig | None = None
        self._latest_ms: int | None = None

    @property
    def streams(self) -> tuple[Codec, ...]:
        """What was announced so far; empty before the pictures were."""
        if self._video is None:
            return ()
        return (Codec.H264,) if self._sound is None else (Codec.H264, self._sound)

    def read(self, message: Message) -> AccessUnit | None:
        """The unit in a message, if there is one. Raises InvalidError for video that cannot be used."""
        if message.kind == Kind.VIDEO:
            return self._read_video(message)
        return self._read_sound(message) if message.kind == Kind.AUDIO else None

    def _read_video(self, message: Message) -> AccessUnit | None:
        tag = tags.read_video(message.payload)
        if tag is None:
            return None
        if tag.part is Part.CONFIG:
            if tag.body:  # libav sends an empty one when it knows its parameter sets only later
                self._video = avc.read_config(tag.body)
            return None
        dts_ms = self._unwrap(message.timestamp)
        if self._video is None:
            self.damaged += 1
            return None
        try:
            data, keyframe = avc.to_annex_b(tag.body, self._video.length_size)
        except InvalidError:
            self.damaged += 1
            return None
        if not data:
            return None
        if keyframe:
            data = h264.ensure_parameter_sets(data, self._video.sets)
        pts = (dts_ms + tag.shown_after_ms) * TICKS_PER_MS
        return AccessUnit(Codec.H264, pts, dts_ms * TICKS_PER_MS, data, keyframe)

    def _read_sound(self, message: Message) -> AccessUnit | None:
        tag = tags.read_sound(message.payload)
        if tag is None:
            return None
        if isinstance(tag, str):
            self.left_out = tag
            return None
        if tag.part is Part.CONFIG:
            self._configure_sound(tag)
            return None
        if self._sound is not tag.codec:
            self.damaged += not self.left_out
            return None
        try:
            data = self._framed(tag.body)
        except InvalidError:
            self.damaged += 1
            return None
        pts = self._unwrap(message.timestamp) * TICKS_PER_MS
        return AccessUnit(tag.codec, pts, pts, data, keyframe=True)

    def _configure_sound(self, tag: tags.Tag) -> None:
        self._sound, self.left_out = tag.codec, ""
        if tag.codec is Codec.AAC:
            try:
                self._aac = aac.read_config(tag.body)
            except InvalidError as error:
                self._sound, self.left_out = None, error.message

    def _framed(self, body: bytes) -> bytes:
        if self._sound is Codec.OPUS:
            if not 0 < len(body) <= LARGEST_OPUS:
                raise InvalidError("a sound of an impossible length", bytes=len(body))
            return body
        assert self._aac is not None
        return aac.to_adts(self._aac, body)

    def _unwrap(self, timestamp: int) -> int:
        """Milliseconds that went past their bits, nearest to the newest ones."""
        if self._latest_ms is None:
            self._latest_ms = timestamp
        else:
            step = _signed(timestamp - self._latest_ms, 32)
            if abs(step) > FARTHEST_MS:
                step = _signed(step, 31)
            self._latest_ms += step
        return self._latest_ms


def _signed(number: int, bits: int) -> int:
    half = 1 << bits - 1
    return (number + half) % (2 * half) - half


class TagWriter:
    """A session's output, H.264 and AAC, as the messages of one connection to a server.

    Time begins at 0 with the first picture, which must be a key frame; sound before it is left out.
    """

    def __init__(self, stream: int) -> None:
        self._stream = stream
        self._begin: int | None = None
        self._sets = b""
        self._aac: aac.AacConfig | None = None

    def write(self, unit: AccessUnit) -> list[Message]:
        """Raises InvalidError for a unit that FLV cannot carry."""
        if unit.codec is Codec.H264:
            return self._write_picture(unit)
        return [] if self._begin is None else self._write_sound(unit)

    def _write_picture(self, unit: AccessUnit) -> list[Message]:
        if self._begin is None:
            if not unit.keyframe:
                return []
            self._begin = unit.dts
        dts_ms, pts_ms = self._ms(unit.dts), self._ms(unit.pts)
        messages = []
        sets = h264.parameter_sets(unit.data) if unit.keyframe else b""
        if sets and sets != self._sets:
            if not self._sets:
                messages.append(self._metadata(unit.data))
            self._sets = sets
            config = tags.write_video(Part.CONFIG, avc.config_record(sets), keyframe=True)
            messages.append(self._message(Kind.VIDEO, dts_ms, config))
        later_ms = max(-LONGEST_REORDERING_MS, min(LONGEST_REORDERING_MS, pts_ms - dts_ms))
        body = avc.from_annex_b(unit.data)
        tag = tags.write_video(Part.MEDIA, body, keyframe=unit.keyframe, shown_after_ms=later_ms)
        return [*messages, self._message(Kind.VIDEO, dts_ms, tag)]

    def _write_sound(self, unit: AccessUnit) -> list[Message]:
        assert unit.codec is Codec.AAC, unit.codec
        at_ms = self._ms(unit.pts)
        if at_ms < 0:
            return []
        config, frame = aac.from_adts(unit.data)
        messages = []
        if config != self._aac:
            self._aac = config
            said = tags.write_aac(Part.CONFIG, aac.specific_config(config))
            messages.append(self._message(Kind.AUDIO, at_ms, said))
        return [*messages, self._message(Kind.AUDIO, at_ms, tags.write_aac(Part.MEDIA, frame))]

    def _metadata(self, picture: bytes) -> Message:
        facts: dict[str, amf.Value] = {
            "videocodecid": tags.AVC,
            "audiocodecid": tags.AAC,
            "encoder": "Sluice",
        }
        with suppress(InvalidError):  # servers can do without
            facts["width"], facts["height"] = h264.picture_size(picture)
        return self._message(Kind.DATA, 0, amf.encode("@setDataFrame", "onMetaData", facts))

    def _ms(self, ticks: int) -> int:
        assert self._begin is not None
        return (ticks - self._begin) // TICKS_PER_MS

    def _message(self, kind: Kind, at_ms: int, payload: bytes) -> Message:
        return Message(kind, payload, at_ms & MASK_32, self._stream)
