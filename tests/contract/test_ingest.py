"""Ingest with real HTTP, trickle, gRPC and NATS; the session-manager and the runner are played."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
from nats.aio.msg import Msg

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.bus import Bus, connect
from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
)
from services.common.grpc_client import call, stream
from services.common.lifecycle import background
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import Codec
from services.common.topology import USAGE, usage_confirmed
from services.ingest.bridge import outbox as outbox_module
from services.ingest.bridge.outbox import outbox
from services.ingest.faces import ts as face
from tests.support.ingest import (
    KEYS,
    SECRET,
    STREAM,
    Ingest,
    endless,
    ingesting,
    paced,
    until,
)
from tests.support.media import FRAME, pictures, shown, sound, ts, units_of
from tests.support.nats import NatsServer, nats_server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def ingest(nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ingest]:
    monkeypatch.setattr(face, "DRAIN_S", 0.3)
    async with ingesting(nats.url, tmp_path) as found:
        yield found


async def staying(ingest: Ingest) -> str:
    """A publisher that stays until the test ends; returns its session."""
    ingest.background.start("publisher", ignored(ingest.publish(endless())))
    return await ingest.session()


async def ignored(work: Awaitable[object]) -> None:
    with suppress(httpx.HTTPError):
        await work


# --- the way of a picture


async def test_what_is_published_comes_back_to_the_viewer_in_order_with_its_sound(ingest: Ingest) -> None:
    units = sorted([*pictures(75), *sound(141)], key=lambda unit: (unit.pts, unit.codec is not Codec.H264))
    watching = asyncio.ensure_future(ingest.watch())
    answer = await ingest.publish(paced(units))
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True
    seen = await watching
    assert shown(seen) == [ORIGIN_TICKS + n * FRAME for n in range(75)]
    heard = [unit.pts for unit in units_of(seen) if unit.codec is Codec.AAC]
    assert heard == sorted(set(heard))
    assert len(heard) > 130, "all but what came before the first picture was back"
    last = ingest.sessions.reports[-1]
    assert (last.frames_in, last.frames_out, last.drained) == (75, 75, True)
    assert (last.applied_revision, last.applied_pts) == (3, 90_000)
    await until(lambda: len(ingest.hub) == 0)


async def test_two_viewers_see_the_same_and_one_that_leaves_is_not_missed(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    leaving = asyncio.ensure_future(ingest.watch())
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(75), times_faster=3)))
    session = ingest.hub.session(await ingest.session())
    await until(lambda: ingest.core.viewing.of(STREAM) == 2 and session.frames_out > 5)
    leaving.cancel()
    await until(lambda: ingest.core.viewing.of(STREAM) == 1)
    assert (await publishing).status_code == 200
    assert len(shown(await watching)) == 75


async def test_with_complete_delivery_a_fast_publisher_is_held_to_a_slow_runner_and_nothing_is_lost(
    ingest: Ingest,
) -> None:

    ingest.sessions.record.delivery = runner_pb2.DELIVERY_COMPLETE
    ingest.sessions.takes_s = 0.01
    ahead: list[int] = []
    watching = asyncio.ensure_future(ingest.watch())
    publishing = asyncio.ensure_future(ingest.publish(paced(pictures(250), times_faster=1000)))
    session = ingest.hub.session(await ingest.session())
    while not publishing.done():
        ahead.append(session.frames_in - session.frames_out)
        await asyncio.sleep(0.01)
    assert (await publishing).status_code == 200
    assert shown(await watching) == [ORIGIN_TICKS + n * FRAME for n in range(250)]
    assert max(ahead) <= 2 * 25 + 2, "two seconds, both ends counted, however much came in one chunk"
    assert session.frames_dropped == 0


# --- publishers


async def test_a_second_publisher_is_refused_and_the_first_goes_on(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    first = asyncio.ensure_future(ingest.publish(paced(pictures(50))))
    await ingest.session()
    second = await ingest.publish(paced(pictures(50), times_faster=1000))
    assert second.status_code == 409
    assert second.json()["code"] == "SLUICE/STREAM_BUSY"
    assert (await first).status_code == 200
    assert len(shown(await watching)) == 50


async def test_a_publisher_for_whom_there_is_no_slot_is_told_when_to_come_back(ingest: Ingest) -> None:
    error = ExhaustedError("no slot is free", reason="NO_CAPACITY", retry_after_s=7)
    ingest.sessions.fail("StartSession", error)
    answer = await ingest.publish(paced(pictures(50), times_faster=1000))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "7"
    assert answer.json()["code"] == "SLUICE/NO_CAPACITY"
    await until(lambda: len(ingest.hub) == 0)


async def test_a_publisher_is_answered_at_once_when_its_session_is_stopped(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    host, port = ingest.http.base_url.host, ingest.http.base_url.port
    reader, writer = await asyncio.open_connection(host, port)
    body = ts(pictures(25))
    head = f"POST /ts/{KEYS.publish(STREAM)} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n"
    writer.write(head.encode() + body)
    session = await ingest.session()
    await until(lambda: ingest.hub.session(session).frames_out > 5)
    await ingest.close(session, "stopped")
    async with asyncio.timeout(3):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 409 ")
    assert b'"code":"SLUICE/STOPPED"' in answer
    writer.close()
    assert shown(await watching)
    await until(lambda: len(ingest.hub) == 0)


async def test_a_publisher_whose_connection_breaks_may_come_back(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    first = asyncio.ensure_future(ingest.publish(endless()))
    session = ingest.hub.session(await ingest.session())
    await until(lambda: session.frames_out == 25)
    first.cancel()
    with suppress(asyncio.CancelledError):
        await first
    await until(lambda: not session.connected)
    answer = await ingest.publish(paced(pictures(25, start=7_000_000)))
    assert answer.status_code == 200
    seen = shown(await watching)
    assert len(seen) == 50
    assert seen == sorted(seen)
    assert len(ingest.sessions.requests("StartSession", sessions_pb2.StartSessionRequest)) == 1


# --- the bridge


async def test_an_open_again_gives_the_same_channels_and_a_strange_one_is_refused(ingest: Ingest) -> None:
    session = await staying(ingest)
    await until(lambda: ingest.hub.session(session).epoch)
    assert await ingest.open(session) == await ingest.open(session, overdraft_ms=0)
    urls = {url for _, url in (await ingest.open(session)).channels.ListFields()}
    assert len(urls) == 6
    assert all(url.startswith("http://127.0.0.1:") for url in urls)
    with pytest.raises(InvalidError):
        await ingest.open(session, epoch=0)
    beside = {url for _, url in (await ingest.open(session, epoch=2)).channels.ListFields()}
    assert len(beside & urls) == 1, "two runners share what they read, and nothing else"
    await ingest.close(session, epoch=2)
    for epoch, reason in ((2, "STALE_EPOCH"), (1, "EPOCH_IS_CURRENT")):
        with pytest.raises(ConflictError) as conflict:
            await (ingest.open if epoch == 2 else ingest.close)(session, epoch=epoch)
        assert conflict.value.reason == reason
    with pytest.raises(NotFoundError) as refusal:
        await ingest.open("ses_elsewhere")
    assert refusal.value.reason == "SESSION_NOT_HERE"


async def test_a_report_ends_with_its_session_after_a_last_word(ingest: Ingest) -> None:
    session = await staying(ingest)
    seen: list[bridge_pb2.BridgeReport] = []

    async def follow() -> None:
        request = bridge_pb2.ReportRequest(session=session)
        async for report in stream(ingest.bridge.Report, request, bridge_pb2.BridgeReport):
            seen.append(report)  # noqa: PERF401

    following = asyncio.ensure_future(follow())
    await until(lambda: seen and seen[-1].frames_out == 25)
    await ingest.close(session, "stopped")
    async with asyncio.timeout(2):
        await following
    assert [report.frames_in for report in seen] == sorted(report.frames_in for report in seen)
    await until(lambda: len(ingest.hub) == 0)
    with pytest.raises(NotFoundError):
        await follow()


async def test_what_is_not_there_can_be_closed_and_not_promoted(ingest: Ingest) -> None:
    await ingest.close("ses_elsewhere")
    await ingest.close("ses_elsewhere", epoch=1)
    request = bridge_pb2.PromoteRequest(session="ses_elsewhere", epoch=1)
    with pytest.raises(NotFoundError):
        await call(ingest.bridge.Promote, request, bridge_pb2.PromoteResponse, timeout_s=5)


# --- money


class Ledger:
    """Billing as the outbox sees it: takes windows from the stream and, when it likes, confirms them."""

    def __init__(self, bus: Bus) -> None:
        self.windows: list[events_pb2.UsageWindow] = []
        self.confirming = True
        self._bus = bus

    async def take(self, messages: Sequence[Msg]) -> None:
        taken = [events_pb2.UsageWindow.FromString(message.data) for message in messages]
        self.windows += taken
        if self.confirming:
            for window in taken:
                confirmed = events_pb2.UsageConfirmed(ids=[window.id]).SerializeToString()
                await self._bus.publish(usage_confirmed(window.source), confirmed)


@asynccontextmanager
async def ledger(nats_url: str) -> AsyncIterator[Ledger]:
    async with connect(nats_url, "billing") as bus:
        await bus.ensure_stream(USAGE, 1)
        found = Ledger(bus)
        async with background(consume=bus.consume(USAGE, "billing", found.take, batch=100)):
            yield found


def waiting(path: Path) -> int:
    database = sqlite3.connect(path)
    try:
        return int(database.execute("SELECT count(*) FROM usage").fetchone()[0])
    finally:
        database.close()


async def test_usage_goes_to_the_ledger_and_leaves_the_disk_when_it_is_confirmed(
    nats: NatsServer, ingest: Ingest, tmp_path: Path
) -> None:
    async with ledger(nats.url) as billing:
        await ingest.publish(paced(pictures(75), times_faster=3))
        await until(lambda: any(window.final for window in billing.windows))
        await until(lambda: waiting(tmp_path / "outbox.sqlite3") == 0)
    windows = sorted(billing.windows, key=lambda window: window.seq)
    assert [window.seq for window in windows] == list(range(1, len(windows) + 1))
    assert sum(window.frames_out for window in windows) == 75
    assert windows[-1].end_reason == "input_ended"
    delivered_ms = sum(window.quantity for window in windows if window.unit == "delivered_ms")
    assert 300 < delivered_ms <= windows[-1].to_ms
    assert {window.tenant for window in windows} == {"acme"}


async def test_what_a_killed_process_left_is_sent_by_the_next_and_confirmed_to_it(
    nats: NatsServer, tmp_path: Path
) -> None:
    path = tmp_path / "outbox.sqlite3"
    window = events_pb2.UsageWindow(id="ses:1:1", session="ses", tenant="acme", epoch=1, seq=1, quantity=500)
    async with ledger(nats.url) as billing:
        billing.confirming = False
        for count in (1, 2):  # the second process sends again what the first one sent
            async with connect(nats.url, "ingest") as bus, outbox(str(path), bus) as box:
                window.source = box.source
                await box.put(window)
                with sqlite3.connect(path) as database:
                    database.execute("UPDATE usage SET sent_s = 0")
                database.close()
                async with background(deliver=box.deliver(), confirm=box.confirm()):
                    await until(lambda: len(billing.windows) == count)  # noqa: B023
                    billing.confirming = True
        assert {one.id for one in billing.windows} == {"ses:1:1"}
        async with connect(nats.url, "ingest") as bus, outbox(str(path), bus) as box:
            with sqlite3.connect(path) as database:
                database.execute("UPDATE usage SET sent_s = 0")
            database.close()
            async with background(deliver=box.deliver(), confirm=box.confirm()):
                await until(lambda: waiting(path) == 0)


async def test_usage_waits_while_nats_is_away(
    nats: NatsServer, ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "RESEND_S", 1.0)
    watching = asyncio.ensure_future(ingest.watch())
    await nats.kill()
    assert (await ingest.publish(paced(pictures(50)))).status_code == 200
    assert len(shown(await watching)) == 50, "media needs no NATS"
    assert waiting(tmp_path / "outbox.sqlite3") >= 1
    await nats.start()
    async with ledger(nats.url) as billing:
        await until(lambda: waiting(tmp_path / "outbox.sqlite3") == 0)
    assert any(window.final for window in billing.windows)


# --- the process


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


async def process(nats_url: str, directory: Path, **variables: str) -> asyncio.subprocess.Process:
    listen, trickle, bridge = free_ports(3)
    settings = {
        "NATS_URL": nats_url,
        "LISTEN": f"127.0.0.1:{listen}",
        "TRICKLE_LISTEN": f"127.0.0.1:{trickle}",
        "BRIDGE_LISTEN": f"127.0.0.1:{bridge}",
        "METRICS_LISTEN": "127.0.0.1:0",
        "RTMP_LISTEN": "127.0.0.1:0",
        "OUTBOX_PATH": str(directory / "outbox.sqlite3"),
        "STREAM_SECRET": SECRET,
        "LOG_LEVEL": "warning",
        **variables,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.ingest"),
        env={**inherited, **{f"SLUICE_INGEST_{name}": value for name, value in settings.items() if value}},
        stderr=asyncio.subprocess.PIPE,
    )


async def over(started: asyncio.subprocess.Process) -> tuple[int | None, list[str]]:
    try:
        async with asyncio.timeout(15):
            _, said = await started.communicate()
    finally:
        with suppress(ProcessLookupError):
            started.kill()
    return started.returncode, said.decode().splitlines()


async def test_sigterm_ends_the_process_with_status_0(nats: NatsServer, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    started = await process(nats.url, tmp_path, LISTEN=f"127.0.0.1:{port}")
    async with httpx.AsyncClient() as client, asyncio.timeout(15):
        while True:
            assert started.returncode is None
            with suppress(httpx.TransportError):
                if (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200:
                    break
            await asyncio.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert await over(started) == (0, [])


@pytest.mark.parametrize(
    ("variable", "value"), [("STREAM_SECRET", ""), ("STREAM_SECRET", "short"), ("WINDOW_S", "soon")]
)
async def test_a_wrong_setting_ends_the_process_with_status_2_and_its_name(
    tmp_path: Path, variable: str, value: str
) -> None:
    status, (line,) = await over(await process("nats://127.0.0.1:1", tmp_path, **{variable: value}))
    assert status == 2
    assert line.startswith(f"SLUICE_INGEST_{variable}: ")


@pytest.mark.parametrize("variable", ["LISTEN", "TRICKLE_LISTEN", "BRIDGE_LISTEN", "METRICS_LISTEN"])
async def test_a_taken_port_ends_the_process_with_one_line(
    nats: NatsServer, tmp_path: Path, variable: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status, (line,) = await over(await process(nats.url, tmp_path, **{variable: listen}))
    assert status == 1
    assert line.startswith("cannot run: ")
    assert "in use" in line


async def test_an_outbox_that_cannot_be_used_ends_the_process_with_one_line(
    nats: NatsServer, tmp_path: Path
) -> None:
    status, (line,) = await over(await process(nats.url, tmp_path, OUTBOX_PATH="/no/such/directory/box"))
    assert status == 1
    assert line == "cannot run: cannot use the outbox at /no/such/directory/box: unable to open database file"
