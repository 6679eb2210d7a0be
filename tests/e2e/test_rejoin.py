"""An ingest process dies under a stream: its publisher comes back by another one, into the same session."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common.media.mpegts import CLOCK_HZ, Codec, Demuxer
from tests.e2e.test_two_ingests import Second, second_ingest
from tests.support import publisher
from tests.support.stack import Stack, running, until
from tests.support.viewer import finish

GRACE_S = 12


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {
        "SLUICE_INGEST_PUBLISHER_GRACE_S": str(GRACE_S),
        "SLUICE_SESSION_MANAGER_PUBLISHER_GRACE_S": str(GRACE_S),
    }
    with running(tmp_path_factory.mktemp("stack"), **settings) as stack:
        yield stack


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[Second]:
    stack.until_free(40)
    with second_ingest(stack, tmp_path) as second:
        yield second


def pictures(http: httpx.Client, playback: str, count: int) -> list[int]:
    """The times of some pictures that a viewer gets who connects now."""
    seen: list[int] = []
    demuxer = Demuxer()
    with http.stream("GET", f"/ts/{playback}") as answer:
        assert answer.status_code == 200
        for data in answer.iter_bytes():
            seen += [unit.pts for unit in demuxer.feed(data) if unit.codec is Codec.H264]
            if len(seen) >= count:
                return seen
    raise AssertionError(f"the stream ended after {len(seen)} pictures")


def slot_of(stack: Stack, session: str) -> tuple[str, int]:
    """Where a session runs."""
    runners = stack.request("GET", "/v1/runners")["data"]
    (found,) = [
        (runner["runner"], slot["slot"])
        for runner in runners
        for slot in runner["slots"]
        if slot["session"] == session
    ]
    return found


def moved_on(stack: Stack, session: str) -> dict[str, Any] | None:
    """The session, as soon as pictures of it go out at the process that was asked."""
    shown = stack.session(session)
    assert not shown["end_reason"], shown
    return shown if shown["phase"] == "live" and shown.get("fps_out", 0) > 5 else None


@pytest.mark.parametrize("way", ["ts", "rtmp"])
def test_a_publisher_comes_back_by_another_process_into_its_session(
    stack: Stack, second: Second, way: str
) -> None:
    stream = stack.stream("neon")
    key, playback = stream["stream_key"], stream["output_playback_id"]
    there = {"ts": f"{second.url}/ts/{key}", "rtmp": f"{second.rtmp_url}/{key}"}
    here = {"ts": stream["publish_url"], "rtmp": stream["rtmp_url"]}
    first = publisher.start(there[way], seconds=60)
    session = stack.live_session(stream["id"])
    patched = second.http.patch(
        f"/v1/streams/{stream['id']}", params={"wait": "applied"}, json={"params": {"prompt": "sketch"}}
    )
    assert patched.status_code == 200, patched.text
    engine, slot = stack.engine().pid, slot_of(stack, session)
    before = pictures(second.http, playback, 10)[-1]
    before_ms = stack.session(session)["session_ms"]
    began_s = time.monotonic()

    second.process.kill()
    first.kill()
    first.communicate(timeout=20)
    again = publisher.start(here[way], seconds=60)
    try:
        shown = until(lambda: moved_on(stack, session), 15, "it goes on here")
        away_s = time.monotonic() - began_s
        after = pictures(stack.http, playback, 10)
        assert stack.request("GET", f"/v1/streams/{stream['id']}")["session"] == session
        assert (stack.engine().pid, slot_of(stack, session)) == (engine, slot), "the state is in the engine"
        assert shown["session_ms"] > before_ms, "one meter, one clock"
        assert shown["moves"] == [], "its runner is the same"
        gone_s = (after[0] - before) / CLOCK_HZ
        assert 0 < gone_s < away_s + 6
        assert after == sorted(after)
        prompt = stack.request("GET", f"/v1/streams/{stream['id']}")["params"]["prompt"]
        assert "sketch" in str(prompt)
        stack.request("DELETE", f"/v1/sessions/{session}")
        usage = stack.ended(session, 20)
        assert usage["end_reason"] == "stopped"
    finally:
        again.kill()
        again.communicate(timeout=20)


def test_a_process_that_is_killed_and_started_again_gets_its_session_back(stack: Stack) -> None:
    stack.until_free(40)
    stream = stack.stream("neon")
    first = publisher.start(stream["publish_url"], seconds=60)
    session = stack.live_session(stream["id"])
    slot = slot_of(stack, session)
    stack.kill("ingest")
    first.communicate(timeout=20)
    until(lambda: _up(stack), 20, "it is up again")
    again = publisher.start(stream["publish_url"], seconds=5)
    until(lambda: moved_on(stack, session), 15, "it goes on")
    assert slot_of(stack, session) == slot
    finish(again)
    assert stack.ended(session, 20)["end_reason"] == "input_ended"


def test_a_session_whose_publisher_never_comes_back_is_over_after_the_grace(
    stack: Stack, second: Second
) -> None:
    stream = stack.stream("neon")
    first = publisher.start(f"{second.url}/ts/{stream['stream_key']}", seconds=60)
    session = stack.live_session(stream["id"])
    second.process.kill()
    first.kill()
    first.communicate(timeout=20)
    lost_s = time.monotonic()
    until(lambda: stack.session(session)["phase"] == "paused", 10, "it waits for its publisher")
    assert stack.ended(session, GRACE_S + 15)["end_reason"] == "bridge_lost"
    assert time.monotonic() - lost_s > GRACE_S - 2
    stack.until_free(5)


def _up(stack: Stack) -> bool:
    try:
        return stack.http.get("/v1/prices").status_code == 200
    except httpx.HTTPError:
        return False
