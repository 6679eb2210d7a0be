"""One session at the bridge, in virtual time: what goes through, is dropped, is held, and is billed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, InvalidError, NotFoundError
from services.common.machine_clock import clock_name
from services.common.media import h264
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, Codec
from services.ingest.bridge.identity import Closed
from services.ingest.bridge.presence import Publisher
from services.ingest.bridge.rates import Rates
from services.ingest.bridge.session import BridgeSession
from services.ingest.bridge.stages import STAGES
from services.ingest.source import demand_h264
from tests.support.bridge import (
    COMPLETE,
    FRAME_S,
    IDENTITY,
    Disk,
    Stage,
    output,
    settled,
    staged,
    times,
    written,
)
from tests.support.media import FRAME, moved, pictures, shown, sound, units_of

pytestmark = pytest.mark.looptime


# --- in


async def test_nothing_is_passed_on_before_the_first_key_frame() -> None:
    async with staged() as stage:
        stage.push(pictures(30, every=25)[1:25])
        stage.push(sound(5))
        assert stage.session.report().frames_in == 0
        assert stage.sent_on() == b""
        stage.push(pictures(30, every=25)[25:])
        assert stage.session.report().frames_in == 5
        assert times(units_of(stage.sent_on())) == [ORIGIN_TICKS + n * FRAME for n in range(5)]


async def test_a_key_frame_without_parameter_sets_is_given_those_from_before() -> None:
    async with staged() as stage:
        first, *_ = pictures(1)
        sets = h264.parameter_sets(first.data)
        bare = replace(first, data=first.data.replace(sets, b"")) if sets in first.data else None
        if bare is None:
            units = b"".join(
                h264.START_CODE + nal
                for nal in h264.nal_units(first.data)
                if nal[0] & 0x1F not in {h264.SPS, h264.PPS}
            )
            bare = replace(first, data=units)
        assert not h264.has_parameter_sets(bare.data)
        stage.push([first, moved(bare, 3 * CLOCK_HZ)])
        (_, passed) = units_of(stage.sent_on())
        assert h264.has_parameter_sets(passed.data)


async def test_a_codec_that_is_not_carried_is_ignored() -> None:
    async with staged() as stage:
        stage.push(pictures(1))
        stage.push([replace(pictures(1)[0], codec=Codec.HEVC)])
        assert stage.session.frames_in == 1


async def test_a_picture_that_goes_back_is_not_passed_on() -> None:
    async with staged() as stage:
        stage.push(pictures(3))
        stage.push(pictures(3)[1:])
        assert stage.session.frames_in == 3


async def test_segments_begin_at_key_frames_a_second_apart() -> None:
    async with staged() as stage:
        stage.push(pictures(80, every=5))
        segments = stage.session._channels["in"].channel._segments
        starts = [units_of(b"".join(segments[index].pieces))[0] for index in sorted(segments)]
        assert all(unit.keyframe for unit in starts)
        assert [b.pts - a.pts for a, b in pairwise(starts)] == [CLOCK_HZ, CLOCK_HZ, CLOCK_HZ]


async def test_without_a_key_frame_a_segment_is_cut_after_four_seconds() -> None:
    async with staged() as stage:
        stage.push(pictures(210, every=1000))
        segments = stage.session._channels["in"].channel._segments
        assert len(segments) == 3


async def test_the_pace_of_a_complete_publisher_is_no_gap_in_its_media() -> None:
    async with staged(COMPLETE) as stage:
        for unit in pictures(3):
            stage.session.push(unit, stage.now())
            await asyncio.sleep(20)
        assert times(units_of(stage.sent_on())) == [ORIGIN_TICKS + n * FRAME for n in range(3)]


async def test_a_live_publisher_whose_clock_stood_still_goes_on_by_wall_time() -> None:
    async with staged() as stage:
        first, second = pictures(2)
        stage.session.push(first, stage.now())
        await asyncio.sleep(20)
        stage.session.push(second, stage.now())
        assert stage.session.outputs.in_pts == ORIGIN_TICKS + 20 * CLOCK_HZ


# --- out


async def test_pictures_of_the_runner_go_to_the_viewers_and_can_be_decoded() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(50))
        await stage.reply(output(50))
        assert shown(written(stage.session, "play")) == [ORIGIN_TICKS + n * FRAME for n in range(50)]
        assert stage.session.frames_out == 50


async def test_what_is_not_newer_than_the_last_delivered_picture_is_dropped() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(10))
        await stage.reply(output(5))
        await stage.reply(output(5))
        await stage.reply(output(3, after=4))
        assert times(stage.delivered()) == [ORIGIN_TICKS + n * FRAME for n in range(7)]
        assert stage.session.frames_dropped == 6


async def test_the_first_picture_of_the_viewers_is_a_key_frame() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(30))
        await stage.reply(output(30)[1:])
        assert stage.session.frames_out == 5, "from the second key frame on"
        assert stage.delivered()[0].keyframe


async def test_a_viewer_begins_at_the_newest_key_frame_and_one_of_a_complete_stream_at_the_first() -> None:
    for identity, first in ((IDENTITY, 50), (COMPLETE, 0)):
        async with staged(identity) as stage:
            stage.open()
            stage.push(pictures(60))
            await stage.reply(output(60))
            segment = await anext(stage.session.watch())
            (unit, *_) = units_of(await anext(segment))
            assert unit.pts == ORIGIN_TICKS + first * FRAME


# --- pace


async def test_a_live_publisher_is_never_held_back() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(250))
        async with asyncio.timeout(0.01):
            await stage.session.room()


async def test_a_complete_publisher_is_at_most_two_seconds_ahead_of_the_output() -> None:
    async with staged(COMPLETE) as stage:
        stage.open()
        stage.push(pictures(51))
        async with asyncio.timeout(0.01):
            await stage.session.room()
        stage.push(pictures(52)[51:])
        waiting = asyncio.ensure_future(stage.session.room())
        await asyncio.sleep(5)
        assert not waiting.done()
        assert stage.session.publisher() is Publisher.SENDING, "it is we who make it wait"
        await stage.reply(output(2))
        await waiting


async def test_a_decoder_that_holds_pictures_back_gets_as_many_as_it_needs() -> None:
    async with staged(COMPLETE) as stage:
        stage.open()
        seconds_apart = [replace(one, pts=one.pts * 25, dts=one.dts * 25) for one in pictures(20)]
        stage.push(seconds_apart)
        async with asyncio.timeout(0.01):
            await stage.session.room()


async def test_a_publisher_that_was_held_back_is_neither_silent_nor_gone_when_it_may_go_on() -> None:
    async with staged(COMPLETE, publisher_grace_s=30, orphan_after_s=40) as stage:
        stage.open()
        stage.push(pictures(60))
        waiting = asyncio.ensure_future(stage.session.room())
        await asyncio.sleep(50)
        assert not stage.session.closed.done(), "a slow runner is no missing publisher"
        await stage.reply(output(20))
        await waiting
        assert stage.session.publisher() is Publisher.SENDING
        assert stage.session.report().paused_ms == 0
        await asyncio.sleep(3)
        assert stage.session.publisher() is Publisher.SILENT, "from then on it counts"


async def test_the_end_of_the_session_lets_a_held_publisher_go() -> None:
    async with staged(COMPLETE) as stage:
        stage.push(pictures(60))
        waiting = asyncio.ensure_future(stage.session.room())
        await settled()
        stage.session.close("stopped", "")
        async with asyncio.timeout(1):
            await waiting


# --- the publisher


async def test_a_publisher_is_waited_for_then_sends_then_is_silent_then_gone() -> None:
    async with staged(silent_after_s=2, publisher_grace_s=10) as stage:
        assert stage.session.publisher() is Publisher.WAITING
        await asyncio.sleep(5)
        stage.push(pictures(1))
        assert stage.session.publisher() is Publisher.SENDING
        await asyncio.sleep(1.9)
        assert stage.session.publisher() is Publisher.SENDING
        await asyncio.sleep(0.2)
        assert stage.session.publisher() is Publisher.SILENT
        await asyncio.sleep(8)
        assert stage.session.publisher() is Publisher.GONE


async def test_a_publisher_that_never_sends_a_picture_is_gone_when_the_grace_ends() -> None:
    async with staged(publisher_grace_s=10) as stage:
        await asyncio.sleep(10.1)
        assert stage.session.publisher() is Publisher.GONE


async def test_a_second_publisher_is_refused_while_the_first_is_there() -> None:
    async with staged() as stage:
        with pytest.raises(ConflictError) as refusal:
            stage.session.rejoin()
        assert refusal.value.reason == "STREAM_BUSY"


async def test_a_publisher_that_comes_back_goes_on_by_wall_time() -> None:
    async with staged() as stage:
        stage.push(pictures(2))
        stage.session.leave()
        await asyncio.sleep(5)
        stage.session.rejoin()
        stage.push(pictures(2, start=987_654_321))
        seen = times(units_of(stage.sent_on()))
        assert seen[2] - seen[0] == 5 * CLOCK_HZ
        assert stage.session.connected


@pytest.mark.parametrize("how", ["finish", "close"])
async def test_nobody_comes_back_to_what_is_over(how: str) -> None:
    async with staged() as stage:
        stage.push(pictures(2))
        if how == "finish":
            stage.session.finish()
        else:
            stage.session.leave()
            stage.session.close("stopped", "")
        with pytest.raises(ConflictError):
            stage.session.rejoin()
        stage.push(pictures(2, start=CLOCK_HZ))
        assert stage.session.frames_in == 2


async def test_a_finished_input_ends_the_runners_channel() -> None:
    async with staged() as stage:
        channel = stage.session._channels["in"].channel
        stage.push(pictures(2))
        stage.session.finish()
        assert channel.closed
        assert stage.session.publisher() is Publisher.FINISHED


async def test_a_session_without_a_publisher_that_nobody_ends_closes_by_itself() -> None:
    async with staged(orphan_after_s=90) as stage:
        stage.push(pictures(1))
        stage.session.leave()
        await asyncio.sleep(89)
        assert not stage.session.closed.done()
        await asyncio.sleep(2)
        assert stage.session.closed.result().reason == "bridge_lost"


async def test_a_session_that_nobody_pays_for_or_ends_lets_its_publisher_go() -> None:
    async with staged(orphan_after_s=90) as stage:
        stage.open(paid_until_ms=30_000, overdraft_ms=60_000)
        for second in range(178):
            stage.push(pictures(1, start=second * CLOCK_HZ))
            await asyncio.sleep(1)
        assert not stage.session.closed.done()
        await asyncio.sleep(4)
        assert stage.session.closed.result().reason == "bridge_lost"


# --- the end of the input


async def test_a_finished_input_is_drained_when_the_runner_closed_its_output() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(10))
        await stage.reply(output(5))
        stage.session.finish()
        assert not stage.session.drained
        stage.registry.close("ses_a/out-1")
        await settled()
        assert stage.session.drained
        assert stage.session.report().drained


async def test_a_finished_input_is_drained_when_nothing_came_back_for_ten_seconds() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(10))
        stage.session.finish()
        await asyncio.sleep(6)
        await stage.reply(output(5))
        await asyncio.sleep(9)
        assert not stage.session.drained
        await asyncio.sleep(2)
        assert stage.session.drained


async def test_an_input_that_goes_on_is_never_drained() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(1))
        stage.registry.close("ses_a/out-1")
        await asyncio.sleep(20)
        assert not stage.session.drained


# --- epochs and credit


async def test_the_same_open_again_gives_the_same_channels_and_only_ever_more_credit() -> None:
    async with staged() as stage:
        first = dict(stage.open(paid_until_ms=30_000, overdraft_ms=60_000))
        again = stage.open(paid_until_ms=20_000, overdraft_ms=0, runner="r1")
        assert again == first
        assert set(first) == {"in", "out", "control", "events", "data", "state"}
        assert stage.session.report().paid_until_ms == 30_000
        await stage.live(1)
    assert {window.runner for window in stage.disk.windows} == {"r1"}


async def test_nothing_is_opened_for_a_publisher_that_has_gone() -> None:
    async with staged() as stage:
        stage.session.close("start_failed", "")
        with pytest.raises(NotFoundError) as refusal:
            stage.open()
        assert refusal.value.reason == "SESSION_CLOSED"


async def test_output_stops_where_credit_and_overdraft_end() -> None:
    async with staged() as stage:
        stage.open(paid_until_ms=2000, overdraft_ms=1000)
        await stage.live(2.8)
        assert not stage.session.report().credit_exhausted
        out = stage.session.frames_out
        await stage.live(1, start=3 * CLOCK_HZ)
        assert stage.session.report().credit_exhausted
        assert stage.session.report().credit_exhausted
        assert stage.session.frames_out - out <= 10
        assert stage.session.report().delivered_ms <= 3100


async def test_credit_in_time_lets_the_output_go_on() -> None:
    async with staged() as stage:
        stage.open(paid_until_ms=2000, overdraft_ms=0)
        await stage.live(1.5)
        stage.open(paid_until_ms=6000, overdraft_ms=0)
        await stage.live(2, start=2 * CLOCK_HZ)
        assert not stage.session.report().credit_exhausted


async def test_a_session_that_was_never_opened_has_nothing_to_exhaust() -> None:
    async with staged() as stage:
        stage.push(pictures(1))
        await asyncio.sleep(20)
        assert not stage.session.report().credit_exhausted


# --- events of the runner


async def test_what_the_runner_applied_is_reported_and_never_taken_back() -> None:
    async with staged() as stage:
        stage.open()
        await stage.event({"type": "applied", "revision": 3, "pts": 180_000, "how": "live"})
        await stage.event({"type": "applied", "revision": 2, "pts": 90_000})
        report = stage.session.report()
        assert (report.applied_revision, report.applied_pts) == (3, 180_000)
        await stage.event({"type": "status", "dropped": 7, "infer_ms": 12.5})
        assert stage.session.report().frames_dropped == 7
        assert stage.session.infer_ms == 12.5


async def test_each_stage_of_a_pictures_way_is_measured_and_the_slowest_points_at_the_trace() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    traced = replace(IDENTITY, traceparent=f"00-{trace}-b7ad6b7169203331-01")
    async with staged(traced) as stage:
        stage.open()
        (unit,) = pictures(1)
        stage.session.push(unit, stage.now() - 0.004)
        sent_us = round(1e6 * stage.now())
        await asyncio.sleep(0.050)
        await stage.reply([moved(unit, stage.session.outputs.in_pts)])
        picture = [stage.session.outputs.in_pts, sent_us + 5_000, 1_000, 2_000, 30_000, 4_000]
        told = {"clock": clock_name(), "pictures": [picture]}
        await stage.event({"type": "status", "dropped": 0, "infer_ms": 30.0, **told})
        reported = stage.session.stages.report()
        assert reported is not None
        by_stage, total = reported
        assert [round(1000 * by_stage[one].p50_s, 1) for one in STAGES] == [4, 5, 1, 2, 30, 4, 8, 0]
        assert round(1000 * total.p50_s, 1) == 54
        encode, _ = choose_encoder("application/openmetrics-text")
        exemplar = f'# {{trace_id="{trace}"}} 0.03'
        assert any(
            line.startswith('sluice_stage_seconds_bucket{le="0.033",stage="infer"}') and exemplar in line
            for line in encode(REGISTRY).decode().splitlines()
        )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"nonsense",
        b"[]",
        b"7",
        b"null",
        b'"applied"',
        b"{}",
        b'{"type": "applied"}',
        b'{"type": "applied", "revision": "x", "pts": 1}',
        b'{"type": "applied", "revision": null, "pts": 1}',
        b'{"type": "applied", "revision": Infinity, "pts": 1}',
        b'{"type": "applied", "revision": 1e999, "pts": 1}',
        b'{"type": "applied", "revision": 99999999999999999999999, "pts": 1}',
        b'{"type": "applied", "revision": 9, "pts": 99999999999999999999999}',
        b'{"type": "applied", "revision": 9, "pts": -7}',
        b'{"type": "status", "dropped": 99999999999999999999999}',
        b'{"type": "status", "dropped": -3}',
        b'{"type": "status", "dropped": Infinity}',
        b'{"type": "status", "infer_ms": NaN}',
        b'{"type": "status", "infer_ms": Infinity}',
        b'{"type": "status", "infer_ms": [1]}',
        b"[" * 60_000,
        b'{"type": "applied", "revision": 9, "pts": 1, "x": "' + b"x" * 70_000 + b'"}',
    ],
    ids=lambda line: repr(line[:60]),
)
async def test_garbage_on_events_changes_nothing_and_harms_nobody(line: bytes) -> None:
    async with staged() as stage:
        stage.open()
        await stage.event({"type": "applied", "revision": 1, "pts": 100})
        await stage.event({"type": "status", "dropped": 2, "infer_ms": 4.0})
        await stage.event(line)
        report = stage.session.report()
        assert (report.applied_revision, report.applied_pts, report.frames_dropped) == (1, 100, 2)
        assert stage.session.infer_ms == 4.0
        await stage.event({"type": "applied", "revision": 2, "pts": 200})
        assert stage.session.report().applied_revision == 2, "the next one is read"


# --- reports


async def test_a_report_says_what_the_bridge_sees() -> None:
    async with staged() as stage:
        first = stage.session.report()
        assert (first.publisher, first.output_age_ms, first.input_age_ms) == (
            bridge_pb2.PUBLISHER_WAITING,
            -1,
            -1,
        )
        stage.open(paid_until_ms=30_000)
        for unit in pictures(50):
            stage.session.push(unit, stage.now())
            await asyncio.sleep(FRAME_S / 2)
            await stage.reply([moved(unit, stage.session.outputs.in_pts)])
            await asyncio.sleep(FRAME_S / 2)
        report = stage.session.report()
        assert (report.frames_in, report.frames_out, report.frames_dropped) == (50, 50, 0)
        assert report.publisher == bridge_pb2.PUBLISHER_SENDING
        assert report.session_ms == pytest.approx(2000, abs=5)
        assert report.delivered_ms == pytest.approx(49 * 40, abs=5)
        assert report.fps_in == pytest.approx(25, rel=0.02)
        assert report.fps_out == pytest.approx(25, rel=0.02)
        assert report.latency_ms == pytest.approx(20, abs=1)
        assert report.output_age_ms == pytest.approx(20, abs=2)
        assert report.input_age_ms == pytest.approx(40, abs=2)
        assert report.paid_until_ms == 30_000
        await asyncio.sleep(10)
        assert stage.session.report().fps_out == 0


async def changes(session: BridgeSession, seconds: float) -> int:
    """How often those who follow the session were woken."""
    version = session.changed.version
    await asyncio.sleep(seconds)
    return session.changed.version - version


async def test_those_who_follow_are_told_every_second_and_at_every_edge() -> None:
    async with staged(silent_after_s=2) as stage:
        stage.open()
        assert 9 <= await changes(stage.session, 10) <= 11
        await asyncio.sleep(0.05)
        versions = [stage.session.changed.version]
        stage.push(pictures(1))
        versions.append(stage.session.changed.version)
        await stage.reply(output(1))
        versions.append(stage.session.changed.version)
        stage.session.blame("too much")
        versions.append(stage.session.changed.version)
        assert all(before < after for before, after in pairwise(versions)), versions
        assert stage.session.report().fault == "too much"


def test_rates_are_of_the_last_two_seconds() -> None:
    rates = Rates()
    assert rates.now(0) == (0, 0)
    for number in range(100):
        rates.count_in(number / 50)
    rates.count_out(1.9)
    fps_in, fps_out = rates.now(2.0)
    assert fps_in == pytest.approx(50)
    assert fps_out == 0, "one picture is no rate"
    assert rates.now(10.0) == (0, 0)


# --- money


async def test_delivered_time_is_billed_every_five_seconds_and_at_the_end() -> None:
    disk = Disk()
    async with staged(disk=disk, window_s=5) as stage:
        stage.open()
        await stage.live(12)
    assert [window.final for window in disk.windows] == [False, False, True]
    assert [window.seq for window in disk.windows] == [1, 2, 3]
    assert sum(window.quantity for window in disk.windows) == pytest.approx(12_000 - 40, abs=60)
    assert sum(window.frames_out for window in disk.windows) == 300
    last = disk.windows[-1]
    assert (last.id, last.session, last.tenant, last.stream) == ("ses_a:1:3", "ses_a", "acme", "str_a")
    assert (last.unit, last.end_reason, last.runner, last.source) == (
        "delivered_ms",
        "stopped",
        "r0",
        "this process",
    )


async def test_a_pause_is_billed_as_a_pause_from_when_it_was_seen() -> None:
    disk = Disk()
    async with staged(disk=disk, silent_after_s=2, window_s=5) as stage:
        stage.open()
        await stage.live(1)
        await asyncio.sleep(6)
        await stage.live(1, start=7 * CLOCK_HZ)
    used = {"delivered_ms": 0, "paused_ms": 0}
    for window in disk.windows:
        used[window.unit] += window.quantity
    assert used["delivered_ms"] == pytest.approx(2 * 960, abs=60)
    assert used["paused_ms"] == pytest.approx(4000, abs=200)


async def test_a_session_that_never_had_a_runner_has_nothing_to_bill() -> None:
    disk = Disk()
    async with staged(disk=disk) as stage:
        stage.push(pictures(10))
        await asyncio.sleep(10)
    assert disk.windows == []


async def test_a_session_that_ends_while_the_disk_is_slow_loses_no_window() -> None:
    disk = Disk(takes_s=1.0)
    async with staged(disk=disk, silent_after_s=2, window_s=5) as stage:
        stage.open()
        await stage.live(1)
        while not stage.session.usage.meter._seq:  # a window was cut, and is on its way to the disk
            await asyncio.sleep(0.01)
        assert disk.windows == []
    assert [window.seq for window in disk.windows] == [1, 2]
    assert sum(window.quantity for window in disk.windows if window.unit == "delivered_ms") > 900


# --- the end


async def test_a_closed_session_lets_everybody_go() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(2))
        await stage.reply(output(2))
        reader = stage.session.watch()
        stage.session.close("stopped", "by hand")
        stage.session.close("internal_error", "later")
        assert stage.session.closed.result() == Closed("stopped", "by hand")
        async with asyncio.timeout(1):
            segments = [b"".join([data async for data in segment]) async for segment in reader]
        assert times(units_of(b"".join(segments))) == [ORIGIN_TICKS, ORIGIN_TICKS + FRAME]
    assert len(stage.registry) == 0


async def test_a_bug_inside_closes_the_channels_and_writes_the_last_window() -> None:
    disk = Disk()
    stage = Stage(IDENTITY, disk)
    running = asyncio.ensure_future(stage.session.run())
    stage.open()
    await stage.live(1)
    stage.session._play_sound = broken  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup):
        await running
    assert len(stage.registry) == 0
    assert disk.windows[-1].final
    assert disk.windows[-1].end_reason == "internal_error"


def broken() -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize(
    ("streams", "named"),
    [
        ((Codec.HEVC,), "hevc"),
        ((Codec.AAC, Codec.HEVC), "aac, hevc"),
        ((Codec.MPEG2, Codec.OPUS), "mpeg2video, opus"),
        ((Codec.AAC,), "aac"),
        ((Codec.OTHER,), "other"),
    ],
)
def test_what_is_announced_without_h264_is_refused_by_name(streams: tuple[Codec, ...], named: str) -> None:
    with pytest.raises(InvalidError, match=named) as refusal:
        demand_h264(streams)
    assert refusal.value.reason == "UNSUPPORTED_CODEC"


@pytest.mark.parametrize("streams", [(), (Codec.H264,), (Codec.AAC, Codec.H264), (Codec.HEVC, Codec.H264)])
def test_what_has_h264_or_says_nothing_yet_is_taken(streams: tuple[Codec, ...]) -> None:
    demand_h264(streams)
