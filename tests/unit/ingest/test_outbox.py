"""Usage on disk: what was put is sent until it is confirmed, through kills, full disks and lost brokers."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import REGISTRY

from protos.events.v1 import events_pb2
from services.common.bus import Bus
from services.common.errors import UnavailableError
from services.common.lifecycle import background
from services.ingest.bridge import outbox as module
from services.ingest.bridge.outbox import Line, Outbox, outbox


class Broker:
    """NATS as the outbox uses it; `away` is a link that is down."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, str]] = []  # message id, subject
        self.away = False
        self.confirmations: asyncio.Queue[bytes] = asyncio.Queue()

    async def store(self, subject: str, payload: bytes, *, message_id: str) -> None:
        if self.away:
            raise UnavailableError("NATS is not reachable", reason="NATS_UNREACHABLE")
        assert events_pb2.UsageWindow.FromString(payload).id == message_id.partition("#")[0]
        self.stored.append((message_id, subject))

    async def subscribe(self, subject: str) -> AsyncIterator[SimpleNamespace]:
        while True:
            yield SimpleNamespace(data=await self.confirmations.get())

    def confirm(self, *ids: str) -> None:
        self.confirmations.put_nowait(events_pb2.UsageConfirmed(ids=ids).SerializeToString())


@asynccontextmanager
async def opened(path: Path, broker: Broker) -> AsyncIterator[Outbox]:
    async with outbox(str(path), cast("Bus", broker)) as box:
        yield box


@asynccontextmanager
async def delivering(path: Path, broker: Broker) -> AsyncIterator[Outbox]:
    async with (
        opened(path, broker) as box,
        background(deliver=box.deliver(), confirm=box.confirm()),
    ):
        yield box


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite3"


def window(seq: int) -> events_pb2.UsageWindow:
    return events_pb2.UsageWindow(
        id=f"ses:1:{seq}", session="ses", epoch=1, seq=seq, tenant="acme", quantity=5000
    )


def kept(path: Path) -> list[str]:
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT id FROM usage ORDER BY rowid").fetchall()
    database.close()
    return [row[0] for row in rows]


async def until(true: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


async def test_what_was_put_survives_a_kill_and_is_sent_by_the_next_process(path: Path) -> None:
    broker = Broker()
    async with opened(path, broker) as box:
        source = box.source
        await box.put(window(1))
        await box.put(window(2))
    assert broker.stored == []
    async with delivering(path, broker) as box:
        assert box.source == source, "confirmations find it again"
        await until(lambda: len(broker.stored) == 2)
    assert broker.stored == [("ses:1:1#0", "usage.acme.ses"), ("ses:1:2#0", "usage.acme.ses")]
    assert kept(path) == ["ses:1:1", "ses:1:2"], "sent is not confirmed"


async def test_every_outbox_has_a_name_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path / "a", Broker()) as one, opened(tmp_path / "b", Broker()) as other:
        assert one.source != other.source


async def test_the_same_window_twice_is_kept_once(path: Path) -> None:
    async with opened(path, Broker()) as box:
        await box.put(window(1))
        await box.put(window(1))
    assert kept(path) == ["ses:1:1"]


async def test_what_the_ledger_confirmed_leaves_the_disk(path: Path) -> None:
    broker = Broker()
    async with delivering(path, broker) as box:
        for seq in (1, 2, 3):
            await box.put(window(seq))
        await until(lambda: len(broker.stored) == 3)
        broker.confirm("ses:1:1", "ses:1:3", "somebody else's")
        await until(lambda: kept(path) == ["ses:1:2"])


