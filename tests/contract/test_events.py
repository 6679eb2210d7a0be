"""A stream's events over real HTTP: status, applied revisions, what the pipeline says, and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common.errors import NotFoundError, UnavailableError
from services.ingest.auth import Authenticator, Caller
from services.ingest.faces import context, events
from tests.support.bridge import hear
from tests.support.ingest import STREAM, Ingest, ingesting, paced, until
from tests.support.media import pictures
from tests.support.nats import nats_server

EVENTS = f"/v1/streams/{STREAM}/events"
KEY = {"Authorization": "Bearer mine"}


@pytest.fixture
async def ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ingest]:
    async def who(self: Authenticator, key: str) -> Caller:
        return Caller("acme", key)

    monkeypatch.setattr(Authenticator, "who", who)
    async with nats_server(tmp_path / "nats") as nats, ingesting(nats.url, tmp_path) as found:
        yield found


class Listener:
    """Reads events as a client does; `seen` has each as (name, what it says)."""

    def __init__(self, ingest: Ingest) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.raw = ""
        self._ingest = ingest
        self.task = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async with self._ingest.http.stream("GET", EVENTS, headers=KEY) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            name = ""
            async for line in answer.aiter_lines():
                self.raw += line + "\n"
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.seen.append((name, json.loads(line.removeprefix("data: "))))

    def of(self, name: str) -> list[dict[str, Any]]:
        return [fields for kind, fields in self.seen if kind == name]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


async def test_what_the_runner_says_of_itself_is_told_and_who_comes_late_hears_how_it_is(
    ingest: Ingest,
) -> None:
    early = Listener(ingest)
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(100), times_faster=1)))
    session = ingest.hub.session(await ingest.session())
    await until(lambda: early.of("status"))
    loading = {"why": "reload", "stage": "weights", "percent": 40}
    problem = {"stage": "load", "kind": "load_failed", "error": "OSError", "message": "<x>", "action": "held"}
    refused = {"revision": 4, "field": "params.model", "reason": "param_refused", "message": "no such model"}
    for kind, fields in (
        ("health", {"state": "loading", "cause": "reload", "since_ms": 7}),
        ("problem", problem),
        ("refused", refused),
        ("loading", loading),
    ):
        hear(session, kind, **fields)
    await until(lambda: early.of("loading"))
    assert early.of("health") == [{"state": "loading", "cause": "reload"}]
    assert early.of("problem") == [{**problem, "pts_ms": None, "frame": None}]
    assert early.of("refused") == [refused]
    assert early.of("loading") == [loading]
    late = Listener(ingest)
    await until(lambda: late.of("loading"))
    assert late.of("health") == [{"state": "loading", "cause": "reload"}]
    assert late.of("problem") == late.of("refused") == []
    status = await until(lambda: [one for one in late.of("status") if one.get("problem")])
    assert (status[0]["problem"]["error"], status[0]["loading"]) == ("OSError", loading)
    session.close("stopped", "")
    with suppress(httpx.HTTPError):
        await publishing
    for listener in (early, late):
        await listener.stop()


async def test_a_listener_is_told_of_everything_and_of_the_end_with_its_reason(ingest: Ingest) -> None:
    listener = Listener(ingest)
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(100), times_faster=1)))
    session = ingest.hub.session(await ingest.session())
    await until(lambda: listener.of("status"))
    with session.data.begin_segment() as writer:
        writer.write(b'{"pts": 90000, "data": {"looks": {"neon": 1.0}}}\n{"pts": 90001, "data": {}}\n')
    await until(lambda: len(listener.of("data")) == 2)
    assert listener.of("data")[0]["data"] == {"looks": {"neon": 1.0}}
    applied = await until(lambda: listener.of("applied"))
    assert applied == [{"revision": 3, "pts_ms": 0, "applies": "live"}]
    status = await until(lambda: [one for one in listener.of("status") if one.get("frames_out", 0) > 3])
    assert {"fps_out", "latency_ms", "cost_micro", "viewers"} <= set(status[0])
    session.close("stopped", "by a person")
    ended = await until(lambda: listener.of("ended"))
    assert (ended[0]["reason"], ended[0]["message"]) == ("stopped", "by a person")
    with suppress(httpx.HTTPError):  # it may still have been sending
        await publishing
    again = asyncio.ensure_future(ingest.publish(paced(pictures(50), times_faster=1)))
    await until(lambda: len({one["session"] for one in listener.of("status")}) == 2)
    await listener.stop()
    await again


async def test_a_listener_that_leaves_leaves_nothing_behind(ingest: Ingest) -> None:
    tasks = len(asyncio.all_tasks())
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(50), times_faster=1)))
    await ingest.session()
    listeners = [Listener(ingest) for _ in range(5)]
    await until(lambda: all(one.of("status") for one in listeners))
    assert ingest.core.listening.of(STREAM) == 5
    for one in listeners:
        await one.stop()
    await until(lambda: ingest.core.listening.of(STREAM) == 0)
    await publishing
    await until(lambda: ingest.hub.of_stream(STREAM) is None)
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)


async def test_more_listeners_than_allowed_are_refused_in_words(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    seats = [ingest.core.listening.take(STREAM, "acme") for _ in range(context.EVENT_READERS)]
    answer = await ingest.http.get(EVENTS, headers=KEY)
    assert answer.status_code == 429
    assert "20 event readers" in answer.json()["error"]
    for seat in seats:
        seat.release()


async def test_a_stream_that_is_idle_keeps_the_line_alive(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.1)
    listener = Listener(ingest)
    await until(lambda: ": still here" in listener.raw)
    assert listener.seen == []
    await listener.stop()


async def test_events_of_nobodys_stream_are_not_found(ingest: Ingest) -> None:
    assert (await ingest.http.get("/v1/streams/str_unknown/events", headers=KEY)).status_code == 404


async def test_a_record_that_is_not_written_yet_or_out_of_reach_ends_no_line(ingest: Ingest) -> None:
    ingest.sessions.fail("Get", NotFoundError("there is no session", reason="SESSION_NOT_FOUND"))
    ingest.sessions.fail("Get", UnavailableError("NATS is away", reason="NATS_UNREACHABLE"))
    listener = Listener(ingest)
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(100), times_faster=1)))
    await until(lambda: listener.of("status"))
    await listener.stop()
    await publishing


async def test_a_listener_that_comes_late_hears_the_newest_that_was_said(ingest: Ingest) -> None:
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(100), times_faster=1)))
    session = ingest.hub.session(await ingest.session())
    for number in range(3):
        with session.data.begin_segment() as writer:
            writer.write(b'{"pts": 90000, "data": {"n": %d}}\n' % number)
    listener = Listener(ingest)
    await until(lambda: listener.of("data"))
    assert [one["data"]["n"] for one in listener.of("data")] == [2]
    await listener.stop()
    await publishing
