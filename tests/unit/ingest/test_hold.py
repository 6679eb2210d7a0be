"""Sound and pictures on their way to the viewers, in a world of numbers: what is written, and when."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec
from services.ingest.bridge import hold as module
from services.ingest.bridge.hold import Hold
from services.ingest.bridge.under_way import Departure, UnderWay

TICK_S = 0.1
MS = CLOCK_HZ // 1000
AAC, OPUS = 1920, 1800  # ticks: 1024 samples and 20 ms, at 48 kHz
CODECS = pytest.mark.parametrize("frame", [AAC, OPUS], ids=["aac", "opus"])

Transit = Callable[[float], float]


def unit(pts: int, size: int = 10) -> AccessUnit:
    return AccessUnit(Codec.AAC, pts, pts, bytes(size), keyframe=True)


@dataclass
class Written:
    """One unit on `play`: when, what, and whether sound had to go without its picture."""

    at_s: float
    pts: int
    sound: bool
    alone: bool = False


@dataclass
class World:
    """A publisher, a runner that takes the newest picture when it is free, and the bridge between them."""

    fps: float = 30
    frame: int = AAC
    seconds: float = 20
    takes: Transit = lambda _: 0.03  # a picture in the pipeline, by when it begins
    way: Transit = lambda _: 0.0  # and back from it, which holds up no other picture
    network: Transit = lambda _: 0.0  # what comes in is late by so much
    sound_late: Transit = lambda _: 0.0  # sound by so much more
    silent: tuple[float, float] = (0, 0)  # the publisher sends nothing of this time; it is lost
    stuck: tuple[float, float] = (0, 0)  # what is sent in this time arrives at its end
    still: tuple[float, float] = (0, 0)  # pictures of this time were not taken: nothing moved
    queue: int = 1  # pictures that wait for the runner; a newer one takes the place of the oldest
    clock_ppm: float = 0  # how much faster the source's clock is than the wall's
    live: bool = True
    out: list[Written] = field(default_factory=list)
    late: int = 0  # pictures written before sound of their time that was there
    hold: Hold = field(init=False)
    _under_way: UnderWay = field(init=False)
    _held: set[int] = field(init=False)

    def run(self) -> list[Written]:
        self.hold = Hold(live=self.live)
        self._under_way = UnderWay()
        self._held: set[int] = set()
        waiting: list[int] = []
        free_s = 0.0
        events = [(at_s, number, kind, pts) for number, (at_s, kind, pts) in enumerate(self._arrivals())]
        count = len(events)
        heapq.heapify(events)
        while events:
            now_s, _, kind, pts = heapq.heappop(events)
            if kind == "sound":
                self.hold.push(unit(pts), now_s)
                self._held.add(pts)
            elif kind == "picture":
                self._under_way.went(Departure(pts, now_s, now_s))
                waiting.append(pts)
                del waiting[: -self.queue]
            if kind == "back":
                self._show(pts, now_s)
            else:
                self._release(now_s)
            if waiting and free_s <= now_s:
                count += 1
                free_s = now_s + self.takes(now_s)
                heapq.heappush(events, (free_s + self.way(now_s), count, "back", waiting.pop(0)))
        return self.out

    def _show(self, pts: int, now_s: float) -> None:
        self._under_way.returned(pts, now_s)
        before = self.hold.deliver(pts, now_s)
        if not self.out:
            self._held = {one for one in self._held if one >= pts}
        self._write(now_s, before)
        self.late += any(one < pts for one in self._held)
        self.out.append(Written(now_s, pts, sound=False))
        self._release(now_s)

    def _release(self, now_s: float) -> None:
        early = self.hold.early
        units = self.hold.release(now_s, self._under_way.next_pts)
        self._write(now_s, units, alone=self.hold.early - early)

    def _write(self, now_s: float, units: list[AccessUnit], alone: int = 0) -> None:
        for number, one in enumerate(units, start=1):
            self._held.discard(one.pts)
            self.out.append(Written(now_s, one.pts, sound=True, alone=number > len(units) - alone))

    def _arrivals(self) -> Iterator[tuple[float, str, int]]:
        yield from ((number * TICK_S, "tick", 0) for number in range(round(self.seconds / TICK_S)))
        origin = CLOCK_HZ
        rate = 1 + self.clock_ppm / 1e6
        for kind, step in (("picture", CLOCK_HZ / self.fps), ("sound", float(self.frame))):
            last_s = 0.0
            for number in range(round(self.seconds * CLOCK_HZ / step)):
                pts = round(number * step)
                taken_s = pts / CLOCK_HZ / rate
                if self.silent[0] <= taken_s < self.silent[1]:
                    continue
                if kind == "picture" and self.still[0] <= taken_s < self.still[1]:
                    continue
                at_s = taken_s + self.network(taken_s)
                if kind == "sound":
                    at_s += self.sound_late(taken_s)
                if self.stuck[0] <= at_s < self.stuck[1]:
                    at_s = self.stuck[1]
                last_s = max(last_s, at_s)  # one connection: nothing overtakes
                yield last_s, kind, origin + pts


def ahead_ms(out: Iterable[Written]) -> float:
    """By how much sound that was not declared to go alone was before a picture that came after it."""
    most, least_to_come = 0, None
    for one in reversed(list(out)):
        if not one.sound:
            least_to_come = one.pts if least_to_come is None else min(one.pts, least_to_come)
        elif least_to_come is not None and not one.alone:
            most = max(most, one.pts - least_to_come)
    return most / MS


def sounds(out: Iterable[Written], since_s: float = 0, until_s: float = 1e9) -> list[Written]:
    return [one for one in out if one.sound and since_s <= one.at_s < until_s]


def longest_pause_ms(out: Iterable[Written], since_s: float, until_s: float) -> float:
    """The longest time between two writes of sound."""
    times = [one.at_s for one in sounds(out, since_s, until_s)]
    return max(1000 * (after - before) for before, after in pairwise(times))


def skew_ms(out: list[Written], since_s: float, until_s: float) -> tuple[float, float]:
    """Sound against pictures for one who plays what comes as it comes: least and most."""
    shown, skews = 0, []
    shown_at_s = 0.0
    for one in out:
        if not one.sound:
            shown, shown_at_s = one.pts, one.at_s
        elif since_s <= one.at_s < until_s:
            skews.append((one.pts - shown) / MS - 1000 * (one.at_s - shown_at_s))
    return min(skews), max(skews)


def whole(out: Iterable[Written], frame: int) -> None:
    """Nothing is missing from the sound, nothing is said twice, and it is in order."""
    heard = [one.pts for one in out if one.sound]
    assert all(after - before == frame for before, after in pairwise(heard))


@CODECS
@pytest.mark.parametrize("fps", [5, 10, 24, 25, 30, 60])
def test_in_steady_state_sound_goes_with_its_picture_at_an_even_pace(fps: float, frame: int) -> None:
    world = World(fps=fps, frame=frame, takes=lambda _: 0.012)
    out = world.run()
    assert ahead_ms(out) <= 40
    assert world.late == 0
    assert all(one.at_s < 1 for one in out if one.alone), "before the pictures' own pace is known"
    whole(out, frame)
    assert longest_pause_ms(out, 1, 19) <= 45, "a slow pipeline does not make lumps of the sound"


@CODECS
def test_at_the_start_there_is_no_sound_from_before_the_first_picture(frame: int) -> None:
    world = World(frame=frame, takes=lambda at_s: 3.0 if at_s < 1 else 0.03)
    out = world.run()
    assert not out[0].sound
    first = sounds(out)[0]
    assert 0 <= first.pts - out[0].pts < frame
    assert sum(not one.sound for one in out[:400]) > 0
    assert ahead_ms(out) <= 40


def test_sound_from_before_the_first_picture_is_dropped_and_counted() -> None:
    hold = Hold(live=True)
    for pts in range(0, 10 * AAC, AAC):
        hold.push(unit(pts), 1.0)
    assert hold.deliver(5 * AAC, 1.0) == []
    assert [one.pts for one in hold.release(1.0, None)] == [5 * AAC]
    assert hold.dropped == 5
    assert hold.early == 0
    late = Hold(live=True)
    late.deliver(5 * AAC, 1.0)
    late.push(unit(4 * AAC), 1.0)
    late.push(unit(6 * AAC), 1.0)
    assert [one.pts for one in late.deliver(8 * AAC, 1.1)] == [6 * AAC]


@CODECS
def test_a_step_in_transit_neither_breaks_the_sound_nor_moves_it(frame: int) -> None:
    """A parameter changes: pictures take 300 ms instead of 30, and later 30 again."""
    world = World(frame=frame, seconds=30, takes=lambda at_s: 0.3 if 10 <= at_s < 20 else 0.03)
    out = world.run()
    assert ahead_ms(out) <= 40
    assert world.late == 0
    assert world.hold.early == 0
    whole(out, frame)
    # It waits once, as the pictures do, and is even again a second later.
    assert longest_pause_ms(out, 9, 12) <= 330
    assert longest_pause_ms(out, 12, 20) <= 60
    assert longest_pause_ms(out, 21.5, 29) <= 45
    least, most = skew_ms(out, 13, 20)
    assert least >= -60
    assert most <= 60


@CODECS
@pytest.mark.parametrize("backlog", [1, 200], ids=["drops", "queues"])
def test_when_the_runner_stalls_sound_goes_on_and_is_in_step_with_the_first_picture_it_is_not_ahead_of(
    frame: int, backlog: int
) -> None:
    world = World(
        frame=frame,
        seconds=40,
        queue=backlog,
        takes=lambda at_s: 5.0 if 10 <= at_s < 10.02 else 0.02,
    )
    out = world.run()
    whole(out, frame)
    assert ahead_ms(out) <= 40
    assert world.late == 0
    assert world.hold.early > 100
    alone = [one for one in out if one.alone]
    assert alone[0].at_s >= 10.5
    assert longest_pause_ms(out, 9, 15) <= 700, "half a second of patience, then the sound is back"
    caught_up_s = next(one.at_s for one in out if not one.sound and one.pts >= alone[-1].pts)
    assert caught_up_s <= (15.1 if backlog == 1 else 25)
    assert ahead_ms(one for one in out if one.at_s >= caught_up_s) <= 40
    least, most = skew_ms(out, caught_up_s + 1, 39)
    assert least >= -45
    assert most <= 45


@CODECS
def test_when_pictures_are_late_for_good_sound_waits_for_them_and_then_goes_with_them(frame: int) -> None:
    world = World(frame=frame, seconds=40, way=lambda at_s: 0.05 if at_s < 10 else 3.0)
    out = world.run()
    whole(out, frame)
    assert ahead_ms(out) <= 40
    assert world.late == 0
    alone = [one for one in out if one.alone]
    assert alone[-1].at_s < 13.1, "until the first of the late ones"
    assert longest_pause_ms(out, 17, 39) <= 45
    least, most = skew_ms(out, 17, 39)
    assert least >= -45
    assert most <= 45


def test_sound_before_a_picture_that_is_far_off_goes_at_its_own_pace() -> None:
    """What was sent to the runner tells what can come next, where the pictures' own pace does not."""
    hold = Hold(live=True)
    for pts in (0, 30 * MS, 100 * MS, 130 * MS, 230 * MS):
        hold.deliver(pts, 1.0 + pts / CLOCK_HZ)
    for pts in range(240 * MS, 1500 * MS, 20 * MS):
        hold.push(unit(pts), 1.2)
    heard = [one.pts for one in hold.release(1.5, 1000 * MS)]
    assert heard[-1] == 500 * MS
    heard = [one.pts for one in hold.release(2.4, 1000 * MS)]
    assert heard[-1] == 1040 * MS
    assert hold.early == 0


