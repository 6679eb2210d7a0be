"""A bad network between runners and everybody else: delay, throttling, half-open connections, resets.

Each runner's media, gRPC and NATS go through a proxy each. Trouble with one of the three, or with all, never
ends a stream, gives no slot twice and falsifies no bill.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Final

from tests.chaos.harness.failing import shown, watched
from tests.chaos.harness.proxy import NONE, Fault, Proxies, Proxy, proxies
from tests.chaos.harness.running import run
from tests.chaos.harness.scene import Live, Scene, scene
from tests.chaos.harness.summary import Summary, Trial, summary

RUNNERS: Final = 3
LASTS_S: Final = 4.0
AFTER_S: Final = 6.0  # for whatever follows from it
LINKS: Final = ("media", "grpc", "nats")


@dataclass(frozen=True, slots=True)
class Links:
    """The proxies, by what passes through them; those of gRPC and NATS are one per runner."""

    by_kind: Mapping[str, list[Proxy]] = field(default_factory=lambda: {link: [] for link in LINKS})

    def told(self, made: Proxies, ports: Mapping[str, int]) -> Mapping[str, Mapping[str, str]]:
        """Settings that lead everything of the runners through proxies."""

        def to(link: str, port: int) -> str:
            proxy = made.to(f"127.0.0.1:{port}")
            self.by_kind[link].append(proxy)
            return proxy.address

        settings = {"ingest": {"trickle_url": f"http://{to('media', ports['TRICKLE'])}"}}
        for index in range(RUNNERS):
            settings[f"runner-{index}"] = {
                "nats_url": f"nats://{to('nats', ports['NATS'])}",
                "address": to("grpc", ports["RUNNER"] + index),
            }
        return settings


@dataclass(frozen=True, slots=True)
class Trouble:
    """What happens to which links. `once`: done at the beginning; `fault`: for as long as it lasts."""

    name: str
    links: tuple[str, ...]
    fault: Fault = NONE
    once: Callable[[Proxy], None] | None = None


TROUBLES: Final = (
    Trouble("media is 100 ms late", ("media",), Fault(delay_s=0.1)),
    Trouble("media is throttled to 50 kB/s", ("media",), Fault(bytes_per_s=50_000)),
    Trouble("media is reset", ("media",), once=Proxy.reset),
    Trouble("media is half-open", ("media",), once=Proxy.half_open),
    Trouble("gRPC is 300 ms late", ("grpc",), Fault(delay_s=0.3)),
    Trouble("gRPC is reset", ("grpc",), once=Proxy.reset),
    Trouble("gRPC is silent", ("grpc",), Fault(silent=True)),
    Trouble("NATS is reset", ("nats",), once=Proxy.reset),
    Trouble("NATS is silent", ("nats",), Fault(silent=True)),
    Trouble("everything is reset", LINKS, once=Proxy.reset),
)


def network(trials: int, troubles: tuple[Trouble, ...] = TROUBLES) -> Summary:
    links = Links()
    with proxies() as made, scene(runners=RUNNERS, told=lambda ports: links.told(made, ports)) as here:
        return troubled(here, links, troubles, trials)


def troubled(here: Scene, links: Links, troubles: tuple[Trouble, ...], trials: int) -> Summary:
    live = here.live()
    done = []
    for number, trouble in enumerate(islice(cycle(troubles), trials), 1):
        done.append(shown(trouble.name, _troubled(live, links, trouble, number)))
        if not done[-1].recovered:
            live = here.live()
    moves = sum(len(each.record().moves) for each in here.lives)
    return summary("network", done, here.books(), moves=moves)


def _troubled(live: Live, links: Links, trouble: Trouble, number: int) -> Trial:
    live.set_mark(number % 256)
    live.until_steady()
    began_s = time.monotonic()
    hit = [proxy for link in trouble.links for proxy in links.by_kind[link]]
    for proxy in hit:
        proxy.fault = trouble.fault
        if trouble.once is not None:
            trouble.once(proxy)
    time.sleep(LASTS_S)
    for proxy in hit:
        proxy.fault = NONE
    time.sleep(AFTER_S)
    return watched(live, began_s)


if __name__ == "__main__":
    run(network, trials=len(TROUBLES), doc=__doc__)
