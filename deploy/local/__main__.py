"""`python -m deploy.local`: the whole platform on this machine, the same entry points as in a cluster."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final

from deploy.local.offers import offered
from deploy.local.processes import Program, Supervisor, supervised
from deploy.local.settings import LocalSettings
from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from services.common import lifecycle
from services.common.errors import SluiceError, UnauthenticatedError
from services.common.grpc_client import call, channel
from sluice.pipeline import ModelCache
from sluice.pipeline.setup import models_root

TENANT: Final = "local"
POLL_S: Final = 0.1


class Stack:
    """Which programs make up the platform, and with which settings."""

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self.state = settings.state.resolve()
        host = "localhost" if settings.host == "127.0.0.1" else settings.host
        self.url = f"http://{host}:{settings.http_port}"
        self._metrics = settings.metrics_port

    def ports(self) -> dict[int, str]:
        """Every port that is needed, with the setting that moves it."""
        names = [
            "nats",
            "http",
            "trickle",
            "public_trickle",
            "rtmp",
            "bridge",
            "router",
            "session_manager",
            "billing",
        ]
        if self.keeps_traces:
            names += ["otlp", "traces"]
        found = {
            getattr(self.settings, f"{name}_port"): f"SLUICE_LOCAL_{name.upper()}_PORT" for name in names
        }
        for index in range(self.settings.runners):
            found[self.settings.runner_port + index] = "SLUICE_LOCAL_RUNNER_PORT"
        for index in range(4 + self.settings.runners):
            found[self.settings.metrics_port + index] = "SLUICE_LOCAL_METRICS_PORT"
        return found

    def taken(self) -> list[str]:
        """One sentence per port that somebody else listens on."""
        wanted = [(socket.SOCK_STREAM, port, setting) for port, setting in self.ports().items()]
        wanted.append((socket.SOCK_DGRAM, self.settings.webrtc_port, "SLUICE_LOCAL_WEBRTC_PORT"))
        problems = []
        for kind, port, setting in wanted:
            with socket.socket(type=kind) as probe:
                if kind is socket.SOCK_STREAM:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.settings.host, port))
                except OSError as error:
                    problems.append(
                        f"port {port} is taken ({error.strerror}); free it, or set {setting} to another"
                    )
        return problems

    def nats(self) -> Program:
        binary = Path(sys.executable).with_name("nats-server")
        store = self.state / "nats"
        return Program(
            "nats",
            [
                str(binary), "--jetstream", "--store_dir", str(store),
                "--log",
                str(self.state / "nats.log"),
                "--addr", self.settings.host, "--port", str(self.settings.nats_port),
            ],
            {},
        )  # fmt: skip

    @property
    def keeps_traces(self) -> bool:
        """Whether traces stay on this machine; the user's own collector gets them if there is one."""
        return not self.settings.otlp_endpoint

    def traces(self) -> Program:
        otlp, http = self._at(self.settings.otlp_port), self._at(self.settings.traces_port)
        return Program(
            "traces",
            [sys.executable, "-m", "deploy.local.traces", "--otlp", otlp, "--http", http],
            {"PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "ERROR"},
        )

    def billing(self) -> Program:
        """The first service: it has the tenant and the key that others are told of."""
        return self._service(
            "billing",
            listen=self._at(self.settings.billing_port),
            database_url=f"sqlite:///{self.state / 'billing.sqlite3'}",
            **({"prices": self.settings.prices} if self.settings.prices else {}),
        )

    def services(self, key: str) -> list[Program]:
        """The other services in the order in which they start; metrics ports in that order too."""
        at = self._at
        local = self.settings
        programs = [
            self._service("router", listen=at(local.router_port)),
            self._service(
                "session_manager",
                listen=at(local.session_manager_port),
                router_address=at(local.router_port),
                billing_address=at(local.billing_port),
            ),
            self._service(
                "ingest",
                listen=at(local.http_port),
                trickle_listen=at(local.trickle_port),
                public_trickle_listen=at(local.public_trickle_port),
                rtmp_listen=at(local.rtmp_port),
                rtmp_push_private="true",
                webrtc_listen=at(local.webrtc_port),
                bridge_listen=at(local.bridge_port),
                session_manager_address=at(local.session_manager_port),
                router_address=at(local.router_port),
                billing_address=at(local.billing_port),
                operators=TENANT,
                stream_secret=self._secret(),
                outbox_path=str(self.state / "outbox.sqlite3"),
                **({"traces_url": f"http://{at(local.traces_port)}"} if self.keeps_traces else {}),
                **({"loopback_key": key} if local.open_to_loopback else {}),
            ),
        ]
        pipelines = local.pipelines or offered(ModelCache(models_root()))
        for index in range(local.runners):
            programs.append(  # noqa: PERF401 - a call with so many arguments reads better as a statement
                self._service(
                    "inference",
                    name=f"runner-{index}",
                    listen=at(local.runner_port + index),
                    runner=f"cpu-{index}",
                    session_manager_address=at(local.session_manager_port),
                    pipelines=pipelines,
                )
            )
        return programs

    def _at(self, port: int) -> str:
        return f"{self.settings.host}:{port}"

    def _service(self, service: str, *, name: str = "", **settings: str) -> Program:
        settings = {
            "nats_url": f"nats://{self._at(self.settings.nats_port)}",
            "metrics_listen": self._at(self._metrics),
            "log_format": "console",
            "otlp_endpoint": self.settings.otlp_endpoint or f"http://{self._at(self.settings.otlp_port)}",
            "shutdown_grace_s": "2",
            **settings,
        }
        self._metrics += 1
        environment = {f"SLUICE_{service.upper()}_{key.upper()}": value for key, value in settings.items()}
        environment |= {"PYTHONUNBUFFERED": "1", "GRPC_VERBOSITY": "ERROR"}
        # At SIGTERM a runner would first wait until its sessions have moved elsewhere.
        ending = signal.SIGINT if service == "inference" else signal.SIGTERM
        command = [sys.executable, "-m", f"services.{service}"]
        return Program(name or service.replace("_", "-"), command, environment, ending)

    def _secret(self) -> str:
        """The key that signs stream keys; kept, so that they outlive a restart."""
        path = self.state / "stream-secret"
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32))
        return path.read_text()

    @property
    def credentials(self) -> Path:
        return self.state / "credentials.json"


