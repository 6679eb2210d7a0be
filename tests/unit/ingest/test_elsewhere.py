"""A session at another ingest process: it is asked while it answers, and replaced where it does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError
from services.common.http_server import serve_http
from services.ingest.bridge.identity import Identity
from services.ingest.faces import elsewhere
from services.ingest.faces.elsewhere import Kind, kind_of
from tests.support.house import KEYS, House, housing, seven

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/ts/stk_a", Kind.PUBLISH),
        ("PUT", "/ts/stk_a", Kind.PUBLISH),
        ("POST", "/whip/stk_a", Kind.PUBLISH),
        ("POST", "/live/video-to-video/stk_a/whip", Kind.PUBLISH),
        ("POST", "/whep/pbk_a", Kind.VIEW),
        ("POST", "/webrtc/whep/pbk_a", Kind.VIEW),
        ("GET", "/ts/pbk_a", Kind.VIEW),
        ("GET", "/hls/pbk_a/live.m3u8", Kind.VIEW),
        ("GET", "/v1/streams/str_a/events", Kind.VIEW),
        ("GET", "/v1/streams/str_a/status", Kind.ASK),
        ("PATCH", "/v1/streams/str_a", Kind.ASK),
        ("DELETE", "/v1/streams/str_a", Kind.ASK),
        ("GET", "/v1/sessions/ses_a/latency", Kind.ASK),
        ("PATCH", "/whip/stk_a/peer", Kind.TALK),
        ("DELETE", "/whep/pbk_a/peer", Kind.TALK),
        ("PATCH", "/api/v1/webrtc/offer/str_a", Kind.TALK),
    ],
)
def test_what_a_request_is_for_is_seen_from_its_path(method: str, path: str, kind: Kind) -> None:
    assert kind_of(method, path) is kind


class Other:
    """Another ingest process, as far as one is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.url = ""
        self.hangs = asyncio.Event()
        self.left = asyncio.Event()


@asynccontextmanager
async def another() -> AsyncIterator[Other]:
    other, app = Other(), FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def answer(path: str, request: Request) -> PlainTextResponse:
        other.asked.append(f"{request.method} /{path}")
        if path.startswith("whip"):
            await request.body()
            other.hangs.set()
            assert (await request.receive())["type"] == "http.disconnect"
            other.left.set()
        return PlainTextResponse("the other one")

    async with serve_http(app, "127.0.0.1:0", 0.1) as port:
        other.url = f"http://127.0.0.1:{port}"
        yield other


async def stream_at(house: House, url: str) -> str:
    made: str = (await house.stream())["id"]
    house.record(made, sessions_pb2.PHASE_LIVE, signalling=url)
    house.plane.known[made].session = "ses_mine"
    return made


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with housing(viewer_wait_s=5.0, hls_wait_s=0.2) as found:
        yield found


async def test_a_process_that_answers_is_asked(house: House) -> None:
    async with another() as other:
        stream = await stream_at(house, other.url)
        answer = await house.client.get(f"/ts/{KEYS.playback(stream)}")
        assert answer.text == "the other one"
        assert other.asked == [f"GET /ts/{KEYS.playback(stream)}"]


async def test_a_publisher_is_taken_in_where_its_process_does_not_answer(house: House) -> None:
    stream = await stream_at(house, NOBODY)
    answer = await house.client.post(f"/ts/{KEYS.publish(stream)}", content=b"garbage")
    assert (answer.status_code, seven(answer)["code"]) == (400, "SLUICE/NO_PICTURE"), "it was read here"


async def test_a_process_that_died_while_it_was_believed_to_live_is_asked_no_more(house: House) -> None:
    async with another() as other:
        stream = await stream_at(house, other.url)
        assert (await house.client.get(f"/ts/{KEYS.playback(stream)}")).text == "the other one"
    answer = await house.client.post(f"/ts/{KEYS.publish(stream)}", content=b"garbage")
    assert seven(answer)["code"] == "SLUICE/NO_PICTURE", "the body was kept for who takes it in"


