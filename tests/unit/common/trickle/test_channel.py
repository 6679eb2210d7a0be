"""A channel inside one process: who sees which bytes, when, and what a slow reader is told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    NotFoundError,
    PaymentRequiredError,
    TooLargeError,
)
from services.common.trickle.channel import Channel, ChannelReader, SegmentReader
from services.common.trickle.metrics import LAGGED
from services.common.trickle.protocol import (
    CURRENT,
    NEXT,
    RANDOM_ACCESS,
    ChannelClosedError,
    ChannelLimits,
    SegmentMissingError,
)
from services.common.trickle.segment import RUN_BYTES


def write(channel: Channel, data: bytes = b"x", *, random_access: bool = False) -> None:
    with channel.begin_segment(random_access=random_access) as writer:
        writer.write(data)


async def whole(segment: SegmentReader) -> bytes:
    return b"".join([run async for run in segment])


async def everything(reader: ChannelReader) -> list[tuple[int, int, bytes]]:
    return [(segment.index, segment.lost, await whole(segment)) async for segment in reader]


async def test_bytes_are_read_while_the_segment_is_written() -> None:
    channel = Channel()
    reader = channel.read(NEXT)
    writer = channel.begin_segment()
    writer.write(b"one")
    segment = await anext(reader)
    assert await anext(segment) == b"one"
    more = asyncio.ensure_future(anext(segment))
    await asyncio.sleep(0)
    assert not more.done()
    writer.write(b"two")
    assert await more == b"two"
    writer.end()
    assert await whole(segment) == b""


async def test_a_late_reader_gets_the_running_segment_from_its_start() -> None:
    channel = Channel()
    writer = channel.begin_segment()
    writer.write(b"one")
    writer.write(b"two")
    assert await anext(await anext(channel.read(CURRENT))) == b"onetwo"


async def test_every_reader_gets_every_byte() -> None:
    channel = Channel()
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(everything(channel.read(0))) for _ in range(20)]
        for number in range(4):
            write(channel, bytes([number]) * 10)
            await asyncio.sleep(0)
        channel.close()
    expected = [(number, 0, bytes([number]) * 10) for number in range(4)]
    assert all(reader.result() == expected for reader in readers)


async def test_a_long_segment_is_replayed_in_bounded_runs() -> None:
    channel = Channel()
    write(channel, bytes(RUN_BYTES * 2 + 1))
    sizes = [len(run) async for run in await anext(channel.read(0))]
    assert sizes == [RUN_BYTES, RUN_BYTES, 1]


async def test_a_reader_that_fell_behind_is_told_how_many_it_lost() -> None:
    channel = Channel(ChannelLimits(depth=3))
    reader = channel.read(0)
    write(channel, b"0")
    assert (await anext(reader)).lost == 0
    for number in range(1, 9):
        write(channel, b"%d" % number)
    segment = await anext(reader)
    assert (segment.index, segment.lost) == (6, 5)


async def test_a_reader_that_fell_behind_goes_on_where_a_decoder_can() -> None:
    channel = Channel(ChannelLimits(depth=3))
    reader = channel.read(0)
    for number in range(6):
        write(channel, random_access=number in {0, 4})
    segment = await anext(reader)
    assert (segment.index, segment.lost) == (4, 4)


async def test_a_new_reader_begins_at_the_newest_random_access_segment() -> None:
    channel = Channel(ChannelLimits(depth=2))
    for number in range(9):
        write(channel, b"%d" % number, random_access=number % 4 == 0)
    channel.close()
    assert await everything(channel.read(RANDOM_ACCESS)) == [(8, 0, b"8")]


@pytest.mark.looptime
async def test_history_is_bounded_in_time() -> None:
    channel = Channel(ChannelLimits(depth=2, history_s=12.0))
    write(channel, random_access=True)
    for _ in range(4):
        await asyncio.sleep(2)
        write(channel)
    assert (await anext(channel.read(RANDOM_ACCESS))).index == 0
    await asyncio.sleep(7)
    write(channel)
    assert (await anext(channel.read(RANDOM_ACCESS))).index == 4


async def test_a_reader_keeps_a_segment_that_the_ring_forgot() -> None:
    channel = Channel(ChannelLimits(depth=1))
    writer = channel.begin_segment()
    writer.write(b"kept")
    segment = await anext(channel.read(0))
    for _ in range(3):
        write(channel)
    assert writer.ended
    assert await whole(segment) == b"kept"


async def test_a_writer_whose_segment_was_forgotten_is_told() -> None:
    channel = Channel(ChannelLimits(depth=1))
    writer = channel.begin_segment()
    for _ in range(3):
        write(channel)
    with pytest.raises(ConflictError) as caught:
        writer.write(b"late")
    assert caught.value.reason == "SEGMENT_ENDED"


async def test_closing_ends_every_reader_after_what_is_left() -> None:
    channel = Channel()
    parked = asyncio.ensure_future(everything(channel.read(NEXT)))
    write(channel, b"last")
    writer = channel.begin_segment()
    writer.write(b"cut")
    await asyncio.sleep(0)
    channel.close()
    assert await parked == [(0, 0, b"last"), (1, 0, b"cut")]
    with pytest.raises(ChannelClosedError):
        writer.write(b"more")
    with pytest.raises(ChannelClosedError):
        channel.begin_segment()


async def test_a_block_that_fails_abandons_its_segment() -> None:
    channel = Channel()
    reader = channel.read(0)
    with contextlib.suppress(ZeroDivisionError), channel.begin_segment() as writer:
        writer.write(b"half")
        raise ZeroDivisionError
    assert await whole(await anext(reader)) == b"half"


async def test_an_abandoned_segment_without_bytes_leaves_its_reader_waiting_for_the_next_try() -> None:
    channel = Channel()
    waiting = asyncio.ensure_future(anext(channel.read(0)))
    await asyncio.sleep(0)
    channel.begin_segment(0).abandon()
    await asyncio.sleep(0)
    assert not waiting.done()
    with channel.begin_segment(0) as writer:
        writer.write(b"again")
    assert await whole(await waiting) == b"again"


async def test_a_segment_ended_from_outside_is_empty_and_counts() -> None:
    channel = Channel()
    called: list[int] = []
    writer = channel.begin_segment()
    writer.on_end(lambda: called.append(writer.index))
    channel.end_segment(0)
    assert (channel.head, called, (await channel.segment(0)).empty) == (1, [0], True)
    with pytest.raises(NotFoundError):
        channel.end_segment(7)


async def test_a_reset_ends_what_an_earlier_publisher_left_open() -> None:
    channel = Channel()
    channel.begin_segment().write(b"half")
    left = channel.begin_segment()
    segment = await channel.segment(0)
    channel.begin_segment(5, reset=True)
    assert await whole(segment) == b"half"
    assert left.ended


async def test_a_reader_follows_a_publisher_that_starts_again() -> None:
    channel = Channel(ChannelLimits(depth=2))
    reader = channel.read(NEXT)
    for _ in range(7):
        write(channel)
    while (await anext(reader)).index < 6:
        pass
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    with channel.begin_segment(0) as writer:
        writer.write(b"anew")
    segment = await waiting
    assert (segment.index, segment.lost, await whole(segment)) == (0, 0, b"anew")


async def test_a_waiting_reader_is_told_when_the_publisher_starts_again() -> None:
    channel = Channel(ChannelLimits(depth=2))
    for _ in range(7):
        write(channel)
    waiting = asyncio.ensure_future(channel.segment(7))
    await asyncio.sleep(0)
    channel.begin_segment(0)
    with pytest.raises(SegmentMissingError) as caught:
        await waiting
    assert (caught.value.latest, caught.value.resume) == (0, 0)


async def test_a12_a_reader_is_told_that_a_publisher_started_anew() -> None:
    channel = Channel()
    reader = channel.read(0)
    for _ in range(4):
        write(channel, b"old")
    seen = [await anext(reader) for _ in range(4)]
    assert [segment.restarted for segment in seen] == [False] * 4
    waiting = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    with channel.begin_segment(0) as writer:
        writer.write(b"new")
    segment = await waiting
    assert (segment.index, segment.restarted, segment.generation, segment.lost) == (0, True, 2, 0)
    write(channel, b"more")
    assert not (await anext(reader)).restarted


async def test_a12_a_reader_that_was_away_for_a_restart_loses_none_of_it_unknowingly() -> None:
    channel = Channel()
    reader = channel.read(NEXT)
    write(channel)
    await anext(reader)
    for number in range(8):
        with channel.begin_segment(number) as writer:
            writer.write(b"new")
    segment = await anext(reader)
    assert (segment.index, segment.restarted, segment.lost) == (3, True, 3)


async def test_a12_a_restart_ends_what_the_old_publisher_left_open() -> None:
    channel = Channel()
    for _ in range(4):
        write(channel)
    left = channel.begin_segment()
    left.write(b"half")
    segment = await channel.segment(4)
    channel.begin_segment(1)
    assert left.ended
    assert await whole(segment) == b"half"
    assert segment.cut


async def test_a_segment_that_its_writer_did_not_end_is_cut() -> None:
    channel = Channel()
    kept, broken, replaced, deleted, closed = [channel.begin_segment() for _ in range(5)]
    for writer in (kept, broken, replaced, deleted, closed):
        writer.write(b"x")
    segments = [await channel.segment(index) for index in range(5)]
    assert not any(segment.cut for segment in segments)
    kept.end()
    broken.abandon()
    channel.begin_segment(2)
    channel.end_segment(3)
    channel.close()
    assert [segment.cut for segment in segments] == [False, True, True, True, True]


async def test_what_is_pushed_to_a_follower_is_not_yielded_again() -> None:
    channel = Channel()
    writer = channel.begin_segment()
    writer.write(b"one")
    segment = await channel.segment(0)
    assert segment.take() == b"one"
    pushed: list[bytes] = []

    def take_two(data: bytes) -> bool:
        pushed.append(data)
        return len(pushed) < 2

    following = asyncio.ensure_future(segment.follow(take_two))
    await asyncio.sleep(0)
    for data in (b"two", b"three", b"four"):
        writer.write(data)
    await following
    assert (pushed, segment.take(), segment.take()) == ([b"two", b"three"], b"four", b"")
    following = asyncio.ensure_future(segment.follow(take_two))
    await asyncio.sleep(0)
    writer.end()
    await following
    await segment.follow(take_two)
    assert segment.ended


async def test_a_follower_that_gives_up_is_pushed_no_more() -> None:
    channel = Channel()
    writer = channel.begin_segment()
    writer.write(b"one")
    segment = await channel.segment(0)
    segment.take()
    pushed: list[bytes] = []

    def keep(data: bytes) -> bool:
        pushed.append(data)
        return True

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await segment.follow(keep)
    writer.write(b"two")
    assert (pushed, segment.take()) == ([], b"two")


async def test_a_reason_for_closing_is_kept_for_the_writer() -> None:
    channel = Channel()
    reason = PaymentRequiredError("no credit")
    channel.close(reason)
    channel.close()
    assert channel.error is reason
    assert await everything(channel.read(0)) == []


async def test_in_process_readers_count_what_they_lost() -> None:
    before = LAGGED._value.get()
    channel = Channel(ChannelLimits(depth=3))
    reader = channel.read(0)
    for _ in range(9):
        write(channel)
    assert (await anext(reader)).lost == 6
    assert LAGGED._value.get() == before + 6


async def test_a_segment_over_its_cap_ends_with_what_it_has() -> None:
    channel = Channel(ChannelLimits(segment_bytes=4, channel_bytes=8))
    with channel.begin_segment() as writer:
        writer.write(b"1234")
        with pytest.raises(TooLargeError):
            writer.write(b"5")
    assert await whole(await channel.segment(0)) == b"1234"


async def test_readers_from_outside_are_counted_and_bounded() -> None:
    channel = Channel(ChannelLimits(readers=1))
    with channel.reading(), pytest.raises(ExhaustedError), channel.reading():
        pass
    with channel.reading():
        pass


async def test_a_cancelled_reader_disturbs_no_other() -> None:
    channel = Channel()
    writer = channel.begin_segment()
    writer.write(b"1")
    first, second = channel.read(0), channel.read(0)
    impatient, patient = await anext(first), await anext(second)
    assert (await anext(impatient), await anext(patient)) == (b"1", b"1")
    waiting = asyncio.ensure_future(anext(patient))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(impatient)
    writer.write(b"2")
    assert (await waiting, await anext(impatient)) == (b"2", b"2")


async def test_a_writer_is_gone_when_the_last_of_its_connections_broke() -> None:
    channel = Channel()
    told: list[bool] = []
    channel.on_broken = lambda: told.append(channel.broken)
    flowing, parked = channel.begin_segment(), channel.begin_segment()
    flowing.write(b"x")
    flowing.abandon()
    assert not channel.broken, "only this segment was given up: the next one's connection stands"
    parked.abandon()
    assert channel.broken
    assert told == [True]
    with channel.begin_segment() as writer:
        assert not channel.broken
        writer.write(b"y")
    assert not channel.broken, "it ended in order"


async def test_a_publisher_that_takes_over_and_a_channel_that_closes_are_no_broken_connection() -> None:
    channel = Channel()
    channel.begin_segment().write(b"x")
    channel.begin_segment(reset=True).write(b"y")
    assert not channel.broken
    last = channel.begin_segment()
    channel.close()
    last.abandon()
    assert not channel.broken
