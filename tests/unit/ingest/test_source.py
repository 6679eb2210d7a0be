"""What transports push: bounded, in order, from a key frame on, with an end of each kind."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import InvalidError, TooLargeError
from services.common.media.mpegts import AccessUnit, Codec
from services.ingest import source as module
from services.ingest.source import PublisherVanishedError, PushedSource
from tests.support.media import pictures, sound

pytestmark = pytest.mark.looptime


def pushed(fastest_mbps: float | None = None) -> tuple[PushedSource, list[int]]:
    asked: list[int] = []
    source = PushedSource(first_within_s=2.0, fastest_mbps=fastest_mbps, ask_keyframe=lambda: asked.append(1))
    source.announce((Codec.H264, Codec.AAC))
    return source, asked


async def rest(source: PushedSource) -> list[AccessUnit]:
    return [unit async for units in source for unit in units]


async def test_units_come_out_in_their_order_and_end() -> None:
    source, _ = pushed()
    units = [*pictures(3), *sound(2), *pictures(3, start=100_000)]
    for unit in units:
        source.push(unit, 5.0)
    source.end()
    first = await source.first_picture()
    assert first + await rest(source) == units
    assert source.arrived_s == 5.0


async def test_what_comes_before_a_key_frame_is_left_out_and_one_is_asked_for() -> None:
    source, asked = pushed()
    for unit in pictures(30, every=20)[5:]:
        source.push(unit, 0.0)
    assert (await source.first_picture())[0].keyframe
    assert asked


async def test_a_session_that_starts_slowly_costs_pictures_and_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PUSHED_UNITS", 20)
    source, asked = pushed()
    for unit in pictures(50, every=25):
        source.push(unit, 0.0)
    assert len(await source.first_picture()) == 20
    assert asked
    for unit in pictures(50, every=25)[26:]:
        source.push(unit, 0.0)
    source.end()
    assert await rest(source) == [], "after a loss nothing can be decoded before a key frame"


async def test_a_connection_that_breaks_is_no_end() -> None:
    source, _ = pushed()
    source.push(pictures(1)[0], 0.0)
    source.vanish()
    source.end()
    await source.first_picture()
    with pytest.raises(PublisherVanishedError):
        await rest(source)


async def test_who_sends_nothing_is_told_so() -> None:
    source, _ = pushed()
    with pytest.raises(InvalidError, match="within 2 s") as refused:
        await source.first_picture()
    assert refused.value.reason == "NO_PICTURE"


async def test_who_ends_without_a_picture_is_told_so() -> None:
    source, _ = pushed()
    source.push(sound(1)[0], 0.0)
    source.end()
    with pytest.raises(InvalidError) as refused:
        await source.first_picture()
    assert refused.value.reason == "NO_PICTURE"


async def test_too_much_a_second_ends_it() -> None:
    source, _ = pushed(fastest_mbps=0.001)
    for _ in range(30):
        for unit in pictures(2):
            source.push(unit, 0.0)
    with pytest.raises(TooLargeError) as refused:
        await rest(source)
    assert refused.value.reason == "BITRATE_TOO_HIGH"


async def test_units_that_come_later_are_waited_for() -> None:
    source, _ = pushed()
    waiting = asyncio.ensure_future(source.first_picture())
    await asyncio.sleep(0.5)
    source.push(pictures(1)[0], 0.0)
    assert len(await waiting) == 1


async def test_what_cannot_be_carried_is_refused_when_it_is_announced() -> None:
    source, _ = pushed()
    with pytest.raises(InvalidError, match="hevc"):
        source.announce((Codec.HEVC,))


# --- while a session waits for its runner


async def test_what_comes_in_a_short_wait_is_kept_with_what_was_there() -> None:
    source, _ = pushed()
    units = [*pictures(3), *sound(2)]
    source.push(units[0], 0.0)
    holding = asyncio.ensure_future(source.hold(await source.first_picture()))
    for unit in units[1:]:
        await asyncio.sleep(0.1)
        source.push(unit, 0.0)
    holding.cancel()
    source.end()
    assert await rest(source) == units


async def test_after_a_long_wait_only_the_newest_that_can_be_decoded_is_kept() -> None:
    source, _ = pushed()
    units = pictures(125, every=25)
    source.push(units[0], 0.0)
    holding = asyncio.ensure_future(source.hold(await source.first_picture()))
    for unit in units[1:]:
        await asyncio.sleep(0.04)
        source.push(unit, 0.0)
    holding.cancel()
    source.end()
    assert await rest(source) == units[100:]


async def test_a_publisher_that_goes_or_fails_in_the_wait_is_known_at_once() -> None:
    for end, kind in ((PushedSource.vanish, PublisherVanishedError), (PushedSource.end, None)):
        source, _ = pushed()
        source.push(pictures(1)[0], 0.0)
        holding = asyncio.ensure_future(source.hold(await source.first_picture()))
        await asyncio.sleep(0.1)
        assert not holding.done()
        end(source)
        await asyncio.wait({holding})
        assert (type(holding.exception()) if holding.exception() else None) is kind
