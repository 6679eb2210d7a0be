"""What viewers see while the publisher is away: a still that is no delivery, left at a key frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from protos.ingest.v1 import bridge_pb2
from services.common.media import h264
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.codec import VideoDecoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.bridge.absence import EVERY_S, Absence
from services.ingest.bridge.handover import Handover
from services.ingest.bridge.metrics import PLACEHOLDERS
from services.ingest.bridge.presence import Publisher
from services.ingest.bridge.taps import Tap
from services.ingest.placeholder import AWAY, draw, stills
from services.ingest.transports.hls.shelf import Shelf
from services.ingest.transports.hls.slicer import Slicer
from tests.support.bridge import COMPLETE, FRAME_S, IDENTITY, Seen, Stage, settled, staged, times, view
from tests.support.media import FRAME, SIZE, moved, pictures, shown, sound

pytestmark = pytest.mark.looptime

STILLS = stills(*SIZE, AWAY)


def is_still(unit: AccessUnit) -> bool:
    return h264.strip_delimiter(unit.data) in STILLS


def stills_of(stage: Stage) -> list[AccessUnit]:
    return [unit for unit in stage.delivered() if is_still(unit)]


def forward(pts: list[int]) -> bool:
    return all(before < after for before, after in pairwise(pts))


async def watching(stage: Stage) -> tuple[list[Seen], asyncio.Future[None]]:
    seen: list[Seen] = []
    return seen, asyncio.ensure_future(view(stage, seen))


# --- when


def test_a_still_is_due_as_soon_as_nothing_is_to_be_expected_and_then_twice_a_second() -> None:
    absence = Absence()
    assert not absence.due(0.0, away=False, quiet=True)
    assert not absence.due(0.0, away=True, quiet=False)
    assert absence.due(0.0, away=True, quiet=True)
    first = absence.show(0.0)
    assert not absence.due(EVERY_S / 2, away=True, quiet=True)
    assert absence.due(EVERY_S, away=True, quiet=True)
    assert absence.show(EVERY_S) != first, "a decoder takes two equal key frames for one"


async def test_viewers_of_a_silent_publisher_see_a_still_of_the_streams_size_that_says_so() -> None:
    before = PLACEHOLDERS._value.get()
    async with staged(silent_after_s=2) as stage:
        stage.open()
        count = await stage.live(1)
        await asyncio.sleep(1.5)
        assert stills_of(stage) == [], "that may still be a network"
        await asyncio.sleep(4.5)
        made = stills_of(stage)
        assert 7 <= len(made) <= 9
        assert PLACEHOLDERS._value.get() - before == len(made)
        assert forward(times(stage.delivered()))
        for unit in made:
            assert unit.keyframe
            assert h264.has_parameter_sets(unit.data)
            assert h264.picture_size(unit.data) == SIZE
        play = stage.session.play._segments
        assert len(shown(b"".join(b"".join(play[index].pieces) for index in sorted(play)))) >= len(made)
        assert stage.session.frames_out == count
        (frame,) = VideoDecoder().decode(made[-1].data, 0)
        difference = np.abs(frame.rgb().astype(int) - draw(*SIZE, AWAY).astype(int)).mean()
        assert difference < 12, "of a few pixels, and the letters are one wide"


async def test_its_times_are_those_of_the_clock_on_the_wall() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        seen, viewing = await watching(stage)
        await asyncio.sleep(8)
        stage.session.close("stopped", "")
        await viewing
    offsets = [one.at_s - one.unit.pts / CLOCK_HZ for one in seen if is_still(one.unit)]
    assert len(offsets) > 8
    assert max(offsets) - min(offsets) < 0.01


async def test_what_is_still_at_a_slow_pipeline_is_waited_for() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        units = pictures(100)
        for number, unit in enumerate(units):
            stage.push([unit])
            if number >= 75:  # three seconds later
                await stage.reply([moved(units[number - 75], ORIGIN_TICKS + (number - 75) * FRAME)])
            await asyncio.sleep(FRAME_S)
        for number in range(25, 100):
            await stage.reply([moved(units[number], ORIGIN_TICKS + number * FRAME)])
            await asyncio.sleep(FRAME_S)
        assert stage.session.publisher() is Publisher.SILENT
        assert stage.session.frames_out == 100
        assert stills_of(stage) == []
        await asyncio.sleep(10)
        assert stills_of(stage)


async def test_a_publisher_that_sends_a_picture_every_other_second_is_there() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        for number in range(20):
            unit = moved(pictures(1)[0], number * 5 * CLOCK_HZ // 2)
            stage.push([unit])
            await stage.reply([moved(unit, stage.session.outputs.in_pts)])
            await asyncio.sleep(2.5)
        kinds = [is_still(unit) for unit in stage.delivered()]
        assert not any(kinds[-10:])


@pytest.mark.parametrize("what", ["paused by the client", "a file", "credit at its end", "no picture yet"])
async def test_nobody_sees_a_still_of(what: str) -> None:
    facts = {"paid_until_ms": 1500, "overdraft_ms": 0} if what == "credit at its end" else {}
    async with staged(COMPLETE if what == "a file" else IDENTITY, silent_after_s=2) as stage:
        stage.open(**facts)
        if what == "no picture yet":
            stage.push(pictures(3))
        else:
            await stage.live(1)
        if what == "paused by the client":
            stage.session.pause(True)
        delivered = len(stage.delivered())
        await asyncio.sleep(10)
        assert len(stage.delivered()) == delivered


async def test_the_last_picture_stays_where_the_runner_is_lost_and_not_the_publisher() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        stage.runner.die()  # type: ignore[union-attr]
        for number in range(200):
            stage.push([moved(pictures(1)[0], (25 + number) * FRAME)])
            await asyncio.sleep(FRAME_S)
        assert stage.session.frames_out == 25
        assert stills_of(stage) == []


# --- what it costs


async def test_a_still_is_no_delivery_and_no_figure() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(2)
        before = stage.session.report()
        was = (before.frames_in, before.frames_out, before.frames_dropped, stage.session.outputs.out_at_s)
        delivered_ms = stage.session.usage.meter.delivered_ms
        stages = stage.session.latency()
        await asyncio.sleep(8)
        assert len(stills_of(stage)) > 8
        stage.session.seen(stage.session.out_pts)  # by a viewer
        report = stage.session.report()
        outputs = stage.session.outputs
        assert (report.frames_in, report.frames_out, report.frames_dropped, outputs.out_at_s) == was
        assert report.stalled_ms == 0
        assert stage.session.usage.meter.delivered_ms == delivered_ms
        assert stage.session.latency() == stages
        assert stage.session.figures.rates.now(stage.now()) == (0, 0)
        assert stage.session.usage.meter.paused_ms >= 5000, "the time is that of a pause"


# --- and back


Return = Callable[[int], int]
"""The publisher's own time of the picture of that number, of those that it sends after five seconds away."""


