"""What viewers read of a session and ask of its runner, and what a client's pause does, in virtual time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import RateLimitedError
from services.common.frame_drops import FRAME_DROPS
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import AccessUnit
from services.ingest.bridge import taps
from services.ingest.bridge.presence import Publisher
from services.ingest.bridge.requests import Bitrate
from services.ingest.bridge.taps import Tap
from services.ingest.seats import Seats
from tests.support.bridge import FRAME_S, Stage, settled, staged, written
from tests.support.media import FRAME, moved, pictures, sound

pytestmark = pytest.mark.looptime


async def read(tap: Tap) -> list[AccessUnit]:
    """All that there is in a tap that has ended."""
    return [unit async for unit in tap]


def asked(stage: Stage, kind: str) -> list[Any]:
    """What the runner was told on `control`."""
    assert stage.runner is not None
    return [line for line in stage.runner.told() if line["type"] == kind]


async def test_a_tap_begins_at_a_key_frame_and_ends_with_the_session() -> None:
    async with staged() as stage:
        stage.open()
        await stage.live(0.2)
        tap = stage.session.tap()
        await stage.live(2, start=5 * FRAME)
        stage.session.close("stopped", "")
        await settled()
        units = await read(tap)
    assert units[0].keyframe
    assert all(later.pts - earlier.pts == FRAME for earlier, later in pairwise(units))


async def test_a_reader_that_is_late_goes_on_at_a_key_frame_and_nobody_else_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taps, "CAPACITY_UNITS", 10)
    before = FRAME_DROPS.labels("tap")._value.get()
    async with staged() as stage:
        stage.open()
        slow, quick = stage.session.tap(), stage.session.tap()
        got: list[AccessUnit] = []

        async def follow() -> None:
            got.extend([unit async for unit in quick])

        following = asyncio.ensure_future(follow())
        count = await stage.live(1.3)  # key frames: the first and the 26th
        stage.session.close("stopped", "")
        await following
        late = await read(slow)
    assert len(got) == count
    assert late[0].keyframe
    assert len(late) <= 10
    assert FRAME_DROPS.labels("tap")._value.get() - before >= 10
    assert asked(stage, "keyframe"), "the late one needs it"


async def test_a_tap_that_is_closed_holds_nothing_and_one_of_an_ended_session_ends_at_once() -> None:
    async with staged() as stage:
        stage.open()
        tap = stage.session.tap()
        tap.close()
        tap.close()
        await stage.live(0.2)
        assert await read(tap) == []
        assert not stage.session._taps._open
        stage.session.close("stopped", "")
        await settled()
        assert await read(stage.session.tap()) == []


async def test_however_many_viewers_ask_a_runner_hears_of_key_frames_twice_a_second() -> None:
    async with staged() as stage:
        stage.open()
        for _ in range(100):
            stage.session.ask_keyframe()
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)
    assert 4 <= len(asked(stage, "keyframe")) <= 5


async def test_a_runner_that_comes_later_is_told_what_viewers_carry() -> None:
    async with staged() as stage:
        stage.session.ask_keyframe()
        stage.session.receiver_estimate("viewer", 500_000)
        stage.open()
        assert asked(stage, "bitrate") == [{"type": "bitrate", "bits_per_second": 500_000}]


async def test_the_slowest_viewer_sets_the_bitrate_and_leaving_gives_it_back() -> None:
    async with staged(min_video_kbps=300, max_video_kbps=3000) as stage:
        stage.open()
        for viewer, estimate in (("a", 2_000_000), ("b", 1_000_000), ("c", 5_000_000), ("b", 950_000)):
            stage.session.receiver_estimate(viewer, estimate)
            await asyncio.sleep(1.1)
        for viewer in "bac":
            stage.session.receiver_estimate(viewer, None)
            await asyncio.sleep(1.1)
    told = [line["bits_per_second"] for line in asked(stage, "bitrate")]
    assert told == [2_000_000, 1_000_000, 2_000_000, 3_000_000, None]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 10**9)), max_size=30))
def test_a_bitrate_is_within_its_bounds_whatever_receivers_say(
    said: list[tuple[str, int | None]],
) -> None:
    bitrate = Bitrate(300_000, 6_000_000)
    known: dict[str, int] = {}
    for viewer, estimate in said:
        target = bitrate.estimate(viewer, estimate)
        if estimate is None:
            known.pop(viewer, None)
        else:
            known[viewer] = estimate
        if not known:
            assert target is None
        else:
            assert target == max(300_000, min(6_000_000, *known.values()))


async def test_a_pause_sends_nothing_to_the_runner_and_is_no_silence_of_the_publisher() -> None:
    async with staged(publisher_grace_s=5.0) as stage:
        stage.open()
        await stage.live(1)
        stage.session.pause(True)
        sent = stage.sent_on()
        for unit in [*pictures(250, start=25 * FRAME), *sound(10, start=25 * FRAME)]:
            stage.push([unit])
            await asyncio.sleep(FRAME_S)
        assert stage.sent_on() == sent
        assert stage.session.publisher() is Publisher.SILENT
        assert not stage.session.closed.done()
        assert stage.session.report().paused_ms >= 9_000


async def test_what_goes_on_after_a_pause_begins_with_a_key_frame_at_its_time() -> None:
    wanted: list[bool] = []
    async with staged() as stage:
        stage.open()
        stage.session.keyframe_wanted = lambda: wanted.append(True)
        await stage.live(1)
        stage.session.pause(True)
        for _ in range(60):
            stage.push([moved(pictures(1)[0], stage.session.outputs.in_pts + FRAME)])
            await asyncio.sleep(FRAME_S)
        stage.session.pause(False)
        stage.session.pause(False)
        assert wanted == [True]
        before = stage.session.frames_in
        stage.push(pictures(26, start=85 * FRAME)[20:25])
        assert stage.session.frames_in == before, "nothing can be decoded before a key frame"
        await stage.live(1, start=111 * FRAME)
        shown = [unit.pts for unit in stage.delivered()]
        assert shown == sorted(set(shown))
        assert shown[-1] == pytest.approx(ORIGIN_TICKS + 135 * FRAME, abs=2 * FRAME)


async def test_what_a_pipeline_says_can_be_read_by_many() -> None:
    async with staged() as stage:
        stage.open()
        readers = [stage.session.data.read(0) for _ in range(2)]
        with stage.session.data.begin_segment() as writer:
            writer.write(b'{"pts": 1, "data": {"looks": {}}}\n')
        for reader in readers:
            segment = await anext(reader)
            assert b"".join([data async for data in segment]).startswith(b'{"pts"')
        assert written(stage.session, "data")


def test_seats_are_limited_for_a_stream_and_for_a_tenant_and_come_back() -> None:
    seats = Seats("viewers", per_stream=2, per_tenant=3)
    first, _ = seats.take("a", "acme"), seats.take("a", "acme")
    with pytest.raises(RateLimitedError) as refused:
        seats.take("a", "other")
    assert refused.value.reason == "TOO_MANY_VIEWERS"
    seats.take("b", "acme")
    with pytest.raises(RateLimitedError):
        seats.take("c", "acme")
    first.release()
    first.release()
    assert seats.of("a") == 1
    seats.take("c", "acme")


async def test_a_seat_is_free_again_when_its_block_fails() -> None:
    seats = Seats("viewers", per_stream=1, per_tenant=1)
    with suppress(ZeroDivisionError):
        async with seats("a", "acme"):
            assert seats.of("a") == 1
            raise ZeroDivisionError
    assert seats.of("a") == 0


async def test_a_publisher_that_leaves_before_its_first_picture_is_not_waited_for() -> None:
    async with staged() as stage:
        stage.open()
        await asyncio.sleep(1)
        assert stage.session.publisher() is Publisher.WAITING
        stage.session.leave()
        assert stage.session.publisher() is Publisher.GONE
        stage.session.rejoin()
        assert stage.session.publisher() is Publisher.WAITING
