"""One world: a broker, a network, the services' processes, who uses them, and how long the evil lasts.

The rule it keeps: everything that the services are is production code, started by its own `run`; what they
stand on is played, and all of it follows from the seed.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import structlog

from services.billing import __main__ as billing
from services.billing.ledger import TenantId
from services.billing.settings import BillingSettings
from services.billing.store import Store
from services.common.errors import ExhaustedError, UnavailableError
from services.common.media.mpegts import AccessUnit
from services.inference import __main__ as inference
from services.inference.assignment import Assignment
from services.inference.settings import InferenceSettings
from services.ingest.bridge.session import BridgeSession
from services.ingest.settings import IngestSettings
from services.router import __main__ as router
from services.router.settings import RouterSettings
from services.session_manager import __main__ as session_manager
from services.session_manager.settings import SessionManagerSettings
from tests.sim import chance, ingests, money, runners
from tests.sim.broker import Broker, Message
from tests.sim.checks import WINDOW_S, YOUNG_S, Checks, Run
from tests.sim.clock import PROCESS, Process
from tests.sim.ingests import Ingest
from tests.sim.nemesis import Nemesis
from tests.sim.net import Net
from tests.sim.people import TENANT, Person
from tests.sim.pictures import Origin
from tests.sim.plan import Plan
from tests.sim.weather import Weather

LAST_EVENTS: Final = 60
CREDIT_MICRO: Final = 10**9
IDLE_S: Final = 10.0  # in which every router has heard of a runner, and of its slot
SPEAKS_S: Final = 5.0
RESTART_S: Final = 1.0
GRACE_S: Final = 6.0  # a publisher's


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one world went."""

    seed: int
    violations: tuple[str, ...]
    last: tuple[str, ...]
    met: dict[str, int]
    steps: int
    sessions: int
    freezes: tuple[tuple[str, int], ...]


