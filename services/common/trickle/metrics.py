"""What trickle counts, over all channels of the process; names and aliases never become labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric


class Traffic:
    """What changes with every chunk or request, counted without a lock: one thread counts, and any reads."""

    def __init__(self) -> None:
        self.taken = 0
        self.given = 0
        self.readers = 0
        self.writers = 0
        self.connections = 0

    def collect(self) -> Iterator[Metric]:
        counted = CounterMetricFamily(
            "sluice_trickle_bytes",
            "Body bytes that arrived (in) or were served (out) over HTTP.",
            labels=["direction"],
        )
        counted.add_metric(["in"], self.taken)
        counted.add_metric(["out"], self.given)
        yield counted
        for name, text, value in (
            ("readers", "GETs of segments at once, parked or flowing.", self.readers),
            ("writers", "POSTs of segments at once, parked or flowing.", self.writers),
            ("connections", "Connections of clients.", self.connections),
        ):
            yield GaugeMetricFamily(f"sluice_trickle_{name}", text, value)


TRAFFIC: Final = Traffic()
REGISTRY.register(TRAFFIC)
SEGMENTS: Final = Counter(
    "sluice_trickle_segments_total",
    "Segments that arrived (in) or were served (out) over HTTP.",
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
LAGGED: Final = DROPPED.labels("lagged")
TOO_LARGE: Final = DROPPED.labels("too_large")
BROKEN: Final = DROPPED.labels("broken")
ENDED: Final = DROPPED.labels("ended")
SLOW: Final = DROPPED.labels("slow")