@CODECS
@pytest.mark.parametrize("how", ["silent", "stuck"])
def test_after_a_stall_of_the_publisher_sound_is_with_its_picture_at_once(frame: int, how: str) -> None:
    world = World(frame=frame, seconds=30, **{how: (10.0, 15.0)})  # type: ignore[arg-type]
    out = world.run()
    assert ahead_ms(out) <= 40
    assert world.hold.early == 0, "a burst after a pause is no stall of the runner"
    assert world.late == 0
    least, most = skew_ms(out, 16, 29)
    assert least >= -45
    assert most <= 45
    heard = [one.pts for one in out if one.sound]
    assert heard == sorted(set(heard))


@pytest.mark.parametrize(("frame", "drift_ppm"), [(AAC, -100), (AAC, 100), (OPUS, 0)])
def test_half_an_hour_of_jitter_and_drift_moves_nothing(frame: int, drift_ppm: float) -> None:
    chance = random.Random(7)
    world = World(
        frame=frame,
        fps=25,
        seconds=1800,
        clock_ppm=drift_ppm,
        takes=lambda _: 0.03 + chance.random() * 0.03,
        network=lambda _: chance.random() * 0.03,
    )
    out = world.run()
    assert ahead_ms(out) <= 40
    assert world.late == 0
    whole(out, frame)
    assert world.hold.early < 20
    first, last = skew_ms(out, 10, 70), skew_ms(out, 1735, 1795)
    assert last[0] == pytest.approx(first[0], abs=20)
    assert last[1] == pytest.approx(first[1], abs=20)
    assert max(map(abs, first + last)) <= 80


