"""What the bridge counts, over all sessions of the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from prometheus_client import Counter, Histogram

from services.ingest.bridge.stages import STAGES, Stage

SECONDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
FRAME_AGE: Final = Histogram(
    "sluice_frame_age_seconds",
    "From the publisher's last byte of a picture to the runner's picture of the same time, at the bridge.",
    buckets=SECONDS,
)
STAGE_SECONDS: Final = Histogram(
    "sluice_stage_seconds", "What each stage of a picture's way takes.", ["stage"], buckets=SECONDS
)
FIRST_FRAME: Final = Histogram(
    "sluice_session_first_frame_seconds",
    "From the publisher's first picture to the runner's first picture.",
    buckets=(0.1, 0.2, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60),
)
FRAMES: Final = Counter("sluice_bridge_frames_total", "Pictures at the bridge.", ["direction"])
HANDOVERS: Final = Counter(
    "sluice_handovers_total",
    "Sessions whose viewers got another runner's output, by how the one before was: flowing, idle (no input),"
    " starting, stalled, broken (its connection), closed.",
    ["kind"],
)
FREEZE: Final = Histogram(
    "sluice_handover_freeze_seconds",
    "Between the last picture of one runner and the first of the next, where input flowed.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4, 6, 10, 30),
)
HANDOVER_FRAMES: Final = Counter(
    "sluice_handover_frames_total",
    "Pictures at handovers: lost between two runners, or held until the seam was known.",
    ["outcome"],
)
STALLS: Final = Counter("sluice_stalls_total", "Times that nothing came back although input flowed.")
PLACEHOLDERS: Final = Counter(
    "sluice_placeholder_frames_total",
    "Stills that viewers were shown while their stream's publisher was away. They are no delivery.",
)
BAD_EVENTS: Final = Counter("sluice_runner_bad_events_total", "Events of runners that cannot be read.")


def count_stages(pictures: Sequence[Mapping[Stage, float]], exemplar: dict[str, str]) -> None:
    """Fill the histograms; the slowest of each stage is the one to look at, so it carries the trace."""
    for stage in STAGES:
        histogram = STAGE_SECONDS.labels(stage.value)
        times_s = sorted(picture[stage] for picture in pictures)
        for time_s in times_s[:-1]:
            histogram.observe(time_s)
        for time_s in times_s[-1:]:
            histogram.observe(time_s, exemplar)
