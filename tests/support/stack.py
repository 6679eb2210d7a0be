"""The whole platform as processes, as `make run` starts it, on ports of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import httpx
import psutil

ROOT: Final = Path(__file__).resolve().parents[2]
UP: Final = "Sluice is up."
SERVICES: Final = ("nats", "billing", "router", "session-manager", "ingest", "runner-0")
METRICS: Final = {"billing": 0, "router": 1, "session-manager": 2, "ingest": 3, "runner-0": 4}
T = TypeVar("T")


class Stack:
    """A running platform. `request` calls its public API as the local tenant."""

    program: ClassVar = "deploy.local"  # the module that starts it
    within: Sequence[str] = ()  # words before its command, of where it is to run

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        names = (
            "NATS",
            "HTTP",
            "TRICKLE",
            "PUBLIC_TRICKLE",
            "RTMP",
            "WEBRTC",
            "BRIDGE",
            "ROUTER",
            "SESSION_MANAGER",
            "BILLING",
            "RUNNER",
            "METRICS",
            "OTLP",
            "TRACES",
        )
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.environment = {
            **os.environ,
            **{f"SLUICE_LOCAL_{name}_PORT": str(port) for name, port in self.ports.items()},
            "SLUICE_LOCAL_STATE": str(directory / "state"),
            **settings,
        }
        self.url = f"http://127.0.0.1:{self.ports['HTTP']}"
        self.log = directory / "stack.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def start(self, within_s: float = 60.0) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.within, sys.executable, "-m", self.program],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        until(lambda: UP in self.log.read_text() or self._process_ended(), within_s, "the platform is up")
        assert UP in self.log.read_text(), self.log.read_text()
        self.http.headers["Authorization"] = f"Bearer {self.key}"

    def _process_ended(self) -> bool:
        assert self._process is not None
        return self._process.poll() is not None

    @property
    def key(self) -> str:
        return str(json.loads((self.directory / "state" / "credentials.json").read_text())["key"])

    def interrupt(self, within_s: float = 30.0) -> int:
        """What Ctrl-C does; returns the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(within_s)

    def stop(self) -> None:
        self.http.close()
        if self._process is not None and self._process.poll() is None:
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                self._process.kill()

    # --- processes

    def supervisor(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def processes(self) -> dict[str, psutil.Process]:
        """The direct children of the supervisor by name; runners are `runner-0` and so on."""
        found: dict[str, psutil.Process] = {}
        for child in self.supervisor().children():
            with contextlib.suppress(psutil.Error):
                words = child.cmdline()
                if words and words[0].endswith("nats-server"):
                    found["nats"] = child
                elif len(words) > 2 and (service := words[-1]).startswith("services."):
                    found[_program(service, child.environ())] = child
        return found

    def engine(self, runner: str = "runner-0") -> psutil.Process:
        (child,) = self.processes()[runner].children()
        return child

    def kill(self, name: str) -> int:
        """SIGKILL one process; returns its process id. `engine` is the first runner's."""
        process = self.engine() if name == "engine" else self.processes()[name]
        process.kill()
        return int(process.pid)

    def signal_pod(self, name: str, number: signal.Signals) -> None:
        """Signal a process and everything that it started, as the end or the freeze of its pod does."""
        os.killpg(self.processes()[name].pid, number)  # the supervisor gives each child a group of its own

    def metric(self, service: str, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have `labels`."""
        kind, _, index = service.rpartition("-")
        behind = METRICS["runner-0"] + int(index) if kind == "runner" else METRICS[service]
        port = self.ports["METRICS"] + behind
        total = 0.0
        for line in httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text.splitlines():
            if line.startswith("#"):
                continue
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{k}="{v}"' in sample for k, v in labels.items()):
                total += float(value)
        return total

    # --- the public API

    def request(self, method: str, path: str, expect: int = 200, **kwargs: Any) -> Any:
        answer = self.http.request(method, path, **kwargs)
        assert answer.status_code == expect, (answer.status_code, answer.text)
        return answer.json()

    def stream(self, prompt: str = "neon", **body: Any) -> dict[str, Any]:
        wanted = {"pipeline": "effects", "params": {"prompt": prompt}, **body}
        created: dict[str, Any] = self.request("POST", "/v1/streams", 201, json=wanted)
        return created

    def session(self, session: str) -> dict[str, Any]:
        found: dict[str, Any] = self.request("GET", f"/v1/sessions/{session}")
        return found

    def live_session(self, stream: str, within_s: float = 10.0) -> str:
        """The session of a stream, as soon as pictures come out of it."""

        def look() -> str | None:
            shown = self.request("GET", f"/v1/streams/{stream}/status")["data"]["sluice"]
            return shown["session"] if shown and shown["phase"] in {"live", "degraded"} else None

        return until(look, within_s, "the stream is live")

    def ended(self, session: str, within_s: float = 10.0) -> dict[str, Any]:
        """The record of a session, as soon as it has ended and holds nothing."""

        def look() -> dict[str, Any] | None:
            with contextlib.suppress(AssertionError, httpx.HTTPError):
                shown = self.session(session)
                return shown if shown["settled"] else None
            return None

        return until(look, within_s, "the session has ended and is settled")

    def usage(self, session: str) -> dict[str, Any]:
        lines = self.request("GET", "/v1/usage", params={"session": session})["data"]
        assert len(lines) == 1, lines
        return dict(lines[0])

    def free_slots(self) -> int:
        try:
            offers = self.http.get("/v1/pipelines").json().get("data", [])
        except (httpx.HTTPError, ValueError):
            return 0
        return max((offer["free"] for offer in offers), default=0)

    def until_free(self, within_s: float = 10.0) -> None:
        until(lambda: self.free_slots() or None, within_s, "a slot is free")

    def command(self, *words: str, within_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run `sluice` as a user does."""
        environment = {**self.environment, "SLUICE_URL": self.url, "SLUICE_API_KEY": self.key}
        program = str(Path(sys.executable).with_name("sluice"))
        return subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, timeout=within_s, check=False
        )


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Stack]:
    stack = Stack(directory, **settings)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


def _program(service: str, environment: dict[str, str]) -> str:
    """What the supervisor calls the process of a service with such an environment."""
    name = service.removeprefix("services.").replace("_", "-")
    if name == "inference":
        _, _, index = environment["SLUICE_INFERENCE_RUNNER"].rpartition("-")
        name = f"runner-{index}"
    return environment.get("SLUICE_PROGRAM", name)


def until(look: Callable[[], T | None], within_s: float, what: str) -> T:
    """Poll `look` until it returns something true; fail with `what` otherwise."""
    deadline_s = time.monotonic() + within_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline_s, f"not within {within_s} s: {what}"
        time.sleep(0.05)


def free_ports(blocks: int, size: int = 10) -> list[int]:
    """The first ports of `blocks` ranges of `size` ports that nobody listens on."""
    # Far apart from one process to the next, and below 32768, where outgoing connections have theirs.
    start = 20_000 + os.getpid() * 160 % 12_000
    found: list[int] = []
    while len(found) < blocks:
        if all(_free(port) for port in range(start, start + size)):
            found.append(start)
        start += size
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
