"""Our runner as a worker of somebody else's gateway: PyTrickle's HTTP API, with everything real around it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from services.common.errors import ConflictError
from services.common.media.mpegts import Codec
from services.common.trickle.exchange import Exchange
from services.common.trickle.server import serve_trickle, trickle_app
from tests.support.engine import FRAME, START, decoded, mixed, sound, video
from tests.support.inference import Runner, running, until
from tests.support.nats import nats_server
from tests.support.pytrickle import Gateway, gateway
from tests.support.stack import free_ports


@dataclass
class Worker:
    runner: Runner
    url: str

    def gateway(self, name: str = "job") -> AbstractAsyncContextManager[Gateway]:
        return gateway(self.runner.trickle, self.url, name)


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    (port,) = free_ports(1)
    async with (
        nats_server(tmp_path) as nats,
        running(nats, worker_listen=f"127.0.0.1:{port}") as runner,
    ):
        yield Worker(runner, f"http://127.0.0.1:{port}")


@pytest.fixture
async def job(worker: Worker) -> AsyncIterator[Gateway]:
    async with worker.gateway() as job:
        yield job


async def test_a_gateway_gets_what_the_pipeline_makes_and_hears_what_happens(job: Gateway) -> None:
    assert await job.health() == "IDLE"
    answer = await job.start(model_id="passthrough")
    assert answer == {
        "status": "success",
        "message": "Stream started successfully",
        "request_id": "req-1",
        "current_state": "OK",
    }
    sent = video(90)
    await job.bridge.play(sent)
    await until(lambda: len(job.bridge.out) >= 80)
    status = await job.get("/stream/status")
    assert status["client_active"] is status["client_running"] is status["pipeline_ready"] is True
    assert status["current_params"]["publish_url"] == job.urls["publish_url"]
    assert status["fps"]["ingress_video_fps"] > 5
    beat = await job.until_event("heartbeat")
    assert beat["urls"]["subscribe"] == job.urls["subscribe_url"]
    assert set(beat["fps"]) == set(status["fps"])
    first = await job.until_event("receive_first_ingest_segment")
    assert first["timestamp"] > 1_700_000_000_000
    await job.until_event("send_first_processed_segment")
    queues = {one["event"]["type"]: one["queue_event_type"] for one in job.bridge.events}
    assert queues["heartbeat"] == "stream_heartbeat"
    assert queues["send_first_processed_segment"] == "ai_stream_events"
    states = [one["state"] for one in job.events("status")]
    assert states[0] in {"LOADING", "OFFLINE"}
    assert states[-1] == "ONLINE"
    assert job.events("status")[-1]["inference_status"]["restart_count"] == 0


async def test_the_end_of_the_input_flushes_the_output_while_control_is_silent(job: Gateway) -> None:
    await job.start(model_id="passthrough")
    sent = video(45)
    await job.bridge.play(sent)
    job.bridge.finish()
    await job.until_health("IDLE", 2.0)
    await until(lambda: job.bridge.out_closed)
    assert job.bridge.out[-1].pts == sent[-1].pts
    assert len(decoded(job.bridge.out)) == len(job.bridge.out)
    await job.until_event("stream_stopped")
    assert (await job.get("/stream/status"))["client_active"] is False
    assert (await job.post("/stream/stop", {}, 400))["message"] == "No active stream to stop"


async def test_a_stop_leaves_whole_segments(job: Gateway) -> None:
    await job.start(model_id="passthrough")
    playing = asyncio.create_task(job.bridge.play(video(150)))
    await until(lambda: len(job.bridge.out) > 20)
    await job.post("/stream/stop", {})
    assert await job.health() == "IDLE"
    await until(lambda: job.bridge.out_closed)
    assert len(decoded(job.bridge.out)) == len(job.bridge.out)
    playing.cancel()


async def test_of_ten_starts_at_once_one_is_taken(worker: Worker, job: Gateway) -> None:
    async def start(number: int) -> int:
        async with (
            worker.gateway(f"job-{number}") as one,
            one.http.post(
                one.url + "/stream/start", json={"gateway_request_id": str(number), **one.urls}
            ) as response,
        ):
            if response.status == 503:
                assert "in use" in (await response.json())["message"]
            return response.status

    assert sorted(await asyncio.gather(*(start(number) for number in range(10)))) == [200] + [503] * 9


async def test_a_gateway_s_stream_holds_its_slot_against_the_platform(worker: Worker, job: Gateway) -> None:
    await job.start(model_id="passthrough")
    (claim,) = (await worker.runner.describe()).state.claims
    assert claim.slot == 0
    async with worker.runner.bridge() as bridge:
        with pytest.raises(ConflictError) as refused:
            await worker.runner.attach(bridge)
        assert refused.value.reason == "SLOT_OCCUPIED"
        await job.post("/stream/stop", {})
        await worker.runner.attach(bridge)
        assert await job.health() == "IDLE"
        answer = await job.start(503, model_id="passthrough")
        assert answer["message"] == "Pipeline is still in use"


async def test_parameters_change_the_pictures_and_wrong_ones_change_nothing(job: Gateway) -> None:
    refused = await job.start(400, model_id="grey", params={"level": 999})
    assert refused["message"].startswith("Error starting stream: params.level")
    await job.start(model_id="grey", params={"level": 40, "width": "512", "height": 512})
    playing = asyncio.create_task(job.bridge.play(video(200)))
    await until(lambda: len(job.bridge.out) > 10)
    for wrong in ({"level": "high"}, {"nothing": 1}, {"width": 5}, {"max_framerate": 61}):
        answer = await job.post("/stream/params", wrong, 400)
        assert answer["status"] == "error"
    assert await job.health() == "OK"
    await job.post("/stream/params", {"level": 200, "max_framerate": 30})
    seen = len(job.bridge.out)
    await until(lambda: len(job.bridge.out) > seen + 30)
    pictures = decoded(job.bridge.out)
    assert pictures[0].rgb().mean() < 60
    assert pictures[-1].rgb().mean() > 180
    assert (await job.until_event("params_updated"))["params"] == {"level": 200, "max_framerate": 30}
    assert len(job.events("params_updated")) == 1
    playing.cancel()


async def test_control_messages_are_parameters_however_they_are_cut(job: Gateway) -> None:
    await job.start(model_id="grey")
    playing = asyncio.create_task(job.bridge.play(video(250)))
    job.control({"keep": "alive"})
    job.bridge.control(b"no JSON")
    text = json.dumps({"level": 90}).encode()
    with job.bridge._control.begin_segment() as segment:
        for byte in text:
            segment.write(bytes((byte,)))
            await asyncio.sleep(0.001)
    await until(lambda: len(job.events("params_updated")) == 1)
    job.control({"level": 220, "pipeline": "x" * 1_000_000})
    await until(lambda: len(job.events("params_updated")) == 2)
    job.control({"level": "high"})
    assert "params.level" in (await job.until_event("error"))["message"]
    seen = len(job.bridge.out)
    await until(lambda: len(job.bridge.out) > seen + 20)
    assert decoded(job.bridge.out)[-1].rgb().mean() > 200
    assert await job.health() == "OK"
    playing.cancel()


async def test_sound_goes_round_a_pipeline_that_does_not_process_it(job: Gateway) -> None:
    await job.start(model_id="passthrough")
    heard = sound(2, Codec.OPUS, start=START + FRAME)
    job.bridge.muxer.change_audio(Codec.OPUS)
    for packet in mixed(video(60), heard):
        job.bridge.push([packet])
        await asyncio.sleep(0.01)
    job.bridge.finish()
    await until(lambda: job.bridge.out_closed)
    assert [one.data for one in job.bridge.sound] == [one.data for one in heard]
    assert [one.pts for one in job.bridge.sound] == [one.pts for one in heard]


async def test_what_a_pipeline_says_comes_as_arrays_of_strings(job: Gateway) -> None:
    await job.start(model_id="talker")
    await job.bridge.play(video(30))
    await until(lambda: bool(job.bridge.said))
    assert isinstance(job.bridge.said[0], list)
    assert json.loads(job.bridge.said[0][0]) == {"picture": 1, "number": 0, "padding": ""}


async def test_a_gateway_that_wants_only_data_gets_only_data(job: Gateway) -> None:
    await job.start(model_id="talker", publish_url=None, events_url="", control_url=None)
    await job.bridge.play(video(30))
    await until(lambda: bool(job.bridge.said))
    job.bridge.finish()
    await job.until_health("IDLE")
    assert not job.bridge.out
    assert not job.bridge.events


async def test_a_stream_outlives_its_engine_and_says_so(worker: Worker, job: Gateway) -> None:
    await job.start(model_id="passthrough")
    playing = asyncio.create_task(job.bridge.play(video(300)))
    await until(lambda: len(job.bridge.out) > 10)
    psutil.Process(worker.runner.engine_pid).kill()
    assert (await job.until_event("restart"))["restart_count"] == 1
    seen = len(job.bridge.out)
    await until(lambda: len(job.bridge.out) > seen + 10)
    assert await job.health() == "OK"
    assert (await job.get("/stream/status"))["error_message"]
    playing.cancel()


async def test_no_stream_starts_while_there_is_no_engine(worker: Worker, job: Gateway) -> None:
    psutil.Process(worker.runner.engine_pid).kill()
    await job.until_health("LOADING")
    answer = await job.start(503, model_id="passthrough")
    assert "initializing" in answer["message"]
    assert answer["current_state"] == "LOADING"
    await job.until_health("IDLE")
    await job.start(model_id="passthrough")


async def test_a_request_that_cannot_be_read_is_refused_in_words(job: Gateway) -> None:
    for wrong in (
        {},
        {"gateway_request_id": 1},
        {"gateway_request_id": "a"},
        {"gateway_request_id": "a", "subscribe_url": "file:///etc/passwd"},
        {"gateway_request_id": "a", **job.urls, "model_id": "unknown"},
        {"gateway_request_id": "a", **job.urls, "params": [1]},
        {"gateway_request_id": "a", **job.urls, "params": {"width": 5}},
    ):
        answer = await job.post("/stream/start", wrong, 400)
        assert answer["message"].startswith("Error starting stream: ")
    async with job.http.post(job.url + "/stream/start", data=b"{}") as response:
        assert response.status == 400
    assert (await job.post("/stream/params", {"level": 1}, 400))["message"] == "No active stream to update"


async def test_a_trickle_server_without_next_is_written_from_0(worker: Worker) -> None:
    registry, _ = worker.runner.trickle
    app = trickle_app(registry)

    async def ancestor(exchange: Exchange) -> None:
        if exchange.head.path.endswith("/next"):
            exchange.respond(400, {}, b"Invalid idx\n")
        else:
            await app.handle(exchange)

    async with (
        serve_trickle(replace(app, handle=ancestor), "127.0.0.1:0", 1.0) as port,
        gateway((registry, port), worker.url) as job,
    ):
        await job.start(model_id="talker")
        await job.bridge.play(video(30))
        await until(lambda: bool(job.bridge.said) and len(job.bridge.out) > 20)
        await job.until_event("heartbeat")
        job.bridge.finish()
        await job.until_health("IDLE")


async def test_it_says_what_it_is(job: Gateway) -> None:
    version = await job.get("/version")
    assert (version["pipeline"], version["model_id"]) == ("live-video-to-video", "passthrough")
    assert await job.get("/app-version") == {"version": version["version"]}
    assert isinstance((await job.get("/hardware/info"))["gpu_info"], dict)
    assert isinstance((await job.get("/hardware/stats"))["gpu_stats"], dict)


async def test_a_token_is_asked_for_where_there_is_one(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    listen = f"127.0.0.1:{port}"
    async with (
        nats_server(tmp_path) as nats,
        running(nats, worker_listen=listen, worker_token="known", worker_pipeline="grey") as runner,
        gateway(runner.trickle, f"http://{listen}") as job,
    ):
        assert await job.health() == "IDLE"
        await job.start(401)
        body = {"gateway_request_id": "a", **job.urls, "model_id": "whatever"}
        await job.post("/live-video-to-video", body, headers={"Authorization": "Bearer known"})
        assert (await job.get("/version"))["model_id"] == "grey"