async def tenant_key(stack: Stack) -> str:
    """Create the local tenant with its credit once, and return a key that works."""
    async with channel(f"{stack.settings.host}:{stack.settings.billing_port}") as to_billing:
        billing = billing_pb2_grpc.BillingStub(to_billing)
        await call(
            billing.CreateTenant,
            billing_pb2.CreateTenantRequest(tenant=TENANT, name="this machine"),
            billing_pb2.CreateTenantResponse,
            timeout_s=10,
        )
        if stack.settings.credit_micro:
            await call(
                billing.AddCredit,
                billing_pb2.AddCreditRequest(
                    tenant=TENANT, micro=stack.settings.credit_micro, reference="local-initial"
                ),
                billing_pb2.AddCreditResponse,
                timeout_s=10,
            )
        if stack.credentials.exists():
            key = str(json.loads(stack.credentials.read_text())["key"])
            try:
                await call(
                    billing.Authenticate,
                    billing_pb2.AuthenticateRequest(key=key),
                    billing_pb2.AuthenticateResponse,
                    timeout_s=10,
                )
            except UnauthenticatedError:
                stack.credentials.unlink()
            else:
                return key
        made = await call(
            billing.CreateKey,
            billing_pb2.CreateKeyRequest(tenant=TENANT, label="made by make run"),
            billing_pb2.CreateKeyResponse,
            timeout_s=10,
        )
    return made.key