@pytest.mark.parametrize(
    ("back", "lost"),
    [
        pytest.param(lambda number: (25 + 125 + number) * FRAME, 0, id="its clock went on"),
        pytest.param(lambda number: (25 + number) * FRAME, 27, id="its clock stood still"),
        pytest.param(lambda number: (25 + 125 + number) * FRAME - 2000, 0, id="a network that is slower now"),
        pytest.param(lambda number: 7_000_000_000 + number * FRAME, 0, id="its clock is another one"),
    ],
)
async def test_the_stream_goes_on_above_the_still_whatever_the_publishers_clock_did(
    back: Return, lost: int
) -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        seen, viewing = await watching(stage)
        await asyncio.sleep(5)
        for number, unit in enumerate(pictures(75, every=75)):
            stage.push([moved(unit, back(number))])
            asked = any(said["type"] == "keyframe" for said in stage.runner.told())  # type: ignore[union-attr]
            key = pictures(1)[0] if asked or number % 25 == 0 else unit
            await stage.reply([moved(key, stage.session.outputs.in_pts)])
            await asyncio.sleep(FRAME_S)
        stage.session.close("stopped", "")
        await viewing
    assert forward([one.unit.pts for one in seen])
    newest = max(number for number, one in enumerate(seen) if is_still(one.unit))
    after = seen[newest + 1 :]
    assert after[0].unit.keyframe
    assert 75 - lost - 1 <= len(after) <= 75
    offsets = [one.at_s - one.unit.pts / CLOCK_HZ for one in [*seen[:25], *after]]
    assert max(offsets) - min(offsets) < 1.1, "it is on the wall's clock again"


