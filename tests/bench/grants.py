"""How many slots a second routers give out through a real NATS, how long one takes, and that none is double.

Two routers in processes of their own, whole but for the gRPC server and a log line for each grant: each hears
the heartbeats of all runners and follows all slots, and its callers are in its process. A session holds its
slot until many newer ones came, then releases it, so that as many are released as are granted. First as fast
as a few callers a router can; then at a steady thousand a second, of which the 99th percentile is told.
Afterwards the histories of all routers are laid side by side: whoever holds a slot holds it alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections import Counter as Tally
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import structlog

from protos.events.v1.events_pb2 import RUNNER_STATE_READY, Heartbeat, PipelineOffer, RunnerAdvert
from services.common.bus import Bus, connect
from services.common.errors import SluiceError
from services.common.lifecycle import background, run
from services.common.topology import RUNNERS, heartbeat
from services.router.__main__ import Parts, routing
from services.router.line import Wanted
from services.router.placement import Requirements, RunnerId, SessionId, Wish
from services.router.settings import RouterSettings
from services.router.slots import CONFLICTS
from tests.bench.figures import Figure, percentile, show
from tests.support.nats import nats_server

PIPELINES: Final = ("depth", "canny", "diffusion")
SEEDED_AT_ONCE: Final = 64
REFUSED_S: Final = 0.01  # a caller asks again; without a pause the loop of the router would hear nothing else
BEATS_A_SECOND: Final = 50  # times at which some of the runners beat


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of all routers together."""

    runners: int
    slots: int
    routers: int
    callers: int  # a router
    fast_s: float
    steady_s: float
    steady_per_s: float
    held: int  # sessions a router keeps


WHOLE: Final = Load(
    runners=3_000, slots=2, routers=2, callers=16, fast_s=60, steady_s=30, steady_per_s=1_000, held=1_000
)


@dataclass(frozen=True, slots=True)
class Held:
    """A session had this slot from when it was told until it began to give it back; one clock for all."""

    key: str
    epoch: int
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one router's callers saw."""

    fast: int  # grants
    fast_s: float
    fast_ms: Sequence[float]
    fast_cpu_s: float
    steady_ms: Sequence[float]
    refused: dict[str, int]
    conflicts: int
    held: Sequence[Held]


@dataclass(frozen=True, slots=True)
class Measured:
    per_second: float
    fast_p99_ms: float
    cpu_ms: float  # of a router's process, a grant and its release, as fast as they can
    p50_ms: float
    p99_ms: float
    refused: dict[str, int]
    conflicts: int
    double: int
    grants: int


class Callers:
    """Sessions of one router that come and go."""

    def __init__(self, parts: Parts, load: Load, seed: int) -> None:
        self.history: list[Held] = []
        self.refused: Tally[str] = Tally()
        self._parts = parts
        self._load = load
        self._random = Random(seed)
        self._seed = seed
        self._number = 0
        self._live: deque[tuple[SessionId, RunnerId, str, int, float]] = deque()

    async def one(self) -> float | None:
        """Grant one session a slot; returns how many milliseconds that took, if it got one."""
        self._number += 1
        session = SessionId(f"s{self._seed}-{self._number}")
        wish = Wish(Requirements(self._random.choice(PIPELINES)))
        began_s = time.monotonic()
        try:
            granted = await self._parts.line.grant(Wanted(session, wish), 0)
        except SluiceError as error:
            self.refused[error.details.get("why", error.reason)] += 1
            await asyncio.sleep(REFUSED_S)
            return None
        now_s = time.monotonic()
        key = f"{granted.runner}.{granted.slot}"
        self._live.append((session, granted.runner, key, granted.epoch, now_s))
        if len(self._live) > self._load.held:
            await self._release()
        return (now_s - began_s) * 1000

    async def _release(self) -> None:
        session, runner, key, epoch, from_s = self._live.popleft()
        self.history.append(Held(key, epoch, from_s, time.monotonic()))
        await self._parts.slots.release(session, runner)

    def end(self) -> None:
        """Those that still have a slot have it until now."""
        now_s = time.monotonic()
        self.history += [Held(key, epoch, from_s, now_s) for _, _, key, epoch, from_s in self._live]


