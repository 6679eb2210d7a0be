"""What a process holds for its clients, counted: when they have gone, it is as before they came."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, fields
from typing import Final

import psutil
from prometheus_client import REGISTRY

from tests.contract.transports.steps import name_of
from tests.support.ingest import Ingest

SETTLED_S: Final = 14.0  # longer than an offer waits for its connection
WHILE_S: Final = 1.2  # more than a segment of the runner lasts
POLL_S: Final = 0.02
THIS: Final = psutil.Process()


@dataclass(frozen=True, slots=True)
class Census:
    tasks: Counter[str]  # by what they run
    sockets: int  # of TCP, but for gRPC's, which keeps some as it likes: they are the only ones of IPv6
    peers: int  # of WebRTC, which have no sockets of their own
    sessions: int
    channels: int
    viewers: int

    def beyond(self, before: Census) -> str:
        """What is there that was not before, in words; empty if there is nothing."""
        more = [f"{count} {name}" for name, count in (self.tasks - before.tasks).items()]
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(before, field.name)
            if field.name != "tasks" and mine > theirs:
                more.append(f"{mine - theirs} {field.name}")
        return ", ".join(more)


def census(ingest: Ingest) -> Census:
    this = asyncio.current_task()
    tasks = [task.get_coro() for task in asyncio.all_tasks() if task is not this]
    return Census(
        tasks=Counter(name_of(work) for work in tasks if not _clients(work)),
        peers=len(ingest.core.peers),
        sockets=len(THIS.net_connections("tcp4")),
        sessions=len(ingest.hub),
        channels=len(ingest.hub._registry) + len(ingest.core.channels._registry),
        viewers=sum(ingest.core.viewing._streams.values()),
    )


def _clients(work: object) -> bool:
    """Whether it is of the WebRTC client's ICE, which forgets a task when it is closed while it connects."""
    code = getattr(work, "cr_code", None)
    return code is not None and "/aioice/" in code.co_filename


async def usual(ingest: Ingest) -> Census:
    """The most that there is of each within a while: a runner's connections come and go."""
    found = census(ingest)
    for _ in range(round(WHILE_S / POLL_S)):
        await asyncio.sleep(POLL_S)
        now = census(ingest)
        found = Census(
            tasks=found.tasks | now.tasks,
            peers=max(found.peers, now.peers),
            sockets=max(found.sockets, now.sockets),
            sessions=max(found.sessions, now.sessions),
            channels=max(found.channels, now.channels),
            viewers=max(found.viewers, now.viewers),
        )
    return found


async def nothing_left(ingest: Ingest, before: Census) -> None:
    """Wait until nothing is left of who came after `before` was counted; fails with what there is."""
    deadline_s = asyncio.get_running_loop().time() + SETTLED_S
    while beyond := census(ingest).beyond(before):
        assert asyncio.get_running_loop().time() < deadline_s, f"left behind: {beyond}"
        await asyncio.sleep(POLL_S)


def bugs() -> float:
    """How many failures that nobody named were reported in this process."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "sluice_internal_errors_total"
    )


def dropped(stage: str) -> float:
    return REGISTRY.get_sample_value("sluice_frame_drop_total", {"stage": stage}) or 0.0
