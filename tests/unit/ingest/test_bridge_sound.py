"""Sound at the bridge, in virtual time: round the runner or through it, and out with its picture."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from services.ingest.bridge import hold
from tests.support.bridge import COMPLETE, Seen, Stage, output, settled, staged, times, view
from tests.support.lipsync import MS, ahead_ms, behind_ms
from tests.support.media import AAC_FRAME, FRAME, moved, pictures, sound, units_of

OPUS_FRAME = 1800
STEP = {Codec.AAC: AAC_FRAME, Codec.OPUS: OPUS_FRAME}
CODECS = pytest.mark.parametrize("codec", [Codec.AAC, Codec.OPUS])
THROUGH = pytest.mark.parametrize("through", [False, True], ids=["round", "through"])


def opus(count: int, *, start: int = 0) -> list[AccessUnit]:
    """`count` Opus packets of 20 ms (RFC 6716 §3.1) with nothing in them."""
    stamps = range(start, start + count * OPUS_FRAME, OPUS_FRAME)
    return [AccessUnit(Codec.OPUS, pts, pts, b"\xfc\xff\xfe", keyframe=True) for pts in stamps]


def paced(codec: Codec, seconds: float, *, fps: float, step: int) -> Iterator[tuple[float, AccessUnit]]:
    """Pictures and sound as an encoder gives them, and when."""
    group = pictures(25)
    (template,) = sound(1) if codec is Codec.AAC else opus(1)

    def shown() -> Iterator[tuple[float, int, AccessUnit]]:
        for number in range(round(seconds * fps)):
            pts = round(number * CLOCK_HZ / fps)
            yield pts / CLOCK_HZ, 0, moved(group[number % 25], pts)

    def heard() -> Iterator[tuple[float, int, AccessUnit]]:
        for number in range(round(seconds * CLOCK_HZ / step)):
            yield number * step / CLOCK_HZ, 1, moved(template, number * step)

    for at_s, _, unit in heapq.merge(shown(), heard(), key=lambda event: event[:2]):
        yield at_s, unit


class Clock:
    """Time that passes when the test says so, which is quicker than to sleep through half an hour of it."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Broadcast:
    """A publisher, a runner that takes the newest picture when it is free, and a viewer."""

    codec: Codec
    seconds: float
    fps: float = 25
    through: bool = False  # the runner processes sound, and returns it at once
    takes_s: Callable[[float], float] = lambda _: 0.03  # of a picture that is begun so long after the start
    late_s: Callable[[], float] = lambda: 0.0
    silent: tuple[float, float] = (0, 0)
    step: int = 0  # ticks of a unit of sound; 0: the codec's usual
    _next: AccessUnit | None = None
    _busy: bool = False

    async def run(self) -> list[Seen]:
        """What the viewer got; times are since the start."""
        clock = Clock()
        async with staged(now_s=clock) as stage:
            stage.open(processes_audio=self.through)
            stage.session.announce((Codec.H264, self.codec))
            stage.muxer.change_audio(self.codec if self.through else None)
            seen: list[Seen] = []
            viewing = asyncio.ensure_future(view(stage, seen))
            begin_s = clock.now_s
            answers: list[tuple[float, int, AccessUnit]] = []
            count = 0
            publishing = self._published()
            coming = next(publishing, None)
            while coming is not None or answers:
                if coming is None or (answers and answers[0][0] <= coming[0]):
                    at_s, _, unit = heapq.heappop(answers)
                    clock.now_s = begin_s + at_s
                    stage.put([unit])
                    self._busy = self._busy and unit.codec is not Codec.H264
                else:
                    at_s, unit = coming
                    coming = next(publishing, None)
                    clock.now_s = begin_s + at_s
                    self._take(stage, unit, at_s, answers)
                if self._next is not None and not self._busy:
                    count += 1
                    heapq.heappush(answers, (at_s + self.takes_s(at_s), count, self._next))
                    self._next, self._busy = None, True
                for _ in range(3):  # to the session's reader, and to the viewer
                    await asyncio.sleep(0)
            stage.session.close("stopped", "")
            await viewing
        return [replace(one, at_s=one.at_s - begin_s) for one in seen]

    def _published(self) -> Iterator[tuple[float, AccessUnit]]:
        last_s = 0.0
        step = self.step or STEP[self.codec]
        for at_s, unit in paced(self.codec, self.seconds, fps=self.fps, step=step):
            if not self.silent[0] <= at_s < self.silent[1]:
                last_s = max(last_s, at_s + self.late_s())
                yield last_s, unit

    def _take(
        self, stage: Stage, unit: AccessUnit, at_s: float, answers: list[tuple[float, int, AccessUnit]]
    ) -> None:
        stage.session.push(unit, stage.now())
        if unit.codec is Codec.H264:
            # A runner's key frames are its own; here every picture is one, for any may be the first.
            self._next = moved(pictures(1)[0], stage.session.outputs.in_pts)
        elif self.through and stage.session._incoming._started:
            heapq.heappush(
                answers, (at_s + 0.005, -1, moved(unit, stage.session._incoming._timeline._audio_pts))
            )


