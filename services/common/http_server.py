"""uvicorn as a block: we bind the socket and take the signals, it serves."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from services.common.settings import host_port

if TYPE_CHECKING:
    from fastapi import FastAPI

PEER_TIMEOUT_MS: Final = 30_000


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_http(app: FastAPI, listen: str, grace_s: float) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the bound port. Raises OSError when the port is taken."""
    host, port = host_port(listen)
    listener = socket.create_server((host, port), backlog=512)
    # Inherited by every connection: a peer that acknowledges nothing is gone, also while data waits for it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
    config = uvicorn.Config(
        app,
        http="h11",  # its pausing of a reader and a writer is what paces publishers and bounds viewers
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    server = _Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]), name="http")
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()
