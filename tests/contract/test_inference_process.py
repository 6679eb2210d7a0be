"""`python -m services.inference` as a process: how it starts, ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from services.common.bus import connect
from services.common.errors import UnavailableError
from services.common.grpc_client import call, channel, stream
from services.common.topology import RUNNERS
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


async def test_a_session_of_a_terminated_runner_ends_with_a_reason(nats: NatsServer) -> None:
    port = free_port()
    async with process(nats.url, port) as (runner, engine), channel(f"127.0.0.1:{port}") as open_channel:
        stub = runner_pb2_grpc.RunnerStub(open_channel)
        request = runner_pb2.AttachRequest(
            session="s1", session_epoch=1, slot_epoch=1, pipeline="passthrough", revision=1
        )
        request.delivery = runner_pb2.DELIVERY_LIVE
        # Nothing answers there: the session waits for its bridge.
        for kind in ("in", "out", "control", "events", "data"):
            setattr(request.channels, kind, f"http://127.0.0.1:9/{kind}")
        await call(stub.Attach, request, runner_pb2.AttachResponse, timeout_s=2)
        reports: list[runner_pb2.SlotReport] = []
        watch = runner_pb2.WatchRequest(session="s1", slot_epoch=1)
        async for report in stream(stub.Watch, watch, runner_pb2.SlotReport):
            if not reports:
                runner.send_signal(signal.SIGTERM)
            reports.append(report)
        assert reports[-1].state == runner_pb2.SlotReport.STATE_FAILED
        assert reports[-1].reason == "runner_stopped"
        assert await asyncio.wait_for(runner.wait(), 8) == 0
        assert not engine.is_running()


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
