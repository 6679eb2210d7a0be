"""Sessions that go on: from another runner, at another bridge, and while their runner drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2
from services.common.errors import ConflictError, NotFoundError
from services.common.lifecycle import background
from services.common.topology import heartbeat
from services.common.trickle.connection import trickle_session
from services.inference import state
from services.inference.state import read_back, sealed, unsealed
from tests.support.engine import FRAME, START, decoded, video
from tests.support.inference import Bridge, Runner, State, running, until
from tests.support.nats import NatsServer, nats_server

LIVE = runner_pb2.DELIVERY_LIVE
PIPELINES = "passthrough,tests.support.pipelines:Counting,tests.support.pipelines:Grey"
pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path) as server:
        yield server


@pytest.fixture(autouse=True)
def patiently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "WITHIN_S", 10.0)  # where a second is nothing


@pytest.fixture
async def runner(nats: NatsServer) -> AsyncIterator[Runner]:
    async with running(nats, pipelines=PIPELINES, slots=2, bridge_lost_after_s=3.0) as runner:
        yield runner


async def live(
    bridge: Bridge, *, start: int = START, every: int = 30, size: tuple[int, int] = (128, 96)
) -> None:
    """A publisher that sends for a minute, a key frame a second."""
    await bridge.play(video(1800, start=start, every=every, size=size))


def seen(bridge: Bridge) -> list[int]:
    """What the pipeline said of its pictures: how many it had seen."""
    return [one["data"]["seen"] for one in bridge.said]


async def beats(runner: Runner, take: Callable[[events_pb2.Heartbeat], None]) -> None:
    async for message in runner.bus.subscribe(heartbeat("r1")):
        take(events_pb2.Heartbeat.FromString(message.data))


# --- from another runner


async def test_a_session_that_comes_from_another_runner_begins_where_that_one_was(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        await runner.attach(old, "counting", delivery=LIVE)
        async with background(play=live(old, every=60)):
            await until(lambda: len(old.out) > 80 and old.state.head > 0)
            remembered, shown, sent = seen(old)[-1], old.out[-1].pts, old.newest_in
            await runner.attach(
                new, "counting", session="s2", session_epoch=2, slot=1, delivery=LIVE, after_pts=shown
            )
            await until(lambda: len(new.out) > 30 and len(seen(new)) > 30)
    first = new.out[0]
    assert first.keyframe
    assert first.pts > shown
    assert sent - 20_000 <= first.pts  # what waited since the key frame was decoded, and not shown
    assert all(before.pts < after.pts for before, after in pairwise(new.out))
    assert len(decoded(new.out)) == len(new.out)  # the references were there
    assert seen(new)[0] > remembered - 35  # a snapshot a second, and not from the beginning
    assert seen(new)[0] > 30


async def test_a_file_that_comes_from_another_runner_loses_no_picture(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        await runner.attach(old, "counting")
        sent = video(120)
        old.push(sent)
        await until(lambda: len(old.out) > 50)
        after = old.out[50].pts
        await runner.attach(new, "counting", session="s2", session_epoch=2, slot=1, after_pts=after)
        old.finish()
        await until(lambda: new.out_closed)
    assert [one.pts for one in new.out] == [one.pts for one in sent if one.pts > after]
    assert len(decoded(new.out)) == len(new.out)


async def test_a_file_that_has_run_for_long_loses_no_picture_either(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        await runner.attach(old, "counting")
        sent = video(120, every=1)  # as many segments, of which the bridge keeps half
        for part in (sent[:60], sent[60:]):
            old.push(part)
            await until(lambda: len(old.out) >= old.newest_in // FRAME - START // FRAME)
        after = old.out[100].pts
        await runner.attach(new, "counting", session="s2", session_epoch=2, slot=1, after_pts=after)
        old.finish()
        await until(lambda: new.out_closed)
    assert [one.pts for one in new.out] == [one.pts for one in sent if one.pts > after]


async def test_a_session_with_a_broken_snapshot_begins_without_it(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        with old.state.begin_segment() as segment:
            segment.write(sealed(b"40")[:-1])
        await runner.attach(new, "counting", delivery=LIVE)
        async with background(play=live(old)):
            await until(lambda: len(seen(new)) > 0)
        assert seen(new)[0] == 1


async def test_a_snapshot_that_was_cut_gives_way_to_the_one_before(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        for data in (sealed(b"40"), sealed(b"80")[:-1]):
            with old.state.begin_segment() as segment:
                segment.write(data)
        await runner.attach(new, "counting", delivery=LIVE)
        async with background(play=live(old)):
            await until(lambda: len(seen(new)) > 0)
        assert seen(new)[0] == 41


async def test_a_snapshot_that_kills_an_engine_kills_no_other(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next", beside=old) as new:
        with old.state.begin_segment() as segment:
            segment.write(sealed(b"poison"))
        await runner.attach(new, "counting", delivery=LIVE)
        async with background(play=live(old)):
            await until(lambda: new.told("problem") != [], 20)
            (problem,) = new.told("problem")
            assert (problem["stage"], problem["action"]) == ("restore", "restarting")
            async with trickle_session() as http, asyncio.timeout(5):  # nor one of another runner
                while await read_back(http, new.remembered) is not None:
                    await asyncio.sleep(0.02)
            await until(lambda: len(seen(new)) > 0, 20)
        assert seen(new)[0] == 1


async def test_each_snapshot_is_kept_at_the_bridge(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "counting", delivery=LIVE)
        async with background(play=live(bridge)):
            await until(lambda: bridge.state.head > 1)
            written = []
            for index in range(bridge.state.head):
                segment = await bridge.state.segment(index)
                written.append(unsealed(b"".join([data async for data in segment])))
    assert None not in written
    numbers = [int(one or 0) for one in written]
    assert numbers == sorted(set(numbers))


async def test_the_picture_that_was_asked_for_is_a_key_frame(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        at = START + 40 * FRAME + 1
        bridge.control(
            b'{"type": "keyframe", "at_pts": %d}' % (START + 5 * FRAME)
        )  # the next one takes its place
        bridge.control(b'{"type": "keyframe", "at_pts": %d}' % at)
        await asyncio.sleep(0.1)
        await runner.attach(bridge)
        async with background(play=live(bridge)):
            await until(lambda: len(bridge.out) > 55)
    keys = [one.pts for one in bridge.out if one.keyframe]
    assert keys == [START, START + 41 * FRAME]


# --- at another bridge


async def test_a_session_goes_on_at_another_bridge_with_its_state(runner: Runner) -> None:
    async with runner.bridge() as old, runner.bridge("next") as new:
        await runner.attach(old, "counting", delivery=LIVE)
        async with background(play=live(old)):
            await until(lambda: len(old.out) > 40)
        old.leave()
        await asyncio.sleep(0.5)
        answer = await runner.rebind(new)
        counted = seen(old)[-1]
        assert answer.in_pts >= answer.out_pts >= old.out[-1].pts
        again = await runner.rebind(new)
        assert (again.in_pts, again.out_pts) == (answer.in_pts, answer.out_pts)
        with pytest.raises(ConflictError) as stale:
            await runner.rebind(old, session_epoch=1)
        assert stale.value.reason == "STALE_EPOCH"
        with pytest.raises(ConflictError) as stale:
            await runner.rebind(new, session_epoch=3, slot_epoch=4)
        assert stale.value.reason == "STALE_EPOCH"
        (claim,) = (await runner.describe()).state.claims
        assert claim.session_epoch == 2
        later = answer.in_pts + 90_000
        async with background(play=live(new, start=later, size=(160, 120))):  # it may have another camera
            await until(lambda: len(new.out) > 30 and len(seen(new)) > 30)
            new.control(b'{"type": "keyframe"}')
            await until(lambda: sum(one.keyframe for one in new.out) > 1)
            await until(lambda: new.state.head > 0)
            await until(lambda: new.told("status") != [])
        await runner.detach()
    assert new.applied() == [(1, START)]
    assert new.told("health")[0]["state"] in {"online", "degraded_input", "idle"}
    assert {frame.rgb().shape for frame in decoded(new.out)} == {(120, 160, 3)}
    assert new.out[0].keyframe
    assert new.out[0].pts >= later
    assert len(decoded(new.out)) == len(new.out)
    assert seen(new)[0] == pytest.approx(counted, abs=10)  # not from the beginning
    assert seen(new)[0] > counted
    assert [one for one in new.events if one["type"] in {"error", "problem"}] == []


async def test_a_session_whose_bridge_stays_away_ends_and_not_before(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=live(bridge)):
            await until(lambda: len(bridge.out) > 5)
        bridge.leave()
        began_s = asyncio.get_running_loop().time()
        last = await watching
        assert asyncio.get_running_loop().time() - began_s > 2.5
        assert (last.state, last.reason) == (State.STATE_FAILED, "bridge_lost")
        with pytest.raises(NotFoundError):
            await runner.rebind(bridge)


async def test_a_runner_that_is_shut_out_lets_go_of_its_slot(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=live(bridge)):
            await until(lambda: len(bridge.out) > 5)
            shown = len(bridge.out)
            for kind in (
                "out",
                "control",
                "events",
                "data",
                "state",
            ):  # what a handover closes: not the input
                bridge.shut(kind)
            last = await watching
        assert (last.state, last.reason) == (State.STATE_FAILED, "bridge_lost")
        assert len(bridge.out) <= shown + 2
        assert not (await runner.describe()).state.claims


async def test_a_rebind_of_what_is_not_there_is_refused(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        with pytest.raises(NotFoundError) as unknown:
            await runner.rebind(bridge)
        assert unknown.value.reason == "UNKNOWN_SESSION"


# --- reports


async def test_a_report_says_how_far_the_session_is_and_that_its_engine_died(runner: Runner) -> None:
    async with runner.bridge() as bridge:
        await runner.attach(bridge, "counting", params='{"dies_at": 20}', delivery=LIVE)
        watching = asyncio.create_task(runner.watch())
        async with background(play=live(bridge)):
            reports = runner.reports.setdefault("s1", [])
            await until(lambda: any(one.interrupted for one in reports))
            told = next(one for one in reports if one.interrupted)
            assert (told.state, told.reason, told.suspected) == (State.STATE_RUNNING, "engine_crashed", True)
            assert "SIGKILL" in told.message
            assert told.in_pts >= told.out_pts >= START
            await until(lambda: not reports[-1].interrupted)
            assert (reports[-1].reason, reports[-1].message, reports[-1].suspected) == ("", "", False)
            await runner.detach()
        last = await watching
    assert last.in_pts >= last.out_pts > told.out_pts


# --- draining


async def test_a_runner_that_drains_takes_nothing_new_and_goes_on_with_what_it_has(runner: Runner) -> None:
    states: list[events_pb2.Heartbeat] = []
    async with (
        runner.bridge() as bridge,
        runner.bridge("s2") as other,
        background(listen=beats(runner, states.append)),
    ):
        await until(lambda: states != [])
        await runner.attach(bridge, delivery=LIVE)
        (claim,) = (await runner.drain()).claims
        assert claim.session == "s1"
        await until(lambda: states[-1].state == events_pb2.RUNNER_STATE_DRAINING, 0.5)
        assert (await runner.drain()).claims == [claim]  # again
        with pytest.raises(ConflictError) as draining:
            await runner.attach(other, session="s2", slot=1, delivery=LIVE)
        assert draining.value.reason == "DRAINING"
        async with background(play=live(bridge)):
            await until(lambda: len(bridge.out) > 5)
        await runner.drain(cancel=True)
        await until(lambda: states[-1].state == events_pb2.RUNNER_STATE_READY, 0.5)
        await runner.attach(other, "grey", session="s2", slot=1, delivery=LIVE)


async def test_a_slot_that_is_taken_or_free_is_told_at_once_and_beats_are_bounded(runner: Runner) -> None:
    heard: list[tuple[float, events_pb2.Heartbeat]] = []
    now = asyncio.get_running_loop().time

    def takers() -> list[int]:
        return [one.slot_epoch for one in heard[-1][1].claims]

    async with (
        runner.bridge() as bridge,
        background(listen=beats(runner, lambda beat: heard.append((now(), beat)))),
    ):
        await until(lambda: heard != [])
        for epoch in range(5, 15):
            await runner.attach(bridge, delivery=LIVE, slot_epoch=epoch, session_epoch=epoch)
            async with asyncio.timeout(0.5):
                while takers() != [epoch]:
                    await asyncio.sleep(0.005)
            await runner.detach(slot_epoch=epoch)
        await until(lambda: takers() == [], 0.5)
    apart = [after - before for (before, _), (after, _) in pairwise(heard)]
    assert sum(apart) / len(apart) > 0.09


async def test_the_price_and_what_a_frame_takes_are_told(nats: NatsServer) -> None:
    async with running(nats, pipelines=PIPELINES, micro_per_second=700) as runner, runner.bridge() as bridge:
        assert (await runner.describe()).advert.micro_per_second == 700
        assert (await runner.describe()).state.frame_us == 0
        await runner.attach(bridge, delivery=LIVE)
        async with background(play=live(bridge)):
            await until(lambda: any(one["inferred"] > 30 for one in bridge.told("status")))
        took = (await runner.describe()).state.frame_us
        assert took > 0
        assert len(str(took).rstrip("0")) <= 2
