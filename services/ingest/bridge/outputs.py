"""Whose output a session's viewers get: the current runner's, and from a seam on its successor's.

The rule it keeps: there is one current output and at most one candidate, an epoch that is closed or below the
highest never comes back, and what viewers get goes only forward in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError
from services.common.frame_drops import FRAME_DROPS
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, unwrap
from services.common.trickle.registry import OpenChannel
from services.ingest.bridge import handover
from services.ingest.bridge.channels import SessionChannels
from services.ingest.bridge.events import Event, Moved, Status
from services.ingest.bridge.handover import Handover, Shown
from services.ingest.bridge.heard import Heard, unix_ms
from services.ingest.bridge.leg import Ears, Leg
from services.ingest.bridge.metrics import FREEZE, HANDOVER_FRAMES, HANDOVERS, STALLS
from services.ingest.bridge.stall import Stall
from services.ingest.bridge.under_way import Departure, UnderWay

PATIENCE_MAX_S: Final = 10.0  # of a handover, whatever a runner's cadence


@dataclass(frozen=True, slots=True)
class Seam:
    """A handover. `why`: what the old output was doing; `wished_s`: since when it was wished for."""

    why: str
    wished_s: float
    report: bridge_pb2.Handover


@dataclass(frozen=True, slots=True)
class Audience:
    """Who gets what. `show`: a unit of the output; `status`: of the current runner; `relay`: its data."""

    show: Callable[[AccessUnit], None]
    status: Callable[[Status], None]
    relay: Callable[[bytes], None]
    changing: Callable[[], None]  # the next picture is another runner's
    moved: Callable[[Seam], None]
    ended: Callable[[], None]  # the output, in order
    changed: Callable[[], None]


class Outputs:
    """Of one session. `run` reads them; everything else is called from the same event loop."""

    def __init__(
        self,
        channels: SessionChannels,
        *,
        heard: Heard,
        live: bool,
        now_s: Callable[[], float],
        audience: Audience,
    ) -> None:
        """`heard` is what clients know of the runner, whichever it is."""
        self.current: Leg | None = None
        self.candidate: Leg | None = None
        self.highest = 0  # epoch that was opened
        self.in_pts = 0
        self.out_pts = 0
        self.out_at_s: float | None = None
        self.late = 0  # pictures that came back and had no place
        self.processes_audio = False
        self.under_way = UnderWay()
        self.last_handover: bridge_pb2.Handover | None = None
        self._channels = channels
        self._heard = heard
        self._now_s = now_s
        self._audience = audience
        self._room = handover.LIVE if live else handover.COMPLETE
        self._handover: Handover | None = None
        self._wished_s = 0.0
        self._stall = Stall()
        self._mark = 0
        self._in_at_s: float | None = None
        self._out_dts = 0
        self._back_pts = 0  # of the newest picture that came back, whether viewers got it or not
        self._keyframe_due = True  # viewers cannot begin with anything else
        self._dropped_before = 0  # by runners that had the session before
        self._bitrate: int | None = None
        self._gone = False
        self._unread: list[Leg] = []
        self._opened = asyncio.Event()
        self._due = asyncio.Event()  # there is something to `tick` for
        self._ears = Ears(self._take, self._hear, self._relay, self._due.set)

    # --- epochs

    @property
    def epoch(self) -> int:
        """Whose output viewers get; 0: nothing was opened yet."""
        return self.current.epoch if self.current is not None else 0

    def open(self, request: bridge_pb2.OpenRequest) -> Mapping[str, OpenChannel]:
        """The channels of an epoch: the first is the output, a higher one its candidate.

        Raises ConflictError for one that is closed, or was overtaken before it came.
        """
        for leg in (self.current, self.candidate):
            if leg is not None and leg.epoch == request.epoch and not leg.closed:
                leg.runner = request.runner or leg.runner
                return leg.addresses
        if request.epoch <= self.highest:
            raise ConflictError(
                "that epoch is closed, or a newer one was open", reason="STALE_EPOCH", highest=self.highest
            )
        leg = self._leg(request)
        self.highest = request.epoch
        if self.current is None:
            self.processes_audio = request.processes_audio
            self.current = leg
        else:
            self._let_candidate_go()
            self.candidate = leg
            self._handover = Handover(delivered=self.out_pts, flows=self._flows(), room=self._room)
        self._unread.append(leg)
        self._opened.set()
        return leg.addresses

    def _leg(self, request: bridge_pb2.OpenRequest) -> Leg:
        before = self.current
        leg = Leg(
            self._channels,
            request.epoch,
            request.runner,
            heard=self._heard if before is None else Heard(self._now_s(), unix_ms),
            now_s=self._now_s,
            restore=None if before is None else before.snapshot,
            ears=self._ears,
        )
        leg.requests.ask_bitrate(self._bitrate)
        return leg

    def promote(self, epoch: int) -> None:
        """Wish for the candidate. Raises ConflictError when that epoch is neither it nor the output."""
        if self.current is not None and self.current.epoch == epoch:
            return
        if self.candidate is None or self.candidate.epoch != epoch or self._handover is None:
            raise ConflictError(
                "that epoch is not open beside the output", reason="NO_CANDIDATE", epoch=self.epoch
            )
        if not self._handover.wished:
            self._handover.wished = True
            self._wished_s = self._now_s()
            self._due.set()

    def close(self, epoch: int) -> None:
        """Close a candidate; others are closed already. Raises ConflictError for the output itself."""
        if self.current is not None and self.current.epoch == epoch:
            raise ConflictError("viewers get that output", reason="EPOCH_IS_CURRENT", epoch=epoch)
        if self.candidate is not None and self.candidate.epoch == epoch:
            self._let_candidate_go()
            self._audience.changed()
        self.highest = max(self.highest, epoch)

    def _let_candidate_go(self) -> None:
        if self.candidate is None or self._handover is None:
            return
        candidate, ending = self.candidate, self._handover
        self.candidate = self._handover = None
        candidate.close()
        for unit, _ in ending.give_up():
            self._show(unit)

    def stop(self) -> None:
        """The session has ended: nothing of any runner is taken any more."""
        for leg in (self.current, self.candidate):
            if leg is not None:
                leg.close()

    def quiet(self, now_s: float) -> bool:
        """Whether no picture goes in or comes back, and none is to be expected."""
        newest_s = max(self._in_at_s or 0.0, self.out_at_s or 0.0)
        seam_is_due = self._handover is not None and self._handover.seam is not None
        return not (seam_is_due or self._stall.flows(now_s)) and now_s - newest_s > self._patience_s

    def pass_over(self, pts: int) -> None:
        """Viewers get a key frame at `pts` that is no runner's: only another one can follow it."""
        assert pts > self.out_pts, (pts, self.out_pts)
        self.out_pts = self._out_dts = pts
        if self._handover is not None:
            self._handover.pass_over(pts)
        if not self._keyframe_due:
            self._keyframe_due = True
            self.ask_keyframe()

    def resume(self, position: bridge_pb2.Position, now_s: float) -> None:
        """Go on from where another bridge stopped, with the runner that the session has."""
        self.in_pts, self.out_pts, self.out_at_s = position.in_pts, position.out_pts, now_s
        self._stall.begin(now_s)

    # --- what goes in

    def sent(self, departure: Departure) -> None:
        """A picture went to the runners."""
        self.in_pts = max(self.in_pts, departure.pts)
        self._in_at_s = departure.sent_s
        self.under_way.went(departure)
        self._stall.went(departure.sent_s)

    def ask_keyframe(self) -> None:
        if self.current is not None:
            self.current.requests.ask_keyframe()

    def ask_bitrate(self, bits_per_second: int | None) -> None:
        """What viewers can carry; a candidate begins with it."""
        self._bitrate = bits_per_second
        for leg in (self.current, self.candidate):
            if leg is not None:
                leg.requests.ask_bitrate(bits_per_second)

    # --- what comes back

    async def run(self) -> None:
        """Read every leg that is opened, for ever."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._opened.clear()
                for leg in self._unread:
                    group.create_task(leg.run(), name=f"leg {leg.epoch}")
                self._unread.clear()
                await self._opened.wait()

    def _take(self, leg: Leg, units: Sequence[AccessUnit]) -> None:
        for unit in units:
            pts = unwrap(self.in_pts, unit.pts)
            placed = replace(unit, pts=pts, dts=unwrap(pts, unit.dts))
            if leg is self.candidate and self._handover is not None:
                shown = self._handover.new(placed, self._now_s(), self.in_pts)
                self._follow(shown)
            elif leg is self.current:
                self._take_current(placed)

    def _take_current(self, unit: AccessUnit) -> None:
        picture = unit.codec is Codec.H264
        if picture and unit.pts > self._back_pts:
            self._back_pts = unit.pts
            self._came(unit.pts)
        if picture and (unit.pts <= self.out_pts or (self._keyframe_due and not unit.keyframe)):
            self.late += 1
            FRAME_DROPS.labels("late").inc()
            if unit.pts > self.out_pts:
                self.ask_keyframe()
            return
        if self._handover is None:
            self._show(unit)
            return
        if picture:
            self._handover.old_flows(flows=True, now_s=self._now_s(), in_pts=self.in_pts)
        self._follow(self._handover.old(unit, self._now_s()))

    def _came(self, pts: int) -> None:
        self._stall.came(self._now_s(), all_back=pts >= self.in_pts)
        if self._mark:
            self._mark = 0
            self._audience.changed()

    def _follow(self, shown: Sequence[Shown]) -> None:
        """Show what a handover gave, and have it happen if that is so."""
        under = self._handover
        assert under is not None
        for unit, new in shown:
            if new and self._handover is under:
                self._switch(under)
            self._show(unit)
        if under.done and self._handover is under:
            self._switch(under)
        elif under.ask is not None and self.candidate is not None:
            self.candidate.requests.ask_keyframe_at(under.ask)
        under.ask = None

    def _show(self, unit: AccessUnit) -> None:
        if unit.codec is Codec.H264:
            self._keyframe_due = False
            self.out_pts, self.out_at_s = unit.pts, self._now_s()
            # Two encoders may count differently from the picture to its decoding: what a decoder gets grows.
            self._out_dts = max(min(unit.dts, unit.pts), self._out_dts + 1)
            if self._out_dts != unit.dts:
                unit = replace(unit, dts=self._out_dts)
        self._audience.show(unit)

    def _switch(self, over: Handover) -> None:
        """The next picture is the candidate's."""
        old, new, now_s = self.current, self.candidate, self._now_s()
        assert old is not None
        assert new is not None
        why = self._before(now_s)
        seam = over.seam
        flowed = seam is not None and self.out_at_s is not None
        freeze_s = now_s - self.out_at_s if flowed and self.out_at_s is not None else 0.0
        report = bridge_pb2.Handover(
            epoch=new.epoch,
            from_pts=seam or self.out_pts,
            lost=self.under_way.lost_before(seam) if seam is not None and flowed else 0,
            gap_ms=round((seam - self.out_pts) / CLOCK_HZ * 1000) if seam is not None and flowed else 0,
            freeze_ms=round(freeze_s * 1000),
        )
        self._audience.changing()
        self._dropped_before += old.dropped - old.dropped_unseen
        new.dropped_unseen = new.dropped
        self.current, self.candidate, self._handover = new, None, None
        self._keyframe_due = seam is None
        old.close()
        self._heard.take_over(new.heard, Moved(why, report.from_pts, report.freeze_ms, report.lost))
        new.heard = self._heard
        self._stall.begin(now_s)
        self._mark, self._gone = 0, False
        if self._keyframe_due:
            new.requests.ask_keyframe()
        self.last_handover = report
        HANDOVERS.labels(why).inc()
        HANDOVER_FRAMES.labels("lost").inc(report.lost)
        HANDOVER_FRAMES.labels("held").inc(over.held)
        if flowed:
            FREEZE.observe(freeze_s)
        self._audience.moved(Seam(why, self._wished_s, report))

    def _hear(self, leg: Leg, event: Event) -> None:
        if isinstance(event, Status):
            leg.dropped, leg.infer_ms = event.dropped, event.infer_ms
            if leg is self.current:
                self._audience.status(event)
        elif leg.heard.take(event, self._now_s()) and leg is self.current:
            self._audience.changed()

    def _relay(self, leg: Leg, said: bytes) -> None:
        if leg is self.current:
            self._audience.relay(said)

    # --- time

    def tick(self) -> None:
        """Time has passed."""
        for leg in (self.current, self.candidate):
            if leg is not None:
                leg.requests.tick()
        if self._heard.tick(self._now_s()):
            self._audience.changed()
        self._look()

    async def due(self, most_s: float) -> None:
        """Wait until there is something to `tick` for: a wish, a broken connection, a stall; or so long."""
        stalls_s = self._stall.until_mark_s(self._now_s())
        try:
            async with asyncio.timeout(most_s if stalls_s is None else min(most_s, stalls_s + 0.001)):
                await self._due.wait()
        except TimeoutError:
            return
        self._due.clear()

    def hold_input(self) -> None:
        """The publisher waits for the output, so that input counts as flowing; not while we hold that."""
        if self._handover is None or not self._handover.holds:
            self._stall.went(self._now_s())

    def _look(self) -> None:
        """See whether it stalls, broke or ended, and what that means for a handover."""
        now_s = self._now_s()
        if self.current is not None and not self.current.broken and self._heard.loads(now_s):
            self._stall.excuse(now_s)
        mark = self._stall.mark(now_s)
        gone = self.ended or (self.current is not None and self.current.broken)
        if (mark, gone) != (self._mark, self._gone):
            STALLS.inc(mark > 0 and self._mark == 0)
            self._mark, self._gone = mark, gone
            if self.ended:
                self._audience.ended()
            self._audience.changed()
        self._hand_over(now_s)

    def _hand_over(self, now_s: float) -> None:
        under = self._handover
        if under is None:
            return
        under.patience_s = self._patience_s
        before = self._before(now_s)
        if before == "idle" and under.wished and not under.holds:
            self._follow(under.idle())
        elif before not in {"idle", "flowing"}:
            self._follow(under.old_flows(flows=False, now_s=now_s, in_pts=self.in_pts))
        if self._handover is under:
            self._follow(under.tick(now_s, self.in_pts))

    @property
    def _patience_s(self) -> float:
        """How long a picture of the output may take."""
        slowest_s = 2 * (self._stall.usual_s + self.under_way.transit_s)
        return max(self._room.patience_s, min(slowest_s, PATIENCE_MAX_S))

    def _flows(self) -> bool:
        return self._before(self._now_s()) in {"flowing", "idle"}

    def _before(self, now_s: float) -> str:
        """What the output that viewers get is doing."""
        leg = self.current
        if leg is None or leg.closed or leg.ended:
            return "closed"
        if leg.broken:
            return "broken"
        if self._stall.stalled_ms(now_s):
            return "stalled"
        newest_s = max(self._in_at_s or 0.0, self.out_at_s or 0.0)
        if not self._stall.flows(now_s) and now_s - newest_s > handover.PATIENCE_S:
            return "idle"
        return "flowing" if self.out_at_s is not None else "starting"

    # --- figures

    @property
    def runner_dropped(self) -> int:
        """Pictures that runners say that they dropped."""
        if self.current is None:
            return self._dropped_before
        return self._dropped_before + self.current.dropped - self.current.dropped_unseen

    @property
    def infer_ms(self) -> float:
        return self.current.infer_ms if self.current is not None else 0.0

    @property
    def sounds(self) -> tuple[Codec, ...]:
        """What the tables of the output list."""
        return self.current.streams if self.current is not None else ()

    @property
    def ended(self) -> bool:
        """The runner ended its output in order."""
        return self.current is not None and self.current.ended

    def describe(self, report: bridge_pb2.BridgeReport) -> None:
        """Fill in whose output it is, and how that one is."""
        now_s = self._now_s()
        report.epoch = self.epoch
        report.stalled_ms = self._stall.stalled_ms(now_s)
        report.output_broken = self.current is not None and self.current.broken
        if self.candidate is not None and self._handover is not None:
            report.candidate = self.candidate.epoch
            report.candidate_shows = self._handover.shows
        if self.last_handover is not None:
            report.handover.CopyFrom(self.last_handover)
