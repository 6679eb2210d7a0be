"""A slot that was given twice is seen; what could not be seen is no violation."""

from __future__ import annotations

import asyncio
from pathlib import Path

from protos.events.v1 import events_pb2
from services.common import bus
from services.common.topology import SESSIONS, SLOTS
from tests.chaos.harness.holdings import Change, Claim, Holdings, double_grants, shared_claims
from tests.support.nats import nats_server


def change(revision: int, session: str, epoch: int, *, contiguous: bool = True) -> Change:
    return Change(revision, "cpu-0.0", session, epoch, contiguous)


def test_a_slot_that_is_freed_between_two_sessions_was_given_once_each() -> None:
    assert not double_grants([change(1, "", 0), change(2, "a", 1), change(3, "", 1), change(4, "b", 2)])


def test_a_slot_taken_while_it_is_held_was_given_twice() -> None:
    (found,) = double_grants([change(1, "a", 1), change(2, "b", 2)])
    assert "taken while held" in found


def test_an_epoch_is_given_once() -> None:
    (found,) = double_grants([change(1, "a", 1), change(2, "", 1), change(3, "b", 1)])
    assert "epoch given twice" in found
    (fell,) = double_grants([change(1, "a", 2), change(2, "", 1)])
    assert "epoch fell" in fell


def test_what_was_not_seen_is_no_violation() -> None:
    assert not double_grants([change(1, "a", 1), change(9, "b", 3, contiguous=False)])


def test_two_records_that_name_one_grant_share_it() -> None:
    claims = [Claim("cpu-0.0", 1, "a"), Claim("cpu-0.0", 1, "b"), Claim("cpu-0.0", 2, "c")]
    assert shared_claims(claims) == ["cpu-0.0@1: ['a', 'b']"]


async def test_changes_are_followed_in_a_real_store(tmp_path: Path) -> None:
    async with nats_server(tmp_path) as server, bus.connect(server.url, "test") as link:
        slots = await link.bucket(SLOTS, 1)
        await link.bucket(SESSIONS, 1)
        holdings = Holdings(server.url)
        revision = 0
        for session, epoch in (("a", 1), ("b", 2)):
            value = events_pb2.Slot(session=session, epoch=epoch).SerializeToString()
            if revision:
                await slots.update("cpu-0.0", value, revision)
            else:
                revision = await slots.create("cpu-0.0", value)
            await until_seen(holdings, session)
        await asyncio.to_thread(holdings.close)
    assert [(seen.session, seen.epoch) for seen in holdings.changes] == [("a", 1), ("b", 2)]
    assert len(holdings.violations()) == 1


async def until_seen(holdings: Holdings, session: str) -> None:
    async with asyncio.timeout(10):
        while not any(seen.session == session for seen in [*holdings.changes]):
            await asyncio.sleep(0.05)