async def test_what_a_network_held_up_is_not_taken_for_another_clock() -> None:
    """Five seconds of pictures come at once: they are old, and what comes after them is not."""
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        seen, viewing = await watching(stage)
        await asyncio.sleep(5)
        for number, unit in enumerate(pictures(200, start=25 * FRAME)):
            stage.push([unit])
            await stage.reply([moved(unit, stage.session.outputs.in_pts)])
            await asyncio.sleep(0.004 if number < 125 else FRAME_S)
        stage.session.close("stopped", "")
        await viewing
    assert forward([one.unit.pts for one in seen])
    assert not is_still(seen[-1].unit)
    assert seen[-1].unit.pts == ORIGIN_TICKS + 224 * FRAME, "its own time, as it was"
    assert stage.session._incoming._timeline.rebased == 0


async def test_the_still_is_left_at_a_key_frame_that_the_runner_was_asked_for() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        assert stage.runner is not None
        asked = stage.runner.asked
        await asyncio.sleep(5)
        assert [said["type"] for said in stage.runner.told()[asked:]] == ["keyframe"], "once"
        units = pictures(30, start=150 * FRAME)
        for unit in [*units[1:10], units[0], *units[1:5]]:  # it hears of it late
            stage.push([unit] if unit.keyframe else [])
            now = stage.session.outputs.in_pts or ORIGIN_TICKS
            stage.session.outputs.in_pts = now + FRAME
            await stage.reply([moved(unit, max(now, stage.session.out_pts) + FRAME)])
            await asyncio.sleep(FRAME_S)
        newest = [is_still(unit) for unit in stage.delivered()][::-1].index(True)
        assert [unit.keyframe for unit in stage.delivered()[-newest:]] == [True, False, False, False, False]
        assert len(stage.runner.told()) > asked + 1, "it was asked again"


async def test_a_runner_that_is_waited_for_with_its_key_frame_does_not_stall() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(2)
        await asyncio.sleep(5)
        delta = pictures(2)[1]
        for number in range(100):
            stage.push([moved(pictures(1)[0], (175 + number) * FRAME)])
            await stage.reply([moved(delta, stage.session.outputs.in_pts)])
            await asyncio.sleep(FRAME_S)
            assert stage.session.report().stalled_ms == 0
        assert stage.session.frames_out == 50
        await stage.reply([moved(pictures(1)[0], stage.session.outputs.in_pts + 1)])
        assert stage.session.frames_out == 51


async def test_a_runner_that_sent_its_parameter_sets_once_gets_them_back() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        sets = h264.parameter_sets(pictures(1)[0].data)
        tap = stage.session.tap()
        await asyncio.sleep(5)
        key = pictures(1)[0]
        slices = [nal for nal in h264.nal_units(key.data) if nal[0] & 0x1F in h264.SLICES]
        bare = replace(key, data=h264.START_CODE + slices[0])
        stage.push([moved(key, 150 * FRAME)])
        assert stage.runner is not None
        assert stage.runner._writer is not None
        # Not as a segment's first, for which our own muxer has them.
        stage.runner._writer.write(stage.muxer.write(moved(bare, stage.session.outputs.in_pts)))
        stage.runner._writer.end()
        await settled()
        units = await read(tap)
        assert is_still(units[-2])
        assert h264.parameter_sets(units[-1].data) == sets
        assert h264.parameter_sets(stage.delivered()[-1].data) == sets


async def read(tap: Tap) -> list[AccessUnit]:
    """All that a reader has now."""
    tap.close()
    return [unit async for unit in tap]


async def test_a_film_of_the_stream_has_no_still_and_goes_on_behind_it() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        film, viewer = stage.session.tap(stills=False), stage.session.tap()
        await stage.live(1)
        await asyncio.sleep(5)
        await stage.live(1, start=150 * FRAME)
        seen, filmed = await read(viewer), await read(film)
        assert [unit for unit in seen if not is_still(unit)] == filmed
        assert len(filmed) == 50
        assert len(seen) > 55


