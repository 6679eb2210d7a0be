"""What trickle counts, over all channels of the process; names and aliases never become labels."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge


class Traffic:
    """How much there is at once, counted without a lock: one thread counts, and any reads."""

    def __init__(self) -> None:
        self.readers = 0
        self.writers = 0
        self.connections = 0


TRAFFIC: Final = Traffic()

READERS: Final = Gauge("sluice_trickle_readers", "GETs of segments at once, parked or flowing.")
READERS.set_function(lambda: TRAFFIC.readers)
WRITERS: Final = Gauge("sluice_trickle_writers", "POSTs of segments at once, parked or flowing.")
WRITERS.set_function(lambda: TRAFFIC.writers)
CONNECTIONS: Final = Gauge("sluice_trickle_connections", "Connections of clients.")
CONNECTIONS.set_function(lambda: TRAFFIC.connections)
SEGMENTS: Final = Counter(
    "sluice_trickle_segments_total",
    "Segments that arrived (in) or were served (out) over HTTP.",
    ["direction"],
)
BYTES: Final = Counter(
    "sluice_trickle_bytes_total",
    "Body bytes that arrived (in) or were served (out) over HTTP, counted when their request ends.",
    ["direction"],
)
DROPPED: Final = Counter(
    "sluice_trickle_dropped_total",
    "Segments that were gone when a reader came for them (lagged), and those cut short: too_large, broken "
    "(publisher), ended (by others, while their body came), slow (reader).",
    ["reason"],
)
REFUSED: Final = Counter(
    "sluice_trickle_refused_total",
    "Requests and connections that were refused, by the reason that their answer was made of.",
    ["reason"],
)
CHANNELS: Final = Gauge("sluice_trickle_channels", "Channels that clients can reach.")

SEGMENTS_IN: Final = SEGMENTS.labels("in")
SEGMENTS_OUT: Final = SEGMENTS.labels("out")
BYTES_IN: Final = BYTES.labels("in")
BYTES_OUT: Final = BYTES.labels("out")
LAGGED: Final = DROPPED.labels("lagged")
TOO_LARGE: Final = DROPPED.labels("too_large")
BROKEN: Final = DROPPED.labels("broken")
ENDED: Final = DROPPED.labels("ended")
SLOW: Final = DROPPED.labels("slow")