def order(seen: list[Seen], since_s: float = 0, until_s: float = 1e9) -> list[tuple[int, bool]]:
    return [(one.unit.pts, one.sound) for one in seen if since_s <= one.at_s < until_s]


def heard(seen: list[Seen]) -> list[int]:
    return [one.unit.pts for one in seen if one.sound]


def whole(seen: list[Seen], step: int) -> None:
    assert all(after - before == step for before, after in pairwise(heard(seen)))


# --- in step


@CODECS
@THROUGH
async def test_sound_is_with_its_picture_from_the_first_one_on(codec: Codec, through: bool) -> None:
    seen = await Broadcast(codec, 5, through=through, takes_s=lambda at_s: 2.0 if at_s < 1 else 0.03).run()
    assert not seen[0].sound
    assert 0 <= heard(seen)[0] - seen[0].unit.pts < AAC_FRAME
    assert ahead_ms(order(seen)) <= 40
    assert behind_ms(order(seen)) <= 40
    whole(seen, STEP[codec])


@CODECS
@THROUGH
async def test_sound_is_with_its_picture_while_pictures_become_slow_and_quick_again(
    codec: Codec, through: bool
) -> None:
    seen = await Broadcast(
        codec, 30, through=through, takes_s=lambda at_s: 0.3 if 10 <= at_s < 20 else 0.03
    ).run()
    assert ahead_ms(order(seen)) <= 40
    assert behind_ms(order(seen)) <= 40
    whole(seen, STEP[codec])
    slow = [one.at_s for one in seen if one.sound and 12 < one.at_s < 20]
    assert max(after - before for before, after in pairwise(slow)) < 0.1, "evenly, between slow pictures too"


@CODECS
@THROUGH
async def test_sound_is_with_its_picture_after_the_publisher_was_silent(codec: Codec, through: bool) -> None:
    seen = await Broadcast(codec, 20, through=through, silent=(8, 13)).run()
    assert ahead_ms(order(seen)) <= 40
    assert behind_ms(order(seen)) <= 40
    assert max(heard(seen)) > ORIGIN_TICKS + 19 * CLOCK_HZ


@CODECS
@THROUGH
async def test_sound_goes_on_while_the_runner_stalls_and_is_then_with_its_picture(
    codec: Codec, through: bool
) -> None:
    seen = await Broadcast(
        codec, 25, through=through, takes_s=lambda at_s: 5.0 if 8 <= at_s < 8.04 else 0.03
    ).run()
    whole(seen, STEP[codec])
    assert ahead_ms(order(seen, until_s=8.4)) <= 40
    alone = [one for one in seen if one.sound and 8.6 < one.at_s < 13]
    assert len(alone) > 180
    assert ahead_ms(order(seen, since_s=13.1)) <= 40
    assert behind_ms(order(seen, since_s=13.1)) <= 40


