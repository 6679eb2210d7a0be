"""The pipe between supervisor and engine: framed packets, media in binary and everything else in JSON.

A frame is a big-endian u32 length, a kind byte and a body; the length counts kind and body. Encoding and
decoding do no I/O; `Pipe` is the supervisor's end (asyncio), `BlockingPipe` the engine's (threads).
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from prometheus_client import Counter

from services.common.errors import InvalidError
from services.common.media.mpegts import Codec

PIPE_BYTES: Final = Counter(
    "sluice_pipe_bytes_total", "Bytes through the pipe between supervisor and engine.", ["direction"]
)
MEDIA: Final = 1
MESSAGE: Final = 2
SOUND: Final = 3
SNAPSHOT: Final = 4
LENGTH: Final = struct.Struct(">I")
MEDIA_HEADER: Final = struct.Struct(">Hqq??")
SOUND_HEADER: Final = struct.Struct(">HBq")
SNAPSHOT_HEADER: Final = struct.Struct(">H")
SOUND_CODECS: Final = (Codec.AAC, Codec.OPUS)  # a codec's number on the pipe is its place
MAX_FRAME_BYTES: Final = 16 << 20  # a key frame of 4K at a silly bitrate; above it is garbage
READ_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Media:
    """One H.264 access unit (Annex B), times in 90 kHz ticks. `only_decode`: nobody wants its picture."""

    slot: int
    pts: int
    dts: int
    keyframe: bool
    data: bytes
    only_decode: bool = False


@dataclass(frozen=True, slots=True)
class Sound:
    """One ADTS frame or one Opus packet, its time in 90 kHz ticks."""

    slot: int
    codec: Codec
    pts: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the pipeline in a slot remembers of its stream."""

    slot: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """Anything but media: a `type`, the slot that it is about (-1: the engine itself) and fields of JSON."""

    type: str
    slot: int
    fields: Mapping[str, Any]


Packet: TypeAlias = Media | Sound | Snapshot | Message


def encode(packet: Packet) -> bytes:
    if isinstance(packet, Media):
        header = MEDIA_HEADER.pack(packet.slot, packet.pts, packet.dts, packet.keyframe, packet.only_decode)
        return _framed(MEDIA, header, packet.data)
    if isinstance(packet, Sound):
        codec = SOUND_CODECS.index(packet.codec)
        return _framed(SOUND, SOUND_HEADER.pack(packet.slot, codec, packet.pts), packet.data)
    if isinstance(packet, Snapshot):
        return _framed(SNAPSHOT, SNAPSHOT_HEADER.pack(packet.slot), packet.data)
    body = json.dumps({"type": packet.type, "slot": packet.slot, "fields": packet.fields}).encode()
    return _framed(MESSAGE, b"", body)


def _framed(kind: int, header: bytes, body: bytes) -> bytes:
    return b"".join((LENGTH.pack(1 + len(header) + len(body)), bytes((kind,)), header, body))


class Decoder:
    """Bytes in any chunks to packets. Raises InvalidError at what `encode` cannot have written."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet]:
        self._buffer += data
        position = 0
        try:
            while len(self._buffer) - position >= LENGTH.size:
                (length,) = LENGTH.unpack_from(self._buffer, position)
                if not 1 <= length <= MAX_FRAME_BYTES:
                    raise InvalidError("a frame of an impossible length", bytes=length)
                end = position + LENGTH.size + length
                if len(self._buffer) < end:
                    break
                body = bytes(memoryview(self._buffer)[position + LENGTH.size : end])
                position = end
                yield _decode(body)
        finally:
            del self._buffer[:position]


def _decode(frame: bytes) -> Packet:
    kind, body = frame[0], frame[1:]
    if kind == MEDIA:
        if len(body) < MEDIA_HEADER.size:
            raise InvalidError("a media packet without its header")
        slot, pts, dts, keyframe, only_decode = MEDIA_HEADER.unpack_from(body)
        return Media(slot, pts, dts, keyframe, body[MEDIA_HEADER.size :], only_decode)
    if kind == SOUND:
        if len(body) < SOUND_HEADER.size or body[2] >= len(SOUND_CODECS):
            raise InvalidError("a packet of sound without its header")
        slot, codec, pts = SOUND_HEADER.unpack_from(body)
        return Sound(slot, SOUND_CODECS[codec], pts, body[SOUND_HEADER.size :])
    if kind == SNAPSHOT:
        if len(body) < SNAPSHOT_HEADER.size:
            raise InvalidError("a snapshot without its header")
        (slot,) = SNAPSHOT_HEADER.unpack_from(body)
        return Snapshot(slot, body[SNAPSHOT_HEADER.size :])
    if kind != MESSAGE:
        raise InvalidError("a packet of an unknown kind", kind=kind)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidError("a message that is not JSON") from error
    match document:
        case {"type": str(type_), "slot": int(slot), "fields": dict(fields)}:
            return Message(type_, slot, fields)
    raise InvalidError("a message without type, slot and fields")


class Pipe:
    """The supervisor's end. Any task sends, one reads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._to_engine = PIPE_BYTES.labels("to_engine")
        self._from_engine = PIPE_BYTES.labels("from_engine")

    @classmethod
    async def over(cls, end: socket.socket) -> Pipe:
        """Takes ownership of `end`."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def send(self, packet: Packet) -> None:
        """Raises OSError when the engine is gone."""
        data = encode(packet)
        self._to_engine.inc(len(data))
        self._writer.write(data)
        await self._writer.drain()

    async def packets(self) -> AsyncIterator[Packet]:
        """Ends when the engine has gone. Raises InvalidError if it talks nonsense."""
        while True:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            self._from_engine.inc(len(data))
            for packet in self._decoder.feed(data):
                yield packet

    def close(self) -> None:
        self._writer.close()


class BlockingPipe:
    """The engine's end: one thread reads, any thread sends."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._lock = threading.Lock()
        self._decoder = Decoder()

    def send(self, packet: Packet) -> None:
        """Blocks while the supervisor is behind. Raises OSError when it is gone."""
        data = encode(packet)
        with self._lock:
            self._socket.sendall(data)

    def packets(self) -> Iterator[Packet]:
        """Ends when the supervisor has gone."""
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            yield from self._decoder.feed(data)
