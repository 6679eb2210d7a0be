"""RTMP in and out through the whole platform, as an encoder and a streaming site see it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av

from tests.support.rtmp import PLATFORM_KEY, ROOT, Platform
from tests.support.stack import Stack, until
from tests.support.viewer import record


@contextmanager
def elsewhere(platform: Platform) -> Iterator[int]:
    """Somebody's streaming site, in a thread of its own; yields its port."""
    port: list[int] = []
    over: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        async with platform.serving() as bound:
            over.append((asyncio.get_running_loop(), asyncio.Event()))
            port.append(bound)
            await over[0][1].wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        until(lambda: port, 5, "the site is up")
        yield port[0]
    finally:
        loop, event = over[0]
        loop.call_soon_threadsafe(event.set)
        thread.join(10)


def test_what_an_encoder_sends_is_transformed_watched_and_pushed_on(stack: Stack, tmp_path: Path) -> None:
    platform = Platform()
    with elsewhere(platform) as port:
        stream = stack.stream("neon", output_rtmp_url=f"rtmp://127.0.0.1:{port}/live/{PLATFORM_KEY}")
        watching = record(stream["play_url"], tmp_path / "out.ts")
        asked = [{"url": stream["rtmp_url"], "seconds": 5, "speed": 1.0, "b_frames": 2, "audio_rate": 44_100}]
        publishing = subprocess.Popen(
            [sys.executable, "-m", "tests.support.rtmp", json.dumps(asked)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        session = stack.live_session(stream["id"])
        shown = until(
            lambda: push if (push := stack.session(session)["rtmp_push"])["phase"] == "live" else None,
            8,
            "it is pushed",
        )
        assert (shown["host"], shown["error"]) == ("127.0.0.1", "")
        said, _ = publishing.communicate(timeout=30)
        assert json.loads(said) == [125]
        watching.join(20)
        ended = stack.ended(session)
        until(lambda: platform.ended, 5, "the push ended in order")
    assert (ended["end_reason"], ended["phase"]) == ("input_ended", "ended")
    with av.open(str(tmp_path / "out.ts")) as out:
        times = [frame.pts or 0 for frame in out.decode(out.streams.video[0])]
    assert len(times) >= 90
    assert times == sorted(set(times))
    assert len(platform.pictures) >= 80
    assert platform.pictures[0].keyframe
    assert all(earlier.pts < later.pts for earlier, later in pairwise(platform.pictures))
    heard = len(platform.units) - len(platform.pictures)
    assert heard > 100, "with its sound"
    refused = subprocess.run(
        [sys.executable, "-m", "tests.support.rtmp", json.dumps([{"url": f"{stream['rtmp_url']}x"}])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "Server error: there is no such stream key" in refused.stderr