async def test_what_is_not_confirmed_is_sent_again_under_another_message_id(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESEND_S", 0.1)
    broker = Broker()
    async with delivering(path, broker) as box:
        await box.put(window(1))
        await until(lambda: len(broker.stored) >= 3)
    assert [message_id for message_id, _ in broker.stored[:3]] == ["ses:1:1#0", "ses:1:1#1", "ses:1:1#2"]


async def test_what_was_sent_a_moment_ago_is_not_sent_again(path: Path) -> None:
    broker = Broker()
    async with delivering(path, broker) as box:
        for seq in (1, 2, 3):
            await box.put(window(seq))
            await until(lambda: len(broker.stored) == seq)  # noqa: B023
    assert len({message_id for message_id, _ in broker.stored}) == 3


async def test_more_than_a_batch_is_sent_without_a_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    broker = Broker()
    async with opened(path, broker) as box:
        for seq in range(23):
            await box.put(window(seq))
    async with delivering(path, broker):
        await until(lambda: len(broker.stored) == 23)
    assert [message_id for message_id, _ in broker.stored] == [f"ses:1:{seq}#0" for seq in range(23)]


async def test_while_nats_is_away_windows_wait_in_their_order(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    broker.away = True
    async with delivering(path, broker) as box:
        for seq in (1, 2, 3):
            await box.put(window(seq))
        await asyncio.sleep(0.1)
        assert kept(path) == ["ses:1:1", "ses:1:2", "ses:1:3"]
        broker.away = False
        await until(lambda: len(broker.stored) == 3)
    assert [message_id for message_id, _ in broker.stored] == ["ses:1:1#0", "ses:1:2#0", "ses:1:3#0"]


async def test_a_disk_that_refuses_loses_nothing_that_memory_can_hold(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 3)
    broker = Broker()
    broker.away = True
    async with opened(path, broker) as box:
        healthy = box._insert

        def refuses(rows: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(box, "_insert", refuses)
        for seq in (1, 2, 3, 4):
            await box.put(window(seq))
        assert kept(path) == []
        monkeypatch.setattr(box, "_insert", healthy)
        broker.away = False
        async with background(deliver=box.deliver()):
            await until(lambda: len(broker.stored) == 3)
    assert [message_id for message_id, _ in broker.stored] == ["ses:1:2#0", "ses:1:3#0", "ses:1:4#0"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, check=False, capture_output=True, text=True)
    if "superuser" in mounted.stderr or "permission denied" in mounted.stderr:
        # SQLite resolves links itself, so that it finds no disk that is in another namespace only.
        pytest.skip(f"the kernel mounts no small disk: {mounted.stderr.strip()}")
    assert not mounted.returncode, mounted.stderr
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on the disk."""
    rest = disk / "rest"
    with suppress(OSError), rest.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(512))
    return rest


async def test_windows_of_a_full_disk_are_sent_from_memory_and_each_is_confirmed_once(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESEND_S", 0.4)
    path, broker = small_disk / "outbox.sqlite3", Broker()
    async with delivering(path, broker) as box:
        await box.put(window(0))
        await until(lambda: len(broker.stored) == 1)
        broker.away = True
        rest = fill(small_disk)
        puts = 0
        while len(box._unstored) < 60:  # until the write-ahead log has no room left
            puts += 1
            await box.put(window(puts))
        broker.away = False
        everything = {f"ses:1:{seq}" for seq in range(puts + 1)}
        await until(lambda: {sent.partition("#")[0] for sent, _ in broker.stored} == everything)
        await until(lambda: any(sent.endswith("#1") for sent, _ in broker.stored))
        in_memory = sorted(box._unstored)
        broker.confirm(*in_memory[:30])
        await until(lambda: len(box._unstored) == len(in_memory) - 30)
        rest.unlink()
        await box.put(window(9_999))
        await until(lambda: not box._unstored and not box._unmarked)
        assert set(kept(path)) == (everything - set(in_memory[:30])) | {"ses:1:9999"}
        broker.confirm(*everything, "ses:1:9999")
        await until(lambda: kept(path) == [])
    assert len(set(broker.stored)) == len(broker.stored), "no message id is used for two attempts"


async def test_a_disk_that_takes_no_marks_holds_nothing_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 5)
    broker = Broker()
    async with opened(path, broker) as box:
        for seq in range(23):
            await box.put(window(seq))
        marks = box._write_marks

        def refuses(lines: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(box, "_write_marks", refuses)
        async with background(deliver=box.deliver()):
            await until(lambda: len(broker.stored) == 23)
            await asyncio.sleep(0.1)
            assert [message_id for message_id, _ in broker.stored] == [f"ses:1:{seq}#0" for seq in range(23)]
            monkeypatch.setattr(box, "_write_marks", marks)
            await box.put(window(23))
            await until(lambda: len(broker.stored) == 24 and not box._unmarked)


async def test_of_too_many_windows_without_a_disk_those_that_were_sent_go_first(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 3)
    async with opened(path, Broker()) as box:
        for seq, attempts in ((1, 0), (2, 1), (3, 0), (4, 0)):
            box._keep(Line(f"ses:1:{seq}", "usage.acme.ses", b"", attempts=attempts))
        lost = REGISTRY.get_sample_value("sluice_outbox_lost_total") or 0
        assert list(box._unstored) == ["ses:1:1", "ses:1:3", "ses:1:4"]
        box._keep(Line("ses:1:5", "usage.acme.ses", b""))
        assert list(box._unstored) == ["ses:1:3", "ses:1:4", "ses:1:5"]
        assert REGISTRY.get_sample_value("sluice_outbox_lost_total") == lost + 1


@pytest.mark.parametrize("place", ["no/such/directory/outbox.sqlite3", "."])
async def test_a_path_that_cannot_be_used_is_said_at_the_start(tmp_path: Path, place: str) -> None:
    with pytest.raises(OSError, match="cannot use the outbox at"):
        async with opened(tmp_path / place, Broker()):
            pass


async def test_a_file_that_is_no_outbox_is_said_at_the_start(path: Path) -> None:
    path.write_text("something else entirely" * 100)
    with pytest.raises(OSError, match="file is not a database"):
        async with opened(path, Broker()):
            pass
