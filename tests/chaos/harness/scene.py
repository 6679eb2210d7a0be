"""A platform under faults, a stream on it with its publisher and its viewer, and the books behind it.

The rule it keeps: whatever was started here ends with the block, and only that.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final

import grpc
import httpx

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from tests.chaos.harness import publisher
from tests.chaos.harness.history import (
    UNSURE_S,
    Shown,
    View,
    between,
    delivered_ms,
    difference_ms,
    longest_silence_s,
    view,
)
from tests.chaos.harness.holdings import Holdings
from tests.chaos.harness.passed import Passed, let_out_ms, of_session
from tests.chaos.harness.summary import Books
from tests.chaos.harness.viewer import Recording, Viewer
from tests.support.stack import Stack, until

PIPELINE: Final = "stamped"
PIPELINES: Final = "tests.chaos.harness.pipeline:Stamped,tests.chaos.harness.pipeline:Painted,passthrough"
STEADY_S: Final = 0.2  # between two pictures, in a stream that flows
CALL_S: Final = 5.0
BILL_S: Final = 15.0
LATE_MS: Final = 100.0  # a bill that is so far off is asked for again: a window is fifty times as long
PICK: Final = random.Random()  # moments of faults
RECONNECT: Final = [("grpc.max_reconnect_backoff_ms", 500), ("grpc.initial_reconnect_backoff_ms", 100)]


class FaultyStack(Stack):
    """The platform of `tests.chaos.harness.platform`, several runners wide."""

    program: ClassVar = "tests.chaos.harness.platform"

    def __init__(
        self,
        directory: Path,
        *,
        runners: int = 3,
        told: Callable[[Mapping[str, int]], Mapping[str, Mapping[str, str]]] = lambda _: {},
        replicas: Mapping[str, int] | None = None,
        clocks: Mapping[str, Path] | None = None,
        within: Sequence[str] = (),
        **settings: str,
    ) -> None:
        """`told`: given the ports, what a process is told instead of what `make run` tells it.

        `within`: words before the platform's command, of where it is to run.
        """
        super().__init__(
            directory,
            SLUICE_LOCAL_RUNNERS=str(runners),
            **{"SLUICE_LOCAL_PIPELINES": PIPELINES, "SLUICE_LOCAL_CREDIT_MICRO": str(10**9), **settings},
        )
        self.runners = runners
        self.within = within
        self.witness = directory / "witness"
        self.environment["SLUICE_CHAOS_WITNESS"] = str(self.witness)
        self.environment["SLUICE_CHAOS_SETTINGS"] = json.dumps(told(self.ports))
        self.environment["SLUICE_CHAOS_REPLICAS"] = json.dumps(replicas or {})
        self.environment["SLUICE_CHAOS_CLOCKS"] = json.dumps({k: str(v) for k, v in (clocks or {}).items()})

    def channel(self, service: str) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.ports[service]}", options=RECONNECT)

    def runner_views(self) -> list[router_pb2.RunnerView]:
        with self.channel("ROUTER") as channel:
            request = router_pb2.RunnersRequest()
            answer = router_pb2_grpc.RouterStub(channel).Runners(request, timeout=CALL_S)
        return [*answer.runners]

    def free_runners(self) -> list[str]:
        """Runners that a router would grant now, by their names in the fleet."""
        with contextlib.suppress(grpc.RpcError):
            return [
                found.advert.runner
                for found in self.runner_views()
                if 0 <= found.heartbeat_age_ms < 2000
                and any(slot.state == router_pb2.SLOT_STATE_READY for slot in found.slots)
            ]
        return []

    def imbalance(self) -> int:
        with self.channel("BILLING") as channel:
            request = billing_pb2.ListEntriesRequest(tenant="local", limit=1000)
            entries = billing_pb2_grpc.BillingStub(channel).ListEntries(request, timeout=CALL_S)
        return int(entries.imbalance_micro)


def process_of(runner: str) -> str:
    """The process of a runner, by its name in the fleet."""
    return f"runner-{runner.rpartition('-')[2]}"


@dataclass(frozen=True, slots=True)
class Bill:
    """How far what was billed is from what the platform let out, and from what a viewer saw in time."""

    away_ms: float
    seen_away_ms: float  # the machine's, where the one above is nothing


class Live:
    """One stream that is published and watched."""

    def __init__(self, stack: FaultyStack, *, film: bool = False, **body: Any) -> None:
        """`film`: a film is published, and what the viewer decoded is kept, for people."""
        self.stack = stack
        self.stream: dict[str, Any] = stack.request(
            "POST", "/v1/streams", 201, json={"pipeline": PIPELINE, "params": {}, **body}
        )
        self.recording = Recording()
        self.begun_s = time.monotonic()
        self.viewer = Viewer(self.stream["play_url"], self.recording, keep=film)
        self._film = film
        self.publisher: subprocess.Popen[bytes] | None = None
        self.session = ""
        self.mark = 0

    def publish(self, url: str = "") -> None:
        assert self.publisher is None
        log = self.stack.directory / "publisher.log"
        self.publisher = publisher.start(
            url or self.stream["publish_url"], log, begun_s=self.begun_s, film=self._film
        )

    def unplug(self) -> None:
        """The publisher vanishes, as with a cable."""
        assert self.publisher is not None
        self.publisher.kill()
        self.publisher.wait(20)
        self.publisher = None

    def start(self, within_s: float = 30.0) -> None:
        self.publish()
        self.session = self.stack.live_session(self.stream["id"], within_s)
        self.until_steady()

    def end(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.stack.http.delete(f"/v1/streams/{self.stream['id']}")
        if self.publisher is not None:
            self.unplug()
        self.viewer.close()

    @property
    def connected(self) -> bool:
        """Whether neither the publisher nor the viewer lost its connection."""
        return self.publisher is not None and self.publisher.poll() is None and self.viewer.connected

    def record(self) -> sessions_pb2.Session:
        with self.stack.channel("SESSION_MANAGER") as channel:
            request = sessions_pb2.GetRequest(session=self.session, tenant="local")
            return sessions_pb2_grpc.SessionsStub(channel).Get(request, timeout=CALL_S)

    def host(self) -> str:
        """The process of the runner that has the session."""
        return process_of(self.record().runner)

    def set_mark(self, mark: int) -> None:
        """Have `mark` accepted and shown."""
        self.stack.request(
            "PATCH", f"/v1/streams/{self.stream['id']}?wait=applied", json={"params": {"mark": mark}}
        )
        self.mark = mark

    def newest(self) -> Shown | None:
        return self.recording.pictures[-1] if self.recording.pictures else None

    def until_shown(
        self, wanted: Callable[[Shown], bool], *, since_s: float, within_s: float
    ) -> Shown | None:
        """The first picture since then that is `wanted`; None if none comes."""
        give_up_s = time.monotonic() + within_s
        while time.monotonic() < give_up_s:
            for shown in self.recording.since(since_s):
                if wanted(shown):
                    return shown
            time.sleep(0.02)
        return None

    def until_steady(self, for_s: float = 1.0, within_s: float = 20.0) -> None:
        """Wait until pictures have come for so long without a gap."""

        def steady() -> bool:
            now_s = time.monotonic()
            seen = self.recording.since(now_s - for_s)
            times = [now_s - for_s, *(shown.at_s for shown in seen), now_s]
            return len(seen) > 1 and all(b - a < STEADY_S for a, b in pairwise(times))

        until(steady, within_s, "pictures flow")

    def seen(self, from_s: float, to_s: float) -> View:
        return view(between(self.recording.pictures, from_s, to_s))

    def silence_s(self, from_s: float, to_s: float) -> float:
        return longest_silence_s(self.recording.sounds, from_s, to_s)

    def passed(self) -> list[Passed]:
        """What went into its bridge from runners and out of it to viewers."""
        if not self.stack.witness.exists():
            return []
        return of_session(self.session, self.stack.witness.read_text().splitlines())

    def bill(self) -> Bill:
        """What the ledger has beyond what was let out, and beyond what the viewer saw; ends the session."""
        with contextlib.suppress(AssertionError):
            self.stack.request("DELETE", f"/v1/sessions/{self.session}")
        self.stack.ended(self.session, 20)
        give_up_s = time.monotonic() + BILL_S
        while True:
            with contextlib.suppress(AssertionError):
                line = self.stack.usage(self.session)
                billed_ms = line["delivered_ms"]
                away_ms = difference_ms(billed_ms, let_out_ms(self.passed()))
                # A window that NATS did not take at once may come behind the last one; and that one never
                # comes of a session whose ingest process was killed.
                if (line["final"] and abs(away_ms) < LATE_MS) or time.monotonic() > give_up_s:
                    seen_s = [shown.at_s for shown in self.recording.pictures]
                    return Bill(away_ms, difference_ms(billed_ms, [delivered_ms(seen_s, UNSURE_S)]))
            assert time.monotonic() < give_up_s, f"no bill for {self.session}"
            time.sleep(0.2)


class Scene:
    """The platform, who watches its stores, and the streams that were started on it."""

    def __init__(self, stack: FaultyStack) -> None:
        self.stack = stack
        self.holdings = Holdings(f"nats://127.0.0.1:{stack.ports['NATS']}")
        self.lives: list[Live] = []
        self._bills: list[Bill] = []

    def live(self, **body: Any) -> Live:
        """A stream whose pictures flow."""
        made = Live(self.stack, **body)
        self.lives.append(made)
        made.start()
        return made

    def until_spare(self, within_s: float = 30.0) -> None:
        """Wait until a session that has to move has somewhere to go."""
        until(self.stack.free_runners, within_s, "a runner is free")

    def kill_again(self, name: str) -> None:
        """SIGKILL a process, as soon as it is there again after the kill before."""
        until(lambda: name in self.stack.processes(), 15, f"{name} runs")
        self.stack.kill(name)

    def retire(self, live: Live) -> None:
        """End a stream, with its bill."""
        self._bills.append(live.bill())
        live.end()
        self.lives.remove(live)

    def books(self) -> Books:
        """What the stores say; ends every stream."""
        for live in [*self.lives]:
            self.retire(live)
        self.holdings.close()
        violations = self.holdings.violations()
        for violation in violations:
            say(f"DOUBLE GRANT: {violation}")
        return Books(
            violations,
            max((bill.away_ms for bill in self._bills), key=abs, default=0.0),
            max((bill.seen_away_ms for bill in self._bills), key=abs, default=0.0),
            self.stack.imbalance(),
        )


@contextmanager
def faulty_stack(prepare: Callable[[Path], None] | None = None, **options: Any) -> Iterator[FaultyStack]:
    """A platform of its own until the block ends; its log is kept where a failure says it is.

    `prepare` is given the directory before anything starts.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-chaos-") as directory:
        if prepare is not None:
            prepare(Path(directory))
        stack = FaultyStack(Path(directory), **options)
        try:
            stack.start()
            yield stack
        except BaseException:
            keep_log(stack)
            raise
        finally:
            stack.stop()


def keep_log(stack: FaultyStack) -> None:
    if stack.log.exists():
        kept = Path(tempfile.gettempdir()) / f"{stack.directory.name}.log"
        kept.write_bytes(stack.log.read_bytes())
        say(f"the platform's log: {kept}")


@contextmanager
def staged(stack: FaultyStack) -> Iterator[Scene]:
    """A scene on a platform that runs; its streams end with the block."""
    made = Scene(stack)
    try:
        yield made
    finally:
        made.holdings.close()
        for live in made.lives:
            live.end()


@contextmanager
def scene(**options: Any) -> Iterator[Scene]:
    """A scene on a platform of its own."""
    with faulty_stack(**options) as stack, staged(stack) as made:
        yield made


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
