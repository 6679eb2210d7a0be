"""A live stream through the five services: created, published, watched, steered, ended."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import av
import httpx
import pytest

from tests.support import publisher
from tests.support.stack import Stack, until
from tests.support.viewer import finish, record


def test_a_published_stream_is_transformed_and_watched_with_its_sound(stack: Stack, tmp_path: Path) -> None:
    stream = stack.stream("neon")
    watching = record(stream["play_url"], tmp_path / "out.ts")
    assert finish(publisher.start(stream["publish_url"], seconds=4, audio=True)) == 0
    watching.join(20)
    with av.open(str(tmp_path / "out.ts")) as out:
        frames = list(out.decode(out.streams.video[0]))
    with av.open(str(tmp_path / "out.ts")) as out:
        sound = list(out.decode(out.streams.audio[0]))
    assert len(frames) >= 80
    times = [frame.pts or 0 for frame in frames]
    assert times == sorted(set(times)), "pictures go forward"
    assert times[0] >= 90_000, "the first published picture is at 90 000 ticks"
    assert (frames[0].width, frames[0].height) == (320, 240)
    # neon is dark where the source is not: the picture was really transformed
    assert frames[40].to_ndarray(format="gray").mean() < 80
    assert len(sound) > 100
    assert abs((sound[-1].time or 0) - (frames[-1].time or 0)) < 0.3
    session = stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
    ended = stack.ended(session)
    assert (ended["phase"], ended["end_reason"]) == ("ended", "input_ended")


def test_a_stream_has_the_shape_that_daydreams_clients_want(stack: Stack) -> None:
    stream = stack.stream()
    needed = (
        "id stream_key output_stream_url created_at output_playback_id name author from_playground "
        "gateway_host is_smoke_test whip_url pipeline params"
    )
    assert set(needed.split()) <= set(stream)
    assert stream["id"].startswith("str_")
    assert stream["stream_key"].startswith("stk_")
    assert stack.request("GET", f"/v1/streams/{stream['id']}")["id"] == stream["id"]
    listed = until(
        lambda: [s for s in stack.request("GET", "/v1/streams")["data"] if s["id"] == stream["id"]],
        3,
        "listed",
    )
    assert listed[0]["params"]["strength"] == 1.0, "the echo has the defaults"
    patched = stack.request("PATCH", f"/v1/streams/{stream['id']}", json={"params": {"prompt": "sketch"}})
    assert patched["params"]["prompt"] == "sketch"
    assert stack.request("GET", f"/v1/streams/{stream['id']}/status")["data"]["state"] == "OFFLINE"
    assert stack.request("DELETE", "/v1/streams", params={"id": stream["id"]}) == {
        "success": True,
        "data": {},
    }
    gone = stack.request("GET", f"/v1/streams/{stream['id']}", 404)
    assert {"success", "error", "code", "status", "details", "requestId", "traceId"} <= set(gone)
    assert gone["code"] == "STREAMS/STREAM_NOT_FOUND"


def test_a_wrong_parameter_is_refused_by_name_and_changes_nothing(stack: Stack) -> None:
    refused = stack.request(
        "POST", "/v1/streams", 400, json={"pipeline": "effects", "params": {"strength": 7}}
    )
    assert refused["details"]["field"] == "params.strength"
    assert (
        stack.request("POST", "/v1/streams", 400, json={"pipeline": "nope"})["details"]["field"] == "pipeline"
    )
    stream = stack.stream()
    bad = {"params": {"prompt": "sketch", "colour": 1}}
    refused = stack.request("PATCH", f"/v1/streams/{stream['id']}", 400, json=bad)
    assert refused["details"]["field"] == "params.colour"
    assert stack.request("GET", f"/v1/streams/{stream['id']}")["params"]["prompt"] == "neon"


def test_a_call_without_a_good_key_is_refused(stack: Stack) -> None:
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer sk_no_such"}):
        answer = stack.http.get("/v1/streams", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["success"] is False


def test_a_change_is_acknowledged_when_it_is_in_a_picture(stack: Stack) -> None:
    stream = stack.stream("neon")
    process = publisher.start(stream["publish_url"], seconds=6)
    try:
        stack.live_session(stream["id"])
        answer = stack.request(
            "PATCH", f"/v1/streams/{stream['id']}?wait=applied", json={"params": {"prompt": "sketch"}}
        )
        assert answer["update"]["applies"] == "live"
        assert answer["update"]["pts_ms"] > 0
        at_ms = answer["update"]["pts_ms"] + 1500
        answer = stack.request(
            "PATCH",
            f"/v1/streams/{stream['id']}?wait=applied",
            json={"params": {"prompt": "watercolor"}, "apply_at_ms": at_ms},
        )
        assert at_ms <= answer["update"]["pts_ms"] <= at_ms + 100
    finally:
        finish(process)
    params = until(
        lambda: (
            stack.request("GET", f"/v1/streams/{stream['id']}")["params"]["prompt"] == "watercolor" or None
        ),
        3,
        "what was scheduled is in the stream's parameters",
    )
    assert params


def test_a_second_publisher_is_refused_while_the_first_is_there(stack: Stack) -> None:
    stream = stack.stream()
    first = publisher.start(stream["publish_url"], seconds=5)
    stack.live_session(stream["id"])
    answer = httpx.post(stream["publish_url"], content=b"G" * 1000, timeout=10)
    assert answer.status_code == 409
    assert answer.json()["code"].endswith("STREAM_BUSY")
    assert finish(first) == 0


def test_without_a_free_slot_a_publisher_gets_503_with_retry_after(stack: Stack) -> None:
    busy, waiting = stack.stream(), stack.stream()
    process = publisher.start(busy["publish_url"], seconds=9)
    stack.live_session(busy["id"])
    with (Path(__file__).parents[1] / "data" / "key_frame.ts").open("rb") as body:
        answer = httpx.post(waiting["publish_url"], content=body.read(), timeout=30)
    assert answer.status_code == 503, answer.text
    assert answer.json()["code"].endswith("NO_CAPACITY")
    assert int(answer.headers["Retry-After"]) >= 1
    process.kill()
    finish(process)


@pytest.mark.parametrize(
    "body",
    [b"", b"garbage" * 5000, b"\x47" * 188 * 200, b"\x00" * 100_000],
    ids=["nothing", "text", "sync", "zeros"],
)
def test_garbage_is_refused_with_a_sentence_and_takes_no_slot(stack: Stack, body: bytes) -> None:
    stream = stack.stream()
    answer = httpx.post(stream["publish_url"], content=body, timeout=20)
    assert answer.status_code == 400
    assert "H.264" in answer.json()["error"]
    assert stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"] is None
    assert stack.free_slots() == 1


def test_half_a_key_frame_and_then_silence_is_refused(stack: Stack) -> None:
    stream = stack.stream()
    target = urlsplit(stream["publish_url"])
    whole = (Path(__file__).parents[1] / "data" / "key_frame.ts").read_bytes()
    with socket.create_connection((target.hostname or "", target.port or 80), timeout=10) as connection:
        half = whole[: 4 * 188]  # the tables, and a part of the picture
        connection.sendall(
            f"POST {target.path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + f"{len(half):x}\r\n".encode() + half + b"\r\n"
        )  # fmt: skip
        answer = connection.recv(4096)
    assert b" 400 " in answer.split(b"\r\n")[0], answer
    assert stack.free_slots() == 1


def test_a_publisher_that_vanishes_may_come_back_within_its_grace(stack: Stack) -> None:
    stream = stack.stream()
    first = publisher.start(stream["publish_url"], seconds=60)
    session = stack.live_session(stream["id"])
    first.kill()
    finish(first)
    time.sleep(0.5)
    again = publisher.start(stream["publish_url"], seconds=3)
    assert finish(again) == 0
    ended = stack.ended(session)
    assert ended["end_reason"] == "input_ended", "one session, over both connections"


def test_a_publisher_that_stays_away_ends_its_session_when_the_grace_ends(stack: Stack) -> None:
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=60)
    session = stack.live_session(stream["id"])
    process.kill()
    finish(process)
    until(lambda: stack.session(session)["phase"] == "paused" or None, 4, "paused")
    ended = stack.ended(session, within_s=10)
    assert ended["end_reason"] == "publisher_gone"
    assert stack.usage(session)["settled"]


def test_a_stop_frees_the_slot_within_two_seconds_and_tells_the_publisher(stack: Stack) -> None:
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=60)
    session = stack.live_session(stream["id"])
    stack.request("DELETE", f"/v1/sessions/{session}")
    stack.until_free(2)
    assert stack.session(session)["end_reason"] == "stopped"
    assert finish(process, 20) != 0, "the publisher's connection was ended"


def test_a_viewer_that_never_reads_harms_nobody(stack: Stack, tmp_path: Path) -> None:
    stream = stack.stream()
    target = urlsplit(stream["play_url"])
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect((target.hostname, target.port))
        lazy.sendall(f"GET {target.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        watching = record(stream["play_url"], tmp_path / "out.ts")
        assert finish(publisher.start(stream["publish_url"], seconds=5, size="640x480")) == 0
        watching.join(20)
        assert not watching.is_alive()
    with av.open(str(tmp_path / "out.ts")) as out:
        assert sum(1 for _ in out.decode(video=0)) >= 100


def test_deleting_a_stream_ends_its_session(stack: Stack) -> None:
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=60)
    session = stack.live_session(stream["id"])
    stack.request("DELETE", f"/v1/streams/{stream['id']}")
    assert stack.ended(session)["end_reason"] == "stream_deleted"
    finish(process, 20)
