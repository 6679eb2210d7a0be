"""A runner with everything real around it: NATS, gRPC, the engine, and a bridge made of trickle channels."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from services.common.grpc_client import stream
from services.common.lifecycle import background
from services.common.media.mpegts import Codec
from services.common.topology import RUNNERS, heartbeat
from services.inference import inlet
from tests.support.engine import FRAME, START, decoded, mixed, sound, video
from tests.support.inference import Runner, State, engines_of, running, until
from tests.support.nats import NatsServer, nats_server


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def runner(nats: NatsServer) -> AsyncIterator[Runner]:
    async with running(nats) as runner:
        yield runner


async def test_a_stream_goes_in_and_all_of_it_comes_back(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        watching = asyncio.create_task(runner.watch())
        sent = video(150)
        bridge.push(sent[:90])
        await until(lambda: len(bridge.out) >= 60)
        bridge.push(sent[90:])
        bridge.finish()
        last = await watching
        assert last.state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
        assert [one.pts for one in bridge.out] == [one.pts for one in sent]
        assert len(decoded(bridge.out)) == len(sent)
        assert (last.frames_decoded, last.frames_inferred, last.frames_dropped) == (150, 150, 0)
        assert {State.STATE_RUNNING, State.STATE_FINISHED} <= {one.state for one in runner.reports["s1"]}
        await until(lambda: bridge.events[-1]["type"] == "finished")
        assert bridge.applied() == [(1, START)]
        # A segment at each key frame, which came every two seconds of media.
        assert [len(segment) for segment in bridge.segments] == [60, 60, 30]
        assert all(segment[0].keyframe for segment in bridge.segments)


async def test_a_finished_session_leaves_its_slot_free(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        bridge.push(video(5))
        bridge.finish()
        assert (await runner.watch()).state == State.STATE_FINISHED
        assert not (await runner.describe()).state.claims
        await runner.attach(bridge)  # idempotent: nothing starts
        assert not (await runner.describe()).state.claims
    async with runner.bridge("s2") as bridge:
        await runner.attach(bridge, session="s2", slot_epoch=6)
        (claim,) = (await runner.describe()).state.claims
        assert (claim.slot, claim.session, claim.session_epoch, claim.slot_epoch) == (0, "s2", 1, 6)


async def test_live_delivery_drops_and_says_how_much(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "slow", params='{"ms": 100}', delivery=runner_pb2.DELIVERY_LIVE)
        watching = asyncio.create_task(runner.watch())
        await bridge.play(video(60))
        bridge.finish()
        last = await watching
        assert last.state == State.STATE_FINISHED
        assert last.frames_dropped > 20
        assert last.frames_decoded == 60
        assert last.infer_ms >= 100
        statuses = [one for one in bridge.events if one["type"] == "status"]
        assert statuses
        assert statuses[-1]["dropped"] == last.frames_dropped


async def test_an_update_is_acknowledged_at_the_picture_that_shows_it(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        scheduled = [runner_pb2.Patch(revision=2, patch='{"level": 80}', apply_at_pts=START + 10 * FRAME)]
        await runner.attach(bridge, "grey", params='{"level": 40}', revision=3, scheduled=scheduled)
        at = START + 20 * FRAME
        assert await runner.update(4, {"level": 160}, at=at) == "live"
        assert await runner.update(4, {"level": 160}, at=at) == "live"
        assert await runner.update(5, {"boost": 10}, at=at + FRAME) == "reload"
        bridge.push(video(60))
        bridge.finish()
        await runner.watch()
        await until(lambda: bridge.events[-1:] == [{"type": "finished"}])
        assert bridge.applied() == [(3, START), (2, START + 10 * FRAME), (4, at), (5, at + FRAME)]
        levels = [round(float(frame.rgb().mean())) for frame in decoded(bridge.out)]
        expected = [40] * 10 + [80] * 10 + [160] + [170] * 39
        assert levels == pytest.approx(expected, abs=4)


async def test_a_wrong_parameter_changes_nothing_and_is_named(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        with pytest.raises(InvalidError) as invalid:
            await runner.attach(bridge, "grey", params='{"level": 900}')
        assert invalid.value.details["field"] == "params.level"
        with pytest.raises(InvalidError) as invalid:
            await runner.attach(bridge, "grey", params="[]")
        assert invalid.value.details["field"] == "params"
        await runner.attach(bridge, "grey")
        with pytest.raises(InvalidError) as invalid:
            await runner.update(2, {"colour": "red"})
        assert invalid.value.details["field"] == "params.colour"
        with pytest.raises(InvalidError):
            await runner.update(2, {"level": "red"}, at=START + 5 * FRAME)
        bridge.push(video(10))
        bridge.finish()
        await runner.watch()
        assert bridge.applied() == [(1, START)]


async def test_a_detach_frees_the_slot_within_two_seconds(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, delivery=runner_pb2.DELIVERY_LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=bridge.play(video(600))):
            await until(lambda: len(bridge.out) > 10)
            with pytest.raises(ConflictError) as stale:
                await runner.detach(slot_epoch=4)
            assert stale.value.reason == "STALE_EPOCH"
            async with asyncio.timeout(2):
                await runner.detach()
            assert not (await runner.describe()).state.claims
            last = await watching
            assert (last.state, last.reason) == (State.STATE_DETACHED, "stopped")
            await runner.detach()  # again
            await runner.detach("unknown")
            with pytest.raises(NotFoundError):
                await runner.update(2, {})
    async with runner.bridge("s2") as bridge:
        await runner.attach(bridge, session="s2", slot_epoch=6)
        bridge.push(video(5))
        await until(lambda: len(bridge.out) == 5)


async def test_attaches_that_cannot_be_are_refused(runner: Runner) -> None:
    async with runner.bridge() as bridge, runner.bridge("s2") as other:
        with pytest.raises(NotFoundError) as unknown:
            await runner.attach(bridge, "nothing")
        assert unknown.value.reason == "UNKNOWN_PIPELINE"
        with pytest.raises(InvalidError):
            await runner.attach(bridge, slot=1)
        with pytest.raises(InvalidError):
            await runner.attach(bridge, channels=bridge_pb2.Channels(out="file:///etc/passwd"))
        with pytest.raises(InvalidError):
            await runner.attach(bridge, delivery=runner_pb2.DELIVERY_UNSPECIFIED)
        await runner.attach(bridge)
        await runner.attach(bridge)  # the same again
        with pytest.raises(ConflictError) as occupied:
            await runner.attach(other, session="s2", slot_epoch=6)
        assert occupied.value.reason == "SLOT_OCCUPIED"
        with pytest.raises(ConflictError) as stale:
            await runner.attach(other, session="s2", slot_epoch=4)
        assert stale.value.reason == "STALE_EPOCH"
        with pytest.raises(ConflictError) as stale:
            await runner.update(2, {}, slot_epoch=4)
        assert stale.value.reason == "STALE_EPOCH"


async def test_what_is_still_to_come_is_unimplemented(runner: Runner) -> None:
    with pytest.raises(UnavailableError) as missing:
        async for _ in stream(runner.stub.RunJob, runner_pb2.RunJobRequest(), runner_pb2.JobEvent):
            pass
    assert missing.value.reason == "UNIMPLEMENTED"


async def test_a_pipeline_that_fails_says_why(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "broken")
        bridge.push(video(30))
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "pipeline_failed")
        assert last.message == "RuntimeError: the tenth frame (after 18 frames)"
        assert len(bridge.out) <= 18
        assert engines_of(os.getpid())[0].pid == runner.engine_pid


async def test_a_bridge_that_is_gone_fails_the_session(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        gone = bridge_pb2.Channels()
        gone.CopyFrom(bridge.channels)
        setattr(gone, "in", "http://127.0.0.1:9/in")
        await runner.attach(bridge, channels=gone)
        last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "bridge_lost")


async def test_input_that_is_no_transport_stream_is_named(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inlet, "GARBAGE_AFTER_S", 0.5)
    async with runner.bridge() as bridge:
        await runner.attach(bridge)

        async def talk() -> None:
            while True:
                bridge.push_bytes(os.urandom(1000))
                await asyncio.sleep(0.1)

        async with background(talk=talk()):
            last = await runner.watch()
        assert (last.state, last.reason) == (State.STATE_FAILED, "input_undecodable")


async def test_a_runner_is_known_by_its_advert_and_its_heartbeats(runner: Runner, nats: NatsServer) -> None:
    bucket = await runner.bus.bucket(RUNNERS, 1)

    async def advert() -> events_pb2.RunnerAdvert | None:
        try:
            entry = await bucket.get("r1")
        except UnavailableError:
            return None
        return events_pb2.RunnerAdvert.FromString(entry.value) if entry else None

    async with asyncio.timeout(5):
        while (known := await advert()) is None:
            await asyncio.sleep(0.05)
    assert known.address == f"127.0.0.1:{runner.port}"
    assert [offer.name for offer in known.pipelines] == [
        "passthrough",
        "grey",
        "slow",
        "broken",
        "negative",
        "talker",
    ]
    assert json.loads(known.pipelines[1].params_schema)["properties"]["level"]["maximum"] == 255
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        beat = events_pb2.Heartbeat()
        async with asyncio.timeout(5):
            async for message in runner.bus.subscribe(heartbeat("r1")):
                beat = events_pb2.Heartbeat.FromString(message.data)
                if beat.claims:
                    break
        assert beat.boot_id == known.boot_id
        assert beat.state == events_pb2.RUNNER_STATE_READY
        assert beat.claims[0].session == "s1"

    await bucket.delete("r1")  # as a NATS that lost its store would
    await nats.terminate()
    await nats.start()
    async with asyncio.timeout(10):
        while await advert() is None:
            await asyncio.sleep(0.05)


async def test_slots_share_an_engine_as_far_as_the_pipeline_allows(nats: NatsServer) -> None:
    async with running(nats, slots=2) as runner, runner.bridge("s1") as one, runner.bridge("s2") as other:
        await runner.attach(one, "slow")
        with pytest.raises(ConflictError) as full:
            await runner.attach(other, "slow", session="s2", slot=1)
        assert full.value.reason == "SLOT_OCCUPIED"
        await runner.detach()
        await runner.attach(one, "broken", session_epoch=2)
        await runner.attach(other, "grey", session="s2", slot=1)
        one.push(video(30))
        other.push(video(40))
        other.finish()
        assert (await runner.watch("s1")).reason == "pipeline_failed"
        last = await runner.watch("s2")
        assert (last.state, last.frames_inferred) == (State.STATE_FINISHED, 40)


async def test_the_trace_of_the_attach_goes_on_at_the_bridge(runner: Runner) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with runner.bridge() as bridge:
        request = runner_pb2.AttachRequest(
            session="s1", session_epoch=1, slot_epoch=5, channels=bridge.channels, pipeline="passthrough"
        )
        request.delivery = runner_pb2.DELIVERY_LIVE
        attach: Any = runner.stub.Attach  # typed as what a blocking stub returns
        await attach(request, metadata=(("traceparent", trace),))
        bridge.push(video(5))
        bridge.finish()
        await runner.watch()
        assert {method for method, _ in runner.requests} == {"GET", "POST", "DELETE"}
        assert all(trace[3:35] in parent for _, parent in runner.requests)


# --- sound


@pytest.mark.parametrize("codec", [Codec.AAC, Codec.OPUS])
async def test_sound_comes_back_with_the_pictures_of_a_pipeline_that_processes_it(
    runner: Runner, codec: Codec
) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "negative")
        watching = asyncio.create_task(runner.watch())
        pictures, sounds = video(90), [one for one in sound(3, codec) if one.pts >= START]
        bridge.muxer.change_audio(codec)
        bridge.push(mixed(pictures, sounds))
        bridge.finish()
        assert (await watching).state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
        assert [one.pts for one in bridge.out] == [one.pts for one in pictures]
        assert {one.codec for one in bridge.sound} == {codec}
        assert len(bridge.sound) == pytest.approx(len(sounds), abs=3)
        assert bridge.sound[0].pts == pytest.approx(sounds[0].pts, abs=2000)
        assert bridge.sound[-1].pts == pytest.approx(sounds[-1].pts, abs=2000)
        assert {one.data for one in bridge.sound}.isdisjoint({one.data for one in sounds[10:-10]})


async def test_sound_that_begins_later_is_announced_with_the_next_segment(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "negative")
        watching = asyncio.create_task(runner.watch())
        bridge.push(video(60))
        bridge.muxer.change_audio(Codec.OPUS)
        later = START + 60 * FRAME
        sounds = [one for one in sound(4, start=later) if one.pts >= later]
        bridge.push(mixed(video(120, start=later), sounds))
        bridge.finish()
        assert (await watching).state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
        assert len(bridge.out) == 180
        assert len(bridge.sound) > len(sounds) / 3
        assert bridge.sound[-1].pts == pytest.approx(sounds[-1].pts, abs=2000)


async def test_sound_for_a_pipeline_that_does_not_process_it_goes_nowhere(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "passthrough")
        watching = asyncio.create_task(runner.watch())
        bridge.muxer.change_audio(Codec.OPUS)
        bridge.push(mixed(video(60), [one for one in sound(2) if one.pts >= START]))
        bridge.finish()
        assert (await watching).state == State.STATE_FINISHED
        await until(lambda: bridge.out_closed)
        assert len(bridge.out) == 60
        assert bridge.sound == []
