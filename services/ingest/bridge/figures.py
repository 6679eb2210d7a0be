"""What is counted and measured of one session's pictures, for reports, traces and metrics."""

from __future__ import annotations

from collections.abc import Callable

from services.common.machine_clock import clock_name
from services.ingest.bridge.chapters import Chapters, Counts
from services.ingest.bridge.events import Status
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.metrics import FIRST_FRAME, FRAME_AGE, FRAMES, count_stages
from services.ingest.bridge.outputs import Seam
from services.ingest.bridge.presence import Publisher
from services.ingest.bridge.rates import Rates
from services.ingest.bridge.stages import PictureTimes, Stages
from services.ingest.bridge.under_way import Departure


class Figures:
    """`resumed`: the session was at another bridge before, and its first picture as well."""

    def __init__(self, identity: Identity, *, now_s: Callable[[], float]) -> None:
        self.frames_in = 0
        self.frames_out = 0
        self.rates = Rates()
        self.stages = Stages(clock_name())
        self.chapters = Chapters(identity.traceparent, now_s=now_s)
        self.resumed = False
        self._opened_s = now_s()
        self._exemplar = identity.exemplar

    def picture_in(self, now_s: float) -> None:
        self.frames_in += 1
        FRAMES.labels("in").inc()
        self.rates.count_in(now_s)

    def picture_out(self, now_s: float) -> None:
        """A picture came back, and is about to be shown."""
        if not self.frames_out and not self.resumed:
            FIRST_FRAME.observe(now_s - self._opened_s, self._exemplar)
            self.chapters.first_picture()
        self.frames_out += 1
        FRAMES.labels("out").inc()
        self.rates.count_out(now_s)

    def shown(self, went: Departure, returned_s: float, now_s: float) -> None:
        """That picture, which went as `went`, is on its way to the viewers."""
        self.stages.returned(went.pts, PictureTimes(went.arrived_s, went.sent_s, returned_s, now_s))
        age_s = returned_s - went.arrived_s
        FRAME_AGE.observe(age_s, self._exemplar)
        self.chapters.returned(age_s)

    def status(self, status: Status) -> None:
        """The runner says where the time of its pictures went."""
        count_stages(self.stages.complete(status.clock, status.pictures), self._exemplar)

    def moved(self, seam: Seam, runner: str) -> None:
        """Another runner has the session."""
        report = seam.report
        self.stages.another_runner()
        self.chapters.handover(
            seam.wished_s,
            {
                "session.epoch": report.epoch,
                "session.runner": runner,
                "handover.before": seam.why,
                "handover.freeze_ms": report.freeze_ms,
                "handover.gap_ms": report.gap_ms,
                "handover.frames_lost": report.lost,
            },
        )

    def end_segment(self, *, dropped: int, delivered_ms: int, publisher: Publisher) -> None:
        """Write the part of the session that ends here into its trace."""
        counts = Counts(self.frames_in, self.frames_out, dropped, delivered_ms)
        found = self.stages.report()
        self.chapters.end_segment(
            counts, publisher=publisher.name.lower(), stages=found[0] if found else None
        )
