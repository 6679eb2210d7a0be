"""How long a push waits before it tries again; a session is played, and so is the failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from services.common.errors import UnavailableError
from services.ingest.transports.rtmp import push
from services.ingest.transports.rtmp.push import Phase, RtmpPush
from services.ingest.transports.rtmp.target import Target
from tests.support.bridge import staged

URL = "rtmp://example.com/live/key"


async def attempts(
    monkeypatch: pytest.MonkeyPatch, for_s: float, lasts_s: Callable[[int], float], **facts: float
) -> list[float]:
    """When each attempt began, of a target that fails after `lasts_s`."""
    began: list[float] = []
    loop = asyncio.get_running_loop()

    async def fail(self: RtmpPush, target: Target) -> None:
        began.append(loop.time())
        await asyncio.sleep(lasts_s(len(began)))
        raise UnavailableError("no", reason="RTMP_PUSH_REFUSED")

    monkeypatch.setattr(RtmpPush, "_push", fail)
    monkeypatch.setattr("random.uniform", lambda low, high: facts.get("jitter", high))
    async with staged(orphan_after_s=1e6) as stage:
        pushed = RtmpPush(stage.session, URL, private=False)
        running = asyncio.ensure_future(pushed.run())
        await asyncio.sleep(for_s)
        assert pushed.state.attempts == len(began)
        assert pushed.state.error == "no"
        stage.session.close("stopped", "")
        await running
        assert pushed.state.phase is Phase.ENDED
    return began


def pauses(began: list[float]) -> list[float]:
    return [round(later - earlier, 3) for earlier, later in pairwise(began)]


@pytest.mark.looptime
async def test_the_pause_doubles_up_to_half_a_minute_and_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    began = await attempts(monkeypatch, 150, lambda _: 0.0)
    assert pauses(began) == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.looptime
async def test_a_pause_is_shortened_at_random_for_not_all_shall_come_back_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began = await attempts(monkeypatch, 10, lambda _: 0.0, jitter=0.5)
    assert pauses(began)[:3] == [0.5, 1, 2]


@pytest.mark.looptime
async def test_who_was_live_for_long_begins_again_with_a_short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    began = await attempts(monkeypatch, 60, lambda attempt: push.STEADY_S + 1 if attempt == 4 else 0.0)
    assert pauses(began)[:5] == [1, 2, 4, push.STEADY_S + 1 + 1, 2]
