"""A segment's bytes: whatever the pieces, whenever a reader comes, it gets all of them once and in order."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.common.trickle.segment import PIECE_BYTES, RUN_BYTES, SMALL_BYTES, Cursor, Segment

SIZES = st.sampled_from(
    [1, 7, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 5000, PIECE_BYTES, RUN_BYTES + 1]
)


@given(st.lists(st.tuples(SIZES, st.integers(0, 3)), max_size=12))
def test_readers_at_any_pace_read_what_was_written(steps: list[tuple[int, int]]) -> None:
    segment, written = Segment(0, 1), b""
    cursors = [Cursor() for _ in range(4)]
    read = [b""] * 4
    for number, (size, reader) in enumerate(steps):
        data = bytes([number % 256]) * size
        segment.append(data)
        written += data
        run = segment.take(cursors[reader])
        assert len(run) <= RUN_BYTES
        read[reader] += run
    for number, cursor in enumerate(cursors):
        while run := segment.take(cursor):
            read[number] += run
        assert read[number] == written
        assert cursor.taken == segment.size == len(written)


def test_single_bytes_are_put_together_and_large_pieces_are_kept_as_they_came() -> None:
    segment = Segment(0, 1)
    for _ in range(PIECE_BYTES + 1):
        segment.append(b"x")
    large = bytes(SMALL_BYTES)
    segment.append(large)
    segment.append(b"y")
    assert [len(piece) for piece in segment.pieces] == [PIECE_BYTES, 1, SMALL_BYTES, 1]
    assert segment.pieces[2] is large


async def test_a_follower_goes_on_reading_where_it_was_pushed_to() -> None:
    for first, second in ((b"a" * 10, b"b" * 5000), (b"a" * 5000, b"b" * 10), (b"a", b"b")):
        segment = Segment(0, 1)
        following = asyncio.ensure_future(segment.follow(lambda _: False))
        await asyncio.sleep(0)
        segment.append(first)
        segment.append(second)
        assert segment.take(await following) == second
        cursor = Cursor()
        assert segment.take(cursor) == first + second
