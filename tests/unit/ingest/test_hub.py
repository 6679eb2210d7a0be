"""The sessions of a pod: each a task of its own, found while it lives, gone when it is closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest

from protos.events.v1 import events_pb2
from protos.ingest.v1 import bridge_pb2
from services.common.errors import ExhaustedError, NotFoundError, RateLimitedError
from services.common.trickle.registry import Registry
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.outbox import Outbox
from services.ingest.settings import IngestSettings
from tests.support.media import pictures

pytestmark = pytest.mark.looptime


class Disk:
    source = "here"

    def __init__(self) -> None:
        self.windows: list[events_pb2.UsageWindow] = []

    async def put(self, window: events_pb2.UsageWindow) -> None:
        self.windows.append(window)


def identity(number: int) -> Identity:
    return Identity(f"ses_{number}", f"str_{number}", "acme", "effects", complete=False, traceparent="")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def hub(disk: Disk) -> AsyncIterator[Hub]:
    settings = IngestSettings(stream_secret="x" * 16, max_sessions=2)
    async with Hub(Registry(), cast("Outbox", disk), settings) as found:
        yield found


async def test_a_session_is_found_by_its_name_and_its_stream_while_it_lives(hub: Hub) -> None:
    made = hub.create(identity(1))
    assert hub.session("ses_1") is made
    assert hub.of_stream("str_1") is made
    made.close("stopped", "")
    await asyncio.sleep(0.01)
    assert hub.of_stream("str_1") is None
    with pytest.raises(NotFoundError) as refusal:
        hub.session("ses_1")
    assert refusal.value.reason == "SESSION_NOT_HERE"


async def test_a_full_pod_refuses_until_a_session_ends(hub: Hub) -> None:
    first, _ = hub.create(identity(1)), hub.create(identity(2))
    with pytest.raises(ExhaustedError):
        hub.create(identity(3))
    first.close("stopped", "")
    await asyncio.sleep(0.01)
    hub.create(identity(3))


async def test_a_viewer_waits_for_a_session_but_not_for_ever(hub: Hub) -> None:
    waiting = asyncio.ensure_future(hub.wait_for("str_1", 20))
    await asyncio.sleep(10)
    other = hub.create(identity(2))
    await asyncio.sleep(1)
    assert not waiting.done()
    made = hub.create(identity(1))
    assert await waiting is made
    assert await hub.wait_for("str_2", 0.5) is other, "one that is there needs no wait"
    assert await hub.wait_for("str_3", 20) is None


async def test_a_bug_in_one_session_ends_it_and_no_other(hub: Hub, disk: Disk) -> None:
    broken, healthy = hub.create(identity(1)), hub.create(identity(2))
    broken.open(bridge_pb2.OpenRequest(session="ses_1", epoch=1))
    broken._play_sound = bug  # type: ignore[method-assign]
    await asyncio.sleep(1)
    assert hub.of_stream("str_1") is None
    assert broken.closed.result().reason == "internal_error"
    assert (disk.windows[-1].final, disk.windows[-1].end_reason) == (True, "internal_error")
    for unit in pictures(2):
        healthy.push(unit, time.monotonic())
    assert hub.of_stream("str_2") is healthy
    assert not healthy.closed.done()


def bug() -> None:
    raise ZeroDivisionError("a bug")


async def test_the_end_of_the_process_ends_every_session_with_a_last_window(disk: Disk) -> None:
    settings = IngestSettings(stream_secret="x" * 16)
    async with Hub(Registry(), cast("Outbox", disk), settings) as hub:
        for number in (1, 2, 3):
            made = hub.create(identity(number))
            made.open(bridge_pb2.OpenRequest(session=f"ses_{number}", epoch=1))
            made.usage.meter.delivered(0)
            made.usage.meter.delivered(500)
        await asyncio.sleep(1)
    assert len(hub) == 0
    assert {(window.session, window.quantity, window.final) for window in disk.windows} == {
        (f"ses_{number}", 500, False) for number in (1, 2, 3)
    }, "not the final one: the session may go on in another process"


async def test_one_tenant_does_not_get_all_of_a_pod(disk: Disk) -> None:
    settings = IngestSettings(stream_secret="x" * 16, max_streams_per_tenant=2)
    async with Hub(Registry(), cast("Outbox", disk), settings) as hub:
        first, _ = hub.create(identity(1)), hub.create(identity(2))
        with pytest.raises(RateLimitedError) as refused:
            hub.create(identity(3))
        assert refused.value.reason == "TOO_MANY_STREAMS"
        hub.create(replace(identity(3), tenant="other"))
        first.close("stopped", "")
        while hub.of_stream("str_1") is not None:
            await asyncio.sleep(0.01)
        hub.create(identity(4))
