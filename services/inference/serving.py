"""aiohttp as a block: we bind the socket and take the signals, it serves."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from services.common.settings import host_port


@asynccontextmanager
async def serve_aiohttp(app: web.Application, listen: str, grace_s: float) -> AsyncIterator[int]:
    """Serve `app` until the block ends; yields the bound port. Raises OSError when the port is taken."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=grace_s)
    await runner.setup()
    try:
        listener = socket.create_server(host_port(listen), backlog=128)
        await web.SockSite(runner, listener).start()
        yield listener.getsockname()[1]
    finally:
        await runner.cleanup()
