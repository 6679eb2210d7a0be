"""How long a browser waits for its first transformed picture, from the moment its WHIP offer is posted.

The runner is warm and the page is open; the viewer's offer is posted when the publisher has its answer, as
shipped clients do. The alternative is an echo that decodes and encodes with aiortc in one process, and has
neither a session to open nor a runner to reach.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure, percentile, show
from tests.bench.webrtc_echo import echoing
from tests.support.browser import Tab, chromium
from tests.support.stack import Stack, running

STARTS: Final = 12
WARM_UP: Final = 2  # starts that do not count: the browser's codecs, the echo's imports


def by_platform(tab: Tab, stack: Stack) -> float:
    """One start; returns ms."""
    stack.until_free(20)
    stream = stack.request("POST", "/v1/streams", 201, json={"pipeline": "passthrough"})
    publishing = tab.publish(stream["whip_url"])
    watching = tab.watch(stream["whep_url"])
    painted = tab.call("firstPicture", watching["id"], {"since": publishing["postedAt"]})
    tab.call("stop", watching["id"])
    tab.call("stop", publishing["id"])
    stack.ended(stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"], 20)
    return float(painted - publishing["postedAt"])


def by_echo(tab: Tab, url: str) -> float:
    peer = tab.call("connect", url, {"send": True, "receive": True})
    painted = tab.call("firstPicture", peer["id"], {"since": peer["postedAt"]})
    tab.call("stop", peer["id"])
    return float(painted - peer["postedAt"])


def main() -> None:
    ours: list[float] = []
    echo: list[float] = []
    with (
        echoing() as (echo_url, _),
        tempfile.TemporaryDirectory() as directory,
        running(Path(directory), SLUICE_LOCAL_PIPELINES="passthrough") as stack,
        chromium() as browser,
        browser.tab() as tab,
    ):
        tab.call("startSource")
        for start in range(WARM_UP + STARTS):
            mine, other = by_platform(tab, stack), by_echo(tab, echo_url)
            sys.stderr.write(f"start {start}: {mine:.0f} ms, by the echo {other:.0f} ms\n")
            if start >= WARM_UP:
                ours.append(mine)
                echo.append(other)
    show(
        [
            Figure(
                "first_frame", f"p{percent}_ms", percentile(ours, percent), "ms", percentile(echo, percent)
            )
            for percent in (50, 95)
        ]
    )


if __name__ == "__main__":
    main()
