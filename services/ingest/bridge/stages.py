"""Where the time of a session's pictures goes, stage by stage, from the publisher's to a viewer's. Pure.

The bridge knows when a picture arrived, left for the runner, came back; the runner says when it passed each
of its own stages, once a second, and its times are brought onto the bridge's clock. A picture that was
dropped on its way is in no figure: drops have counters.
"""

from __future__ import annotations

import enum
from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

KEPT: Final = 900  # pictures that the report speaks of: half a minute at 30 fps
AWAITED: Final = 1024  # pictures that came back and whose runner has not said how; the oldest go
EXCHANGES: Final = 8 * 30  # pictures after which the best known exchange counts as old: clocks drift


class Stage(enum.StrEnum):
    """Each begins where the one before it ends, so that they add up."""

    INGEST = "ingest"  # the publisher's last byte of it is read; demultiplexed, stamped, muxed
    TRICKLE_IN = "trickle_in"  # on `in`: to the runner's demuxer
    DECODE = "decode"  # the pipe to the engine, the wait for the decoder, decoding
    QUEUE = "queue"  # waits for the pipeline
    INFER = "infer"  # to RGB, and through the pipeline
    ENCODE = "encode"  # the wait for the encoder, from RGB, encoding
    TRICKLE_OUT = "trickle_out"  # the pipe from the engine, muxed, on `out`: to the bridge's demuxer
    PLAY = "play"  # muxed for `play`, and until a viewer's connection took it


STAGES: Final = tuple(Stage)


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Of the newest `KEPT` pictures, in seconds."""

    pictures: int
    p50_s: float
    p95_s: float


@dataclass(slots=True)
class PictureTimes:
    """One picture's times at the bridge, in seconds. `played_s`: when the first viewer had it, if one had."""

    arrived_s: float
    sent_s: float
    returned_s: float
    played_s: float


class RunnerClock:
    """How far the runner's clock is ahead of ours.

    Nothing, on one machine. Else as NTP finds it (RFC 5905 §8): every picture is an exchange there and back,
    and the quickest one knows best; half of its time on the way is the most by which it errs.
    """

    def __init__(self, ours: str) -> None:
        self._ours = ours
        self._ahead_s = 0.0
        self._round_trip_s: float | None = None
        self._age = 0

    def ahead_s(self, clock: str, known: PictureTimes, received_s: float, left_s: float) -> float:
        """After one more exchange; `received_s` and `left_s` are the runner's times of it."""
        if clock and clock == self._ours:
            return 0.0
        sent_s, returned_s = known.sent_s, known.returned_s
        round_trip_s = (returned_s - sent_s) - (left_s - received_s)
        self._age += 1
        if self._round_trip_s is None or round_trip_s <= self._round_trip_s or self._age > EXCHANGES:
            self._round_trip_s, self._age = round_trip_s, 0
            self._ahead_s = ((received_s - sent_s) + (left_s - returned_s)) / 2
        return self._ahead_s


class Stages:
    """The times of one session's pictures. `now` and all times are seconds on one monotonic clock."""

    def __init__(self, clock: str) -> None:
        self._awaited: OrderedDict[int, PictureTimes] = OrderedDict()
        self._unseen: deque[tuple[int, PictureTimes]] = deque(maxlen=AWAITED)
        self._ours = clock
        self._clock = RunnerClock(clock)
        self._stages = {stage: _Newest() for stage in STAGES}
        self._total = _Newest()

    def another_runner(self) -> None:
        """What comes from now on is another one's: nothing is known of its clock."""
        self._clock = RunnerClock(self._ours)
        self._awaited.clear()

    def returned(self, pts: int, times: PictureTimes) -> None:
        """A picture came back; what the runner did with it is known later, or never."""
        self._awaited[pts] = times
        self._unseen.append((pts, times))
        if len(self._awaited) > AWAITED:
            self._awaited.popitem(last=False)

    def seen(self, through_pts: int, now_s: float) -> None:
        """A viewer's connection took everything up to a picture; the first viewer of each counts."""
        while self._unseen and self._unseen[0][0] <= through_pts:
            self._unseen.popleft()[1].played_s = now_s

    def complete(self, clock: str, pictures: Sequence[Sequence[int]]) -> list[Mapping[Stage, float]]:
        """What the runner says of `pictures`: how long each that is known here spent in each stage.

        Each is PTS, when it was received, and four steps: decode, queue, infer, encode; in microseconds.
        """
        found = []
        for pts, received_us, *steps_us in pictures:
            known = self._awaited.pop(pts, None)
            if known is not None:
                found.append(self._joined(known, clock, received_us / 1e6, [us / 1e6 for us in steps_us]))
        return found

    def _joined(
        self, known: PictureTimes, clock: str, received_s: float, steps_s: Sequence[float]
    ) -> Mapping[Stage, float]:
        left_s = received_s + sum(steps_s)
        ahead_s = self._clock.ahead_s(clock, known, received_s, left_s)
        times_s = (
            known.sent_s - known.arrived_s,
            received_s - ahead_s - known.sent_s,
            *steps_s,
            known.returned_s - (left_s - ahead_s),
            known.played_s - known.returned_s,
        )
        stages = {stage: max(time_s, 0.0) for stage, time_s in zip(STAGES, times_s, strict=True)}
        for stage, time_s in stages.items():
            self._stages[stage].put(time_s)
        self._total.put(known.played_s - known.arrived_s)
        return stages

    def report(self) -> tuple[Mapping[Stage, StageTimes], StageTimes] | None:
        """Each stage and the whole way; None while no picture is known from end to end."""
        if not self._total.values:
            return None
        return {stage: kept.times() for stage, kept in self._stages.items()}, self._total.times()


class _Newest:
    """The newest `KEPT` times, four bytes each."""

    def __init__(self) -> None:
        self.values = array("f")
        self._oldest = 0

    def put(self, time_s: float) -> None:
        if len(self.values) < KEPT:
            self.values.append(time_s)
        else:
            self.values[self._oldest] = time_s
            self._oldest = (self._oldest + 1) % KEPT

    def times(self) -> StageTimes:
        ordered = sorted(self.values)
        count = len(ordered)
        return StageTimes(count, ordered[(count - 1) // 2], ordered[(count * 95 + 99) // 100 - 1])
