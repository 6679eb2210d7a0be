from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media.mpegts import Codec
from services.inference.packets import (
    MAX_FRAME_BYTES,
    BlockingPipe,
    Decoder,
    Media,
    Message,
    Packet,
    Pipe,
    Snapshot,
    Sound,
    encode,
)

TICKS = st.integers(min_value=-(1 << 62), max_value=1 << 62)
MEDIA = st.builds(Media, st.integers(0, 65_535), TICKS, TICKS, st.booleans(), st.binary(max_size=2000))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
SOUNDS = st.builds(
    Sound, st.integers(0, 65_535), st.sampled_from([Codec.AAC, Codec.OPUS]), TICKS, st.binary(max_size=2000)
)
MESSAGES = st.builds(Message, st.text(), st.integers(-1, 65_535), st.dictionaries(st.text(), JSON))
SNAPSHOTS = st.builds(Snapshot, st.integers(0, 65_535), st.binary(max_size=2000))
PACKETS = MEDIA | SOUNDS | SNAPSHOTS | MESSAGES


def chunked(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(PACKETS, max_size=5), st.lists(st.integers(min_value=0), max_size=10))
def test_what_was_encoded_is_decoded_however_it_arrives(packets: list[Packet], cuts: list[int]) -> None:
    data = b"".join(map(encode, packets))
    decoder = Decoder()
    assert [packet for chunk in chunked(data, cuts) for packet in decoder.feed(chunk)] == packets


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_gives_packets_or_an_invalid_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    with suppress(InvalidError):
        for chunk in chunks:
            list(decoder.feed(chunk))


@given(st.integers(min_value=0, max_value=255), st.binary(max_size=100))
def test_a_whole_frame_of_garbage_gives_a_packet_or_an_invalid_error(kind: int, body: bytes) -> None:
    with suppress(InvalidError):
        assert len(list(Decoder().feed(struct.pack(">IB", 1 + len(body), kind) + body))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"\0\0\0\x01\x09",
        b"\0\0\0\x02\x01\x00",
        b"\0\0\0\x03\x02[]",
        b"\0\0\0\x04\x03\0\0\0",
        b"\0\0\0\x0c\x03\0\0\x02" + bytes(8),
        b'\0\0\0\x0d\x02{"type": "x"}'[:17],
    ],
)
def test_what_no_encoder_writes_is_invalid(data: bytes) -> None:
    with pytest.raises(InvalidError):
        list(Decoder().feed(data))


async def test_both_ends_of_a_pipe_understand_each_other() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        pipe, engine = await Pipe.over(ours), BlockingPipe(theirs)
        sent: list[Packet] = [
            Message("open", 0, {"a": 1}),
            Media(3, 90_000, 87_000, True, b"x" * 500_000, only_decode=True),
        ]
        reading = asyncio.create_task(asyncio.to_thread(_take, engine, len(sent)))
        for packet in sent:
            await pipe.send(packet)
        assert await reading == sent
        engine.send(sent[0])
        assert await anext(aiter(pipe.packets())) == sent[0]
        pipe.close()
        assert await asyncio.to_thread(_take, engine, 1) == []


async def test_who_sends_waits_while_the_engine_does_not_read() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        pipe = await Pipe.over(ours)
        sending = asyncio.create_task(_send_much(pipe))
        await asyncio.sleep(0.2)
        assert not sending.done()
        reading = asyncio.create_task(asyncio.to_thread(_take, BlockingPipe(theirs), 100))
        await sending
        assert len(await reading) == 100
        pipe.close()


async def _send_much(pipe: Pipe) -> None:
    for _ in range(100):
        await pipe.send(Media(0, 0, 0, False, b"x" * 100_000))


def _take(pipe: BlockingPipe, count: int) -> list[Packet]:
    packets: list[Packet] = []
    for packet in pipe.packets():
        packets.append(packet)
        if len(packets) == count:
            break
    return packets
