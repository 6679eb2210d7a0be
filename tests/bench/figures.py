"""How a benchmark says what it measured: one JSON object a line, with the alternative of the same run."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Figure:
    """`baseline` is what the named alternative measured in the same run; None where there is none.

    `value` is None where it could not be measured.
    """

    bench: str
    figure: str
    value: float | None
    unit: str
    baseline: float | None = None

    def line(self) -> str:
        ratio = round(self.value / self.baseline, 3) if self.baseline and self.value is not None else None
        return json.dumps(
            {
                "bench": self.bench,
                "figure": self.figure,
                "value": None if self.value is None else round(self.value, 4),
                "unit": self.unit,
                "baseline": None if self.baseline is None else round(self.baseline, 4),
                "ratio": ratio,
                "machine": machine(),
            }
        )


def show(figures: Sequence[Figure]) -> None:
    """Print the figures; a benchmark calls this once, last."""
    sys.stdout.write("".join(f"{figure.line()}\n" for figure in figures))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of `values` do not exceed (nearest rank); of no values, NaN."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered)) - 1))]


def machine() -> str:
    """Processor, usable cores and Python, as one line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.machine()
    return f"{processor}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
