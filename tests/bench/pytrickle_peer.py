"""Two runners between the same trickle channels, one after the other: ours, and PyTrickle 0.1.6.

PyTrickle wants an older PyAV than ours, so it gets an environment of its own, made on first use: its package
and that PyAV by pip, and the rest (torch, numpy, aiohttp) from ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import psutil

from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2
from services.common.errors import SluiceError
from services.common.grpc_client import call, channel
from services.common.media.mpegts import AccessUnit
from services.common.trickle.connection import trickle_session
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import Subscriber
from tests.bench.latency import FPS, Journey, Viewer, paced
from tests.support.nats import nats_server
from tests.support.stack import free_ports
from tests.support.trickle_process import channels

PACKAGES: Final = ("pytrickle==0.1.6", "av==14.2.0", "nvidia-ml-py==13.615.71")
PROGRAM: Final = Path(__file__).with_name("pytrickle_runner.py")
INSTALL_WITHIN_S: Final = 300.0
READY_WITHIN_S: Final = 60.0
LAST_S: Final = 10.0  # for what is under way when the last picture was sent
WARM_UP_S: Final = 3.0  # of pictures, which do not count
CHANNELS: Final = ("in", "out", "control", "events", "data")


@dataclass(frozen=True, slots=True)
class Run:
    """What one runner did with a clip. `cpu_ms`: of a core, for each picture that came back."""

    journey: Journey
    cpu_ms: float


# --- PyTrickle's environment


def default_environment() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "sluice" / "bench" / PACKAGES[0].replace("==", "-")


def peer_python(environment: Path) -> Path:
    """The Python of an environment that has PyTrickle; made if it is not there.

    Raises subprocess.SubprocessError or OSError when that is not to be had.
    """
    python = environment / "bin" / "python"
    if not python.exists():
        venv.create(environment, with_pip=False)
        packages = sysconfig.get_path("purelib", vars={"base": str(environment)})
        # Ours come after its own, which so win.
        Path(packages, "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    if not _has_pytrickle(python):
        pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps")
        subprocess.run([*pip, *PACKAGES], check=True, timeout=INSTALL_WITHIN_S, stdout=sys.stderr)
        _check(python)
    return python


def _has_pytrickle(python: Path) -> bool:
    with contextlib.suppress(subprocess.SubprocessError):
        _check(python)
        return True
    return False


def _check(python: Path) -> None:
    program = "import av, pytrickle; assert av.__version__ < '15', av.__version__"
    subprocess.run([str(python), "-c", program], check=True, timeout=60, stderr=subprocess.DEVNULL)


# --- the runners


def on_one_core() -> Callable[[], None] | None:
    """What a child does first, so that all of it shares the last core; None where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (lambda: os.sched_setaffinity(0, cores[-1:])) if len(cores) > 1 else None


@asynccontextmanager
async def _child(*words: str, environment: Mapping[str, str]) -> AsyncIterator[psutil.Process]:
    with tempfile.TemporaryFile() as log:
        process = await asyncio.create_subprocess_exec(
            *words,
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
            preexec_fn=on_one_core(),
        )
        try:
            yield psutil.Process(process.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def our_runner(url: str) -> AsyncIterator[psutil.Process]:
    """A runner of ours with `passthrough`, attached to the channels at `url`."""
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as directory:
        async with nats_server(Path(directory)) as nats:
            settings = {
                "NATS_URL": nats.url,
                "LISTEN": f"127.0.0.1:{port}",
                "METRICS_LISTEN": f"127.0.0.1:{port + 1}",
                "PIPELINES": "passthrough",
                "LOG_LEVEL": "warning",
            }
            environment = {f"SLUICE_INFERENCE_{name}": value for name, value in settings.items()}
            async with (
                _child(sys.executable, "-m", "services.inference", environment=environment) as process,
                channel(f"127.0.0.1:{port}") as to_runner,
            ):
                await _until_ready(f"http://127.0.0.1:{port + 1}/readyz", lambda answer: answer.is_success)
                request = runner_pb2.AttachRequest(
                    session="bench",
                    session_epoch=1,
                    slot_epoch=1,
                    channels=bridge_pb2.Channels(**{name: f"{url}/{name}" for name in CHANNELS}),
                    pipeline="passthrough",
                    params="{}",
                    revision=1,
                    delivery=runner_pb2.DELIVERY_LIVE,
                )
                await _attach(runner_pb2_grpc.RunnerStub(to_runner), request)
                yield process


async def _attach(stub: runner_pb2_grpc.RunnerStub, request: runner_pb2.AttachRequest) -> None:
    """The process is up before its engine is."""
    async with asyncio.timeout(READY_WITHIN_S):
        while True:
            try:
                await call(stub.Attach, request, runner_pb2.AttachResponse, timeout_s=5)
            except SluiceError:
                await asyncio.sleep(0.2)
            else:
                return


@asynccontextmanager
async def their_runner(url: str, python: Path) -> AsyncIterator[psutil.Process]:
    """PyTrickle's server, told to work between the channels at `url`."""
    (port,) = free_ports(1)
    base = f"http://127.0.0.1:{port}"
    async with _child(str(python), str(PROGRAM), str(port), environment={}) as process:
        await _until_ready(f"{base}/health", lambda answer: answer.json().get("status") == "IDLE")
        start = {
            "gateway_request_id": "bench",
            "subscribe_url": f"{url}/in",
            "publish_url": f"{url}/out",
            "params": {"width": 512, "height": 512, "max_framerate": FPS},
        }
        async with httpx.AsyncClient() as http:
            (await http.post(f"{base}/stream/start", json=start, timeout=20)).raise_for_status()
        yield process


async def _until_ready(url: str, ready: Callable[[httpx.Response], bool]) -> None:
    async with asyncio.timeout(READY_WITHIN_S), httpx.AsyncClient() as http:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if ready(await http.get(url)):
                    return
            await asyncio.sleep(0.1)


# --- a clip through one of them


async def through(url: str, process: psutil.Process, units: list[AccessUnit]) -> Run:
    """Write each picture of the clip to `in` when it is due, and note when it is back on `out`."""
    journey = Journey()

    async def watch() -> None:
        viewer = Viewer(journey)
        async with trickle_session() as http, Subscriber(http, f"{url}/out", start=0) as subscriber:
            async for segment in subscriber:
                async for data in segment:
                    viewer.feed(data)
                viewer.end_segment()

    watching = asyncio.ensure_future(watch())
    try:
        async with trickle_session() as http, Publisher(http, f"{url}/in") as publisher:
            sending = paced(units, journey)
            before, seconds = (0.0, 0), len(units) // FPS
            for second in range(seconds):
                if second == round(WARM_UP_S):
                    before = cpu_s(process), len(journey.received_s)
                async with publisher.segment() as segment:
                    for _ in range(FPS):
                        await segment.write(await anext(sending))
            after = cpu_s(process), len(journey.received_s)
            await publisher.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_S):
                    while len(journey.received_s) < len(units):
                        await asyncio.sleep(0.05)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, SluiceError):
            await watching
    return Run(journey, 1000 * (after[0] - before[0]) / max(after[1] - before[1], 1))


def cpu_s(process: psutil.Process) -> float:
    """Of a process and its children, so far."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total


async def ours(units: list[AccessUnit]) -> Run:
    with channels(*CHANNELS) as url:
        async with our_runner(url) as process:
            return await through(url, process, units)


async def theirs(units: list[AccessUnit], python: Path) -> Run:
    with channels(*CHANNELS) as url:
        async with their_runner(url, python) as process:
            return await through(url, process, units)