class World:
    """Lives once: `run` it on a virtual loop."""

    def __init__(
        self, seed: int, plan: Plan, directory: Path, *, trace: Callable[[str], None] | None
    ) -> None:
        chance.seed(seed)
        self.random = chance.child("world")
        self.weather = Weather(chance.child("weather"))
        self.net = Net(self.weather, chance.child("net"))
        self.broker = Broker(self.weather, chance.child("broker"))
        self.checks = Checks(self.weather, self.note, self._lives_and_speaks)
        self.plan = plan
        self.processes: dict[str, Process] = {}
        self.ingests: dict[str, Ingest] = {}
        self.hosts: dict[str, runners.Host] = {}
        self.people: list[Person] = []
        self.last: deque[str] = deque(maxlen=LAST_EVENTS)
        self.calm = False
        self.over = False
        self._directory = directory
        self._trace = trace
        self._births: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {}
        self._lives: dict[str, int] = {}
        self._terminations: dict[Process, asyncio.Future[signal.Signals]] = {}
        self._burials: dict[Process, asyncio.Task[None]] = {}
        self._born_s: dict[str, float] = {}
        self._calm_since_s = 0.0
        self.broker.written = self.checks.written
        self.broker.stored = self._stored

    # --- what others say

    def note(self, what: str) -> None:
        """One line of history."""
        line = f"{asyncio.get_running_loop().time():9.3f}  {what}"
        self.last.append(line)
        if self._trace is not None:
            self._trace(line)

    def log(self, _: object, level: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """What the services log is history too; what they call a bug is one."""
        process = PROCESS.get()
        told = {key: value for key, value in event.items() if key not in {"event", "exc_info", "database"}}
        fields = " ".join(f"{key}={value}" for key, value in told.items())
        who = process.name if process else "world"
        if process is None or not process.dead:
            self.note(f"{who:8} {level:7} {event['event']} {fields}")
            if event["event"] == "internal error":
                self.checks.violated(f"a bug in {who}: {event.get('exc_info')!r} {fields}")
        raise structlog.DropEvent

    def _stored(self, message: Message) -> None:
        if message.subject.startswith("events.session."):
            self.checks.event(message.data)

    def attached(self, process: Process, of: Assignment, params: Callable[[], Mapping[str, object]]) -> None:
        self.note(
            f"{process.name} runs {of.session} slot {of.slot} epochs {of.slot_epoch}/{of.session_epoch}"
        )
        self.checks.attached(process, Run(of, params))

    def detached(self, process: Process, of: Assignment) -> None:
        self.note(f"{process.name} let {of.session} go")
        if not process.dead:
            self.checks.detached(process, of)

    def seen(self, session: BridgeSession, unit: AccessUnit, origin: Origin | None) -> None:
        process = PROCESS.get()
        if process is None or not process.dead:
            self.checks.seen(session, unit, origin)

    def refused(self, error: ExhaustedError) -> None:
        self.weather.sometimes(f"a publisher was refused: {error.reason}")
        free = self._free_for(IDLE_S)
        if self.calm and error.details.get("why") == "nothing_free" and free:
            self.checks.violated(f"refused for lack of room, and {free} were free for {IDLE_S:g} s")

    def _free_for(self, seconds: float) -> list[str]:
        """Slots that nobody held and whose runners were up, for so long."""
        now_s = asyncio.get_running_loop().time()
        return [
            key
            for key, slot in sorted(self.checks.slots.items())
            if not slot.session
            and now_s - self.checks.freed_s[key] > seconds
            and self._up_for_s(key.partition(".")[0]) > seconds
        ]

    def _lives_and_speaks(self, name: str) -> bool:
        """Whether a process has been at work and connected to NATS for a while."""
        process = self.processes[name]
        leaves = self._terminations[process].done()
        return not (process.dead or process.frozen or leaves) and self.broker.connected(name, SPEAKS_S)

    def _up_for_s(self, name: str) -> float:
        process = self.processes[name]
        since_s = max(self._born_s[name], self._calm_since_s)
        return 0.0 if process.dead or process.frozen else asyncio.get_running_loop().time() - since_s

    def asked_to_move(self, session: str) -> None:
        self.weather.sometimes("a client moved its session")

    def ingest_of(self, url: str) -> tuple[Ingest, str]:
        """Whom a channel's URL leads to, and the alias. Raises ConnectionError when nobody is there."""
        _, _, host, alias = url.split("/", 3)
        ingest = self.ingests.get(host.partition(":")[0])
        if ingest is None or ingest.process.dead:
            raise ConnectionError("connection refused")
        return ingest, alias

    def any_ingest(self, random: Random) -> Ingest | None:
        there = [one for _, one in sorted(self.ingests.items()) if not one.process.dead]
        return random.choice(there) if there else None

    # --- processes

    def _settle_names(self) -> None:
        """Which names there are, and what is started under each."""
        plan = self.plan
        self._births["billing0"] = lambda _: billing.run(self._billing_settings())
        for number in range(plan.routers):
            self._births[f"router{number}"] = lambda _, n=number: router.run(  # type: ignore[misc]
                RouterSettings(listen=f"router{n}:7001")
            )
        for number in range(plan.session_managers):
            self._births[f"sm{number}"] = lambda life, n=number: session_manager.run(  # type: ignore[misc]
                self._session_manager_settings(n, life)
            )
        for number in range(plan.ingests):
            self._births[f"ingest{number}"] = lambda _, n=number: ingests.run(  # type: ignore[misc]
                self, self._ingest_settings(n)
            )
        for number in range(plan.runners):
            self._births[f"r{number}"] = lambda _, n=number: inference.run(self._runner_settings(n))  # type: ignore[misc]

    def _billing_settings(self) -> BillingSettings:
        return BillingSettings(
            listen="billing0:7003",
            database_url=f"sqlite:///{self._directory}/ledger.sqlite3",
            lapse_margin_s=30,
        )

    def _session_manager_settings(self, number: int, life: int) -> SessionManagerSettings:
        return SessionManagerSettings(
            listen=f"sm{number}:7002",
            instance=f"sm{number}-{life}",
            router_address="router:7001",
            billing_address="billing:7003",
            slice_s=10,
            overdraft_s=15,
            first_output_within_s=10,
            publisher_grace_s=GRACE_S,
        )

    def _ingest_settings(self, number: int) -> IngestSettings:
        return IngestSettings(
            listen=f"ingest{number}:8000",
            bridge_listen=f"ingest{number}:7000",
            trickle_url=f"http://ingest{number}:8001",
            session_manager_address="sm:7002",
            router_address="router:7001",
            billing_address="billing:7003",
            stream_secret="s" * 32,
            outbox_path=f"{self._directory}/ingest{number}.sqlite3",
            window_s=WINDOW_S,
            publisher_grace_s=GRACE_S,
            orphan_after_s=20,
        )

    def _runner_settings(self, number: int) -> InferenceSettings:
        return InferenceSettings(
            listen=f"r{number}:7004",
            address=f"r{number}:7004",
            runner=f"r{number}",
            slots=self.plan.slots,
            session_manager_address="sm:7002",
            drain_s=10,
            bridge_lost_after_s=16,
        )

    def start(self, name: str) -> None:
        self._born_s[name] = asyncio.get_running_loop().time()
        life = self._lives[name] = self._lives.get(name, -1) + 1
        process = self.processes[name] = Process(name)
        self._terminations[process] = asyncio.get_running_loop().create_future()
        task = process.start(self._births[name](life), name)
        task.add_done_callback(lambda done: self._over(process, done))
        self.note(f"{name} starts")

    def _over(self, process: Process, task: asyncio.Task[Any]) -> None:
        if process.dead or task.cancelled():
            return
        error = task.exception()
        if error is not None and _only_unavailable(error):
            self.weather.sometimes("a process could not start, and was started again")
            asyncio.get_running_loop().call_later(RESTART_S, self._again, process.name)
        elif error is not None:
            self.checks.violated(f"{process.name} failed: {error!r} {getattr(error, 'exceptions', '')}")
        elif self.calm:
            asyncio.get_running_loop().call_later(RESTART_S, self._again, process.name)
        self.note(f"{process.name} ended")
        self.bury(process)

    def _again(self, name: str) -> None:
        """What keeps pods alive."""
        if self.processes[name].dead and not self.over:
            self.start(name)

    def kill(self, name: str) -> None:
        process = self.processes[name]
        if not process.dead:
            self.note(f"{name} is killed")
            self.weather.sometimes(f"{name.rstrip('0123456789')} was killed")
            self.checks.killed(process)
            self.bury(process)

    def bury(self, process: Process) -> None:
        process.kill()
        self.checks.died(process)
        self._burials[process] = asyncio.ensure_future(process.buried())

    def terminate(self, name: str) -> None:
        """SIGTERM."""
        process = self.processes[name]
        termination = self._terminations[process]
        if not process.dead and not termination.done():
            self.note(f"{name} is terminated")
            process.call(lambda: None if termination.done() else termination.set_result(signal.SIGTERM))

    async def until_terminated(self) -> signal.Signals:
        """In the place of `lifecycle.until_terminated`."""
        process = PROCESS.get()
        assert process is not None, "who is terminated is a process"
        return await asyncio.shield(self._terminations[process])

    # --- life

    async def run(self) -> None:
        """From the first process to the last check."""
        plan = self.plan
        self._settle_names()
        self._open_ledger()
        self._links = asyncio.ensure_future(self.broker.watch_links())
        for name in self._births:
            self.start(name)
        await asyncio.sleep(plan.opening_s)
        self.people = [Person(self, number, chance.child(f"person{number}")) for number in range(plan.people)]
        living = [person.process.start(person.live()) for person in self.people]
        nemesis = Nemesis(self, chance.child("nemesis"))
        await nemesis.rage(plan.evil_s, plan.evils)
        self.note("--- calm")
        await self._calm_down()
        await self._until(lambda: not self.checks.astray(), plan.calm_s)
        await asyncio.sleep(plan.steady_s)
        await self._until(lambda: not self.checks.astray(), YOUNG_S)
        self.note("--- everybody stops")
        stopping = [person.process.start(person.stopped()) for person in self.people]
        await self._until(lambda: all(task.done() for task in [*living, *stopping]), plan.closing_s)
        await self._until(lambda: not self._left(), plan.closing_s)
        for what in self._left():
            self.checks.violated(what)
        for task in [*living, *stopping]:
            if task.done():
                task.result()
            else:
                self.checks.violated(f"{task.get_name()} cannot stop its stream")
        money.audit(self._directory / "ledger.sqlite3", self.checks)

    async def _until(self, well: Callable[[], bool], within_s: float) -> None:
        """Wait until it is well; what is not well in time is a violation."""
        until_s = asyncio.get_running_loop().time() + within_s
        while not well():
            await asyncio.sleep(0.5)
            if asyncio.get_running_loop().time() > until_s:
                for what in self.checks.astray():
                    self.checks.violated(what)
                self.checks.violated(f"not well within {within_s:g} s")
                return

    def _left(self) -> list[str]:
        """What is still there of sessions that everybody has stopped."""
        checks = self.checks
        found = [f"{name} never ended" for name in checks.live()] + checks.astray()
        usage = self.broker.streams["USAGE"]
        if not all(consumer.settled for consumer in usage.consumers.values()):
            found.append("windows are left in the stream")
        return found + money.unsettled(self._directory / "ledger.sqlite3")

    def outcome(self, seed: int, steps: int) -> Outcome:
        """How it went so far."""
        checks = self.checks
        violations, met = tuple(checks.violations), dict(self.weather.met)
        return Outcome(
            seed, violations, tuple(self.last), met, steps, len(checks.records), tuple(checks.freezes)
        )

    async def _calm_down(self) -> None:
        self.calm = True
        self._calm_since_s = asyncio.get_running_loop().time()
        self.weather.calm()
        self.net.heal_all()
        self.broker.cut.clear()
        if not self.broker.up:
            self.broker.restart()
        if self.broker.frozen:
            self.broker.thaw()
        for name, process in list(self.processes.items()):
            process.skew_s = 0.0
            if process.frozen:
                process.wake()
            if process.dead:
                self.start(name)
        for host in self.hosts.values():
            host.hung = False
        for person in self.people:
            if person.camera is not None:
                person.camera.silent = False

    def _open_ledger(self) -> None:
        settings = self._billing_settings()
        store = Store(settings.database_url, settings.price_list, settings.lapse_margin_ms)
        store.create_tenant(TenantId(TENANT), TENANT)
        store.add_credit(TenantId(TENANT), CREDIT_MICRO, "opening")
        store.close()


def _only_unavailable(error: BaseException) -> bool:
    """Whether it ended as a process does that finds its neighbours absent: to be started again."""
    if isinstance(error, BaseExceptionGroup):
        return all(_only_unavailable(part) for part in error.exceptions)
    return isinstance(error, UnavailableError)
