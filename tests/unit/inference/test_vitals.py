"""What a session says of how it is, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.common.lifecycle import background
from services.inference.vitals import AGAIN_S, Vitals


def sessions(state: str) -> float:
    return REGISTRY.get_sample_value("sluice_runner_health", {"state": state}) or 0.0


@pytest.mark.looptime
async def test_each_change_is_told_once() -> None:
    told: list[dict[str, Any]] = []
    vitals = Vitals(lambda **event: told.append(event))
    online = sessions("online")
    async with background(watch=vitals.watch(lambda: False)):
        for _ in range(300):
            await asyncio.sleep(1 / 30)
            vitals.took()
            vitals.gave()
        assert sessions("online") == online + 1
        await asyncio.sleep(3)
    assert [(one["state"], one["cause"]) for one in told] == [
        ("idle", "no_input"),
        ("online", ""),
        ("degraded_input", "input_silent"),
    ]
    vitals.ended()
    assert sessions("online") == online
    assert all(one["type"] == "health" and one["since_ms"] > 1_600_000_000_000 for one in told)


@pytest.mark.looptime
async def test_a_load_that_says_nothing_is_told_of_again() -> None:
    told: list[dict[str, Any]] = []
    vitals = Vitals(lambda **event: told.append(event))
    async with background(watch=vitals.watch(lambda: False)):
        vitals.loads(why="reload", stage="weights", percent=40)
        await asyncio.sleep(3.5 * AGAIN_S)
        vitals.loads(why="reload", stage="weights", percent=100)
        await asyncio.sleep(3.5 * AGAIN_S)
    loading = [one["percent"] for one in told if one["type"] == "loading"]
    assert loading == [40] * 4 + [100]
    vitals.ended()


@pytest.mark.looptime
async def test_what_loads_beside_the_frames_is_told_and_changes_nothing() -> None:
    told: list[dict[str, Any]] = []
    vitals = Vitals(lambda **event: told.append(event))
    vitals.took()
    vitals.gave()
    vitals.look()
    vitals.loads(why="warm", stage="load", percent=0, beside=True)
    vitals.look()
    assert [one.get("state", one.get("why")) for one in told] == ["online", "warm"]
    vitals.failed("pipeline_failed")
    assert (told[-1]["state"], told[-1]["cause"]) == ("error", "pipeline_failed")
    vitals.ended()


@pytest.mark.looptime
async def test_who_did_not_hear_it_is_told_again() -> None:
    told: list[dict[str, Any]] = []
    vitals = Vitals(lambda **event: told.append(event))
    vitals.tell_again()
    assert told == []
    vitals.took()
    vitals.gave()
    vitals.look()
    vitals.loads(why="warm", stage="load", percent=10, beside=True)
    online, loading = told
    vitals.tell_again()
    assert told == [online, loading, loading, online]
    vitals.ended()
