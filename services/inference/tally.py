"""What a session counts, over all the engines that it has: for its report, its status and the metrics.

The rule it keeps: no count ever jumps back.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

from prometheus_client import Counter, Histogram

from services.common.frame_drops import FRAME_DROPS
from services.inference.assignment import Report
from services.inference.intake import Intake

FRAMES: Final = Counter("sluice_frames_total", "Pictures that left a stage.", ["stage"])
INFER_SECONDS: Final = Histogram(
    "sluice_infer_seconds",
    "A picture through a pipeline, with the conversion to RGB.",
    ["pipeline"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
SNAPSHOTS_DROPPED: Final = Counter(
    "sluice_snapshots_dropped_total", "What pipelines remembered and nobody kept, by the reason.", ["reason"]
)
STAGES: Final = ("decoded", "inferred", "encoded")


class Tally:
    """One session's. `now` holds what its present engine said last, `before` what those before it did."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._before: Counts[str] = Counts()
        self._now: Counts[str] = Counts()
        self._told: Counts[str] = Counts()  # what the metrics have seen

    def next_engine(self, packets: Intake) -> None:
        """Its counts begin at nothing again, and so do those of `packets`, which were for the last one."""
        self._now["input"], self._now["input_sounds"] = packets.dropped, packets.dropped_sounds
        self._before += self._now
        self._now = Counts()

    def unsaid(self, stats: Mapping[str, Any]) -> dict[str, int]:
        """How often what the pipeline said was not let through, by the reason."""
        return {reason: total + self._before[f"unsaid {reason}"] for reason, total in stats["unsaid"].items()}

    def count(
        self, report: Report, stats: Mapping[str, Any], packets: Intake, output: Intake, bypassed: int
    ) -> Report:
        """`report` with what the engine says in `stats`."""
        self._now = Counts({stage: stats[stage] for stage in STAGES})
        self._now["inference"], self._now["sounds"] = stats["dropped"], stats["dropped_sounds"]
        self._now["input"], self._now["input_sounds"] = packets.dropped, packets.dropped_sounds
        self._now.update({f"unsaid {reason}": total for reason, total in stats["unsaid"].items()})
        self._now.update({f"snapshot {why}": total for why, total in stats["snapshots_dropped"].items()})
        total = self._before + self._now
        for stage in STAGES:
            FRAMES.labels(stage).inc(self._fresh(stage, total[stage]))
        sounds = total["input_sounds"] + total["sounds"] + output.dropped_sounds + bypassed
        for stage, dropped in (
            ("input", total["input"]),
            ("inference", total["inference"]),
            ("output", output.dropped),
            ("sound", sounds),
        ):
            FRAME_DROPS.labels(stage).inc(self._fresh(f"dropped {stage}", dropped))
        for name in total:
            if name.startswith("snapshot "):
                SNAPSHOTS_DROPPED.labels(name.removeprefix("snapshot ")).inc(self._fresh(name, total[name]))
        return replace(
            report,
            decoded=total["decoded"],
            inferred=total["inferred"],
            encoded=total["encoded"],
            dropped=total["inference"] + total["input"] + output.dropped,
            infer_ms=stats["infer_ms"],
        )

    def pictures(
        self,
        stamps: list[tuple[int, float, float, float, float]],
        received_s: MutableMapping[int, float],
    ) -> list[list[int]]:
        """When pictures passed each stage here, for the bridge, which knows when they left and came back.

        Each is its PTS, when it was received, and how long it took to be decoded, to be taken up, to be
        inferred and to be encoded: microseconds on this machine's monotonic clock.
        """
        pictures = []
        for pts, *moments_s in stamps:
            INFER_SECONDS.labels(self._pipeline).observe(moments_s[2] - moments_s[1])
            at_s = received_s.pop(pts, None)
            if at_s is not None:
                moments_us = [round(1e6 * moment_s) for moment_s in (at_s, *moments_s)]
                steps_us = [after - before for before, after in pairwise(moments_us)]
                pictures.append([pts, moments_us[0], *steps_us])
        return pictures

    def _fresh(self, name: str, total: int) -> int:
        """How much of `total` is new."""
        new, self._told[name] = total - self._told[name], total
        return new
