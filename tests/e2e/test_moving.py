"""`sluice move`, `drain` and `sessions --watch`, as an operator types them beside a live stream."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from services.common.media.mpegts import Codec, Demuxer
from tests.support import publisher
from tests.support.browser import chromium
from tests.support.stack import ROOT, Stack, running, until


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"SLUICE_LOCAL_RUNNERS": "2", "SLUICE_SESSION_MANAGER_GRANT_WAIT_S": "10"}
    with running(tmp_path_factory.mktemp("stack"), **settings) as stack:
        yield stack


class Viewer(threading.Thread):
    """Watches by one connection, and remembers the time of every picture."""

    def __init__(self, stack: Stack, playback: str) -> None:
        super().__init__(daemon=True)
        self.pts: list[int] = []
        self._stack = stack
        self._playback = playback

    def run(self) -> None:
        demuxer = Demuxer()
        with self._stack.http.stream("GET", f"/ts/{self._playback}") as answer:
            for data in answer.iter_bytes():
                self.pts += [unit.pts for unit in demuxer.feed(data) if unit.codec is Codec.H264]


def both_ready(stack: Stack) -> bool:
    runners = stack.request("GET", "/v1/runners")["data"]
    return len(runners) == 2 and all(slot["state"] == "ready" for one in runners for slot in one["slots"])


def test_a_stream_is_moved_and_its_runner_emptied_while_somebody_watches(stack: Stack) -> None:
    until(lambda: both_ready(stack), 30, "two runners are free")
    stream = stack.stream("neon")
    process = publisher.start(stream["publish_url"], seconds=120)
    session = stack.live_session(stream["id"])
    viewer = Viewer(stack, stream["output_playback_id"])
    viewer.start()
    until(lambda: len(viewer.pts) > 25, 15, "it is watched")
    begins = stack.session(session)["runner"]

    moved = stack.command("move", session)
    assert moved.returncode == 0, moved.stderr
    shown = stack.session(session)
    assert shown["runner"] != begins
    assert moved.stdout.startswith(f"{session} moved from {begins} to {shown['runner']}: froze 0.")
    assert moved.stdout.endswith(" 0 pictures lost\n")
    assert [move["why"] for move in shown["moves"]] == ["asked"]

    drained = stack.command("drain", shown["runner"])
    assert drained.returncode == 0, drained.stderr
    assert f"{shown['runner']}: 1 session left" in drained.stdout
    assert f"{shown['runner']} is empty" in drained.stdout
    after = stack.session(session)
    assert (after["runner"], after["moves"][-1]["why"]) == (begins, "drain")

    stays = stack.command("move", session, "--timeout", "2")
    assert stays.returncode == 1, "the other runner takes nothing"
    assert f"{session} is still on {begins}" in stays.stderr
    assert stack.command("drain", shown["runner"], "--cancel").returncode == 0
    until(lambda: len(stack.session(session)["moves"]) == 3, 30, "the wish is met as soon as it can be")

    count = len(viewer.pts)
    until(lambda: len(viewer.pts) > count + 50, 15, "and pictures go on, by the same connection")
    gaps = [after - before for before, after in zip(viewer.pts, viewer.pts[1:], strict=False)]
    assert min(gaps) > 0, "nothing twice, nothing backwards"
    assert stack.request("GET", f"/v1/streams/{stream['id']}")["session"] == session
    table = stack.command("sessions").stdout
    assert session in table
    assert "asked " in table
    stack.request("DELETE", f"/v1/streams/{stream['id']}")
    process.communicate(timeout=20)


def test_sessions_are_watched_without_a_terminal_until_interrupted(stack: Stack, tmp_path: Path) -> None:
    until(lambda: both_ready(stack), 60, "two runners are free")
    environment = {**stack.environment, "SLUICE_URL": stack.url, "SLUICE_API_KEY": stack.key}
    said = tmp_path / "said.txt"
    with said.open("wb") as out:
        watching = subprocess.Popen(
            [str(Path(sys.executable).with_name("sluice")), "sessions", "--watch", "--all"],
            env=environment,
            stdout=out,
            stderr=out,
        )
        stream = stack.stream("neon")
        process = publisher.start(stream["publish_url"], seconds=60)
        session = stack.live_session(stream["id"])
        until(lambda: f"{session}  effects  live  cpu-" in said.read_text(), 15, "it is said that it lives")
        stack.request("DELETE", f"/v1/streams/{stream['id']}")
        until(lambda: f"{session}  gone" in said.read_text(), 15, "and that it is gone")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
    process.communicate(timeout=20)


def test_what_there_is_no_room_for_says_its_place_and_starts_when_it_is_there(stack: Stack) -> None:
    until(lambda: both_ready(stack), 60, "two runners are free")
    held = [stack.stream("neon") for _ in range(2)]
    first = [publisher.start(stream["publish_url"], seconds=90) for stream in held]
    for stream in held:
        stack.live_session(stream["id"])
    waiting = stack.stream("neon", wishes={"max_wait_s": 60})
    third = publisher.start(waiting["publish_url"], seconds=90)
    path = f"/v1/streams/{waiting['id']}/status"
    place = until(lambda: stack.request("GET", path)["data"]["queue"], 15, "it is in the line")
    assert place["position"] == 1
    hasty = stack.stream("neon", wishes={"max_wait_s": 0.5})
    refused = stack.http.post(
        f"/ts/{hasty['stream_key']}", content=(ROOT / "tests/data/key_frame.ts").read_bytes()
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "SLUICE/NO_CAPACITY"), refused.text
    assert refused.json()["details"]["position"] == 2
    assert int(refused.headers["Retry-After"]) >= 1

    began_s = time.monotonic()
    stack.request("DELETE", f"/v1/streams/{held[0]['id']}")
    stack.live_session(waiting["id"], 20)
    assert time.monotonic() - began_s < 15
    assert json.loads(stack.command("sessions", "--json").stdout)["data"][0]["queue"] is None
    for stream in (held[1], waiting):
        stack.request("DELETE", f"/v1/streams/{stream['id']}")
    for process in (*first, third):
        process.communicate(timeout=20)


def test_the_playground_says_that_its_stream_moved_and_where_it_waits(stack: Stack) -> None:
    until(lambda: both_ready(stack), 60, "two runners are free")
    with chromium() as browser, browser.tab() as first, browser.tab() as second, browser.tab() as third:
        for tab in (first, second):
            tab.page.goto(stack.url)
            tab.page.get_by_role("button", name="Start", exact=True).click()
            expect(tab.page.get_by_role("status")).to_have_text("Live.", timeout=30_000)
            if tab is first:
                (shown,) = stack.request("GET", "/v1/sessions")["data"]
                session = stack.live_session(shown["stream"], 30)
                stack.request("POST", f"/v1/sessions/{session}/move", 202)
                words = first.page.locator(".state", has_text="moved to another runner")
                expect(words).to_be_visible(timeout=20_000)
        slots = [one for one in stack.request("GET", "/v1/runners")["data"] if one["slots"][0]["session"]]
        assert len(slots) == 2
        third.page.goto(stack.url)
        third.page.get_by_role("button", name="Start", exact=True).click()
        expect(third.page.get_by_text("Waiting: 1st in line")).to_be_visible(timeout=20_000)
        third.page.get_by_role("button", name="Stop", exact=True).click()