async def test_a_process_that_takes_connections_and_says_nothing_is_not_waited_for(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "PROBE_S", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        stream = await stream_at(house, f"http://127.0.0.1:{port}")
        async with asyncio.timeout(5):
            answer = await house.client.post(f"/ts/{KEYS.publish(stream)}", content=b"garbage")
        assert seven(answer)["code"] == "SLUICE/NO_PICTURE"


async def test_what_the_record_knows_is_answered_where_its_process_does_not_answer(house: House) -> None:
    stream = await stream_at(house, NOBODY)
    status = (await house.call("GET", f"/v1/streams/{stream}/status"))["data"]
    assert (status["state"], status["sluice"]["session"]) == ("ONLINE", "ses_mine")
    await house.call("PATCH", f"/v1/streams/{stream}", json={"params": {"prompt": "neon"}})
    assert len(house.plane.updates) == 1


async def test_what_only_the_owner_has_is_said_to_be_out_of_reach(house: House) -> None:
    stream = await stream_at(house, NOBODY)
    answer = await house.client.delete(f"/whip/{KEYS.publish(stream)}/peer")
    assert (answer.status_code, seven(answer)["code"]) == (503, "SLUICE/OWNER_UNREACHABLE")


async def test_a_viewer_waits_until_its_stream_goes_on_here(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "AGAIN_S", 0.02)
    stream = await stream_at(house, NOBODY)
    waiting = asyncio.ensure_future(house.client.get(f"/ts/{KEYS.playback(stream)}"))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    session = house.hub.create(
        Identity("ses_mine", stream, "acme", "effects", complete=False, traceparent="")
    )
    session.open(bridge_pb2.OpenRequest(session="ses_mine", epoch=2, paid_until_ms=60_000))
    async with asyncio.timeout(5):
        while not house.core.viewing.of(stream):
            await asyncio.sleep(0.02)
    session.close("stopped", "")
    assert (await waiting).status_code == 200


async def test_a_viewer_waits_until_its_stream_goes_on_at_a_third_process(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "AGAIN_S", 0.02)
    stream = await stream_at(house, NOBODY)
    waiting = asyncio.ensure_future(house.client.get(f"/ts/{KEYS.playback(stream)}"))
    await asyncio.sleep(0.1)
    async with another() as other:
        house.plane.records["ses_mine"].signalling = other.url
        assert (await waiting).text == "the other one"


async def test_a_viewer_is_told_in_the_end_that_nobody_came_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "AGAIN_S", 0.02)
    stream = await stream_at(house, NOBODY)
    began_s = asyncio.get_running_loop().time()
    answer = await house.client.get(f"/hls/{KEYS.playback(stream)}/index.m3u8")
    assert (answer.status_code, seven(answer)["code"]) == (503, "SLUICE/OWNER_UNREACHABLE")
    assert "Retry-After" in answer.headers
    waited_s = asyncio.get_running_loop().time() - began_s
    assert waited_s < 2 * house.core.settings.hls_wait_s, "it is waited for once"


async def test_a_viewer_does_not_wait_for_a_process_that_stands_still(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "PROBE_S", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        stream = await stream_at(house, f"http://127.0.0.1:{port}")
        async with asyncio.timeout(5):
            answer = await house.client.get(f"/hls/{KEYS.playback(stream)}/index.m3u8")
    assert (answer.status_code, seven(answer)["code"]) == (503, "SLUICE/OWNER_UNREACHABLE")


async def test_who_leaves_the_line_at_another_process_is_missed_there(house: House) -> None:
    async with another() as other:
        stream = await stream_at(house, other.url)
        waiting = asyncio.ensure_future(house.client.post(f"/whip/{KEYS.publish(stream)}", content=b"v=0"))
        async with asyncio.timeout(5):
            await other.hangs.wait()
            waiting.cancel()
            await other.left.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting


@pytest.mark.parametrize("reason", ["moved", "bridge_lost"])
async def test_events_end_where_the_stream_goes_on_at_another_process(house: House, reason: str) -> None:
    stream: str = (await house.stream())["id"]
    live = house.live(stream)
    house.record(stream, sessions_pb2.PHASE_LIVE)
    following = asyncio.ensure_future(house.client.get(f"/v1/streams/{stream}/events"))
    await asyncio.sleep(0.05)
    live.close(reason, "its publisher comes back by another process")
    async with asyncio.timeout(5):
        answer = await following
    assert "event: ended" not in answer.text, "the session has not ended"


async def test_an_owner_nobody_can_name_is_this_process(house: House) -> None:
    stream = await stream_at(house, NOBODY)
    house.plane.error = NotFoundError("no such stream", reason="STREAM_NOT_FOUND")
    answer: httpx.Response = await house.client.get(f"/v1/streams/{stream}/status")
    assert answer.status_code == 200
