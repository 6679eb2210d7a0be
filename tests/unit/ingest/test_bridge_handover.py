"""A session at the bridge that goes from one runner to another, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any

import pytest

from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, SluiceError
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.bridge.events import Applied, Health, Loading, Moved, Refused
from services.ingest.bridge.presence import Publisher
from tests.support.bridge import (
    COMPLETE,
    FRAME_S,
    Disk,
    Runner,
    Seen,
    Stage,
    output,
    settled,
    staged,
    times,
    view,
)
from tests.support.lipsync import ahead_ms, behind_ms
from tests.support.media import AAC_FRAME, FRAME, moved, pictures, sound

pytestmark = pytest.mark.looptime

LEAST_S = 0.001  # of time that passes at once
KEY, OTHER = pictures(2)


@dataclass
class Pod:
    """A runner that returns every picture `takes_s` after it came, from a key frame on."""

    runner: Runner
    takes_s: float = 0.03
    heeds: bool = True  # requests for key frames
    every: int = 10_000  # of its own accord
    works: bool = True
    shows: bool = True  # a key frame, ever
    through: bool = False  # it processes sound
    _coming: list[tuple[float, AccessUnit]] = field(default_factory=list)
    _since_key: int | None = None
    _asked: int = 0

    def take(self, unit: AccessUnit, at_s: float) -> None:
        self._coming.append((at_s + self.takes_s, unit))

    def give(self, at_s: float) -> None:
        while self._coming and self._coming[0][0] <= at_s + 1e-9:
            unit = self._coming.pop(0)[1]
            if self.works and not self.runner._out.closed:
                self.runner.put([self._made(unit) if unit.codec is Codec.H264 else unit])

    def _made(self, unit: AccessUnit) -> AccessUnit:
        due = self.heeds and self._is_asked(unit.pts)
        key = self._since_key is None or self._since_key >= self.every or due
        self._since_key = 0 if key else (self._since_key or 0) + 1
        return moved(KEY if key and self.shows else OTHER, unit.pts)

    def _is_asked(self, pts: int) -> bool:
        if self.runner.asked == self._asked:
            return False
        wanted = self.runner.told()[self._asked :]
        if all(told["type"] != "keyframe" or pts < told.get("at_pts", 0) for told in wanted):
            return False
        self._asked = self.runner.asked
        return True


class Show:
    """A publisher of 25 pictures a second, and the pods that have its session."""

    def __init__(self, stage: Stage, *pods: Pod, silent: bool = True) -> None:
        self.stage = stage
        self.pods = list(pods)
        self.silent = silent
        self.sends = True
        self._sent = self._heard = 0
        self._begun_s = stage.now()

    async def run(self, seconds: float) -> None:
        until_s = self.stage.now() + seconds
        while self.stage.now() < until_s - 1e-9:
            self._publish(self.stage.now() - self._begun_s)
            for pod in self.pods:
                pod.give(self.stage.now())
            await asyncio.sleep(min(self._next_s(), until_s) - self.stage.now())

    def _next_s(self) -> float:
        """When something is to be done."""
        due_s = [at_s for pod in self.pods for at_s, _ in pod._coming[:1]]
        if self.sends:
            due_s.append(self._begun_s + self._sent * FRAME_S)
            if not self.silent:
                due_s.append(self._begun_s + self._heard * AAC_FRAME / CLOCK_HZ)
        return max(min(due_s, default=float("inf")), self.stage.now() + LEAST_S)

    def _publish(self, at_s: float) -> None:
        while self._sent * FRAME_S <= at_s + 1e-9:
            if self.sends:
                self._send(moved(KEY if self._sent % 25 == 0 else OTHER, self._sent * FRAME))
            self._sent += 1
        while not self.silent and self._heard * AAC_FRAME <= at_s * CLOCK_HZ:
            if self.sends:
                self._send(sound(1, start=self._heard * AAC_FRAME)[0])
            self._heard += 1

    def _send(self, unit: AccessUnit) -> None:
        session = self.stage.session
        pictures_before = session.frames_in
        session.push(unit, self.stage.now())
        if unit.codec is Codec.H264 and session.frames_in == pictures_before:
            return  # it goes to no runner
        if unit.codec is Codec.H264:
            placed = moved(unit, session.outputs.in_pts)
        else:
            placed = moved(unit, session._incoming._timeline._audio_pts)
        for pod in self.pods:
            if unit.codec is Codec.H264 or pod.through:
                pod.take(placed, self.stage.now())


def even(stamps: Sequence[int]) -> bool:
    return all(after - before == FRAME for before, after in pairwise(stamps))


def growing(stamps: Iterable[int]) -> bool:
    return all(before < after for before, after in pairwise(stamps))


async def watched(
    body: Callable[[Stage], Awaitable[None]], disk: Disk | None = None, **settings: Any
) -> list[Seen]:
    """What a viewer got of a session that went as `body` has it."""
    async with staged(disk=disk, **settings) as stage:
        seen: list[Seen] = []
        viewing = asyncio.ensure_future(view(stage, seen))
        await body(stage)
        stage.session.close("stopped", "")
        await viewing
    return seen


def shown(seen: Iterable[Seen]) -> list[int]:
    return [one.unit.pts for one in seen if not one.sound]


def first(stage: Stage, epoch: int = 1, **facts: Any) -> Pod:
    stage.open(epoch, **facts)
    assert stage.runner is not None
    return Pod(stage.runner)


# --- planned


@pytest.mark.parametrize(
    ("old_s", "new_s"), [(0.03, 0.03), (0.02, 0.25), (0.25, 0.02), (0.7, 0.01), (0.01, 0.7)]
)
async def test_a_planned_handover_loses_and_repeats_nothing(old_s: float, new_s: float) -> None:
    reports: list[bridge_pb2.BridgeReport] = []

    async def body(stage: Stage) -> None:
        old = first(stage)
        old.takes_s = old_s
        show = Show(stage, old)
        await show.run(2)
        new = Pod(stage.candidate(), takes_s=new_s)
        show.pods.append(new)
        await show.run(0.3)
        stage.session.outputs.promote(2)
        await show.run(4)
        reports.append(stage.session.report())
        assert stage.session._channels.opened.get("out-1") is None
        assert new.runner._out is stage.session._channels["out-2"].channel

    seen = await watched(body)
    (report,) = reports
    assert (report.epoch, report.candidate) == (2, 0)
    over = report.handover
    assert (over.epoch, over.lost, over.repeated, over.gap_ms) == (2, 0, 0, 40)
    assert over.freeze_ms <= 1000 * (max(new_s - old_s, 0) + 2 * FRAME_S + 0.01)
    assert even(shown(seen))
    at_seam = next(one for one in seen if one.unit.pts == over.from_pts)
    assert at_seam.unit.keyframe


async def test_a_handover_is_reported_at_once_and_what_it_was_is_told_to_clients() -> None:
    async with staged() as stage:
        show = Show(stage, first(stage))
        await show.run(1)
        show.pods.append(Pod(stage.candidate(), takes_s=0.05))
        await show.run(1)
        stage.session.outputs.promote(2)
        version = stage.session.changed.version
        while stage.session.epoch == 1:
            await show.run(0.005)
        assert stage.session.changed.version > version
        (news,) = [one for one in stage.session.heard.since(0) if isinstance(one, Moved)]
        report = stage.session.report().handover
        assert news == Moved("flowing", report.from_pts, report.freeze_ms, 0)


async def test_each_runners_time_is_billed_as_its_own_and_none_twice() -> None:
    disk, seams_ms = Disk(), list[int]()

    async def body(stage: Stage) -> None:
        show = Show(stage, first(stage))
        await show.run(2)
        show.pods.append(Pod(stage.candidate()))
        await show.run(0.5)
        assert {window.runner for window in disk.windows} <= {"r0"}
        stage.session.outputs.promote(2)
        while stage.session.epoch == 1:
            await show.run(0.01)
        seams_ms.append(stage.session.session_ms)
        await show.run(5 - stage.now() + begun_s[0])

    begun_s = [asyncio.get_running_loop().time()]
    await watched(body, disk, window_s=1)
    by_epoch = {
        epoch: sum(window.quantity for window in disk.windows if window.epoch == epoch) for epoch in (1, 2)
    }
    assert by_epoch[1] == pytest.approx(seams_ms[0], abs=100), "to the seam, which is within a window"
    assert by_epoch[2] == pytest.approx(5000 - seams_ms[0], abs=100)
    assert {(window.epoch, window.runner) for window in disk.windows} == {(1, "r0"), (2, "r1")}
    assert [window.epoch for window in disk.windows] == sorted(window.epoch for window in disk.windows)
    assert all(before.to_ms == after.from_ms for before, after in pairwise(disk.windows))
    assert len({window.id for window in disk.windows}) == len(disk.windows)
    assert [window.final for window in disk.windows].count(True) == 1
    assert disk.windows[-1].final
    assert sum(window.quantity for window in disk.windows) == pytest.approx(5000, abs=100)


async def test_no_handover_delays_the_storing_of_what_was_delivered() -> None:
    disk = Disk()
    async with staged(disk=disk, window_s=5) as stage:
        show = Show(stage, first(stage))
        for epoch in (2, 3, 4):
            await show.run(2)
            show.pods.append(Pod(stage.candidate(epoch)))
            stage.session.outputs.promote(epoch)
        await show.run(2)
        assert sum(window.quantity for window in disk.windows) > 4900, "a kill now loses a window at most"


async def test_without_input_a_session_is_handed_over_at_once() -> None:
    async with staged() as stage:
        show = Show(stage, first(stage))
        await show.run(1)
        stage.session.pause(paused=True)
        show.sends = False
        await show.run(30)
        show.pods.append(Pod(stage.candidate()))
        stage.session.outputs.promote(2)
        await show.run(0.2)
        report = stage.session.report()
        assert (report.epoch, report.handover.freeze_ms) == (2, 0)
        stage.session.pause(paused=False)
        show.sends = True
        await show.run(3)
        stamps = times(stage.delivered())
        assert len(stamps) > 25 + 20
        assert growing(stamps)


async def test_a_disk_that_does_not_answer_delays_no_handover() -> None:
    disk = Disk(takes_s=1000.0)
    async with staged(disk=disk, window_s=1) as stage:
        show = Show(stage, first(stage))
        await show.run(2)
        show.pods.append(Pod(stage.candidate()))
        stage.session.outputs.promote(2)
        await show.run(1)
        assert stage.session.epoch == 2
        disk.takes_s = 0.0


async def test_two_encoders_that_count_differently_to_the_decoding_give_one_order_of_it() -> None:
    async with staged() as stage:
        stage.open()
        assert stage.runner is not None
        stage.push(pictures(20))
        await stage.runner.reply(output(10))
        new = stage.candidate()
        late = [replace(unit, dts=unit.pts - 4 * FRAME) for unit in output(10, after=10, every=100)]
        stage.session.outputs.promote(2)
        stage.runner.die()
        await new.reply(late)
        assert stage.session.epoch == 2
        delivered = stage.delivered()
        assert len(delivered) == 20
        assert growing(unit.dts for unit in delivered)
        assert all(unit.dts <= unit.pts for unit in delivered)


# --- the old one fails


@pytest.mark.parametrize("how", ["dies", "freezes"])
async def test_when_a_runner_fails_the_next_ones_first_key_frame_is_shown_at_once(how: str) -> None:
    reports: list[bridge_pb2.BridgeReport] = []

    async def body(stage: Stage) -> None:
        old = first(stage)
        show = Show(stage, old)
        await show.run(2)
        old.works = False
        if how == "dies":
            old.runner.die()
        await show.run(1)
        report = stage.session.report()
        assert report.stalled_ms > 0
        assert report.output_broken is (how == "dies")
        new = Pod(stage.candidate())
        show.pods.append(new)
        stage.session.outputs.promote(2)
        await show.run(0.1)
        reports.append(stage.session.report())
        await show.run(2)

    seen = await watched(body)
    (report,) = reports
    assert report.epoch == 2
    assert report.handover.freeze_ms == pytest.approx(1060, abs=60)
    assert report.handover.lost == pytest.approx(1.06 / FRAME_S, abs=3)
    stamps = shown(seen)
    assert growing(stamps)
    assert max(after - before for before, after in pairwise(stamps)) < 1.2 * CLOCK_HZ


async def test_a_zombie_reaches_nobody_and_gets_no_way_back() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(1)
        old.works = False
        await show.run(1)
        show.pods.append(Pod(stage.candidate()))
        stage.session.outputs.promote(2)
        await show.run(1)
        before = stage.session.report()
        for write in (
            lambda: old.runner.put([moved(KEY, stage.session.outputs.in_pts + FRAME)]),
            old.runner._out.begin_segment,
            lambda: stage.open(1),
        ):
            with pytest.raises(SluiceError):
                write()
        await settled()
        assert stage.session.report().frames_out == before.frames_out
        assert stage.session.out_pts == before.position.out_pts


async def test_what_a_closed_runner_had_already_written_is_not_shown_after_it() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(1)
        old.works = False
        await show.run(1)
        new = Pod(stage.candidate(), takes_s=0.0)
        show.pods.append(new)
        stage.session.outputs.promote(2)
        seam = stage.session.outputs.in_pts + FRAME
        old.runner.put([moved(OTHER, seam + 100 * FRAME)])  # read only after the next picture of the other
        stage.session.outputs._take(
            stage.session.outputs.candidate,  # type: ignore[arg-type]
            [moved(KEY, seam)],
        )
        assert stage.session.epoch == 2
        await settled()
        assert stage.session.out_pts == seam


async def test_a_runner_that_dies_under_a_planned_handover_is_replaced_without_waiting() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(1)
        show.pods.append(Pod(stage.candidate(), takes_s=0.5))
        await show.run(0.6)
        stage.session.outputs.promote(2)
        old.works = False
        old.runner.die()
        await show.run(1)
        assert stage.session.epoch == 2
        assert growing(times(stage.delivered()))


# --- candidates that do not do


async def test_a_candidate_that_never_shows_a_key_frame_leaves_the_output_as_it_is() -> None:
    async def body(stage: Stage) -> None:
        show = Show(stage, first(stage))
        await show.run(1)
        bad = Pod(stage.candidate(), shows=False)
        show.pods.append(bad)
        stage.session.outputs.promote(2)
        await show.run(5)
        report = stage.session.report()
        assert (report.epoch, report.candidate, report.candidate_shows) == (1, 2, False)
        stage.session.outputs.close(2)
        stage.session.outputs.close(2)
        assert bad.runner._out.closed
        assert stage.session.report().candidate == 0
        await show.run(1)

    seen = await watched(body)
    assert even(shown(seen))
    came = [one.at_s for one in seen if not one.sound]
    assert max(after - before for before, after in pairwise(came)) < 2 * FRAME_S


async def test_a_candidate_that_heeds_nothing_is_taken_at_a_key_frame_of_its_own() -> None:
    async def body(stage: Stage) -> None:
        show = Show(stage, first(stage))
        await show.run(1)
        show.pods.append(Pod(stage.candidate(), takes_s=0.2, heeds=False, every=40))
        await show.run(0.5)
        stage.session.outputs.promote(2)
        await show.run(20)
        assert stage.session.epoch == 2
        assert stage.session.report().handover.lost == 0

    assert even(shown(await watched(body)))


async def test_a_candidate_with_key_frames_of_its_own_is_met_at_one_of_them_after_one_freeze() -> None:
    async def body(stage: Stage) -> None:
        show = Show(stage, first(stage))
        await show.run(1)
        show.pods.append(Pod(stage.candidate(), takes_s=0.2, heeds=False, every=100))
        await show.run(0.5)
        stage.session.outputs.promote(2)
        await show.run(20)
        assert stage.session.epoch == 2
        assert stage.session.report().handover.freeze_ms < 500

    seen = await watched(body)
    assert even(shown(seen))
    freezes = [after.at_s - before.at_s for before, after in pairwise(seen) if after.at_s - before.at_s > 0.5]
    assert len(freezes) == 1, "to find out that it does not do as it is asked"


async def test_a_newer_candidate_takes_the_place_of_an_older_one() -> None:
    async with staged() as stage:
        show = Show(stage, first(stage))
        await show.run(1)
        older = stage.candidate(2)
        newer = stage.candidate(5)
        assert older._out.closed
        with pytest.raises(ConflictError) as refusal:
            stage.session.outputs.promote(2)
        assert refusal.value.reason == "NO_CANDIDATE"
        with pytest.raises(ConflictError) as refusal:
            stage.open(3)
        assert (refusal.value.reason, refusal.value.details["highest"]) == ("STALE_EPOCH", "5")
        show.pods.append(Pod(newer))
        stage.session.outputs.promote(5)
        await show.run(2)
        assert stage.session.epoch == 5
        stage.session.outputs.promote(5)
        with pytest.raises(ConflictError) as refusal:
            stage.session.outputs.close(5)
        assert refusal.value.reason == "EPOCH_IS_CURRENT"


async def test_an_epoch_that_was_closed_before_it_was_opened_is_not_opened_after_it() -> None:
    async with staged() as stage:
        stage.open(1)
        stage.session.outputs.close(2)
        with pytest.raises(ConflictError):
            stage.open(2)
        stage.open(3)


async def test_the_same_candidate_again_has_the_same_channels_and_only_ever_more_credit() -> None:
    async with staged() as stage:
        stage.open(1, paid_until_ms=10_000)
        once = dict(stage.open(2, paid_until_ms=30_000))
        assert stage.open(2, paid_until_ms=20_000) == once
        assert stage.session.report().paid_until_ms == 30_000
        assert stage.session.epoch == 1


# --- what runners say, and are told


async def test_what_a_candidate_says_is_not_heard_before_it_has_the_output() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(1)
        await old.runner.event({"type": "applied", "revision": 3, "pts": 100_000})
        await old.runner.event({"type": "applied", "revision": 4, "pts": 110_000, "applies": "warm"})
        await old.runner.event({"type": "health", "state": "degraded_inference", "cause": "slow"})
        await old.runner.event({"type": "status", "dropped": 5, "infer_ms": 40.0})
        new = Pod(stage.candidate())
        show.pods.append(new)
        await new.runner.event({"type": "applied", "revision": 4, "pts": 170_000})
        await new.runner.event({"type": "applied", "revision": 6, "pts": 180_000})
        await new.runner.event(
            {"type": "refused", "revision": 7, "field": "params.x", "reason": "no", "message": ""}
        )
        await new.runner.event({"type": "health", "state": "online", "cause": ""})
        await new.runner.event({"type": "status", "dropped": 2, "infer_ms": 8.0})
        await old.runner.say("data", {"said": "old"})
        await new.runner.say("data", {"said": "new"})
        before = stage.session.report()
        assert (before.applied_revision, before.health, before.frames_dropped) == (4, "degraded_inference", 5)
        assert list(before.refused_revisions) == []
        known = stage.session.heard.count
        stage.session.outputs.promote(2)
        await show.run(1)
        after = stage.session.report()
        assert (after.applied_revision, after.applied_pts, after.health) == (6, 180_000, "online")
        assert (after.frames_dropped, stage.session.infer_ms) == (5, 8.0)
        assert list(after.refused_revisions) == [7]
        news = stage.session.heard.since(known)
        assert [type(one) for one in news] == [Moved, Applied, Refused, Health]
        assert stage.session.heard.shown(4, "warm") == Applied(4, 110_000, "warm"), "as it was acknowledged"
        await new.runner.event({"type": "status", "dropped": 4, "infer_ms": 8.0})
        assert stage.session.report().frames_dropped == 7
        await new.runner.say("data", {"said": "newer"})
        channel = stage.session.data
        said = [b"".join(segment.pieces) for _, segment in sorted(channel._segments.items())]
        assert said == [b'{"said": "old"}\n', b'{"said": "newer"}\n']


async def test_a_load_of_a_runner_that_is_gone_is_over() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(1)
        await old.runner.event({"type": "loading", "why": "reload", "stage": "weights", "percent": 40})
        show.pods.append(Pod(stage.candidate()))
        stage.session.outputs.promote(2)
        await show.run(2)
        assert stage.session.epoch == 2
        assert stage.session.heard.loading is None
        assert stage.session.heard.since(0)[-1] == Loading("reload", "weights", 100)


async def test_a_candidate_gets_the_newest_snapshot_and_the_bitrate_that_viewers_can_carry() -> None:
    async with staged() as stage:
        stage.open()
        stage.session.receiver_estimate("viewer", 700_000)
        assert "restore" not in stage.open()
        for snapshot in (b"first", b"second"):
            with stage.session._channels["state-1"].channel.begin_segment() as writer:
                writer.write(snapshot)
            await settled()
        broken = stage.session._channels["state-1"].channel.begin_segment()
        broken.write(b"half of the th")
        broken.abandon()
        await settled()
        new = stage.candidate()
        restore = stage.open(2)["restore"].channel
        assert b"".join([run async for run in await restore.segment(0)]) == b"second"
        assert new.told() == [{"type": "bitrate", "bits_per_second": 700_000}]


# --- stalls


async def test_a_stall_is_told_within_milliseconds_of_its_marks_and_so_is_its_end() -> None:
    async with staged() as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(3)
        seen: list[tuple[float, int]] = []

        async def follow() -> None:
            while True:
                version = stage.session.changed.version
                seen.append((stage.now(), stage.session.report().stalled_ms))
                await stage.session.changed.newer_than(version)

        following = asyncio.ensure_future(follow())
        stopped_s = stage.now()
        old.works = False
        await show.run(4)
        for mark_ms in (1, 500, 1000, 3000):
            at_s, value = next(one for one in seen if one[1] >= mark_ms)
            assert value < max(mark_ms, 300) + 50, mark_ms
            assert at_s - stopped_s < max(mark_ms, 300) / 1000 + 0.1
        old.works = True
        await show.run(0.1)
        assert seen[-1][1] == 0
        following.cancel()
        await asyncio.wait({following})


async def test_who_loads_does_not_stall_unless_its_connection_broke_or_it_fell_silent() -> None:
    for breaks, expected in ((False, 0), (True, 1)):
        async with staged() as stage:
            old = first(stage)
            show = Show(stage, old)
            await show.run(2)
            await old.runner.event({"type": "loading", "why": "reload", "stage": "weights", "percent": 1})
            old.works = False
            if breaks:
                old.runner.die()
            await show.run(10)
            assert (stage.session.report().stalled_ms > 0) == expected
            await show.run(20)
            assert stage.session.report().stalled_ms > 1000


async def test_neither_a_pause_nor_a_publisher_that_is_silent_is_a_stall() -> None:
    async with staged() as stage:
        show = Show(stage, first(stage))
        await show.run(2)
        stage.session.pause(paused=True)
        await show.run(5)
        assert stage.session.report().stalled_ms == 0
        stage.session.pause(paused=False)
        await show.run(1)
        show.sends = False
        await show.run(5)
        assert stage.session.report().stalled_ms == 0


# --- sound


@pytest.mark.parametrize("through", [False, True], ids=["round", "through"])
@pytest.mark.parametrize(("old_s", "new_s"), [(0.03, 0.2), (0.2, 0.03)])
async def test_sound_is_whole_and_with_its_picture_before_and_after_a_planned_handover(
    old_s: float, new_s: float, through: bool
) -> None:
    async def body(stage: Stage) -> None:
        stage.session.announce((Codec.H264, Codec.AAC))
        old = first(stage, processes_audio=through)
        old.takes_s, old.through = old_s, through
        old.runner.muxer.change_audio(Codec.AAC if through else None)
        show = Show(stage, old, silent=False)
        await show.run(3)
        new = Pod(stage.candidate(), takes_s=new_s, through=through)
        new.runner.muxer.change_audio(Codec.AAC if through else None)
        show.pods.append(new)
        await show.run(1)
        stage.session.outputs.promote(2)
        await show.run(4)
        assert stage.session.epoch == 2

    seen = await watched(body)
    heard = [one.unit.pts for one in seen if one.sound]
    assert all(after - before == AAC_FRAME for before, after in pairwise(heard))
    assert even(shown(seen))
    order = [(one.unit.pts, one.sound) for one in seen]
    assert ahead_ms(order) <= 60
    assert behind_ms(order) <= 60
    late = [(one.unit.pts, one.sound) for one in seen if one.unit.pts > 6 * CLOCK_HZ]
    assert ahead_ms(late) <= 40
    assert behind_ms(late) <= 40


async def test_sound_goes_on_while_the_runner_is_dead_and_is_in_step_with_the_next_ones_pictures() -> None:
    async def body(stage: Stage) -> None:
        stage.session.announce((Codec.H264, Codec.AAC))
        old = first(stage)
        show = Show(stage, old, silent=False)
        await show.run(3)
        old.works = False
        old.runner.die()
        await show.run(1.5)
        show.pods.append(Pod(stage.candidate()))
        stage.session.outputs.promote(2)
        await show.run(3)

    seen = await watched(body)
    heard = [one for one in seen if one.sound]
    assert all(after.unit.pts - before.unit.pts == AAC_FRAME for before, after in pairwise(heard))
    assert max(after.at_s - before.at_s for before, after in pairwise(heard)) < 0.7
    late = [(one.unit.pts, one.sound) for one in seen if one.unit.pts > ORIGIN_TICKS + 6 * CLOCK_HZ]
    assert ahead_ms(late) <= 40
    assert behind_ms(late) <= 40


# --- files


async def test_nothing_of_a_file_is_lost_or_repeated_by_a_planned_handover() -> None:
    seen: list[Seen] = []
    async with staged(COMPLETE) as stage:
        viewing = asyncio.ensure_future(view(stage, seen))
        old = first(stage)
        show = Show(stage, old)
        await show.run(2)
        show.pods.append(Pod(stage.candidate(), takes_s=0.3))
        await show.run(0.5)
        stage.session.outputs.promote(2)
        await show.run(3)
        assert stage.session.epoch == 2
        stage.session.close("stopped", "")
        await viewing
    assert even(shown(seen))


async def test_a_file_is_handed_over_to_a_runner_that_is_as_quick_and_stays_as_far_behind() -> None:
    seen: list[Seen] = []
    async with staged(COMPLETE) as stage:
        viewing = asyncio.ensure_future(view(stage, seen))
        show = Show(stage, first(stage))
        show.sends = False  # it is read from a disk
        reading = asyncio.ensure_future(read(show, times_faster=4))
        await run_closely(show, 1)
        show.pods.append(Pod(stage.candidate(), takes_s=2))
        await run_closely(show, 3)
        stage.session.outputs.promote(2)
        await run_closely(show, 4)
        assert stage.session.epoch == 2
        assert stage.session.report().handover.lost == 0
        assert stage.session.report().fps_out == pytest.approx(100, rel=0.3), "and it goes on"
        reading.cancel()
        stage.session.close("stopped", "")
        await viewing
    assert even(shown(seen))


async def read(show: Show, times_faster: int) -> None:
    """Publish a file as fast as that, or as its output goes."""
    for number in count():
        await show.stage.session.room()
        show._send(moved(KEY if number % 25 == 0 else OTHER, number * FRAME))
        await asyncio.sleep(FRAME_S / times_faster)


async def run_closely(show: Show, seconds: float) -> None:
    """Run, beside somebody else who publishes."""
    for _ in range(round(seconds / LEAST_S / 5)):
        await show.run(5 * LEAST_S)


async def test_nothing_of_a_file_is_lost_when_its_runner_dies_and_the_next_is_far_ahead() -> None:
    async with staged(COMPLETE) as stage:
        old = first(stage)
        show = Show(stage, old)
        await show.run(2)
        old.works = False
        old.runner.die()
        await show.run(1.5)
        after = stage.session.out_pts
        new = stage.candidate()
        rest = range(after + FRAME, stage.session.outputs.in_pts + 1, FRAME)
        await new.reply([moved(KEY if pts == rest[0] else OTHER, pts) for pts in rest])
        assert stage.session.out_pts == after
        stage.session.outputs.promote(2)
        await settled()
        assert stage.session.epoch == 2
        assert stage.session.report().handover.lost == 0
        assert even(times(stage.delivered()))
        assert stage.session.out_pts == stage.session.outputs.in_pts


# --- another bridge


POSITION = bridge_pb2.Position(
    in_pts=ORIGIN_TICKS + 19 * CLOCK_HZ,
    out_pts=ORIGIN_TICKS + 19 * CLOCK_HZ - FRAME,
    session_ms=25_000,
    delivered_ms=18_000,
    paused_ms=4_000,
)


async def test_a_session_that_was_elsewhere_goes_on_where_it_was() -> None:
    disk = Disk()
    async with staged(disk=disk, window_s=5) as stage:
        old = first(stage, epoch=7, resume=POSITION)
        report = stage.session.report()
        assert (report.session_ms, report.delivered_ms, report.paused_ms) == (25_000, 18_000, 4_000)
        assert (report.position.in_pts, report.position.out_pts) == (POSITION.in_pts, POSITION.out_pts)
        assert report.output_age_ms == 0, "it is no session that waits for its first picture"
        assert old.runner.told() == [{"type": "keyframe"}]
        show = Show(stage, old)
        await show.run(2)
        stamps = times(stage.delivered())
        assert stamps[0] == ORIGIN_TICKS + 25 * CLOCK_HZ, "by wall time"
        assert even(stamps)
        assert stage.session.report().delivered_ms == pytest.approx(20_000, abs=100)
    assert disk.windows[0].from_ms == 25_000
    assert {window.epoch for window in disk.windows} == {7}
    assert sum(window.quantity for window in disk.windows) == pytest.approx(2000, abs=100)


async def test_a_publisher_that_came_back_elsewhere_and_left_before_a_picture_has_its_grace() -> None:
    async with staged(publisher_grace_s=10) as stage:
        stage.open(2, resume=POSITION)
        stage.session.leave()
        await asyncio.sleep(5)
        assert stage.session.publisher() is Publisher.SILENT
        await asyncio.sleep(6)
        assert stage.session.publisher() is Publisher.GONE


async def test_a_runner_that_is_silent_after_its_session_moved_to_another_bridge_stalls() -> None:
    async with staged() as stage:
        old = first(stage, epoch=2, resume=POSITION)
        old.works = False
        await Show(stage, old).run(6)
        assert stage.session.report().stalled_ms > 3000


async def test_a_session_that_moves_on_says_where_it_is_and_writes_no_final_window() -> None:
    disk = Disk()
    async with staged(disk=disk) as stage:
        show = Show(stage, first(stage))
        await show.run(2)
        report = stage.session.report()
        assert report.position.in_pts == stage.session.outputs.in_pts
        assert report.position.out_pts == stage.session.out_pts
        stage.session.close("moved", "")
    assert disk.windows
    assert not any(window.final or window.end_reason for window in disk.windows)