async def as_fast_as_they_can(callers: Callers, load: Load) -> tuple[list[float], float]:
    began_s = time.monotonic()
    took_ms: list[float | None] = []

    async def caller() -> None:
        while time.monotonic() - began_s < load.fast_s:
            took_ms.append(await callers.one())

    await asyncio.gather(*(caller() for _ in range(load.callers)))
    return [ms for ms in took_ms if ms is not None], time.monotonic() - began_s


async def steadily(callers: Callers, load: Load) -> list[float]:
    """Ask at fixed times, however long the answers take."""
    every_s = load.routers / load.steady_per_s
    began_s = time.monotonic()
    asked: list[asyncio.Task[float | None]] = []
    async with asyncio.TaskGroup() as tasks:
        while (due_s := len(asked) * every_s) < load.steady_s:
            await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))
            asked.append(tasks.create_task(callers.one()))
    return [ms for task in asked if (ms := task.result()) is not None]


async def router(nats_url: str, load: Load, seed: int, start: Path, report: Path) -> None:
    """One router and its callers: they begin when the file `start` is there."""
    settings = RouterSettings(listen="127.0.0.1:0", nats_url=nats_url)
    async with connect(nats_url, f"router-{seed}") as bus, routing(bus, settings, Random(seed)) as parts:
        while not parts.fleet.known or _slots(parts) < load.runners * load.slots * len(PIPELINES):
            await asyncio.sleep(0.1)
        report.with_suffix(".ready").touch()
        while not start.exists():
            await asyncio.sleep(0.05)
        callers = Callers(parts, load, seed)
        began_cpu_s = time.process_time()
        fast_ms, fast_s = await as_fast_as_they_can(callers, load)
        fast_cpu_s = time.process_time() - began_cpu_s
        steady_ms = await steadily(callers, load)
        callers.end()
        outcome = Outcome(
            fast=len(fast_ms),
            fast_s=fast_s,
            fast_ms=fast_ms,
            fast_cpu_s=fast_cpu_s,
            steady_ms=steady_ms,
            refused=dict(callers.refused),
            conflicts=int(CONFLICTS._value.get()),
            held=callers.history,
        )
        report.write_text(json.dumps(asdict(outcome)))


def _slots(parts: Parts) -> int:
    return sum(line.slots for line in parts.fleet.capacity())


@asynccontextmanager
async def fleet(bus: Bus, nats_url: str, load: Load) -> AsyncIterator[None]:
    """Runners that are advertised and beat once a second, spread over the second."""
    adverts = await bus.bucket(RUNNERS, 1)
    names = [f"r{number}" for number in range(load.runners)]
    offers = [PipelineOffer(name=name, version="1.0", warm=True) for name in PIPELINES]
    for first in range(0, len(names), SEEDED_AT_ONCE):
        some = names[first : first + SEEDED_AT_ONCE]
        await asyncio.gather(
            *(
                adverts.create(
                    name,
                    RunnerAdvert(
                        runner=name, boot_id="b", address=f"{name}:7004", slots=load.slots, pipelines=offers
                    ).SerializeToString(),
                )
                for name in some
            )
        )

    async with beating(nats_url, [_published(name) for name in names]):
        yield


def _published(name: str) -> bytes:
    """One heartbeat as a client of NATS writes it: made once, for simulated runners are to cost nothing."""
    payload = Heartbeat(runner=name, boot_id="b", state=RUNNER_STATE_READY).SerializeToString()
    return b"PUB %s %d\r\n%s\r\n" % (heartbeat(name).encode(), len(payload), payload)


