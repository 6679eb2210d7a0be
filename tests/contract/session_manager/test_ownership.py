"""Several session-managers, some of which die: every session keeps one owner, and NATS may go away."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import UnavailableError
from services.common.topology import REPLICAS
from services.session_manager.machine import Phase, Session, SessionId, StreamId
from tests.support.fakes import FakeRunner
from tests.support.moving import started
from tests.support.nats import NatsServer
from tests.support.session_manager import (
    SESSION,
    STREAM,
    Neighbourhood,
    Replica,
    collected,
    until,
)

GAVE_UP = "pipeline_failed"


@pytest.fixture
async def two(around: Neighbourhood) -> AsyncIterator[Replica]:
    async with around.replica("two") as replica:
        yield replica


async def adopted(replica: Replica, owner: str) -> None:
    async def look() -> bool:
        return (await replica.session()).owner == owner and SESSION in replica.lives

    await until(look)


def fail(runner: FakeRunner) -> None:
    runner.say(runner_pb2.SlotReport.STATE_FAILED, GAVE_UP)


async def test_any_replica_serves_any_call_and_the_owner_takes_note(
    around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await started(around, one)
    await two.update({"prompt": "sketch"})
    assert around.runner.patches[0].revision == 2
    await two.stop()
    assert (await one.ended()).end_reason == "stopped"
    assert around.held() == []

    async def over() -> bool:
        return SESSION not in one.lives and SESSION not in two.lives

    await until(over)


async def test_the_session_of_a_replica_that_died_is_adopted_within_six_seconds_and_watched(
    around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await started(around, one)
    calls = len(around.runner.calls)
    await one.kill()
    killed_s = time.monotonic()
    await adopted(two, "two")
    assert time.monotonic() - killed_s < 6
    assert (await two.session()).phase == pb.PHASE_LIVE
    assert [name for name, _ in around.runner.calls[calls:] if name != "Watch"] == [], "nothing is touched"
    around.bridge.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_SILENT)
    await two.reaches(pb.PHASE_PAUSED)
    fail(around.runner)
    assert (await two.ended()).end_reason == GAVE_UP
    assert around.held() == []


async def test_a_start_whose_replica_died_is_ended_and_its_slot_is_freed(
    around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await one.create()
    around.publish()
    around.router.hang("Grant")
    starting = asyncio.ensure_future(one.start(around.bridge.address))

    async def granted() -> bool:
        return bool(around.router.held)

    await until(granted)
    await one.kill()
    with pytest.raises((UnavailableError, asyncio.CancelledError)):
        await starting
    assert (await two.ended()).end_reason == "start_interrupted"
    assert around.held() == []
    assert (await two.stream()).session == ""


async def test_what_a_replica_ended_but_could_not_free_is_freed_by_the_adopter(
    around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await started(around, one)
    around.billing.fail("Settle", UnavailableError("away"), times=10_000)
    await one.stop()
    await one.kill()
    record = await two.session()
    assert (record.phase, record.settled) == (pb.PHASE_ENDED, False)
    around.billing._faults.clear()
    assert (await two.ended()).end_reason == "stopped"
    assert around.held() == []


async def test_a_replica_that_lost_its_session_to_another_lets_go_of_it(
    around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await started(around, one)
    await two.store.change_session(SESSION, lambda was: was.with_(owner="two"))

    async def moved() -> bool:
        return SESSION in two.lives and SESSION not in one.lives

    await until(moved)
    assert (await two.session()).phase == pb.PHASE_LIVE


async def test_sessions_live_through_a_restart_of_nats(
    nats: NatsServer, around: Neighbourhood, one: Replica, two: Replica
) -> None:
    await started(around, one)
    await nats.kill()
    around.bridge.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_SILENT)
    await asyncio.sleep(1.0)
    with pytest.raises(UnavailableError):
        await one.stop()
    assert around.runner.session == SESSION
    await nats.start()
    await one.reaches(pb.PHASE_PAUSED)
    record = await one.session()
    assert (record.owner, record.id in one.lives, record.id in two.lives) == ("one", True, False)
    await two.stop()
    assert (await two.ended()).end_reason == "stopped"
    assert around.held() == []


async def test_a_failure_while_nats_is_away_is_recorded_when_it_is_back(
    nats: NatsServer, around: Neighbourhood, one: Replica
) -> None:
    await started(around, one)
    await nats.kill()
    fail(around.runner)
    await asyncio.sleep(0.5)
    await nats.start()
    assert (await one.ended()).end_reason == GAVE_UP
    assert around.held() == []


async def test_what_happened_while_nats_was_away_is_told_when_it_is_back(
    nats: NatsServer, around: Neighbourhood, one: Replica
) -> None:
    await started(around, one)
    await nats.kill()

    async def noticed() -> bool:
        return not one.bus.healthy_for_s

    await until(noticed)
    session = one.store.session_seen(SESSION)
    assert session is not None
    one.lives.telling.entered(session)
    await asyncio.sleep(0.5)
    await nats.start()
    assert [event.type for event in await collected(one, 3)] == ["starting", "live", "live"]


async def test_a_replica_that_is_started_again_under_its_name_is_heard(around: Neighbourhood) -> None:
    """JetStream knows for two minutes what it was told before, and takes the same id for the same event."""
    for number in range(2):
        async with around.replica("one") as one:
            if not number:
                await one.create()
            session = f"ses_{number}aaaaaaaaa"
            around.publish(session)
            await one.start(around.bridge.address, session)
            await one.stop(session)
            assert [event.type for event in await collected(one, 2)] == ["starting", "ended"]


def ended_record(session: str, ended_unix_ms: int) -> Session:
    return Session(
        id=SessionId(session),
        stream=StreamId(STREAM),
        tenant="acme",
        pipeline="effects",
        owner="long gone",
        bridge="ingest:7000",
        created_unix_ms=1,
        phase=Phase.ENDED,
        end_reason="stopped",
        ended_unix_ms=ended_unix_ms,
        settled=True,
    )


async def test_the_record_of_an_ended_session_is_kept_for_a_time_and_no_longer(around: Neighbourhood) -> None:
    now_unix_ms = time.time_ns() // 1_000_000
    async with around.replica("keeper", keep_ended_s=60) as keeper:
        await keeper.store.create_session(ended_record("ses_old0000000", now_unix_ms - 61_000))
        await keeper.store.create_session(ended_record("ses_new0000000", now_unix_ms - 30_000))

        async def purged() -> bool:
            return await keeper.store.sessions.get("ses_old0000000") is None

        await until(purged)
        assert (await keeper.session("ses_new0000000")).end_reason == "stopped"


# --- the process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def process(nats_url: str, listen: str, **variables: str) -> asyncio.subprocess.Process:
    settings = {
        "SLUICE_SESSION_MANAGER_NATS_URL": nats_url,
        "SLUICE_SESSION_MANAGER_LISTEN": listen,
        "SLUICE_SESSION_MANAGER_METRICS_LISTEN": "127.0.0.1:0",
        "SLUICE_SESSION_MANAGER_LOG_LEVEL": "warning",
        **variables,
    }
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.session_manager"),
        env={**os.environ, **settings},
        stderr=asyncio.subprocess.PIPE,
    )


async def over(started: asyncio.subprocess.Process) -> tuple[int | None, list[str]]:
    try:
        async with asyncio.timeout(15):
            _, said = await started.communicate()
    finally:
        with suppress(ProcessLookupError):
            started.kill()
    return started.returncode, said.decode().splitlines()


async def test_sigterm_ends_the_process_with_status_0_and_its_sessions_are_free_at_once(
    nats: NatsServer, one: Replica
) -> None:
    port = free_port()
    started = await process(nats.url, f"127.0.0.1:{port}", SLUICE_SESSION_MANAGER_INSTANCE="proc")
    replicas = await one.bus.bucket(REPLICAS, 1)

    async def there() -> bool:
        assert started.returncode is None
        return await replicas.get("proc") is not None

    await until(there, 15)
    started.send_signal(signal.SIGTERM)
    assert await over(started) == (0, [])
    assert await replicas.get("proc") is None, "others adopt without waiting for a TTL"


async def test_a_wrong_setting_ends_the_process_with_status_2_and_its_name() -> None:
    started = await process("nats://127.0.0.1:1", "127.0.0.1:0", SLUICE_SESSION_MANAGER_SLICE_S="soon")
    status, (line,) = await over(started)
    assert status == 2
    assert line.startswith("SLUICE_SESSION_MANAGER_SLICE_S: ")


async def test_a_taken_port_ends_the_process_with_one_line(nats: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        status, (line,) = await over(await process(nats.url, listen))
    assert status == 1
    assert line.startswith(f"cannot run: cannot listen on {listen}")
