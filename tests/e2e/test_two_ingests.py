"""Two ingest processes of one installation: a stream's media is at one of them, and either can be asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from services.common.media.mpegts import Codec, Demuxer
from tests.support import publisher
from tests.support.browser import chromium
from tests.support.stack import ROOT, Stack, free_ports, running, until
from tests.support.viewer import finish

SDP = {"Content-Type": "application/sdp"}


@dataclass
class Second:
    """Another ingest process of an installation, and a client of its public HTTP with the tenant's key."""

    process: subprocess.Popen[bytes]
    http: httpx.Client
    url: str
    rtmp_url: str


@contextmanager
def second_ingest(stack: Stack, directory: Path) -> Iterator[Second]:
    """Run a second one until the block ends."""
    names = ("listen", "trickle_listen", "public_trickle_listen", "bridge_listen", "metrics_listen")
    ports = dict(zip((*names, "rtmp_listen", "webrtc_listen"), free_ports(7, size=3), strict=True))
    settings = {name: f"127.0.0.1:{port}" for name, port in ports.items()} | {
        "nats_url": f"nats://127.0.0.1:{stack.ports['NATS']}",
        "session_manager_address": f"127.0.0.1:{stack.ports['SESSION_MANAGER']}",
        "router_address": f"127.0.0.1:{stack.ports['ROUTER']}",
        "billing_address": f"127.0.0.1:{stack.ports['BILLING']}",
        "stream_secret": (stack.directory / "state" / "stream-secret").read_text(),
        "outbox_path": str(directory / "outbox.sqlite3"),
    }
    environment = {**os.environ, **{f"SLUICE_INGEST_{name.upper()}": text for name, text in settings.items()}}
    log = (directory / "second.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "services.ingest"], cwd=ROOT, env=environment, stdout=log, stderr=log
    )
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{ports['listen']}",
        headers={"Authorization": f"Bearer {stack.key}"},
        timeout=30,
    )

    def answers() -> bool:
        try:
            return client.get("/v1/prices").status_code == 200
        except httpx.HTTPError:
            return False

    try:
        until(answers, 20, "the second ingest process is up")
        url, rtmp_url = (
            f"http://127.0.0.1:{ports['listen']}",
            f"rtmp://127.0.0.1:{ports['rtmp_listen']}/live",
        )
        yield Second(process, client, url, rtmp_url)
    finally:
        client.close()
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack"), SLUICE_INGEST_PUBLISHER_GRACE_S="4") as stack:
        yield stack


@pytest.fixture(scope="module")
def other(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with second_ingest(stack, tmp_path_factory.mktemp("second")) as second:
        yield second.http


def test_a_stream_is_watched_steered_and_followed_through_the_process_that_does_not_have_it(
    stack: Stack, other: httpx.Client
) -> None:
    stack.until_free(20)
    stream = stack.stream("neon")
    path = f"/v1/streams/{stream['id']}"
    process = publisher.start(stream["publish_url"], seconds=20)
    session = stack.live_session(stream["id"])

    seen: list[str] = []

    def follow() -> None:
        with other.stream("GET", f"{path}/events") as answer:
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    seen.append(line.removeprefix("event: "))
                if seen and seen[-1] == "ended":
                    return

    following = threading.Thread(target=follow, daemon=True)
    following.start()
    until(lambda: "status" in seen or None, 10, "events come through the other process")

    watched, demuxer = 0, Demuxer()
    with other.stream("GET", f"/ts/{stream['output_playback_id']}") as answer:
        assert answer.status_code == 200
        for data in answer.iter_bytes():
            watched += sum(unit.codec is Codec.H264 for unit in demuxer.feed(data))
            if watched > 20:
                break
    patched = other.patch(path, params={"wait": "applied"}, json={"params": {"prompt": "sketch"}})
    assert patched.status_code == 200, patched.text
    assert patched.json()["update"]["pts_ms"] > 0
    status = other.get(f"{path}/status").json()["data"]
    assert status["inference_status"]["output_fps"] > 0, "only the process with the media knows"
    latency = f"/v1/sessions/{session}/latency"
    until(
        lambda: other.get(latency).status_code == 200 or None, 5, "latency, of which a report comes a second"
    )
    assert other.delete(f"/v1/sessions/{session}").status_code == 200
    following.join(15)
    assert seen[-1] == "ended"
    assert "applied" in seen
    finish(process)


def test_a_browser_publishes_and_watches_by_webrtc_through_the_process_that_does_not_have_it(
    stack: Stack, other: httpx.Client
) -> None:
    stack.until_free(20)
    stream = stack.stream(pipeline="passthrough", params={})
    base = str(other.base_url).rstrip("/")
    with chromium() as browser, browser.tab() as tab:
        publishing = tab.publish(stream["whip_url"])
        stack.live_session(stream["id"])
        watching = tab.watch(f"{base}/whep/{stream['output_playback_id']}")
        tab.call("firstPicture", watching["id"], {"since": watching["postedAt"]})
        assert tab.call("ages", watching["id"], {"ms": 2000})["backwards"] == 0
        again = other.post(f"/whip/{stream['stream_key']}", content="v=0", headers=SDP)
        assert again.status_code in {400, 409}, "asked of the process that has the publisher"
        tab.call("stop", publishing["id"])
    shown = stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
    assert stack.ended(shown, 45)["end_reason"] in {"input_ended", "publisher_gone"}


def test_a_second_publisher_is_refused_by_the_process_that_has_the_first(
    stack: Stack, other: httpx.Client
) -> None:
    stack.until_free(20)
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=8)
    stack.live_session(stream["id"])
    refused = other.post(f"/ts/{stream['stream_key']}", content=b"G" * 188)
    assert refused.status_code == 409
    assert refused.json()["code"] == "SLUICE/STREAM_BUSY"
    stack.request("DELETE", f"/v1/streams/{stream['id']}")
    finish(process)


def test_what_nobody_has_is_answered_where_it_was_asked(other: httpx.Client) -> None:
    made = other.post("/v1/streams", json={"pipeline": "effects"}).json()
    assert other.get(f"/v1/streams/{made['id']}/status").json()["data"]["state"] == "OFFLINE"
    assert other.get("/ts/pbk_nonsense-aaaa").status_code == 404
    assert other.get("/v1/streams/str_unknown").status_code == 404


def test_a_process_that_has_gone_is_said_to_be_gone_within_seconds(stack: Stack, other: httpx.Client) -> None:
    stack.until_free(20)
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=20)
    stack.live_session(stream["id"])
    stack.kill("ingest")
    answer = other.get(f"/v1/streams/{stream['id']}/status")
    assert answer.status_code in {200, 503}, answer.text
    if answer.status_code == 503:
        assert json.loads(answer.text)["code"] == "STREAMS/OWNER_UNREACHABLE"
    finish(process)
