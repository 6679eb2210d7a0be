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