@pytest.mark.parametrize("seed", range(5))
def test_pictures_at_random_intervals_have_sound_at_most_a_little_before_them(seed: int) -> None:
    """When the next picture may come cannot be known then; 40 ms hold where they come evenly."""
    chance = random.Random(seed)
    world = World(takes=lambda _: 0.03 + 0.1 * chance.random(), network=lambda _: 0.15 * chance.random())
    out = world.run()
    assert ahead_ms(out) <= 60
    assert world.hold.early == 0
    assert world.late == 0
    whole(out, AAC)


def test_a_still_screen_does_not_silence_its_speaker() -> None:
    world = World(still=(8, 12))
    out = world.run()
    whole(out, AAC)
    assert longest_pause_ms(out, 1, 19) <= 160
    assert skew_ms(out, 13, 19)[0] >= -45


def test_sound_that_comes_after_its_picture_is_not_held() -> None:
    world = World(sound_late=lambda _: 0.15, takes=lambda _: 0.02)
    out = world.run()
    whole(out, AAC)
    lags = [one.at_s - (one.pts - CLOCK_HZ) / CLOCK_HZ for one in sounds(out, 1, 19)]
    assert max(lags) == pytest.approx(0.15, abs=0.001)


def test_without_a_wall_clock_sound_waits_for_its_picture_and_for_nothing_else() -> None:
    world = World(fps=10, live=False, takes=lambda _: 0.35, queue=1000, seconds=4)
    out = world.run()
    whole(out, AAC)
    assert world.hold.early == 0
    assert ahead_ms(out) == 0
    assert world.late == 0


