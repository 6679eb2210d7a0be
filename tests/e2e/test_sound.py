"""Flashes and beeps through the whole platform: how far apart they are in the file that comes back."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.common.media.mpegts import Codec, Demuxer
from tests.support import replay
from tests.support.clips import flashes
from tests.support.lipsync import aheads_ms, beeps_s, flashes_s, offsets_ms
from tests.support.stack import Stack, running
from tests.support.viewer import finish, record

SECONDS = 24
PATCH_S, STALL_S, STALLED_S = 7, 13, 4  # since the session is live; for how long
PIPELINES = "tests.support.pipelines:Slow,tests.support.pipelines:Negative"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("sound")
    with running(directory, SLUICE_LOCAL_PIPELINES=PIPELINES) as stack:
        yield stack


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flashes(tmp_path_factory.mktemp("clip") / "flashes.ts", SECONDS)


@pytest.mark.parametrize("pipeline", ["slow", "negative"], ids=["round", "through"])
def test_sound_is_with_its_picture_at_the_start_after_a_change_and_after_a_stall(
    stack: Stack, clip: Path, tmp_path: Path, pipeline: str
) -> None:
    stack.until_free(20)
    stream = stack.stream(pipeline=pipeline, params={"ms": 0})
    out = tmp_path / "out.ts"
    watching = record(stream["play_url"], out)
    publisher = replay.start(stream["publish_url"], clip)
    try:
        stack.live_session(stream["id"])
        live_s = time.monotonic()
        time.sleep(PATCH_S)
        changed = patch(stack, stream, {"ms": 30})
        time.sleep(max(0.0, live_s + STALL_S - time.monotonic()))
        publisher.send_signal(signal.SIGSTOP)
        time.sleep(STALLED_S)
        publisher.send_signal(signal.SIGCONT)
        assert finish(publisher) == 0
    finally:
        publisher.kill()
        watching.join(20)

    # The first picture of a session is at a second; the change and the stall are where the clip was then.
    change_s = changed["update"]["pts_ms"] / 1000 + 1
    stall_s = change_s + STALL_S - PATCH_S
    seen_s = flashes_s(out, negative=pipeline == "negative")
    offsets = dict(zip(seen_s, offsets_ms(seen_s, beeps_s(out)), strict=True))
    for since_s, until_s in ((0, change_s), (change_s + 0.5, stall_s - 0.5), (stall_s + 1.5, 100)):
        found = [abs(offset) for at_s, offset in offsets.items() if since_s <= at_s < until_s]
        assert len(found) >= 3, offsets
        # A picture that was dropped moves one flash by itself; sound that is off moves all of them.
        assert statistics.median(found) <= 40, offsets
    written = [(unit.pts, unit.codec is not Codec.H264) for unit in Demuxer().feed(out.read_bytes())]
    assert sum(sound for _, sound in written) > 40 * (SECONDS - 2)
    # Where a busy machine makes the runner stall, sound goes on; hardly ever, and in order.
    assert sorted(aheads_ms(written))[-len(written) // 20] <= 40
    heard = [pts for pts, sound in written if sound]
    assert heard == sorted(set(heard))


def patch(stack: Stack, stream: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = stack.request(
        "PATCH", f"/v1/streams/{stream['id']}?wait=applied", json={"params": params}
    )
    return answer
