from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest

from services.inference import line as line_module
from services.inference import supervisor as module
from services.inference.line import Line, SessionFailedError
from services.inference.packets import Media, Message, Packet
from services.inference.settings import InferenceSettings
from services.inference.supervisor import Supervisor, supervised
from tests.support.engine import video

SLOW = "tests.support.pipelines:Slow"


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(pipelines: str = "passthrough", **settings: float) -> AsyncIterator[Supervisor]:
    async with supervised(InferenceSettings(pipelines=pipelines, **settings)) as supervisor:  # type: ignore[arg-type]
        await until(lambda: supervisor.ready)
        yield supervisor


async def opened(supervisor: Supervisor, received: list[Packet], pipeline: str, **params: object) -> Line:
    line = supervisor.line(0, received.append)
    await line.say("open", pipeline=pipeline, revision=1, params=params, scheduled=[], live=False)
    return line


async def test_an_engine_says_what_it_offers() -> None:
    async with running("effects,passthrough") as supervisor:
        assert {offer.name for offer in supervisor.offers.value} == {"effects", "passthrough"}
        assert all(offer.params_schema["type"] == "object" for offer in supervisor.offers.value)


async def test_no_child_is_left_when_the_block_ends() -> None:
    async with running() as supervisor:
        pid = supervisor.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


async def test_what_is_fed_comes_back() -> None:
    received: list[Packet] = []
    async with running() as supervisor:
        line = await opened(supervisor, received, "passthrough")
        sent = video(40)
        for packet in sent:
            await line.feed(packet)
        await line.say("end_of_input")
        await until(lambda: any(isinstance(one, Message) and one.type == "finished" for one in received))
        assert [one.pts for one in received if isinstance(one, Media)] == [one.pts for one in sent]
        await supervisor.close(line)
        await opened(supervisor, received, "passthrough")  # the slot is free


async def test_a_full_window_makes_the_feeder_wait() -> None:
    async with running(SLOW) as supervisor:
        line = await opened(supervisor, [], "slow", ms=30_000)
        fed: list[Media] = []

        async def feed() -> None:
            for packet in video(200):
                await line.feed(packet)
                fed.append(packet)

        feeding = asyncio.create_task(feed())
        await asyncio.sleep(1)
        feeding.cancel()
        assert line_module.WINDOW <= len(fed) < 40


async def test_a_killed_engine_fails_its_session_and_is_started_again() -> None:
    async with running() as supervisor:
        line = await opened(supervisor, [], "passthrough")
        was = supervisor.pid
        assert was is not None
        os.kill(was, signal.SIGKILL)
        failure = await asyncio.wait_for(line.failure, 5)
        assert failure.reason == "engine_crashed"
        assert "SIGKILL" in failure.message
        assert not supervisor.ready
        with pytest.raises(SessionFailedError):
            await line.say("keyframe")
        await supervisor.close(line)
        await until(lambda: supervisor.ready)
        assert supervisor.pid != was
        await opened(supervisor, [], "passthrough")


async def test_an_engine_that_hangs_is_killed() -> None:
    received: list[Packet] = []
    async with running(SLOW, hang_after_s=1.0) as supervisor:
        line = await opened(supervisor, received, "slow", ms=0)
        packets = video(60)
        for packet in packets[:20]:
            await line.feed(packet)
        await until(lambda: any(isinstance(one, Media) for one in received))
        await line.say("update", revision=2, patch={"ms": 60_000}, apply_at_pts=0)

        async def play() -> None:
            for packet in packets[20:]:
                await line.feed(packet)
                await asyncio.sleep(0.05)

        playing = asyncio.create_task(play())
        failure = await asyncio.wait_for(line.failure, 8)
        assert failure.reason == "engine_hung"
        with pytest.raises(SessionFailedError):
            await playing


