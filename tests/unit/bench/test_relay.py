from __future__ import annotations

import pytest

from tests.bench.relay import CHUNK_BYTES, FILL, STAMP, Arrivals

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(number: int) -> bytes:
    return STAMP.pack(number, 1000 + number) + FILL


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def arrived(pieces: list[bytes]) -> list[tuple[int, int] | None]:
    arrivals = Arrivals()
    return [arrival for piece in pieces for arrival in arrivals.feed(piece)]


@pytest.mark.parametrize("size", [1, 7, 4096, 100_000])
def test_stamps_are_found_however_the_bytes_are_cut(size: int) -> None:
    answer = HEAD + b"".join(framed(chunk(number)) for number in range(3)) + END
    wire = answer + answer
    pieces = [wire[at : at + size] for at in range(0, len(wire), size)]
    once = [(0, 1000), (1, 1001), (2, 1002), None]
    assert arrived(pieces) == once + once


def test_a_chunk_counts_when_its_last_byte_is_there_whatever_the_relay_made_of_its_frame() -> None:
    both = chunk(0) + chunk(1)
    arrivals = Arrivals()
    assert list(arrivals.feed(HEAD + framed(both[: CHUNK_BYTES - 1]))) == []
    assert list(arrivals.feed(framed(both[CHUNK_BYTES - 1 : CHUNK_BYTES + 5]))) == [(0, 1000)]
    assert list(arrivals.feed(framed(both[CHUNK_BYTES + 5 :]))) == [(1, 1001)]
    assert list(arrivals.feed(END)) == [None]


def test_an_answer_that_is_no_segment_stops_the_benchmark() -> None:
    with pytest.raises(AssertionError, match="470"):
        arrived([b"HTTP/1.1 470 Entry not found\r\nContent-Length: 0\r\n\r\n"])
