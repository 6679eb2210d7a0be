"""Sessions whose engine dies under them: what their viewers see, what their clients are told, who ends."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from services.common.errors import ConflictError
from services.common.lifecycle import background
from services.common.media.mpegts import Codec
from services.common.topology import RUNNERS
from services.inference import supervisor as module
from tests.support.engine import FRAME, START, decoded, mixed, sound, video
from tests.support.inference import Bridge, Runner, State, engines_of, running, until
from tests.support.nats import NatsServer, nats_server

LIVE = runner_pb2.DELIVERY_LIVE
PIPELINES = "passthrough," + ",".join(
    f"tests.support.pipelines:{name}" for name in ("Moody", "Counting", "Ravenous", "Grey", "Negative")
)
WITHIN_S = 25.0  # an engine takes a second to start, and far more where everything else does too
pytestmark = pytest.mark.timeout(90)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.05, 0.1))


@asynccontextmanager
async def runner_of(nats: NatsServer, **more: Any) -> AsyncIterator[Runner]:
    async with running(nats, **({"pipelines": PIPELINES} | more)) as runner:
        yield runner


async def endlessly(bridge: Bridge, fps: float = 30) -> None:
    """A live publisher: a key frame a second."""
    await bridge.play(video(2000), fps)


def kill() -> int:
    (engine,) = engines_of(os.getpid())
    engine.kill()
    return engine.pid


async def killed(bridge: Bridge) -> None:
    """Kill the engine, and wait until the stream goes on."""
    known = len(bridge.told("problem"))
    kill()
    await until(lambda: len(bridge.told("problem")) > known, WITHIN_S)
    newest = len(bridge.out)
    await until(lambda: len(bridge.out) > newest + 3, WITHIN_S)


def levels(bridge: Bridge) -> list[int]:
    return [round(float(np.mean(frame.rgb()))) for frame in decoded(bridge.out)]


def whys(bridge: Bridge) -> list[tuple[str, int]]:
    return [(one["why"], one["percent"]) for one in bridge.told("loading")]


async def test_a_live_stream_goes_on_with_another_engine_and_its_last_parameters(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "grey", params='{"level": 60}', delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=endlessly(bridge)):
            await until(lambda: len(bridge.out) > 10)
            await runner.update(2, {"level": 160})
            await until(lambda: bridge.applied()[-1][0] == 2)
            await killed(bridge)
            await runner.update(3, {"level": 90})  # and it is steered as before
            await until(lambda: bridge.applied()[-1][0] == 3)
            await runner.detach()
        last = await watching
        assert (last.state, last.reason) == (State.STATE_DETACHED, "stopped")
    times = [one.pts for one in bridge.out]
    assert all(before < after for before, after in pairwise(times))
    shown = levels(bridge)
    first, then = bridge.applied()[1][1], bridge.applied()[2][1]
    assert {value for value, pts in zip(shown, times, strict=True) if first <= pts < then} <= set(
        range(156, 165)
    )
    assert [revision for revision, _ in bridge.applied()] == [1, 2, 3]
    (problem,) = bridge.told("problem")
    assert (problem["kind"], problem["action"]) == ("crash", "restarting")
    assert "SIGKILL" in problem["message"]
    assert whys(bridge) == [("restart", 0), ("restart", 100)]
    counts = [(one.frames_decoded, one.frames_inferred, one.frames_dropped) for one in runner.reports["s1"]]
    for number in range(3):
        assert [one[number] for one in counts] == sorted(one[number] for one in counts)
    states = [one["state"] for one in bridge.told("health")]
    assert "loading" in states
    assert states[-1] == "online"
    assert "error" not in states


async def test_a_file_loses_no_picture_with_its_engine(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "passthrough")
        watching = asyncio.create_task(runner.watch())
        sent = video(240)
        bridge.push(sent[:100])
        await until(lambda: len(bridge.out) >= 80)
        kill()
        bridge.push(sent[100:])
        bridge.finish()
        last = await watching
        assert (last.state, last.message) == (State.STATE_FINISHED, "")
        await until(lambda: bridge.out_closed)
    assert [one.pts for one in bridge.out] == [one.pts for one in sent]
    assert len(decoded(bridge.out)) == len(sent)


async def test_a_session_that_goes_on_dying_ends_with_the_reason(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "moody", params='{"mishap": "dies"}', delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=endlessly(bridge)):
            last = await watching
            assert (last.state, last.reason) == (State.STATE_FAILED, "engine_crashed")
            assert "SIGKILL in process, frame 1, pts" in last.message
            await until(lambda: bridge.events[-1]["type"] == "error")
            actions = [one["action"] for one in bridge.told("problem")]
            assert actions == ["restarting", "restarting", "ended"]
            assert bridge.told("health")[-1]["state"] == "error"
            with pytest.raises(ConflictError) as refused:
                await runner.attach(bridge, session_epoch=2)
            assert refused.value.reason == "NOT_READY"
            await runner.ready()


@pytest.mark.parametrize(
    ("patch", "kind", "stage"),
    [
        ({"mishap": "dies"}, "crash", "process"),
        ({"mishap": "hangs"}, "hang", "process"),
        ({"style": "dies"}, "crash", "prepare"),
        ({"model": "dies"}, "crash", "load"),
    ],
)
async def test_a_revision_that_two_engines_died_of_is_left_out(
    nats: NatsServer, patch: dict[str, str], kind: str, stage: str
) -> None:
    async with (
        runner_of(nats, hang_after_s=1.0, engine_start_timeout_s=5.0) as runner,
        runner.bridge() as bridge,
    ):
        await runner.attach(bridge, "moody", params='{"level": 50}', delivery=LIVE)
        async with background(play=endlessly(bridge)):
            await until(lambda: len(bridge.out) > 10)
            await runner.update(2, patch)
            await runner.update(3, {"level": 80})
            await until(lambda: bridge.told("refused") != [], WITHIN_S)
            newest = len(bridge.out)
            await until(lambda: len(bridge.out) > newest + 10, WITHIN_S)
            await until(lambda: 3 in [revision for revision, _ in bridge.applied()])
            await runner.detach()
    (refused,) = bridge.told("refused")
    assert (refused["revision"], refused["reason"]) == (2, "poisoned_param")
    problems = [(one["kind"], one["stage"], one["action"]) for one in bridge.told("problem")]
    assert problems == [(kind, stage, "restarting")] * 2
    if stage == "process":
        assert all(one["frame"] > 0 and one["pts"] > 0 for one in bridge.told("problem"))
    assert levels(bridge)[-1] == pytest.approx(80, abs=4)
    assert all(before.pts < after.pts for before, after in pairwise(bridge.out))


async def test_who_did_nothing_outlives_a_neighbour_that_kills_engine_after_engine(nats: NatsServer) -> None:
    async with runner_of(nats, slots=2) as runner, runner.bridge("s1") as one, runner.bridge("s2") as other:
        await runner.attach(one, "passthrough", delivery=LIVE)
        await runner.attach(other, "moody", params='{"mishap": "dies"}', delivery=LIVE, session="s2", slot=1)
        async with background(play=endlessly(one), also=endlessly(other)):
            assert (await runner.watch("s2")).reason == "engine_crashed"
            await until(lambda: len(one.told("problem")) == 3)
            newest = len(one.out)
            await until(lambda: len(one.out) > newest + 10, WITHIN_S)
            await runner.detach("s1")
    assert [problem["action"] for problem in one.told("problem")] == ["restarting"] * 3
    assert all(before.pts < after.pts for before, after in pairwise(one.out))


async def test_a_pipeline_goes_on_with_what_it_remembered(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "counting", params='{"dies_at": 60}', delivery=LIVE)
        async with background(play=endlessly(bridge)):
            await until(lambda: bridge.told("problem") != [], WITHIN_S)
            known = len(bridge.said)
            await until(lambda: len(bridge.said) > known + 5, WITHIN_S)
            await runner.detach()
    before, after = bridge.said[known - 1]["data"]["seen"], bridge.said[known + 2]["data"]["seen"]
    assert before <= 60
    assert 25 <= after <= 70  # a second's worth of pictures is the most that is lost


async def test_an_engine_that_stands_still_is_replaced(nats: NatsServer) -> None:
    async with runner_of(nats, hang_after_s=1.0) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "passthrough", delivery=LIVE)
        async with background(play=endlessly(bridge)):
            await until(lambda: len(bridge.out) > 10)
            (engine,) = engines_of(os.getpid())
            engine.send_signal(signal.SIGSTOP)
            await until(lambda: bridge.told("problem") != [], WITHIN_S)
            newest = len(bridge.out)
            await until(lambda: len(bridge.out) > newest + 10, WITHIN_S)
            await runner.detach()
    assert bridge.told("problem")[0]["kind"] == "hang"


async def test_an_engine_that_eats_too_much_is_told_of_and_then_replaced(nats: NatsServer) -> None:
    async with runner_of(nats, engine_memory_mb=700) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "ravenous", delivery=LIVE)
        async with background(play=endlessly(bridge, fps=15)):
            await until(lambda: len(bridge.out) > 10)
            await runner.update(2, {"mb": 8})
            await until(lambda: len(bridge.told("problem")) == 2, WITHIN_S)
            await runner.update(3, {"mb": 0})
            newest = len(bridge.out)
            await until(lambda: len(bridge.out) > newest + 10, WITHIN_S)
            await runner.detach()
    warned, died = bridge.told("problem")
    assert (warned["stage"], warned["kind"], warned["action"]) == ("engine", "out_of_memory", "held")
    assert "of 700 MiB" in warned["message"]
    assert (died["kind"], died["action"]) == ("out_of_memory", "restarting")


async def test_what_is_asked_for_while_there_is_no_engine_is_done_by_the_next(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "grey", params='{"level": 60}', delivery=LIVE)
        async with background(play=endlessly(bridge)):
            await until(lambda: len(bridge.out) > 10)
            kill()
            await until(lambda: bridge.told("problem") != [])
            assert await runner.update(2, {"level": 160}) == "live"
            await until(lambda: 2 in [revision for revision, _ in bridge.applied()], WITHIN_S)
            await runner.detach()
    at = dict(bridge.applied())[2]
    shown = dict(zip([one.pts for one in bridge.out], levels(bridge), strict=True))
    assert shown[at] == pytest.approx(160, abs=4)
    assert at > START + 10 * FRAME


async def test_sound_goes_on_with_its_pictures(nats: NatsServer) -> None:
    async with runner_of(nats) as runner, runner.bridge() as bridge:
        await runner.attach(bridge, "negative")
        watching = asyncio.create_task(runner.watch())
        bridge.muxer.change_audio(Codec.OPUS)
        pictures, sounds = video(240), [one for one in sound(8) if one.pts >= START]
        sent = mixed(pictures, sounds)
        bridge.push(sent[: len(sent) // 2])
        await until(lambda: len(bridge.out) >= 90)
        kill()
        bridge.push(sent[len(sent) // 2 :])
        bridge.finish()
        assert (await watching).state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
    assert [one.pts for one in bridge.out] == [one.pts for one in pictures]
    times = [one.pts for one in bridge.sound]
    assert len(bridge.sound) == pytest.approx(len(sounds), abs=10)  # a gap of a fifth of a second at most
    assert all(before < after for before, after in pairwise(times))
    assert times[-1] == pytest.approx(sounds[-1].pts, abs=4000)


async def test_a_pipeline_that_loads_no_more_is_taken_back_and_its_session_ends(
    nats: NatsServer, tmp_path: Path
) -> None:
    pipelines = "passthrough,tests.support.pipelines:Once"
    here = {"once": {"mark": str(tmp_path / "mark")}}
    async with (
        runner_of(nats, pipelines=pipelines, pipeline_defaults=here) as runner,
        runner.bridge() as bridge,
    ):

        async def offered() -> list[str]:
            entry = await (await runner.bus.bucket(RUNNERS, 1)).get("r1")
            advert = events_pb2.RunnerAdvert.FromString(entry.value) if entry else events_pb2.RunnerAdvert()
            return [offer.name for offer in advert.pipelines]

        await runner.attach(bridge, "once", delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=endlessly(bridge)):
            await until(lambda: len(bridge.out) > 3)
            assert await offered() == ["passthrough", "once"]
            kill()
            last = await watching
        assert (last.state, last.reason) == (State.STATE_FAILED, "load_failed")
        async with asyncio.timeout(WITHIN_S):
            while await offered() != ["passthrough"]:
                await asyncio.sleep(0.05)