def impatient(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, for the engine itself takes a while to start."""
    settings = supervisor._settings.model_copy(update={"engine_start_timeout_s": 1.0, "hang_after_s": 0.7})
    monkeypatch.setattr(supervisor, "_settings", settings)


async def test_a_load_that_tells_how_far_it_is_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Packet] = []
    async with running("tests.support.pipelines:Moody") as supervisor:
        impatient(supervisor, monkeypatch)
        line = await opened(supervisor, received, "moody", model="slower")  # 3.6 s
        await line.feed(video(1)[0])
        await line.say("end_of_input")
        await until(lambda: any(isinstance(one, Media) for one in received))
        assert not line.failure.done()


async def test_a_load_that_tells_nothing_is_a_hang_and_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running("tests.support.pipelines:Moody") as supervisor:
        impatient(supervisor, monkeypatch)
        line = await opened(supervisor, [], "moody", model="silent")
        failure = await asyncio.wait_for(line.failure, 8)
        assert (failure.reason, failure.kind, failure.guilty) == ("engine_hung", "hang", True)
        assert "in load" in failure.message


async def test_a_frame_that_does_not_come_back_is_named_though_none_came_out_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running("tests.support.pipelines:Moody,passthrough", slots=2) as supervisor:
        impatient(supervisor, monkeypatch)
        line = await opened(supervisor, [], "moody", mishap="hangs")
        other = supervisor.line(1, lambda _: None)
        await other.say("open", pipeline="passthrough", revision=1, params={}, scheduled=[], live=False)
        await line.feed(video(1)[0])
        failure = await asyncio.wait_for(line.failure, 8)
        assert (failure.reason, failure.guilty) == ("engine_hung", True)
        assert "in process, frame 1, pts 90000" in failure.message
        assert failure.call is not None
        innocent = await asyncio.wait_for(other.failure, 1)
        assert (innocent.reason, innocent.guilty) == ("engine_hung", False)


async def test_an_input_that_pauses_is_no_hang() -> None:
    received: list[Packet] = []
    async with running(hang_after_s=0.5) as supervisor:
        line = await opened(supervisor, received, "passthrough")
        packets = video(40)
        for packet in packets[:20]:
            await line.feed(packet)
        await asyncio.sleep(2.2)
        for packet in packets[20:]:
            await line.feed(packet)
            await asyncio.sleep(0.03)
        await asyncio.sleep(0.6)
        assert not line.failure.done()
        assert supervisor.ready


async def test_an_engine_that_does_not_let_go_is_killed() -> None:
    async with running(SLOW, detach_timeout_s=0.5) as supervisor:
        line = await opened(supervisor, [], "slow", ms=60_000)
        await line.feed(video(1)[0])
        await asyncio.sleep(0.2)
        was = supervisor.pid
        await asyncio.wait_for(supervisor.close(line), 2)
        await until(lambda: supervisor.ready and supervisor.pid != was)


async def test_an_engine_that_cannot_start_is_tried_again_with_a_delay(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.05, 0.05))
    async with supervised(InferenceSettings(pipelines="nothing")) as supervisor:
        said = ""

        def tried_twice() -> bool:
            nonlocal said
            said += capfd.readouterr().err
            return said.count("cannot offer nothing") >= 2

        await until(tried_twice)
        assert not supervisor.ready
        with pytest.raises(SessionFailedError):
            supervisor.line(0, lambda _: None)


async def test_an_engine_that_is_never_ready_is_killed() -> None:
    before = module.RESTARTS.labels("start_failed")._value.get()
    async with supervised(InferenceSettings(pipelines="passthrough", engine_start_timeout_s=0.05)):
        await until(lambda: module.RESTARTS.labels("start_failed")._value.get() > before)


def test_names_of_instances_become_names_of_runners() -> None:
    settings = InferenceSettings()
    assert settings.runner_name("Host_1.example-99") == "host-1-example-99"
    assert settings.runner_name("___") == "runner"
    assert InferenceSettings(runner="gpu-7").runner_name("other") == "gpu-7"
