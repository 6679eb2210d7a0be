"""RTMP's chunk streams: bytes to messages and back (specification §5.3). Pure.

The rule it keeps: whatever comes, it keeps at most two messages' worth and raises nothing but InvalidError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from services.common.errors import InvalidError

FIRST_CHUNK_SIZE: Final = 128  # of both sides until they say otherwise
LEAST_CHUNK_SIZE: Final = 128  # who cuts finer costs us more than what it sends is worth
MOST_CHUNK_STREAMS: Final = 32  # real clients use five
EXTENDED: Final = 0xFFFFFF  # in a header: the time stamp needs 32 bits, which follow it
MASK_32: Final = 0xFFFFFFFF
HEADER_SIZES: Final = (11, 7, 3, 0)  # of a message header, by the chunk's format


class Kind(IntEnum):
    """What a message is. Values of the specification, §5.4, §6.2 and §7.1."""

    SET_CHUNK_SIZE = 1
    ABORT = 2
    ACKNOWLEDGEMENT = 3
    USER_CONTROL = 4
    WINDOW_SIZE = 5
    PEER_BANDWIDTH = 6
    AUDIO = 8
    VIDEO = 9
    DATA_AMF3 = 15
    COMMAND_AMF3 = 17
    DATA = 18
    COMMAND = 20
    AGGREGATE = 22


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `kind` may be a number that `Kind` does not know; times are milliseconds of 32 bits."""

    kind: int
    payload: bytes
    timestamp: int = 0
    stream: int = 0


@dataclass(slots=True)
class _ChunkStream:
    """What the headers of one chunk stream said last, and the message that is under way on it."""

    number: int
    kind: int = 0
    stream: int = 0
    length: int = -1  # no header was complete yet
    timestamp: int = 0
    step: int = 0  # what a chunk without time stamp adds to it
    extended: bool = False
    missing: int = 0  # bytes of the message under way
    parts: list[bytes] = field(default_factory=list)


