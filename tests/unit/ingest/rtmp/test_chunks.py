"""Chunk streams: messages survive however they are cut, whatever their time; what would cost is refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.transports.rtmp.chunks import ChunkReader, ChunkWriter, Kind, Message

LARGEST = 1 << 16
messages = st.builds(
    Message,
    kind=st.sampled_from([Kind.AUDIO, Kind.VIDEO, Kind.DATA, Kind.COMMAND, 99]),
    payload=st.binary(max_size=700),
    timestamp=st.integers(0, 0xFFFFFFFF) | st.sampled_from([0xFFFFFE, 0xFFFFFF, 0x1000000]),
    stream=st.integers(0, 0xFFFFFFFF),
)


def read(data: bytes, step: int = 1 << 20) -> list[Message]:
    reader = ChunkReader(LARGEST)
    return [one for at in range(0, len(data), step) for one in reader.feed(data[at : at + step])]


def head(form: int, number: int, time: int, length: int, kind: int, stream: int = 1) -> bytes:
    whole = (
        time.to_bytes(3, "big") + length.to_bytes(3, "big") + bytes((kind,)) + stream.to_bytes(4, "little")
    )
    return bytes((form << 6 | number,)) + whole[: (11, 7, 3, 0)[form]]


@given(
    st.lists(st.tuples(messages, st.integers(2, 63)), max_size=6),
    st.sampled_from([None, 128, 129, 500, 4096]),
    st.integers(1, 200),
)
def test_what_is_written_is_read_however_it_is_cut(
    written: list[tuple[Message, int]], size: int | None, step: int
) -> None:
    writer = ChunkWriter()
    data = b"" if size is None else writer.set_chunk_size(size)
    data += b"".join(writer.write(number, message) for message, number in written)
    assert read(data, step) == [message for message, _ in written]


def test_messages_of_several_chunk_streams_may_be_interleaved() -> None:
    video, audio = bytes(range(200)), b"a" * 150
    data = (
        head(0, 6, 40, 200, 9)
        + video[:128]
        + head(0, 4, 41, 150, 8)
        + audio[:128]
        + b"\xc6"
        + video[128:]
        + b"\xc4"
        + audio[128:]
    )
    for step in (1, 7, 1000):
        assert read(data, step) == [Message(9, video, 40, 1), Message(8, audio, 41, 1)]


def test_headers_that_leave_out_what_is_known_mean_what_was_said_before() -> None:
    data = (
        head(0, 4, 1000, 3, 8, 5)
        + b"one"
        + head(1, 4, 23, 5, 8)
        + b"three"
        + head(2, 4, 20, 0, 0)
        + b"fiveX"
        + b"\xc4"
        + b"seven"
    )
    assert [(one.timestamp, one.payload, one.stream) for one in read(data)] == [
        (1000, b"one", 5),
        (1023, b"three", 5),
        (1043, b"fiveX", 5),
        (1063, b"seven", 5),
    ]


@pytest.mark.parametrize("repeated", [True, False], ids=["repeated", "not repeated"])
def test_an_extended_time_stamp_is_read_whether_or_not_each_chunk_repeats_it(*, repeated: bool) -> None:
    time = struct.pack(">I", 0x01000005)
    data = head(0, 6, 0xFFFFFF, 300, 9) + time + b"a" * 128
    for rest in (b"b" * 128, b"c" * 44):
        data += b"\xc6" + (time if repeated else b"") + rest
    data += head(1, 6, 40, 2, 9) + b"dd"
    for step in (1, 3, 1000):
        assert read(data, step) == [
            Message(9, b"a" * 128 + b"b" * 128 + b"c" * 44, 0x01000005, 1),
            Message(9, b"dd", 0x01000005 + 40, 1),
        ]


def test_time_goes_on_past_32_bits() -> None:
    data = head(0, 4, 0xFFFFFF, 1, 8) + struct.pack(">I", 0xFFFFFFF0) + b"a" + head(1, 4, 0x20, 1, 8) + b"b"
    assert [one.timestamp for one in read(data)] == [0xFFFFFFF0, 0x10]


@pytest.mark.parametrize(
    ("first", "number"), [(b"\x00\x05", 69), (b"\x01\x05\x01", 64 + 5 + 256)], ids=["two", "three"]
)
def test_chunk_streams_of_longer_numbers_are_known_again(first: bytes, number: int) -> None:
    header = head(0, 2, 7, 258, 9)[1:]
    again = bytes((first[0] | 0xC0,)) + first[1:]
    data = first + header + b"x" * 128 + again + b"y" * 128 + again + b"zz"
    for step in (1, 2, 1000):
        assert read(data, step) == [Message(9, b"x" * 128 + b"y" * 128 + b"zz", 7, 1)], number


def test_an_empty_message_is_one() -> None:
    assert read(head(0, 4, 5, 0, 8), 1) == [Message(8, b"", 5, 1)]


def test_an_aborted_message_is_forgotten_and_the_next_one_read() -> None:
    writer = ChunkWriter()
    data = head(0, 6, 1, 300, 9) + b"x" * 128
    data += writer.write(2, Message(Kind.ABORT, (6).to_bytes(4, "big")))
    data += writer.write(6, Message(9, b"whole", 2, 1))
    assert read(data) == [Message(9, b"whole", 2, 1)]


@pytest.mark.parametrize(
    "data",
    [
        head(3, 4, 0, 0, 0) + b"x",
        head(2, 4, 0, 0, 0) + b"x",
        head(0, 4, 0, LARGEST + 1, 9),
        b"".join(head(0, 4 + index, 0, LARGEST, 9) + bytes(128) for index in range(3)),
        b"".join(head(0, 4 + index, 0, 1, 9) + b"x" for index in range(40)),
        head(0, 4, 0, 200, 9) + bytes(128) + head(0, 4, 0, 200, 9),
        head(0, 2, 0, 4, Kind.SET_CHUNK_SIZE) + bytes(4),
        head(0, 2, 0, 4, Kind.SET_CHUNK_SIZE) + b"\x00\x00\x00\x01",
        head(0, 2, 0, 0, Kind.SET_CHUNK_SIZE),
    ],
    ids=[
        "no header before",
        "no length before",
        "too large",
        "too much at once",
        "too many chunk streams",
        "a message within another",
        "chunks of nothing",
        "chunks of a byte",
        "no chunk size",
    ],
)
def test_what_cannot_be_or_costs_too_much_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidError):
        read(data, 50)


@given(st.binary(max_size=2000), st.integers(1, 500))
def test_garbage_is_refused_and_nothing_worse(data: bytes, step: int) -> None:
    with contextlib.suppress(InvalidError):
        read(data, step)


@given(st.lists(messages, min_size=1, max_size=4), st.data())
def test_a_stream_with_flipped_bytes_is_refused_or_read_and_nothing_worse(
    written: list[Message], data: st.DataObject
) -> None:
    writer = ChunkWriter()
    whole = bytearray(b"".join(writer.write(4, one) for one in written))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=5)):
        whole[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InvalidError):
        read(bytes(whole), 64)


def test_a_large_message_in_one_large_chunk_is_not_copied_again_with_each_piece() -> None:
    """Whoever announces chunks of megabytes must not make us pay for it: parsing stays linear."""
    writer = ChunkWriter()
    data = writer.set_chunk_size(1 << 24) + writer.write(6, Message(9, bytes(LARGEST), 0, 1))
    reader = ChunkReader(LARGEST)
    kept = [reader.feed(data[at : at + 100]) for at in range(0, len(data), 100)]
    assert [one.payload for batch in kept for one in batch] == [bytes(LARGEST)]
    assert reader._head == b""
