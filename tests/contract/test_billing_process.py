"""`python -m services.billing` as operators and crashes treat it."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import nats
from nats.js.api import ConsumerConfig

from protos.events.v1 import events_pb2
from services.common.bus import Bus, connect
from services.common.errors import UnavailableError
from services.common.topology import USAGE, usage
from tests.support.billing import BillingClient, billing_client, window
from tests.support.nats import nats_server

SESSIONS = 10
WINDOWS_EACH = 300
BATCH = 100


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def process(nats_url: str, port: int, database: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Billing as a process of its own; killed if it still runs when the block ends."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.billing"),
        env={
            **os.environ,
            "SLUICE_BILLING_NATS_URL": nats_url,
            "SLUICE_BILLING_LISTEN": f"127.0.0.1:{port}",
            "SLUICE_BILLING_DATABASE_URL": database,
            "SLUICE_BILLING_METRICS_LISTEN": "127.0.0.1:0",
            "SLUICE_BILLING_LOG_LEVEL": "warning",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.communicate()


async def answering(client: BillingClient, started: asyncio.subprocess.Process) -> None:
    """Wait until the service answers calls."""
    async with asyncio.timeout(15):
        while True:
            assert started.returncode is None, "it ended"
            try:
                return await client.create_tenant("acme")
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_sigterm_ends_it_with_status_0_and_not_a_word(tmp_path: Path) -> None:
    port = free_port()
    async with (
        nats_server(tmp_path / "nats") as nats,
        process(nats.url, port, f"sqlite:///{tmp_path}/billing.sqlite3") as started,
        billing_client(f"127.0.0.1:{port}") as client,
    ):
        await answering(client, started)
        started.terminate()
        async with asyncio.timeout(10):
            _, said = await started.communicate()
        assert (started.returncode, said) == (0, b"")


async def test_a_taken_port_ends_it_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with (
            nats_server(tmp_path / "nats") as nats,
            process(nats.url, port, f"sqlite:///{tmp_path}/billing.sqlite3") as started,
        ):
            async with asyncio.timeout(15):
                _, said = await started.communicate()
            assert started.returncode == 1
            (line,) = said.decode().splitlines()
            assert line.startswith(f"cannot run: cannot listen on 127.0.0.1:{port}")


async def test_a_database_that_it_cannot_use_ends_it_with_one_line(tmp_path: Path) -> None:
    async with process("nats://127.0.0.1:1", free_port(), "postgresql://host/ledger") as started:
        async with asyncio.timeout(15):
            _, said = await started.communicate()
        assert started.returncode == 1
        assert said == b"cannot run: the ledger is kept in SQLite; 'postgresql' is not supported\n"


async def prepare_consumer(nats_url: str, bus: Bus) -> None:
    """Billing's durable consumer, but what a kill left unacked is handed again after 1 s instead of 30."""
    await bus.ensure_stream(USAGE, 1)
    client = await nats.connect(nats_url)
    config = ConsumerConfig(durable_name="billing", ack_wait=1, max_deliver=-1, filter_subject="usage.>")
    await client.jetstream().add_consumer(USAGE.name, config)
    await client.close()


async def publish(bus: Bus, items: Sequence[events_pb2.UsageWindow]) -> None:
    for start in range(0, len(items), BATCH):
        async with asyncio.TaskGroup() as group:
            for item in items[start : start + BATCH]:
                subject = usage(item.tenant, item.session)
                group.create_task(bus.store(subject, item.SerializeToString(), message_id=item.id))


def billed(database: Path) -> int:
    connection = sqlite3.connect(database)
    try:
        (count,) = connection.execute("SELECT count(*) FROM usage_window").fetchone()
    finally:
        connection.close()
    return int(count)


async def until_billed(database: Path, count: int) -> None:
    async with asyncio.timeout(15):
        while billed(database) < count:
            await asyncio.sleep(0.005)


async def test_every_window_is_billed_exactly_once_although_billing_is_killed_twice(tmp_path: Path) -> None:
    port, database = free_port(), tmp_path / "billing.sqlite3"
    items = [window(seq, session=f"s{number}") for seq in range(WINDOWS_EACH) for number in range(SESSIONS)]
    third = len(items) // 3
    async with (
        nats_server(tmp_path / "nats") as server,
        connect(server.url, "meter") as bus,
        billing_client(f"127.0.0.1:{port}") as client,
    ):
        await prepare_consumer(server.url, bus)
        async with process(server.url, port, f"sqlite:///{database}") as started:
            await answering(client, started)
            await client.create_tenant("acme", credit_micro=10**9)
        for part in (0, 1):
            async with (
                process(server.url, port, f"sqlite:///{database}") as started,
                asyncio.TaskGroup() as group,
            ):
                group.create_task(publish(bus, items[part * third : (part + 1) * third]))
                await until_billed(database, part * third + third // 4)
                started.kill()
                await started.wait()
        await publish(bus, items[2 * third :])
        async with process(server.url, port, f"sqlite:///{database}") as started:
            await answering(client, started)
            await until_billed(database, len(items))
            used = await client.usage()
            assert {each.delivered_ms for each in used.values()} == {WINDOWS_EACH * 5_000}
            assert len(used) == SESSIONS
            assert (await client.balance()).balance_micro == 10**9 - len(items) * 5_000
            assert (await client.entries()).imbalance_micro == 0