class ChunkReader:
    """`feed` bytes, get messages. It obeys what changes the chunks themselves: their size, and Abort."""

    def __init__(self, largest: int) -> None:
        self.largest = largest  # bytes of a message; may be changed at any time
        self.messages = 0  # that were completed, since it was made
        self._chunk_size = FIRST_CHUNK_SIZE
        self._streams: dict[int, _ChunkStream] = {}
        self._head = b""  # a header that is not whole yet
        self._current: _ChunkStream | None = None  # whose chunk is under way
        self._chunk_left = 0
        self._promised = 0  # bytes of all messages that are under way

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises InvalidError, after which it is of no use."""
        if self._head:
            data, self._head = self._head + data, b""
        messages: list[Message] = []
        at, end = 0, len(data)
        while at < end:
            stream = self._current
            if stream is None:
                begin = self._begin_chunk(data, at)
                if begin < 0:
                    self._head = data[at:]
                    break
                at = begin
                stream = self._current
                assert stream is not None
            size = min(self._chunk_left, end - at)
            if size:
                stream.parts.append(data[at : at + size])
                at += size
                self._chunk_left -= size
                stream.missing -= size
                if not self._chunk_left and stream.missing >= self._chunk_size:
                    at = self._take_alike(stream, data, at)
            if not self._chunk_left:
                self._current = None
                if not stream.missing:
                    self._complete(stream, messages)
        return messages

    def _take_alike(self, stream: _ChunkStream, data: bytes, at: int) -> int:
        """Take at once the whole chunks that only go on with the message; libav sends 1000 a second."""
        if stream.extended or stream.number > 0x3F:
            return at
        size = self._chunk_size
        count = min((len(data) - at) // (size + 1), stream.missing // size)
        following = bytes((0xC0 | stream.number,))
        firsts = data[at : at + count * (size + 1) : size + 1]
        count -= len(firsts.lstrip(following))
        end = at + count * (size + 1)
        stream.parts += [data[begin : begin + size] for begin in range(at + 1, end, size + 1)]
        stream.missing -= count * size
        return end

    def _begin_chunk(self, data: bytes, at: int) -> int:
        """Read a chunk's header; where its payload begins, or -1 when the header is not whole."""
        first = data[at]
        number = first & 0x3F
        at += 1
        if number < 2:
            following = data[at : at + 1 + number]
            if len(following) <= number:
                return -1
            at += 1 + number
            number = 64 + int.from_bytes(following, "little")
        form = first >> 6
        stream = self._streams.get(number)
        if stream is None:
            if len(self._streams) >= MOST_CHUNK_STREAMS:
                raise InvalidError(f"more than {MOST_CHUNK_STREAMS} chunk streams", reason="RTMP_MALFORMED")
            stream = _ChunkStream(number)  # kept only when its header is whole
        header = data[at : at + HEADER_SIZES[form]]
        if len(header) < HEADER_SIZES[form]:
            return -1
        at += len(header)
        begin = self._read_time(stream, form, header, data[at : at + 4])
        if begin < 0:
            return -1
        self._streams[number] = stream
        if not stream.missing:
            self._begin_message(stream, form, header)
        self._current = stream
        self._chunk_left = min(self._chunk_size, stream.missing)
        return at + begin

    @staticmethod
    def _read_time(stream: _ChunkStream, form: int, header: bytes, following: bytes) -> int:
        """Take the time that a chunk says, if it does; how many bytes more it took, or -1 for too few."""
        if form == 3:
            if not stream.extended:
                return 0
            if len(following) < 4:
                return -1
            # The specification repeats the extended time stamp in each chunk; some encoders do not.
            return 4 if int.from_bytes(following, "big") == stream.step else 0
        if stream.missing:
            raise InvalidError("a message that begins within another one", reason="RTMP_MALFORMED")
        step = int.from_bytes(header[:3], "big")
        stream.extended = step == EXTENDED
        if not stream.extended:
            stream.step = step
            return 0
        if len(following) < 4:
            return -1
        stream.step = int.from_bytes(following, "big")
        return 4

    def _begin_message(self, stream: _ChunkStream, form: int, header: bytes) -> None:
        if form < 2:
            stream.length = int.from_bytes(header[3:6], "big")
            stream.kind = header[6]
        if form == 0:
            stream.stream = int.from_bytes(header[7:11], "little")
            stream.timestamp = stream.step
        else:
            # Also for a chunk without header after a whole one (§5.3.1.2.4): libav counts on it.
            stream.timestamp = (stream.timestamp + stream.step) & MASK_32
        if stream.length < 0:
            raise InvalidError("a chunk without a header before it", reason="RTMP_MALFORMED")
        self._promised += stream.length
        if stream.length > self.largest or self._promised > 2 * self.largest:
            raise InvalidError(f"a message of {stream.length} bytes is too large", reason="RTMP_MALFORMED")
        stream.missing = stream.length

    def _complete(self, stream: _ChunkStream, messages: list[Message]) -> None:
        payload = stream.parts[0] if len(stream.parts) == 1 else b"".join(stream.parts)
        stream.parts = []
        self._promised -= stream.length
        self.messages += 1
        if stream.kind == Kind.SET_CHUNK_SIZE:
            size = int.from_bytes(payload[:4], "big") & 0x7FFFFFFF
            if size < LEAST_CHUNK_SIZE:
                raise InvalidError(
                    f"chunks of {size} bytes; at least {LEAST_CHUNK_SIZE}", reason="RTMP_MALFORMED"
                )
            self._chunk_size = size
        elif stream.kind == Kind.ABORT:
            self._abort(int.from_bytes(payload[:4], "big"))
        else:
            messages.append(Message(stream.kind, payload, stream.timestamp, stream.stream))

    def _abort(self, number: int) -> None:
        aborted = self._streams.get(number)
        if aborted is not None and aborted.missing:
            self._promised -= aborted.length
            aborted.missing = 0
            aborted.parts = []


class ChunkWriter:
    """Messages to bytes, each with a whole header: it costs four bytes more and confuses nobody."""

    def __init__(self) -> None:
        self._chunk_size = FIRST_CHUNK_SIZE

    def set_chunk_size(self, size: int) -> bytes:
        """The message that says so; what is written after it has chunks of that size."""
        said = self.write(2, Message(Kind.SET_CHUNK_SIZE, size.to_bytes(4, "big")))
        self._chunk_size = size
        return said

    def write(self, chunk_stream: int, message: Message) -> bytes:
        assert 2 <= chunk_stream < 64, chunk_stream
        extended = b""
        time = message.timestamp
        if time >= EXTENDED:
            extended, time = struct.pack(">I", time), EXTENDED
        payload, size = message.payload, self._chunk_size
        head = b"".join(
            (
                bytes((chunk_stream,)),
                time.to_bytes(3, "big"),
                len(payload).to_bytes(3, "big"),
                bytes((message.kind,)),
                message.stream.to_bytes(4, "little"),
                extended,
            )
        )
        if len(payload) <= size:
            return head + payload
        following = bytes((0xC0 | chunk_stream,)) + extended
        pieces = [payload[at : at + size] for at in range(0, len(payload), size)]
        return head + following.join(pieces)
