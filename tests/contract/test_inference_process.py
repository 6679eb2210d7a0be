"""`python -m services.inference` as a process: how it starts, ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from services.common.bus import connect
from services.common.errors import ConflictError, UnavailableError
from services.common.grpc_client import call, channel, stream
from services.common.grpc_server import serve_grpc
from services.common.lifecycle import background
from services.common.topology import RUNNERS
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference.supervisor import FROZEN_S
from tests.support.engine import video
from tests.support.inference import Bridge, Runner
from tests.support.nats import NatsServer, nats_server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def process(
    nats_url: str, port: int, **settings: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, psutil.Process]]:
    """A runner that is ready, and its engine."""
    wanted = {
        "nats_url": nats_url,
        "listen": f"127.0.0.1:{port}",
        "metrics_listen": "127.0.0.1:0",
        "runner": "r1",
        "log_level": "warning",
    }
    variables = {f"SLUICE_INFERENCE_{name.upper()}": value for name, value in (wanted | settings).items()}
    runner = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.inference", env={**os.environ, **variables}
    )
    try:
        await until_ready(port)
        (engine,) = [
            child
            for child in psutil.Process(runner.pid).children()
            if "services.inference.engine" in child.cmdline()
        ]
        yield runner, engine
    finally:
        if runner.returncode is None:
            runner.kill()
            await runner.wait()


async def until_ready(port: int) -> None:
    async with channel(f"127.0.0.1:{port}") as open_channel, asyncio.timeout(20):
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        while True:
            try:
                answer = await call(
                    stub.Describe, runner_pb2.DescribeRequest(), runner_pb2.DescribeResponse, timeout_s=2
                )
            except UnavailableError:
                await asyncio.sleep(0.1)
                continue
            if answer.state.state == events_pb2.RUNNER_STATE_READY:
                return
            await asyncio.sleep(0.05)


async def test_a_terminated_runner_exits_cleanly_and_leaves_no_child_and_no_advert(nats: NatsServer) -> None:
    port = free_port()
    async with connect(nats.url, "test") as bus, process(nats.url, port) as (runner, engine):
        bucket = await bus.bucket(RUNNERS, 1)
        async with asyncio.timeout(5):
            while await bucket.get("r1") is None:
                await asyncio.sleep(0.05)
        runner.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(runner.wait(), 8) == 0
        assert not engine.is_running()
        assert await bucket.get("r1") is None


def attach(session: str = "s1") -> runner_pb2.AttachRequest:
    """Nothing answers there: the session waits for its bridge."""
    request = runner_pb2.AttachRequest(
        session=session, session_epoch=1, slot_epoch=1, pipeline="passthrough", revision=1
    )
    request.delivery = runner_pb2.DELIVERY_LIVE
    for kind in ("in", "out", "control", "events", "data"):
        setattr(request.channels, kind, f"http://127.0.0.1:9/{kind}")
    return request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_session_of_a_runner_that_leaves_without_it_ends_with_a_reason(
    nats: NatsServer, number: signal.Signals
) -> None:
    port = free_port()
    drain_s = "0.5" if number is signal.SIGTERM else "30"
    async with (
        process(nats.url, port, drain_s=drain_s) as (runner, engine),
        channel(f"127.0.0.1:{port}") as open_channel,
    ):
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        await call(stub.Attach, attach(), runner_pb2.AttachResponse, timeout_s=2)
        reports: list[runner_pb2.SlotReport] = []
        watch = runner_pb2.WatchRequest(session="s1", slot_epoch=1)
        async for report in stream(stub.Watch, watch, runner_pb2.SlotReport):
            if not reports:
                runner.send_signal(number)
            reports.append(report)
        assert reports[-1].state == runner_pb2.SlotReport.STATE_FAILED
        assert reports[-1].reason == "runner_stopped"
        assert await asyncio.wait_for(runner.wait(), 8) == 0
        assert not engine.is_running()


class Mover(sessions_pb2_grpc.SessionsServicer):
    """Moves the sessions of a runner away when it is asked for the second time."""

    def __init__(self, runner: runner_pb2_grpc.RunnerStub) -> None:
        self.asked: list[str] = []
        self._runner = runner

    async def DrainRunner(
        self, request: sessions_pb2.DrainRunnerRequest, context: Any
    ) -> sessions_pb2.DrainRunnerResponse:
        self.asked.append(request.runner)
        if len(self.asked) > 1:
            gone = runner_pb2.DetachRequest(session="s1", slot_epoch=1, reason="moved")
            await call(self._runner.Detach, gone, runner_pb2.DetachResponse, timeout_s=5)
        return sessions_pb2.DrainRunnerResponse(sessions=1)


async def test_a_terminated_runner_leaves_when_its_sessions_were_moved(nats: NatsServer) -> None:
    port, sessions = free_port(), free_port()
    async with channel(f"127.0.0.1:{port}") as open_channel:
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        mover = Mover(stub)  # type: ignore[abstract]  # only what is called
        async with (
            serve_grpc(
                lambda server: sessions_pb2_grpc.add_SessionsServicer_to_server(mover, server),
                f"127.0.0.1:{sessions}",
                1.0,
            ),
            process(nats.url, port, session_manager_address=f"127.0.0.1:{sessions}") as (runner, _),
        ):
            await call(stub.Attach, attach(), runner_pb2.AttachResponse, timeout_s=2)
            runner.send_signal(signal.SIGTERM)
            await until(lambda: mover.asked != [])
            with pytest.raises(ConflictError) as draining:
                await call(stub.Attach, attach("s2"), runner_pb2.AttachResponse, timeout_s=2)
            assert draining.value.reason == "DRAINING"
            drain = runner_pb2.DrainRequest(cancel=True)
            (claim,) = (await call(stub.Drain, drain, runner_pb2.DrainResponse, timeout_s=2)).claims
            assert claim.session == "s1"
            description = await call(
                stub.Describe, runner_pb2.DescribeRequest(), runner_pb2.DescribeResponse, timeout_s=2
            )
            assert description.state.state == events_pb2.RUNNER_STATE_DRAINING  # it leaves all the same
            assert await asyncio.wait_for(runner.wait(), 10) == 0
        assert set(mover.asked) == {"r1"}


async def test_a_killed_runner_leaves_no_engine(nats: NatsServer) -> None:
    async with process(nats.url, free_port()) as (runner, engine):
        runner.kill()
        await runner.wait()
        await until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


async def test_a_wrong_setting_is_named() -> None:
    ended = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.inference"),
        env={**os.environ, "SLUICE_INFERENCE_SLOTS": "none"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await ended.communicate()
    assert ended.returncode == 2
    assert b"SLUICE_INFERENCE_SLOTS" in said


@asynccontextmanager
async def streaming(
    nats: NatsServer, **settings: str
) -> AsyncIterator[tuple[psutil.Process, Bridge, Runner]]:
    """A runner in a process of its own with a session, whose publisher sends on."""
    port, registry = free_port(), Registry()
    async with (
        connect(nats.url, "test") as bus,
        serve_trickle(trickle_app(registry), "127.0.0.1:0", 1.0) as trickle_port,
        process(nats.url, port, **settings) as (started, engine),
        channel(f"127.0.0.1:{port}") as open_channel,
    ):
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        runner = Runner(port, bus, (registry, trickle_port), [], stub, engine.pid)
        async with runner.bridge() as bridge:
            await runner.attach(bridge, delivery=runner_pb2.DELIVERY_LIVE)
            async with background(play=bridge.play(video(1800))):
                await until(lambda: len(bridge.out) > 10)
                yield psutil.Process(started.pid), bridge, runner


@pytest.mark.timeout(60)
async def test_a_runner_that_stood_still_does_not_blame_its_engine(nats: NatsServer) -> None:
    async with streaming(nats, hang_after_s="1.5") as (process_, bridge, runner):
        process_.suspend()
        await asyncio.sleep(FROZEN_S + 1)
        shown = bridge.out[-1].pts
        process_.resume()
        await until(lambda: bridge.out[-1].pts > shown)
        await asyncio.sleep(2)  # it would have been killed by now
        assert psutil.pid_exists(runner.engine_pid)
        assert all(before.pts < after.pts for before, after in pairwise(bridge.out))
        assert bridge.told("problem") == []


@pytest.mark.timeout(60)
async def test_a_runner_that_was_replaced_while_it_stood_still_shows_nothing_and_lets_go(
    nats: NatsServer,
) -> None:
    async with streaming(nats, bridge_lost_after_s="1") as (process_, bridge, runner):
        process_.suspend()
        await asyncio.sleep(0.5)
        for kind in ("out", "control", "events", "data", "state"):
            bridge.shut(kind)
        await asyncio.sleep(0.5)
        shown = len(bridge.out)
        process_.resume()
        async with asyncio.timeout(5):
            while (await runner.describe()).state.claims:
                await asyncio.sleep(0.05)
        assert len(bridge.out) == shown
        await runner.detach()  # whoever comes late with it
