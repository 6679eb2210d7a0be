"""A real nats-server with JetStream, on a port of its own, that a test may stop, kill and start again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import shutil
import signal
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from services.common.bus import Bus

BINARY: Final = Path(sys.executable).with_name("nats-server")
ANY_PORT: Final = -1
START_TIMEOUT_S: Final = 10.0
CUT_WITHIN_S: Final = 2.0


class NatsServer:
    """One server and its store; the port and what it stored survive `kill` and `start`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = ANY_PORT
        self._process: asyncio.subprocess.Process | None = None
        self.stood_still = False

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Start it, on the same port as before, and wait until it takes connections."""
        assert self._process is None, "it runs"
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "nats.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(BINARY),
                *("--jetstream", "--store_dir", str(self._directory / "store")),
                *("--addr", "127.0.0.1", "--port", str(self._port), "--ports_file_dir", str(self._directory)),
                stdout=log,
                stderr=log,
            )
        ports = self._directory / f"{BINARY.name}_{self._process.pid}.ports"
        async with asyncio.timeout(START_TIMEOUT_S):
            while not (ports.exists() and ports.read_text()):
                assert self._process.returncode is None, (self._directory / "nats.log").read_text()
                await asyncio.sleep(0.01)
        self._port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])

    async def terminate(self) -> None:
        """End it as an operator does."""
        await self._end("terminate")

    async def kill(self) -> None:
        """End it as a power cut does."""
        await self._end("kill")

    def freeze(self) -> None:
        """Let it stand still: its connections stay, and nothing is answered."""
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGSTOP)
        self.stood_still = True

    def thaw(self) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(signal.SIGCONT)

    def lose_store(self) -> None:
        """Forget all that was stored, as a volume does that was lost."""
        assert self._process is None, "it runs"
        shutil.rmtree(self._directory / "store")

    async def _end(self, how: str) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                getattr(self._process, how)()
            await self._process.wait()
            self._process = None


@asynccontextmanager
async def nats_server(directory: Path) -> AsyncIterator[NatsServer]:
    """A server that runs until the block ends, with its store and its log under `directory`."""
    server = NatsServer(directory)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()
        if server.stood_still:
            _collect()


async def cut_off(bus: Bus) -> None:
    """Let nothing more go from `bus` to its server, as if its process had lost power."""
    client: Any = bus._client
    client.options["allow_reconnect"] = False
    client._transport._io_writer.transport.abort()
    async with asyncio.timeout(CUT_WITHIN_S):
        while client.is_connected:
            await asyncio.sleep(0)


def _collect() -> None:
    """Connections to a server that stands still are given up by nats-py without being closed, which warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
