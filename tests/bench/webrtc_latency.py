"""How old a picture is when a browser paints it, beside the browser alone and beside an echo made of aiortc.

One Chromium page draws a time code at 29.6 fps and reads it from what it paints. Between lie nothing (two
peers in the page: the floor), the whole platform with `passthrough` by WHIP and WHEP, or an echo that decodes
and encodes in one process. They take turns, so that a neighbour that is busy for a while meets them all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure, percentile, show
from tests.bench.webrtc_echo import echoing
from tests.support.browser import Tab, chromium
from tests.support.stack import Stack, running

ROUNDS: Final = 3
WARM_UP_MS: Final = 4000  # until the browser's estimate of the bandwidth has settled
MEASURED_MS: Final = 8000
ANSWER_S: Final = (WARM_UP_MS + MEASURED_MS) / 1000 + 10
FPS: Final = 29.6


@dataclass
class Painted:
    """What one path gave, over all rounds."""

    ages_ms: list[float] = field(default_factory=list)
    unread: int = 0
    backwards: int = 0
    sizes: set[str] = field(default_factory=set)

    def percentile(self, percent: float) -> float:
        return percentile(self.ages_ms, percent)

    @property
    def fps(self) -> float:
        return len(self.ages_ms) / (ROUNDS * MEASURED_MS / 1000)


# --- the three paths; each yields the peer that paints


@contextmanager
def directly(tab: Tab) -> Iterator[int]:
    peer = tab.call("direct")
    yield peer["id"]
    tab.call("stop", peer["id"])
    tab.call("stop", peer["sender"])


@contextmanager
def by_echo(tab: Tab, url: str) -> Iterator[int]:
    peer = tab.call("connect", url, {"send": True, "receive": True})
    yield peer["id"]
    tab.call("stop", peer["id"])


@contextmanager
def by_platform(tab: Tab, stack: Stack) -> Iterator[int]:
    stack.until_free(20)
    stream = stack.request("POST", "/v1/streams", 201, json={"pipeline": "passthrough"})
    publishing = tab.publish(stream["whip_url"])
    watching = tab.watch(stream["whep_url"])
    yield watching["id"]
    tab.call("stop", watching["id"])
    tab.call("stop", publishing["id"])
    stack.ended(stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"], 20)


def measure(tab: Tab, peer: int, into: Painted, name: str) -> None:
    tab.call("firstPicture", peer)
    found = tab.call("ages", peer, {"ms": MEASURED_MS, "warmUpMs": WARM_UP_MS}, within_s=ANSWER_S)
    into.ages_ms += found["ages"]
    into.unread += found["unread"]
    into.backwards += found["backwards"]
    into.sizes |= set(found["sizes"])
    ages = found["ages"]
    sys.stderr.write(
        f"{name:>8}: {len(ages)} pictures of {', '.join(found['sizes'])}, {found['unread']} unread, "
        f"p50 {percentile(ages, 50):.1f} ms, p95 {percentile(ages, 95):.1f} ms\n"
    )


def figures(floor: Painted, ours: Painted, echo: Painted) -> list[Figure]:
    found = []
    for percent in (50, 95):
        lowest = floor.percentile(percent)
        mine, other = ours.percentile(percent) - lowest, echo.percentile(percent) - lowest
        found += [
            Figure("webrtc_latency", f"p{percent}_over_floor_ms", mine, "ms", other),
            Figure(
                "webrtc_latency", f"p{percent}_ms", ours.percentile(percent), "ms", echo.percentile(percent)
            ),
            Figure("webrtc_latency", f"floor_p{percent}_ms", lowest, "ms"),
        ]
    found.append(Figure("webrtc_latency", "painted_fps", ours.fps, "1/s", floor.fps))
    return found


def main() -> None:
    floor, ours, echo = Painted(), Painted(), Painted()
    with (
        echoing() as (echo_url, _),
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory), SLUICE_LOCAL_PIPELINES="passthrough") as stack,
        chromium() as browser,
        browser.tab() as tab,
    ):
        tab.call("startSource", {"fps": FPS})
        for _ in range(ROUNDS):
            with directly(tab) as peer:
                measure(tab, peer, floor, "floor")
            with by_platform(tab, stack) as peer:
                measure(tab, peer, ours, "platform")
            with by_echo(tab, echo_url) as peer:
                measure(tab, peer, echo, "echo")
    for path in (floor, ours, echo):
        if path.sizes != {"512x512"} or path.backwards:
            raise SystemExit(f"no figures: pictures of {path.sizes}, {path.backwards} out of order")
    show(figures(floor, ours, echo))


if __name__ == "__main__":
    main()
