"""What the fleet is as a whole: its capacity by pipeline, its numbers by state. Reads the table only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from prometheus_client import Gauge

from protos.events.v1.events_pb2 import PipelineOffer, RunnerAdvert
from services.router.table import OFFERED, Table

RUNNERS: Final = Gauge(
    "sluice_runners",
    "Runners, by the state of their first slot.",
    ["state", "gpu_class", "region"],
)
SLOTS: Final = Gauge("sluice_slots", "Slots by state.", ["state"])
QUARANTINED: Final = Gauge(
    "sluice_runners_quarantined", "Runners that are avoided because they failed sessions lately."
)
KINDS_SHOWN: Final = 200  # runners name their class and region themselves


@dataclass(frozen=True, slots=True)
class Capacity:
    """What can be had of one pipeline; the newest version that is heard describes it."""

    offer: PipelineOffer
    slots: int
    free: int
    min_micro_per_second: int  # the cheapest runner's; 0 if one asks for no money


def newest_offers(adverts: Iterable[RunnerAdvert]) -> dict[str, PipelineOffer]:
    """The offer of the newest version of each pipeline."""
    newest: dict[str, PipelineOffer] = {}
    for advert in adverts:
        for offer in advert.pipelines:
            known = newest.get(offer.name)
            if known is None or _version(offer.version) > _version(known.version):
                newest[offer.name] = offer
    return newest


def capacity_of(table: Table, offer: PipelineOffer) -> Capacity:
    """Of the runners that are heard, of which one at least offers it."""
    offers = table.offers(offer.name)
    assert offers is not None, offer.name
    rows = (offers[table.all] >= OFFERED) & table.heard[table.all]
    return Capacity(
        offer=offer,
        slots=int(table.slots[table.all][rows].sum()),
        free=int(table.ready[table.all][rows].sum()),
        min_micro_per_second=int(table.price[table.all][rows].min()),
    )


def measure(table: Table, quarantined: int) -> None:
    for state, count in table.slots_by_state().items():
        SLOTS.labels(state.value).set(count)
    kinds = Counter(table.runners_by_kind())
    RUNNERS.clear()  # a kind whose last runner went is not there any more
    for (state, gpu_class, region), count in kinds.most_common(KINDS_SHOWN):
        RUNNERS.labels(state.value, gpu_class, region).set(count)
    QUARANTINED.set(quarantined)


@lru_cache(maxsize=1024)
def _version(version: str) -> tuple[list[int], str]:
    """Orders 1.10 after 1.9; equal numbers by text."""
    return [int(number) for number in re.findall(r"\d+", version)], version