def test_what_is_not_newer_than_the_last_is_dropped() -> None:
    hold = Hold(live=True)
    for pts in (0, 1800, 1800, 900, 3600):
        hold.push(unit(pts), 1.0)
    hold.deliver(0, 1.0)
    assert [one.pts for one in hold.deliver(3600, 1.04)] == [0, 1800, 3600]
    assert hold.dropped == 2


@pytest.mark.parametrize("size", [10, 60_000])
def test_what_is_held_is_bounded_in_number_and_in_bytes(size: int) -> None:
    hold = Hold(live=True)
    for number in range(2000):
        hold.push(unit(number * AAC, size), 1.0)
        assert len(hold) <= module.UNITS
        assert len(hold) * size <= module.BYTES
    assert hold.dropped == 2000 - len(hold)
    hold.deliver(1999 * AAC, 1.0)
    hold.release(1.0, None)
    for number in range(2000, 4000):
        hold.push(unit(number * AAC, size), 1.0)
        hold.release(1.0, 2000 * AAC)
        assert len(hold) <= module.UNITS
        assert len(hold) * size <= module.BYTES
    assert hold.early > 0, "what has no room goes out, for those who listen"


def test_the_rest_goes_out_when_no_picture_will_come_and_nothing_before_one_came() -> None:
    hold = Hold(live=True)
    hold.push(unit(AAC), 1.0)
    assert hold.rest() == []
    hold.deliver(0, 1.0)
    hold.push(unit(2 * AAC), 1.0)
    assert [one.pts for one in hold.rest()] == [2 * AAC]
    assert len(hold) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["sound", "picture", "none"]), st.integers(0, 20_000), st.floats(0, 2)),
        max_size=200,
    ),
    st.booleans(),
)
def test_whatever_comes_sound_goes_out_once_in_order_and_as_it_was(
    events: list[tuple[str, int, float]], live: bool
) -> None:
    hold = Hold(live=live)
    taken: list[AccessUnit] = []
    out: list[AccessUnit] = []
    now_s, heard, shown = 0.0, 0, 0
    for kind, step, pause_s in events:
        now_s += pause_s
        if kind == "sound":
            heard += step
            dropped = hold.dropped
            one = unit(heard)
            hold.push(one, now_s)
            if hold.dropped == dropped:
                taken.append(one)
        elif kind == "picture":
            shown += step + 1
            out += hold.deliver(shown, now_s)
        out += hold.release(now_s, None)
        if kind == "picture":
            assert all(one.pts > shown for one, _ in hold._held), "with a picture goes all sound up to it"
    assert out == sorted(out, key=lambda one: one.pts)
    assert len({one.pts for one in out}) == len(out)
    assert all(one in taken for one in out)


# --- pictures under way


def test_a_picture_that_came_back_answers_for_those_before_it() -> None:
    under_way = UnderWay()
    for pts in (0, 3, 1, 2, 6):  # as B-frames are sent
        under_way.went(Departure(pts, 0.5, 1.0))
    assert under_way.next_pts == 0
    assert under_way.returned(0, 1.2) == Departure(0, 0.5, 1.0)
    assert under_way.next_pts == 1
    assert under_way.transit_s == pytest.approx(0.2)
    assert under_way.returned(2, 2.0) == Departure(2, 0.5, 1.0)
    assert under_way.transit_s == pytest.approx(0.2 + 0.8 / 8)
    assert (len(under_way), under_way.next_pts) == (2, 3)
    assert under_way.returned(5, 2.0) is None, "that one nobody sent; 3 was dropped"
    assert under_way.next_pts == 6
    assert under_way.returned(4, 2.0) is None
    assert under_way.returned(6, 2.0) is not None
    assert under_way.next_pts is None


def test_pictures_under_way_are_bounded() -> None:
    under_way = UnderWay()
    for pts in range(2000):
        under_way.went(Departure(pts, 0.0, 0.0))
    assert len(under_way) == 1024
    assert under_way.next_pts == 2000 - 1024