@asynccontextmanager
async def beating(nats_url: str, beats: Sequence[bytes]) -> AsyncIterator[None]:
    """All of `beats` once a second, spread over it, until the block ends."""
    host, _, port = nats_url.removeprefix("nats://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false}\r\n')
    parts = [b"".join(beats[part::BEATS_A_SECOND]) for part in range(BEATS_A_SECOND)]

    async def beat() -> None:
        began_s, number = time.monotonic(), 0
        while True:
            writer.write(parts[number % len(parts)])
            await writer.drain()
            number += 1
            await asyncio.sleep(max(0.0, began_s + number / len(parts) - time.monotonic()))

    async def answer() -> None:
        while True:
            if await reader.readline() == b"PING\r\n":
                writer.write(b"PONG\r\n")

    async with background(beat=beat(), answer=answer()):
        yield
    writer.close()


async def measure(load: Load) -> Measured:
    """Run the routers and lay their histories side by side."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="grants-")))
        nats = await stack.enter_async_context(nats_server(directory / "nats"))
        bus = await stack.enter_async_context(connect(nats.url, "runners"))
        await stack.enter_async_context(fleet(bus, nats.url, load))
        start = directory / "start"
        reports = [directory / f"router-{seed}.json" for seed in range(load.routers)]
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.bench.grants", "--router", str(seed)),
                *("--nats", nats.url, "--load", json.dumps(asdict(load))),
                *("--start", str(start), "--report", str(report)),
            )
            for seed, report in enumerate(reports)
        ]
        try:
            async with asyncio.timeout(60):
                while not all(report.with_suffix(".ready").exists() for report in reports):
                    assert all(process.returncode is None for process in processes), "a router ended"
                    await asyncio.sleep(0.1)
            start.touch()
            async with asyncio.timeout(load.fast_s + load.steady_s + 60):
                ends = await asyncio.gather(*(process.wait() for process in processes))
            assert not any(ends), ends
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return judged([_outcome(report) for report in reports])


def _outcome(report: Path) -> Outcome:
    fields = json.loads(report.read_text())
    return Outcome(**{**fields, "held": [Held(**held) for held in fields["held"]]})


def judged(outcomes: Sequence[Outcome]) -> Measured:
    fast_ms = [ms for outcome in outcomes for ms in outcome.fast_ms]
    steady_ms = [ms for outcome in outcomes for ms in outcome.steady_ms]
    history = [held for outcome in outcomes for held in outcome.held]
    return Measured(
        per_second=sum(outcome.fast / outcome.fast_s for outcome in outcomes),
        fast_p99_ms=percentile(fast_ms, 99),
        cpu_ms=1000 * sum(outcome.fast_cpu_s for outcome in outcomes) / max(1, len(fast_ms)),
        p50_ms=percentile(steady_ms, 50),
        p99_ms=percentile(steady_ms, 99),
        refused=dict(sum((Tally(outcome.refused) for outcome in outcomes), Tally())),
        conflicts=sum(outcome.conflicts for outcome in outcomes),
        double=doubles(history),
        grants=len(history),
    )


def doubles(history: Sequence[Held]) -> int:
    """How often a slot was given while another one had it, or with an epoch that was not above the last."""
    by_slot: dict[str, list[Held]] = defaultdict(list)
    for held in history:
        by_slot[held.key].append(held)
    return sum(
        later.from_s < earlier.to_s or later.epoch <= earlier.epoch
        for intervals in by_slot.values()
        for earlier, later in pairwise(sorted(intervals, key=lambda held: held.from_s))
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--router", type=int)
    parser.add_argument("--nats", default="")
    parser.add_argument("--load", default="")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING), cache_logger_on_first_use=True
    )
    if options.router is not None:
        load = Load(**json.loads(options.load))
        run(router(options.nats, load, options.router, options.start, options.report))
        return
    measured = asyncio.run(measure(WHOLE))
    show(
        [
            Figure("grants", "runners", WHOLE.runners, "1"),
            Figure("grants", "per_second", measured.per_second, "1/s"),
            Figure("grants", "p99_ms", measured.p99_ms, "ms"),
            Figure("grants", "p50_ms", measured.p50_ms, "ms"),
            Figure("grants", "double", measured.double, "1"),
            Figure("grants", "grants", measured.grants, "1"),
            Figure("grants", "p99_ms_as_fast_as_they_can", measured.fast_p99_ms, "ms"),
            Figure("grants", "cpu_ms_per_grant", measured.cpu_ms, "ms"),
            Figure("grants", "conflicts", measured.conflicts, "1"),
            Figure("grants", "refused", sum(measured.refused.values()), "1"),
        ]
    )


if __name__ == "__main__":
    main()
