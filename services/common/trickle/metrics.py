"""What trickle counts, over all channels of the process; names and aliases never become labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

SEGMENTS: Final = Counter(
    "sluice_trickle_segments_total",
    "Segments that arrived (in) or were served (out) over HTTP.",
    ["direction"],
)
BYTES: Final = Counter(
    "sluice_trickle_bytes_total",
    "Body bytes that arrived (in) or were served (out) over HTTP.",
    ["direction"],
)
DROPPED: Final = Counter(
    "sluice_trickle_dropped_total",
    "Segments a reader missed (lagged), and those cut short: too_large, broken (publisher), slow (reader).",
    ["reason"],
)
READERS: Final = Gauge("sluice_trickle_readers", "GETs of segments at once, parked or flowing.")
CHANNELS: Final = Gauge("sluice_trickle_channels", "Channels that clients can reach.")

SEGMENTS_IN: Final = SEGMENTS.labels("in")
SEGMENTS_OUT: Final = SEGMENTS.labels("out")
BYTES_IN: Final = BYTES.labels("in")
BYTES_OUT: Final = BYTES.labels("out")
LAGGED: Final = DROPPED.labels("lagged")
TOO_LARGE: Final = DROPPED.labels("too_large")
BROKEN: Final = DROPPED.labels("broken")
SLOW: Final = DROPPED.labels("slow")