async def test_a_runner_that_takes_over_while_the_publisher_is_away_goes_on_above_the_still() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        seen, viewing = await watching(stage)
        await asyncio.sleep(4)
        new = stage.candidate()
        stage.session.outputs.promote(2)
        await asyncio.sleep(3)
        assert stage.session.epoch == 2
        assert is_still(seen[-1].unit)
        assert seen[-1].at_s > stage.now() - 2 * EVERY_S
        for unit in pictures(25, start=200 * FRAME):
            stage.push([unit])
            await new.reply([moved(unit, stage.session.outputs.in_pts)])
            await asyncio.sleep(FRAME_S)
        stage.session.close("stopped", "")
        await viewing
    assert forward([one.unit.pts for one in seen])
    assert [is_still(one.unit) for one in seen[-25:]] == [False] * 25


def test_a_key_frame_from_before_the_still_is_no_seam() -> None:
    handover = Handover(delivered=25 * FRAME, flows=False)
    handover.pass_over(200 * FRAME)
    handover.promote(0.0, 25 * FRAME)
    before = [moved(unit, (100 + number) * FRAME) for number, unit in enumerate(pictures(25))]
    assert [seen for unit in before for seen in handover.new(unit, 0.1, 25 * FRAME)] == []
    (seen,) = handover.new(moved(pictures(1)[0], 201 * FRAME), 0.2, 201 * FRAME)
    assert (seen.unit.pts, seen.new) == (201 * FRAME, True)


async def test_a_candidates_pictures_from_before_the_still_are_not_shown_after_it() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        await stage.live(1)
        seen, viewing = await watching(stage)
        new = stage.candidate()
        await asyncio.sleep(5)
        assert is_still(seen[-1].unit)
        await new.reply(pictures(25, start=ORIGIN_TICKS))  # it has caught up, with what the other one showed
        stage.session.outputs.promote(2)
        await asyncio.sleep(2)
        stage.session.close("stopped", "")
        await viewing
    assert forward([one.unit.pts for one in seen])
    assert len([one for one in seen if not is_still(one.unit)]) == 25


async def test_another_bridge_goes_on_above_the_still_too() -> None:
    at = bridge_pb2.Position(
        in_pts=60 * CLOCK_HZ, out_pts=70 * CLOCK_HZ, session_ms=65_000, delivered_ms=50_000
    )
    async with staged(silent_after_s=2) as stage:
        stage.open(resume=at)
        await stage.live(1)
        assert stage.session.frames_out == 25
        assert times(stage.delivered())[0] > at.out_pts


# --- sound, and those who make something else of it


async def test_sound_goes_on_while_the_camera_is_off() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        stage.session.announce((Codec.H264, Codec.AAC))
        await stage.live(1)
        seen, viewing = await watching(stage)
        heard = sound(400, start=25 * FRAME)
        for unit in heard:
            stage.push([unit])
            await asyncio.sleep(1920 / CLOCK_HZ)
        await settled()
        stage.session.close("stopped", "")
        await viewing
    said = [one for one in seen if one.sound and one.at_s > 4]
    assert any(is_still(one.unit) for one in seen)
    assert max(after.at_s - before.at_s for before, after in pairwise(said)) < 0.2
    assert len(said) > 200


async def test_an_hls_playlist_goes_on_while_the_publisher_is_away() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        tap = stage.session.tap()
        await stage.live(3)
        await asyncio.sleep(8)
        await stage.live(3, start=275 * FRAME)
        shelf = Shelf(first_number=1, target_s=2, most_bytes=2**20)
        slicer = Slicer(shelf, ask_keyframe=lambda: None, resumes=False)
        grown: list[bool] = []
        for unit in await read(tap):
            before = shelf.next_number, shelf.next_part
            slicer.write(unit, sound=False, unix_s=unit.pts / CLOCK_HZ)
            if is_still(unit):
                grown.append((shelf.next_number, shelf.next_part) > before)
        assert len(grown) > 10
        assert all(grown), "with each still there is something new to fetch"
        assert shelf.next_number > 9, "segments of about a second"
        assert sum(segment.discontinuity for segment in shelf.listed) <= 2, "the two seconds without anything"
        for segment in shelf.listed:
            assert segment.parts[0].independent
            assert (segment.ticks or 0) < 2.5 * CLOCK_HZ