@pytest.mark.timeout(120)
@THROUGH
async def test_after_half_an_hour_of_jitter_sound_is_where_it_was(through: bool) -> None:
    chance = random.Random(3)
    seen = await Broadcast(
        Codec.OPUS,
        1800,
        fps=10,
        step=3 * OPUS_FRAME,
        through=through,
        takes_s=lambda _: 0.02 + 0.04 * chance.random(),
        late_s=lambda: 0.02 * chance.random(),
    ).run()
    assert seen[-1].unit.pts > 1799 * CLOCK_HZ
    assert ahead_ms(order(seen)) <= 40
    assert behind_ms(order(seen)) <= 40
    whole(seen, 3 * OPUS_FRAME)
    lags = [one.at_s - one.unit.pts / CLOCK_HZ for one in seen if one.sound]
    minute = len(lags) // 30
    first, last = sorted(lags[:minute])[minute // 2], sorted(lags[-minute:])[minute // 2]
    assert last == pytest.approx(first, abs=0.01)


# --- round the runner


# --- audio


def mixed(some: list[AccessUnit], others: list[AccessUnit]) -> list[AccessUnit]:
    return sorted([*some, *others], key=lambda unit: (unit.pts, unit.codec is not Codec.H264))


async def with_sound(stage: Stage, seconds: int = 1) -> None:
    """The publisher sends pictures and sound."""
    stage.push(mixed(pictures(25 * seconds), sound(seconds * CLOCK_HZ // AAC_FRAME)))


async def test_sound_is_held_until_its_picture_comes_back() -> None:
    async with staged() as stage:
        stage.open()
        await with_sound(stage)
        assert stage.delivered() == []
        await stage.reply(output(10))
        heard = times(stage.delivered(), Codec.AAC)
        last = ORIGIN_TICKS + 9 * FRAME
        assert heard == list(range(ORIGIN_TICKS, last + 1, AAC_FRAME))
        await stage.reply(output(15, after=10))
        assert times(stage.delivered(), Codec.AAC) == list(
            range(ORIGIN_TICKS, ORIGIN_TICKS + 24 * FRAME + 1, AAC_FRAME)
        )


async def test_sound_that_is_announced_may_come_after_the_first_picture_went_out() -> None:
    async with staged() as stage:
        stage.open()
        stage.session.announce((Codec.H264, Codec.AAC))
        stage.push(pictures(25))
        await stage.reply(output(10))
        stage.push(sound(10, start=0))
        await stage.reply(output(15, after=10))
        assert len(times(stage.delivered(), Codec.AAC)) == 10


@pytest.mark.looptime
async def test_when_the_pictures_stall_the_sound_goes_on_though_nothing_else_comes() -> None:
    async with staged() as stage:
        stage.open()
        await with_sound(stage)
        await stage.reply(output(1))
        with_pictures = len(times(stage.delivered(), Codec.AAC))
        await asyncio.sleep(0.45)
        heard_pts = times(stage.delivered(), Codec.AAC)
        assert heard_pts[-1] <= ORIGIN_TICKS + FRAME + 40 * MS, (
            "up to the picture that is due, and 40 ms more"
        )
        assert with_pictures == 1
        await asyncio.sleep(1.3)
        heard_pts = times(stage.delivered(), Codec.AAC)
        assert len(heard_pts) == CLOCK_HZ // AAC_FRAME
        assert heard_pts == sorted(heard_pts)


async def test_sound_goes_out_when_the_runner_is_done() -> None:
    async with staged() as stage:
        stage.open()
        await with_sound(stage)
        await stage.reply(output(1))
        stage.registry.close("ses_a/out-1")
        await settled()
        assert len(times(stage.delivered(), Codec.AAC)) == CLOCK_HZ // AAC_FRAME


async def test_sound_from_before_the_viewers_first_picture_is_not_played_after_it() -> None:
    async with staged() as stage:
        stage.open()
        await with_sound(stage, seconds=2)
        await stage.reply(output(1, after=25))
        assert times(stage.delivered(), Codec.AAC) == []
        await stage.reply(output(2, after=26, every=100))
        first = times(stage.delivered(), Codec.AAC)[0]
        assert 0 <= first - (ORIGIN_TICKS + 25 * FRAME) < AAC_FRAME


async def test_sound_of_another_codec_than_the_announced_is_ignored() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(5))
        stage.push(sound(2))
        stage.push(opus(2, start=4 * AAC_FRAME))
        await stage.reply(output(5))
        assert len(times(stage.delivered(), Codec.AAC)) == 2
        assert times(stage.delivered(), Codec.OPUS) == []


@THROUGH
async def test_sound_that_comes_late_or_changes_is_announced_with_the_next_segment(through: bool) -> None:
    """The first publisher has none, the one that comes after it AAC, and the last one Opus."""
    clock, seen = Clock(), list[Seen]()
    async with staged(now_s=clock) as stage:
        stage.open(processes_audio=through)
        viewing = asyncio.ensure_future(view(stage, seen))
        for number, some in enumerate(([], sound(200), opus(200))):
            if number:
                stage.session.leave()
                stage.session.rejoin()
            stage.session.announce((Codec.H264, *{unit.codec for unit in some}))
            stage.muxer.change_audio(some[0].codec if some and through else None)
            for unit in mixed(pictures(100), some):
                stage.push([unit])
                if unit.codec is Codec.H264:
                    await stage.reply([moved(unit, stage.session.outputs.in_pts)])
                    clock.now_s += FRAME / CLOCK_HZ
                elif through and stage.muxer.audio is unit.codec:
                    await stage.reply([moved(unit, stage.session._incoming._timeline._audio_pts)])
        stage.session.close("stopped", "")
        await viewing
    kinds = [one.unit.codec for one in seen if one.sound]
    assert 120 <= kinds.count(Codec.AAC) <= 200
    assert 120 <= kinds.count(Codec.OPUS) <= 200
    assert kinds == sorted(kinds)


async def test_held_sound_is_bounded() -> None:
    async with staged() as stage:
        stage.push(pictures(1))
        stage.push(sound(hold.UNITS + 10))
        assert len(stage.session._playout._hold) == hold.UNITS


async def test_sound_that_is_no_sound_harms_nobody() -> None:
    async with staged() as stage:
        stage.open()
        stage.session.announce((Codec.H264, Codec.OPUS))
        stage.push(pictures(5))
        (good,) = opus(1)
        stage.push([replace(good, data=bytes(65_400)), moved(good, OPUS_FRAME)])
        await stage.reply(output(5))
        assert times(stage.delivered(), Codec.OPUS) == [ORIGIN_TICKS + OPUS_FRAME]


@pytest.mark.looptime
async def test_sound_ends_where_the_credit_ends() -> None:
    async with staged() as stage:
        stage.open(paid_until_ms=1000, overdraft_ms=0)
        await with_sound(stage, seconds=3)
        await stage.reply(output(20))
        await asyncio.sleep(1.2)
        assert stage.session.report().credit_exhausted
        heard_pts = times(stage.delivered(), Codec.AAC)
        stage.push(sound(20, start=3 * CLOCK_HZ))
        await asyncio.sleep(5)
        assert times(stage.delivered(), Codec.AAC) == heard_pts


# --- through the runner


async def test_a_pipeline_that_processes_sound_gets_it_and_viewers_get_what_it_returned() -> None:
    async with staged() as stage:
        stage.open(processes_audio=True)
        stage.session.announce((Codec.H264, Codec.AAC))
        await with_sound(stage)
        sent = units_of(stage.sent_on())
        assert times(sent) == [ORIGIN_TICKS + n * FRAME for n in range(25)]
        assert times(sent, Codec.AAC) == list(range(ORIGIN_TICKS, ORIGIN_TICKS + 46 * AAC_FRAME, AAC_FRAME))
        stage.muxer.change_audio(Codec.AAC)
        returned = [replace(unit, data=unit.data[:-1] + b"\x00") for unit in sound(20, start=ORIGIN_TICKS)]
        await stage.reply(output(1))
        await stage.reply(returned)
        await stage.reply(output(24, after=1))
        assert [unit for unit in stage.delivered() if unit.codec is Codec.AAC] == returned


async def test_sound_of_the_runner_that_is_not_newer_is_dropped() -> None:
    async with staged() as stage:
        stage.open(processes_audio=True)
        await with_sound(stage)
        stage.muxer.change_audio(Codec.AAC)
        await stage.reply(output(5))
        some = sound(4, start=ORIGIN_TICKS)
        await stage.reply([*some, *some, *sound(2, start=ORIGIN_TICKS + 3 * AAC_FRAME)])
        await stage.reply(output(5, after=5, every=100))
        assert times(stage.delivered(), Codec.AAC) == times(
            [*some, *sound(1, start=ORIGIN_TICKS + 4 * AAC_FRAME)], Codec.AAC
        )


@pytest.mark.looptime
async def test_a_runner_that_returns_no_sound_is_silent_and_never_the_raw_sound() -> None:
    for announces in (None, Codec.AAC):
        async with staged() as stage:
            await with_sound(stage)  # before anybody knew that it would be processed
            stage.open(processes_audio=True)
            stage.open(processes_audio=False, paid_until_ms=7_200_000)  # an extension of the credit
            stage.session.announce((Codec.H264, Codec.AAC))
            stage.muxer.change_audio(announces)
            await stage.reply(output(25))
            await with_sound(stage, seconds=2)
            await asyncio.sleep(5)
            stage.registry.close("ses_a/out-1")
            await settled()
            assert stage.session.frames_out == 25
            assert times(stage.delivered(), Codec.AAC) == []


async def test_a_runner_may_return_another_codec_than_it_got() -> None:
    async with staged() as stage:
        stage.open(processes_audio=True)
        await with_sound(stage)
        stage.muxer.change_audio(Codec.OPUS)
        await stage.reply([*output(1), *opus(10, start=ORIGIN_TICKS), *output(24, after=1)])
        assert times(stage.delivered(), Codec.OPUS) == times(opus(10, start=ORIGIN_TICKS), Codec.OPUS)


async def test_with_complete_delivery_nothing_of_the_sound_is_lost() -> None:
    async with staged(COMPLETE) as stage:
        stage.open()
        await with_sound(stage, seconds=2)
        for number in range(50):
            await stage.reply(output(50)[number : number + 1])
            last = [unit for unit in stage.delivered() if unit.codec is Codec.H264][-1].pts
            assert all(pts <= last for pts in times(stage.delivered(), Codec.AAC))
        stage.registry.close("ses_a/out-1")
        await settled()
        assert len(times(stage.delivered(), Codec.AAC)) == 2 * CLOCK_HZ // AAC_FRAME


async def test_sound_of_a_runner_that_has_no_business_with_it_does_not_pass() -> None:
    async with staged() as stage:
        stage.open()
        stage.session.announce((Codec.H264, Codec.AAC))
        await with_sound(stage)
        stage.muxer.change_audio(Codec.AAC)
        theirs = [replace(unit, data=unit.data[:-1] + b"\x00") for unit in sound(20, start=ORIGIN_TICKS)]
        await stage.reply([*output(1), *theirs, *output(24, after=1)])
        assert times(stage.delivered(), Codec.AAC) == times(
            sound(46, start=ORIGIN_TICKS)[: len(times(stage.delivered(), Codec.AAC))], Codec.AAC
        )
        assert not set(theirs) & set(stage.delivered())


async def test_what_is_no_picture_does_not_pass_from_the_runner() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(2))
        channel = stage.session._channels["out-1"].channel
        muxer = Muxer(audio=Codec.AAC)
        with channel.begin_segment() as writer:
            writer.write(b"garbage" * 100 + muxer.begin_segment())
            for unit in sound(3, start=ORIGIN_TICKS):
                writer.write(muxer.write(unit))
        await settled()
        assert stage.session.frames_out == 0
        assert stage.delivered() == []
