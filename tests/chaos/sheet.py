"""Paints docs/images/{kill,drain}.jpg: what a viewer saw across each. Run it as a module to renew them.

"Big Buck Bunny", (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tests.chaos.harness import marks
from tests.chaos.harness.history import Shown, view
from tests.chaos.harness.scene import Live, Scene, scene
from tests.support.stack import ROOT

IMAGES: Final = ROOT / "docs/images"
BEFORE_S: Final = 3.0
AFTER_S: Final = 2.0
GIVE_UP_S: Final = 15.0
BESIDE: Final = (9, 3, 1, 0)  # pictures before the last of the old; as many behind the first of the new
ABOUT: Final = 15  # pictures on either side that are judged, together a second
COLUMNS: Final = 4
GAP: Final = 6
LABEL: Final = 24
HEIGHT: Final = marks.TOP - marks.SIDE  # without the marks, which are for machines
QUALITY: Final = 82
OLD, NEW, GREY = (200, 90, 30), (40, 130, 60), (70, 70, 70)
CREDIT: Final = 'Source: "Big Buck Bunny", (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0'
Picture = NDArray[np.uint8]
Kept = tuple[Shown, Picture]


def across(here: Scene, live: Live, what: str) -> tuple[float, list[Kept]]:
    """Break or move the stream; when that was, and every picture about it."""
    live.until_steady(BEFORE_S)
    newest = live.newest()
    assert newest is not None
    host = live.host()
    at_s = time.monotonic()
    if what == "kill":
        here.stack.signal_pod(host, signal.SIGKILL)
    else:
        here.stack.request("POST", f"/v1/runners/{live.record().runner}/drain", json={"cancel": False})
    moved = live.until_shown(lambda shown: shown.maker != newest.maker, since_s=at_s, within_s=GIVE_UP_S)
    assert moved is not None, "the stream did not go on"
    time.sleep(AFTER_S)
    assert live.viewer.kept is not None
    return at_s, [kept for kept in live.viewer.kept if at_s - BEFORE_S < kept[0].at_s]


def sheet(what: str, at_s: float, kept: Sequence[Kept]) -> Picture:
    """Pictures before and behind the seam, each with its number, its time and who made it."""
    seam = next(i for i in range(1, len(kept)) if _behind(at_s, kept[i - 1][0], kept[i][0]))
    last, first = kept[seam - 1][0], kept[seam][0]
    chosen = [seam - 1 - back for back in BESIDE] + [seam + on for on in reversed(BESIDE)]
    rows = -(-len(chosen) // COLUMNS)
    wide, high = marks.SIZE[0] + GAP, HEIGHT + LABEL + GAP
    out = np.full((rows * high + 3 * LABEL, COLUMNS * wide + GAP, 3), 250, np.uint8)
    seen = view([shown for shown, _ in kept[seam - ABOUT : seam + ABOUT]])
    done = "kill -9 of its runner" if what == "kill" else "drain of its runner"
    wait_ms = 1000 * (first.at_s - last.at_s)
    headline = (
        f"{done} at 0 ms: {wait_ms:.0f} ms from the old runner's last picture to the new one's first;"
        f" {seen.seam_lost} lost between them, {seen.lost - seen.seam_lost} in the second about it,"
        f" {seen.repeated} shown twice"
    )
    _text(out, GAP, 19, headline, GREY)
    for place, index in enumerate(chosen):
        shown, picture = kept[index]
        down, right = divmod(place, COLUMNS)
        top, left = LABEL + GAP + down * high, GAP + right * wide
        colour = OLD if index < seam else NEW
        which = "old" if index < seam else "new"
        label = f"{1000 * (shown.at_s - at_s):+.0f} ms  picture {shown.number}  {which} runner"
        _text(out, left, top + 17, label, colour)
        out[top + LABEL : top + LABEL + HEIGHT, left : left + marks.SIZE[0]] = picture[:HEIGHT]
        cv2.rectangle(
            out, (left, top + LABEL), (left + marks.SIZE[0] - 1, top + LABEL + HEIGHT - 1), colour, 2
        )
    _text(out, GAP, out.shape[0] - 9, CREDIT, GREY)
    return out


def _behind(at_s: float, before: Shown, after: Shown) -> bool:
    """Whether another runner takes over here, and not for something that was earlier."""
    return after.at_s > at_s and after.maker != before.maker


def _text(out: Picture, left: int, base: int, text: str, colour: tuple[int, int, int]) -> None:
    cv2.putText(out, text, (left, base), cv2.FONT_HERSHEY_DUPLEX, 0.45, colour, 1, cv2.LINE_AA)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.sheet", description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES)
    asked = parser.parse_args()
    with scene() as here:
        live = here.live(pipeline="painted", params={"prompt": "watercolor"}, film=True)
        for what in ("drain", "kill"):
            at_s, kept = across(here, live, what)
            bgr = cv2.cvtColor(sheet(what, at_s, kept), cv2.COLOR_RGB2BGR)
            assert cv2.imwrite(str(asked.out / f"{what}.jpg"), bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


if __name__ == "__main__":
    main()
