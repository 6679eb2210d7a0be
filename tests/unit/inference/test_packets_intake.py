from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.mpegts import Codec
from services.inference.intake import BYTES, PACKETS, SOUNDS, Intake
from services.inference.packets import Media, Sound


def packet(number: int, *, keyframe: bool = False, size: int = 10) -> Media:
    return Media(0, number, number, keyframe, bytes(size))


def noise(number: int) -> Sound:
    return Sound(0, Codec.OPUS, number, b"")


async def taken(intake: Intake) -> list[int]:
    intake.finish()
    numbers = []
    while (one := await intake.get()) is not None:
        numbers.append(one.pts)
    return numbers


async def test_a_full_queue_loses_its_oldest_group_of_pictures() -> None:
    intake = Intake()
    for number in range(PACKETS + 1):
        intake.put_newest(packet(number, keyframe=number % 50 == 0))
    assert intake.dropped == 50
    assert await taken(intake) == list(range(50, PACKETS + 1))


async def test_a_full_queue_without_a_key_frame_skips_to_the_next_one() -> None:
    intake = Intake()
    for number in range(PACKETS + 10):
        intake.put_newest(packet(number, keyframe=number in {0, PACKETS + 5}))
    assert intake.dropped == PACKETS + 5
    assert await taken(intake) == list(range(PACKETS + 5, PACKETS + 10))


async def test_bytes_fill_a_queue_too() -> None:
    intake = Intake()
    intake.put_newest(packet(0, keyframe=True, size=BYTES))
    intake.put_newest(packet(1, keyframe=True))
    assert await taken(intake) == [1]


async def test_after_a_gap_only_a_key_frame_is_of_use() -> None:
    intake = Intake()
    intake.skip_to_keyframe()
    for number in range(4):
        intake.put_newest(packet(number, keyframe=number == 2))
    assert await taken(intake) == [2, 3]


async def test_what_is_dropped_at_once_is_counted_and_a_key_frame_comes_next() -> None:
    intake = Intake()
    for number in range(4):
        intake.put_newest(packet(number, keyframe=number == 0))
    intake.put(noise(4))
    intake.drop_all()
    assert (len(intake), intake.dropped, intake.dropped_sounds) == (0, 4, 1)
    for number in range(5, 9):
        intake.put_newest(packet(number, keyframe=number == 7))
    assert await taken(intake) == [7, 8]


async def test_who_puts_waits_for_room() -> None:
    intake = Intake()
    for number in range(PACKETS):
        await intake.room()
        intake.put(packet(number))
    waiting = asyncio.create_task(intake.room())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    await intake.get()
    await asyncio.wait_for(waiting, 1)
    assert intake.dropped == 0


async def test_sound_goes_with_the_pictures_that_are_lost_and_not_with_those_that_are_skipped() -> None:
    intake = Intake()
    for number in range(PACKETS):
        intake.put_newest(packet(number, keyframe=number in {0, 50}))
        intake.put_newest(noise(number))
    intake.put_newest(packet(PACKETS))
    left = await taken(intake)
    assert left == sorted([*range(50, PACKETS + 1), *range(50, PACKETS)])
    assert (intake.dropped, intake.dropped_sounds) == (50, 50)
    intake = Intake()
    intake.skip_to_keyframe()
    for number in range(4):
        intake.put_newest(packet(number, keyframe=number == 2))
        intake.put_newest(noise(number))
    assert await taken(intake) == [0, 1, 2, 2, 3, 3], "what refers to a lost picture is of no use, sound is"
    assert (intake.dropped, intake.dropped_sounds) == (2, 0)


async def test_sound_alone_is_bounded_and_loses_its_oldest() -> None:
    intake = Intake()
    for number in range(SOUNDS + 7):
        intake.put_newest(noise(number))
    assert (len(intake), intake.dropped_sounds) == (SOUNDS, 7)
    assert await taken(intake) == list(range(7, SOUNDS + 7))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, BYTES // 4)), max_size=300))
def test_what_is_left_is_decodable_and_everything_is_counted(units: list[tuple[bool, int]]) -> None:
    async def check() -> None:
        intake = Intake()
        sent = [packet(0, keyframe=True)]
        sent += [packet(n, keyframe=key, size=size) for n, (key, size) in enumerate(units, start=1)]
        for one in sent:
            intake.put_newest(one)
            assert len(intake) <= PACKETS
        left = await taken(intake)
        assert len(left) + intake.dropped == len(sent)
        for before, number in zip([-1, *left], left, strict=False):
            assert number == before + 1 or sent[number].keyframe

    asyncio.run(check())