async def until_answers(url: str) -> None:
    """Wait until an HTTP GET of `url` succeeds."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - our own http URL
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    while not await asyncio.to_thread(answers):  # noqa: ASYNC110 - another process has no event to wait for
        await asyncio.sleep(POLL_S)


async def until_offered(url: str) -> None:
    """Wait until a runner offers a free slot."""

    def free() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/v1/pipelines", timeout=2) as answer:  # noqa: S310
                return any(offer["free"] for offer in json.load(answer)["data"])
        except (OSError, ValueError, urllib.error.URLError):
            return False

    while not await asyncio.to_thread(free):  # noqa: ASYNC110 - as above
        await asyncio.sleep(POLL_S)


async def start(stack: Stack, supervisor: Supervisor, group: asyncio.TaskGroup) -> str:
    """Start everything, the parts that others need first; return the local tenant's key when it is usable."""
    settings = stack.settings
    supervisor.say("starting")
    await supervisor.keep(stack.nats(), group)
    if stack.keeps_traces:
        await supervisor.keep(stack.traces(), group)
    await supervisor.keep(stack.billing(), group)
    await until_answers(f"http://{settings.host}:{settings.metrics_port}/readyz")
    key = await tenant_key(stack)
    for program in stack.services(key):
        await supervisor.keep(program, group)
    await until_answers(f"{stack.url}/v1/prices")
    stack.credentials.touch(mode=0o600)
    stack.credentials.write_text(json.dumps({"url": stack.url, "key": key}) + "\n")
    await until_offered(stack.url)
    return key


def banner(stack: Stack, key: str) -> str:
    settings = stack.settings
    last_metrics = settings.metrics_port + 3 + settings.runners
    keyless = "  (clients on this machine need none)" if settings.open_to_loopback else ""
    traces = (
        f"http://{settings.host}:{settings.traces_port}, the newest: .venv/bin/sluice trace"
        if stack.keeps_traces
        else f"sent to {settings.otlp_endpoint}"
    )
    return f"""
  Sluice is up. Open the playground:  {stack.url}/

    API          {stack.url}/v1/streams      (documentation: {stack.url}/docs)
    key          {key}{keyless}
    metrics      http://{settings.host}:{settings.metrics_port} to {last_metrics}, /metrics
    traces       {traces}
    state        {settings.state}

  Transform a file (in another terminal, in this folder):

    .venv/bin/sluice transform tests/data/bigbuckbunny.mp4 -o out.mp4 --pipeline effects --prompt watercolor

  Or with any client:

    curl -s {stack.url}/v1/streams -H 'Authorization: Bearer {key}' \\
         -H 'Content-Type: application/json' -d '{{"pipeline":"effects","params":{{"prompt":"neon"}}}}'
    ffmpeg -re -i clip.mp4 -c:v libx264 -bf 0 -g 50 -tune zerolatency -c:a aac -f flv <rtmp_url>
    ffplay <hls_url>

  Ctrl-C stops everything.
"""


async def main(stack: Stack) -> None:
    settings = stack.settings
    problems = stack.taken()
    if problems:
        sys.stderr.write("".join(f"{problem}\n" for problem in problems))
        raise SystemExit(1)
    stack.state.mkdir(parents=True, exist_ok=True)
    async with supervised(settings.stop_within_s) as (supervisor, group):
        stopping = asyncio.ensure_future(lifecycle.until_terminated())
        starting = asyncio.ensure_future(start(stack, supervisor, group))
        try:
            async with asyncio.timeout(settings.ready_within_s):
                await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                supervisor.say(banner(stack, starting.result()))
                await stopping
        except TimeoutError:
            supervisor.say(f"it did not come up within {settings.ready_within_s:g} s; see above")
            raise SystemExit(1) from None
        except SluiceError as error:
            supervisor.say(f"it did not come up: {error.message}")
            raise SystemExit(1) from None
        finally:
            starting.cancel()
            stopping.cancel()
            supervisor.say("stopping")


if __name__ == "__main__":
    asyncio.run(main(Stack(LocalSettings())))
