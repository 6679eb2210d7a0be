"""What a bridge asks of a runner, and what its pipeline says: key frames, bit rates, pauses, data."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from protos.inference.v1 import runner_pb2
from services.common.lifecycle import background
from services.inference import inlet
from services.inference.packets import Media
from tests.support.awkward import detailed
from tests.support.engine import FRAME, START, decoded, video
from tests.support.inference import Bridge, Runner, State, running, until
from tests.support.nats import NatsServer, nats_server

LIVE = runner_pb2.DELIVERY_LIVE
NULL_PACKET = b"\x47\x1f\xff\x10" + bytes(184)
OWN = 300_000  # of 256x256: the least that a runner does by itself


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture
async def runner(nats: NatsServer) -> AsyncIterator[Runner]:
    async with running(nats) as runner:
        yield runner


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def bit_rate(bridge: Bridge, sent: list[Media]) -> float:
    """Of what came back for `sent`, in bits per second of its own time."""
    times = {one.pts for one in sent}
    bits = sum(8 * len(one.data) for one in bridge.out if one.pts in times)
    return bits * 30 / len(sent)


async def through(bridge: Bridge, sent: list[Media]) -> None:
    bridge.push(sent)
    await until(lambda: bridge.out[-1:] != [] and bridge.out[-1].pts == sent[-1].pts)


async def test_a_key_frame_comes_soon_after_the_bridge_asked(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, delivery=LIVE)
        took_ms = []
        async with background(play=_endless(bridge, video(600, every=1000))):
            for _ in range(6):
                await until(lambda: len(bridge.out) > 5)
                known = len(bridge.out)
                asked_s = time.monotonic()
                bridge.control(b'{"type": "keyframe"}')
                await until(partial(_keyframe_after, bridge, known))
                first = next(one for one in bridge.out[known:] if one.keyframe)
                took_ms.append(1000 * (bridge.out_at_s[first.pts] - asked_s))
                await asyncio.sleep(0.3)
        assert statistics.median(took_ms) < 300  # a picture's time, and 20 ms where nothing else runs
        assert len(decoded(bridge.out)) == len(bridge.out)


def _keyframe_after(bridge: Bridge, known: int) -> bool:
    return any(one.keyframe for one in bridge.out[known:])


async def _endless(bridge: Bridge, packets: list[Media]) -> None:
    await bridge.play(packets)
    await asyncio.Event().wait()


async def test_a_key_frame_is_of_the_next_picture_and_asked_for_once(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        sent = video(60, every=1000)
        await through(bridge, sent[:10])
        bridge.control(b'{"type": "keyframe"}')
        bridge.control(b'{"type": "keyframe"}')
        await asyncio.sleep(0.3)
        await through(bridge, sent[10:50])
        assert [index for index, one in enumerate(bridge.out) if one.keyframe] == [0, 10]


async def test_the_bit_rate_follows_what_the_bridge_asks_for(runner: Runner) -> None:
    sent = detailed(20)
    parts = [sent[start : start + 120] for start in range(0, 600, 120)]
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        found = []
        for part, asked in zip(parts, (None, 150_000, 600_000, 50_000_000, None), strict=True):
            bridge.control(json.dumps({"type": "bitrate", "bits_per_second": asked}).encode())
            await asyncio.sleep(0.3)
            await through(bridge, part)
            found.append(bit_rate(bridge, part[60:]))  # the second half: two seconds after it was asked for
        assert found == pytest.approx([OWN, 150_000, 600_000, 600_000, OWN], rel=0.3)
        keys = [(one.pts - START) // FRAME for one in bridge.out if one.keyframe]
        assert keys == list(range(0, 600, 60))  # none for the sake of a bit rate
        assert len(decoded(bridge.out)) == 600


async def test_messages_that_mean_nothing_and_bit_rates_out_of_bounds_are_counted(runner: Runner) -> None:
    ignored, clamped = (f"sluice_control_{kind}_total" for kind in ("ignored", "clamped"))
    before = counted(ignored), counted(clamped)
    nonsense = [
        b"nonsense",
        b"[]",
        b'{"type": "volume"}',
        b'{"type": "bitrate", "bits_per_second": "1"}',
        b"",
    ]
    async with runner.bridge() as bridge:
        await runner.attach(bridge)
        for text in (*nonsense, b'{"type": "bitrate", "bits_per_second": 1}', b"x" * 100_000):
            bridge.control(text)
        bridge.control(b'{"type": "bitrate", "bits_per_second": 99999999}')
        await until(lambda: counted(clamped) == before[1] + 2)
        assert counted(ignored) == before[0] + len(nonsense) + 1
        await through(bridge, video(10))


async def test_what_was_asked_while_the_runner_was_on_its_way_is_done(runner: Runner) -> None:
    sent = detailed(4)
    async with runner.bridge() as bridge:
        bridge.control(b'{"type": "bitrate", "bits_per_second": 150000}')
        await runner.attach(bridge)
        await asyncio.sleep(0.5)
        await through(bridge, sent)
        assert bit_rate(bridge, sent[60:]) == pytest.approx(150_000, rel=0.3)


async def test_what_a_pipeline_says_reaches_the_bridge_with_its_time(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "talker")
        watching = asyncio.create_task(runner.watch())
        sent = video(20)
        bridge.push(sent)
        bridge.finish()
        assert (await watching).state == State.STATE_FINISHED
        await until(lambda: len(bridge.said) == 20)
        assert bridge.said == [
            {"pts": packet.pts, "data": {"picture": number, "number": 0, "padding": ""}}
            for number, packet in enumerate(sent, 1)
        ]


async def test_a_pipeline_that_was_loaded_anew_is_heard_as_before(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "talker")
        sent = video(20)
        await through(bridge, sent[:10])
        assert await runner.update(2, {"model": 1}) == "reload"
        await through(bridge, sent[10:])
        await until(lambda: len(bridge.said) == 20)
        assert [one["data"]["picture"] for one in bridge.said] == [*range(1, 11), *range(1, 11)]


async def test_a_pipeline_that_says_too_much_too_large_or_nonsense_loses_that_and_nothing_else(
    runner: Runner,
) -> None:
    reasons = ("too_often", "too_large", "not_json")
    before = [counted("sluice_data_dropped_total", reason=reason) for reason in reasons]
    mistakes: list[dict[str, object]] = [
        {"times": 500, "mistake": ""},
        {"times": 1, "padding": 20_000},
        {"times": 0, "mistake": "numpy"},
    ]
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "talker", params='{"times": 0}')
        sent = video(40)
        await through(bridge, sent[:10])
        for revision, (mistake, start) in enumerate(zip(mistakes, (10, 20, 30), strict=True), 2):
            await runner.update(revision, mistake)
            await through(bridge, sent[start : start + 10])
        bridge.finish()
        last = await runner.watch()
        assert (last.state, last.frames_inferred) == (State.STATE_FINISHED, 40)
        after = [counted("sluice_data_dropped_total", reason=reason) for reason in reasons]
        often, large, nonsense = (now - was for now, was in zip(after, before, strict=True))
        assert len(bridge.said) + often == 5000
        assert 50 <= len(bridge.said) < 1000
        assert (large, nonsense) == (10, 10)


@pytest.mark.parametrize("tells", [True, False], ids=["segment ended", "segment open"])
async def test_a_stream_that_pauses_for_minutes_goes_on_at_once(
    nats: NatsServer, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time jumps, its bounds in time are short here, and nothing that was before counts against it."""
    monkeypatch.setattr(inlet, "GARBAGE_AFTER_S", 0.5)
    monkeypatch.setattr(inlet, "PAUSE_S", 0.1)
    async with running(nats, hang_after_s=0.5) as runner, runner.bridge() as bridge:
        lost = counted("sluice_frame_drop_total", stage="input_segments")
        await runner.attach(bridge, delivery=LIVE)
        before = video(30)
        await bridge.play(before)
        await until(lambda: bridge.out[-1].pts == before[-1].pts)
        bridge.push_bytes(NULL_PACKET)  # bytes in which there is no picture, as before any large one
        if tells:
            bridge.end_segment()
        await asyncio.sleep(3)
        bridge.push_bytes(NULL_PACKET)
        after = video(30, start=START + 300 * 90_000)
        went_s = time.monotonic()
        await bridge.play(after)
        await until(lambda: bridge.out[-1].pts == after[-1].pts)
        assert bridge.out_at_s[after[0].pts] - went_s < 1.0
        times = [one.pts for one in bridge.out]
        assert times == sorted(set(times))
        assert next(one for one in bridge.out if one.pts == after[0].pts).keyframe
        assert len(decoded(bridge.out)) == len(bridge.out)
        assert counted("sluice_frame_drop_total", stage="input_segments") == lost
        bridge.finish()
        last = await runner.watch()
        assert last.state == State.STATE_FINISHED
        assert len(bridge.out) + last.frames_dropped == 60
