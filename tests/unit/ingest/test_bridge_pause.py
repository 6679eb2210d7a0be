"""A client's pause, in virtual time: nothing of it is an end, and the runner's input goes on after it."""

from __future__ import annotations

import asyncio

import pytest

from services.common.media.mpegts import CLOCK_HZ
from services.common.trickle.channel import Channel
from services.common.trickle.registry import SWEEP_INTERVAL_S
from tests.support.bridge import Stage, staged, times
from tests.support.media import FRAME, pictures, units_of

pytestmark = pytest.mark.looptime

MINUTES_S = 600.0


async def pause(stage: Stage, seconds: float) -> None:
    """The publisher goes on meanwhile, and the listener sweeps."""
    stage.session.pause(paused=True)
    for second in range(0, round(seconds), round(SWEEP_INTERVAL_S)):
        stage.push(pictures(1, start=(2 + second) * CLOCK_HZ))
        await asyncio.sleep(SWEEP_INTERVAL_S)
        stage.registry.sweep_once()
    stage.session.pause(paused=False)


def runner_input(stage: Stage) -> Channel:
    return stage.session._channels["in"].channel


async def test_a_pause_of_minutes_ends_nothing_and_the_runner_gets_what_comes_after_it() -> None:
    async with staged() as stage:
        stage.open()
        await stage.live(1)
        before = len(times(units_of(stage.sent_on())))
        await pause(stage, MINUTES_S)
        assert not stage.session.closed.done()
        assert not runner_input(stage).closed
        assert not stage.session._channels["out-1"].channel.closed
        stage.push(pictures(5, start=round((2 + MINUTES_S) * CLOCK_HZ)))
        sent = times(units_of(stage.sent_on()))
        assert len(sent) == before + 5
        assert sent[before] - sent[before - 1] == pytest.approx(MINUTES_S * CLOCK_HZ, abs=2 * CLOCK_HZ)


async def test_a_pause_ends_the_segment_that_the_runner_reads() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(10))
        newest = runner_input(stage).head - 1
        segment = runner_input(stage)._segments[newest]
        assert not segment.ended
        stage.session.pause(paused=True)
        assert segment.ended
        stage.session.pause(paused=False)
        stage.push(pictures(2, start=10 * FRAME))
        assert runner_input(stage).head == newest + 2
