"""Somebody else's container as our runner: the adapter with NATS, gRPC, trickle and codecs that are real."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, InvalidError
from services.common.lifecycle import background
from services.common.media.mpegts import CLOCK_HZ
from tests.support.engine import FRAME, START, decoded, video
from tests.support.inference import KINDS, Bridge, Runner, State, until
from tests.support.nats import NatsServer, nats_server
from tests.support.pytrickle import adapter
from tests.support.pytrickle_container import StandIn, stand_in
from tests.support.stack import ROOT, free_ports

NAME = "copycat"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def given(nats: NatsServer, container: StandIn, **settings: Any) -> AsyncIterator[Runner]:
    """An adapter to the container, that has seen it idle."""
    async with adapter(
        nats, container_url=container.url, container_capability=NAME, detach_timeout_s=1.0, **settings
    ) as runner:
        await runner.ready()
        yield runner


async def attached(runner: Runner, bridge: Bridge, **fields: Any) -> None:
    await runner.attach(bridge, NAME, delivery=1, **fields)


def of(bridge: Bridge, kind: str) -> list[dict[str, Any]]:
    return [one for one in bridge.events if one["type"] == kind]


async def test_what_a_container_makes_comes_back_and_ends_with_its_input(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge, params='{"prompt": "neon"}')
        watching = asyncio.create_task(runner.watch())
        sent = video(60)
        await bridge.play(sent, fps=60)
        bridge.finish()
        last = await watching
        assert (last.state, last.reason) == (State.STATE_FINISHED, "")
        await until(lambda: bridge.out_closed)
        assert [one.pts for one in bridge.out] == [one.pts for one in sent]
        (job,) = container.started
        assert job["params"] == {"prompt": "neon"}
        assert job["subscribe_url"] == getattr(bridge.channels, "in")
        assert {"control_url", "events_url", "data_url", "publish_url"} < set(job)
        assert bridge.applied() == [(1, START)]
        assert State.STATE_RUNNING in {one.state for one in runner.reports["s1"]}
        await until(lambda: bridge.events[-1]["type"] == "finished")
        assert container.stopped == 0
        assert {"keep": "alive"} in container.control


async def test_it_offers_what_the_settings_say_of_the_container(nats: NatsServer) -> None:
    schema = {"type": "object", "properties": {"prompt": {"type": "string", "default": "x"}}}
    facts = {"container_params_schema": schema, "container_description": "Copies.", "gpu_class": "l4"}
    async with stand_in() as container, given(nats, container, **facts) as runner:
        advert = (await runner.describe()).advert
        (offer,) = advert.pipelines
        assert (offer.name, offer.description, offer.processes_audio) == (NAME, "Copies.", False)
        assert '"prompt"' in offer.params_schema
        assert (advert.slots, advert.gpu_class) == (1, "l4")


async def test_a_change_is_applied_at_the_first_picture_after_the_container_took_it(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge, params='{"a": {"b": 1, "c": 2}, "d": 3}')
        playing = asyncio.create_task(bridge.play(video(300)))
        await until(lambda: len(bridge.out) > 10)
        assert await runner.update(2, {"a": {"b": 5}}) == "live"
        await until(lambda: len(bridge.applied()) == 2)
        assert container.params == [{"a": {"b": 5, "c": 2}}]
        revision, pts = bridge.applied()[-1]
        assert revision == 2
        assert pts in {one.pts for one in video(300)}
        assert pts > START + 10 * FRAME
        playing.cancel()


async def test_a_scheduled_change_is_sent_when_its_picture_goes_in(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge)
        playing = asyncio.create_task(bridge.play(video(300)))
        await until(lambda: len(bridge.out) > 5)
        at = START + 45 * FRAME
        await runner.update(2, {"a": 1}, at=at)
        await runner.update(3, {"b": 1})
        await until(lambda: len(bridge.applied()) == 3)
        assert container.params == [{"b": 1}, {"a": 1}]
        moments = dict(bridge.applied())
        assert moments[3] < at < moments[2] < at + CLOCK_HZ
        playing.cancel()


async def test_a_change_that_is_refused_is_said_so_and_the_stream_goes_on(nats: NatsServer) -> None:
    async with (
        stand_in(params_status=500) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        playing = asyncio.create_task(bridge.play(video(300)))
        await until(lambda: len(bridge.out) > 5)
        await runner.update(2, {"a": 1})
        await until(lambda: bool(of(bridge, "refused")))
        (refused,) = of(bridge, "refused")
        assert (refused["revision"], refused["reason"]) == (2, "param_refused")
        assert "nobody likes it" in refused["message"]
        seen = len(bridge.out)
        await until(lambda: len(bridge.out) > seen + 10)
        assert bridge.applied() == [(1, START)]
        playing.cancel()


async def test_a_worker_that_takes_parameters_by_control_alone_gets_them_there(nats: NatsServer) -> None:
    async with (
        stand_in(params_status=404) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        playing = asyncio.create_task(bridge.play(video(300)))
        await until(lambda: len(bridge.out) > 5)
        await runner.update(2, {"a": 1})
        await until(lambda: {"a": 1} in container.control)
        await until(lambda: len(bridge.applied()) == 2)
        playing.cancel()


async def test_complete_delivery_is_nothing_that_a_container_can_promise(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        with pytest.raises(InvalidError) as refused:
            await runner.attach(bridge, NAME, delivery=2)
        assert refused.value.details["field"] == "delivery"
        await attached(runner, bridge)


async def test_a_container_that_initializes_is_waited_for(nats: NatsServer) -> None:
    async with (
        stand_in(busy_starts=2) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        bridge.push(video(30))
        await until(lambda: len(bridge.out) > 5)
        assert [one["percent"] for one in of(bridge, "loading")] == [0, 100]


async def test_a_container_that_stays_busy_fails_the_session_in_its_words(nats: NatsServer) -> None:
    async with (
        stand_in(busy_starts=99) as container,
        given(nats, container, container_start_timeout_s=0.8) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "pipeline_failed")
        assert "still initializing" in last.message
        await until(lambda: of(bridge, "error") != [])


async def test_a_container_that_refuses_fails_the_session_in_its_words(nats: NatsServer) -> None:
    async with (
        stand_in(refuses_start=True) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        assert "nobody likes it" in (await runner.watch()).message
        assert (await runner.describe()).state.state == events_pb2.RUNNER_STATE_READY


@pytest.mark.parametrize("status", ["OK", "LOADING", "ERROR"])
async def test_a_container_that_is_not_idle_is_given_nothing(nats: NatsServer, status: str) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        container.status = status
        async with asyncio.timeout(5):
            while (await runner.describe()).state.state == events_pb2.RUNNER_STATE_READY:
                await asyncio.sleep(0.05)
        with pytest.raises(ConflictError) as refused:
            await attached(runner, bridge)
        assert refused.value.reason == "NOT_READY"


async def test_an_update_that_breaks_the_container_ends_the_session(nats: NatsServer) -> None:
    async with (
        stand_in(params_break_it=True) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        bridge.push(video(30))
        await until(lambda: len(bridge.out) > 5)
        await runner.update(2, {"a": 1})
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "pipeline_failed")
        assert "in error" in last.message
        await until(lambda: of(bridge, "error") != [])
        assert container.stopped == 1


async def test_a_container_that_ends_the_stream_by_itself_is_told_of(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge)
        playing = asyncio.create_task(bridge.play(video(300)))
        await until(lambda: len(bridge.out) > 5)
        await asyncio.sleep(1.1)  # two looks at it
        container.end()
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "pipeline_failed")
        assert "by itself" in last.message
        playing.cancel()


async def test_a_container_that_makes_nothing_any_more_hangs(nats: NatsServer) -> None:
    async with (
        stand_in(stalls_after=1) as container,
        given(nats, container, hang_after_s=1.5) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        playing = asyncio.create_task(bridge.play(video(300)))
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "engine_hung")
        assert container.stopped == 1
        playing.cancel()


async def test_a_detach_is_not_held_up_by_a_container_that_does_not_answer(nats: NatsServer) -> None:
    async with (
        stand_in(stop_hangs=True) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        bridge.push(video(30))
        await until(lambda: len(bridge.out) > 5)
        begun_s = time.monotonic()
        await runner.detach()
        assert time.monotonic() - begun_s < 2.5
        assert container.stopped == 1
        assert not (await runner.describe()).state.claims
        assert (await runner.describe()).state.state == events_pb2.RUNNER_STATE_STARTING
        with pytest.raises(ConflictError):
            await attached(runner, bridge, session="s2", slot_epoch=6)


async def test_a_bridge_that_is_gone_ends_the_session(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        (port,) = free_ports(1)
        nowhere = bridge_pb2.Channels(**{kind: f"http://127.0.0.1:{port}/{kind}" for kind in KINDS})
        await attached(runner, bridge, channels=nowhere)
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "bridge_lost")
        assert container.stopped == 1


async def test_a_bridge_that_the_session_leaves_is_lost_to_a_container(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge)
        watching = asyncio.create_task(runner.watch())
        await bridge.play(video(60), fps=60)
        async with runner.bridge("next") as another:
            with pytest.raises(ConflictError) as unsupported:
                await runner.rebind(another)
        assert unsupported.value.reason == "REBIND_UNSUPPORTED"
        bridge.leave()
        last = await watching
        assert (last.state, last.reason) == (State.STATE_FAILED, "bridge_lost")
        assert container.stopped == 1


async def test_an_end_is_noticed_by_a_container_that_waits_for_control(nats: NatsServer) -> None:
    async with (
        stand_in(ends_on_control_only=True, cuts_its_last=True) as container,
        given(nats, container) as runner,
        runner.bridge() as bridge,
    ):
        await attached(runner, bridge)
        await bridge.play(video(60), fps=60)
        bridge.finish()
        assert (await runner.watch()).state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
        assert container.status == "IDLE"


async def test_what_a_container_says_becomes_events_and_data(nats: NatsServer) -> None:
    async with stand_in() as container, given(nats, container) as runner, runner.bridge() as bridge:
        await attached(runner, bridge)
        bridge.push(video(30))
        await until(lambda: len(bridge.out) > 5)
        status = {"type": "status", "state": "DEGRADED_INPUT"}
        await container.say("events", {"event": status, "queue_event_type": "ai_stream_events"})
        await container.say("events", {"type": "error", "message": "out of paint"})
        await container.say("events", ["nothing", "that", "we", "know"])
        await container.say("data", ['{"words": "hello"}', "plain words", "3"])
        await until(lambda: len(bridge.said) == 3)
        assert [one["data"] for one in bridge.said] == [
            {"words": "hello"},
            {"text": "plain words"},
            {"text": "3"},
        ]
        assert all(one["pts"] > START for one in bridge.said)
        await until(lambda: bool(of(bridge, "problem")))
        assert of(bridge, "problem")[0]["message"] == "out of paint"
        assert of(bridge, "health")[-1]["state"] == "degraded_input"


async def test_a_container_says_itself_what_it_is(nats: NatsServer) -> None:
    (port,) = free_ports(1)
    listen = f"127.0.0.1:{port}"
    async with (
        stand_in() as container,
        adapter(nats, container_register_listen=listen, container_register_secret="known") as runner,
        ClientSession() as http,
    ):
        said = {"url": container.url, "name": NAME, "description": "Copies.", "capacity": 1}
        said |= {"price_per_unit": 7, "price_scaling": 1}

        async def register(secret: str, **more: Any) -> int:
            headers = {"Authorization": secret}
            url = f"http://{listen}/capability/register"
            async with http.post(url, json=said | more, headers=headers) as answer:
                return answer.status

        assert await register("wrong") == 400
        assert (await runner.describe()).state.state == events_pb2.RUNNER_STATE_STARTING
        assert await register("known", name="no name") == 400
        assert await register("known", url="file:///etc/passwd") == 400
        assert await register("known") == 200
        await runner.ready()
        assert (await runner.describe()).advert.pipelines[0].name == NAME
        assert await register("known", name="another") == 409
        async with runner.bridge() as bridge:
            await attached(runner, bridge)
            bridge.push(video(30))
            await until(lambda: len(bridge.out) > 5)
            assert await register("known") == 200  # the same again
            assert await register("known", url="http://127.0.0.1:9") == 409


@contextmanager
def worker_process(nats: NatsServer, directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A runner of ours as a process of its own, with the worker's API: the container."""
    port, grpc, metrics = free_ports(3)
    settings = {
        "WORKER_LISTEN": f"127.0.0.1:{port}",
        "LISTEN": f"127.0.0.1:{grpc}",
        "METRICS_LISTEN": f"127.0.0.1:{metrics}",
        "NATS_URL": nats.url,
        "RUNNER": "worker",
        "PIPELINES": "tests.support.pipelines:Grey",
    }
    environment = {**os.environ, **{f"SLUICE_INFERENCE_{name}": value for name, value in settings.items()}}
    with (directory / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.inference"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait(10)


async def test_our_own_worker_is_a_container_like_any_other(nats: NatsServer, tmp_path: Path) -> None:
    with worker_process(nats, tmp_path) as (url, process):
        async with adapter(nats, container_url=url, container_capability="paint") as runner:
            await runner.ready()
            async with runner.bridge() as bridge:
                await runner.attach(bridge, "paint", delivery=1, params='{"level": 40}')
                async with background(play=_forever(bridge)):
                    await until(lambda: len(bridge.out) > 15)
                    await runner.update(2, {"level": 200})
                    await until(lambda: len(bridge.applied()) == 2)
                    _, pts = bridge.applied()[-1]
                    await until(lambda: bridge.out[-1].pts > pts + 30 * FRAME)
                    await runner.update(3, {"level": 999})
                    await until(lambda: bool(of(bridge, "refused")))
                    assert "params.level" in of(bridge, "refused")[0]["message"]
                pictures = decoded(bridge.out)
                assert pictures[0].rgb().mean() < 60
                assert all(one.rgb().mean() > 180 for one in pictures if one.pts > pts)
                bridge.finish()
                assert (await runner.watch()).state == State.STATE_FINISHED
                await until(lambda: bridge.out_closed)
            async with runner.bridge("s2") as bridge:  # and it is there for the next one
                await runner.ready()
                await runner.attach(bridge, "paint", delivery=1, session="s2")
                await bridge.play(video(30))
                await until(lambda: len(bridge.out) > 5)
                process.kill()
                last = await runner.watch("s2")
                assert (last.state, last.reason) == (State.STATE_FAILED, "engine_crashed")


async def _forever(bridge: Bridge) -> None:
    await bridge.play(video(900))
    await asyncio.Event().wait()
