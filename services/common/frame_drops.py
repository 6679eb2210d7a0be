"""The one counter of what live delivery drops on its way, by the stage that dropped it."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

FRAME_DROPS: Final = Counter(
    "sluice_frame_drop_total",
    "Pictures (and sound that cannot be used) dropped, and segments that were lost, by the stage where.",
    ["stage"],
)
