"""Trickle channels on our own server in a process of their own, so that it takes nothing of who measures."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from services.common import lifecycle
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from tests.support.stack import free_ports


def _serve(tell: Connection, names: tuple[str, ...]) -> None:
    async def serve() -> None:
        registry = Registry()
        for name in names:
            registry.open(name, content_type="video/MP2T", read_alias=name, write_alias=name)
        (port,) = free_ports(1)
        async with serve_trickle(trickle_app(registry), f"127.0.0.1:{port}", 1.0):
            tell.send(f"http://127.0.0.1:{port}")
            await asyncio.Event().wait()

    lifecycle.run(serve())


@contextmanager
def channels(*names: str) -> Iterator[str]:
    """Channels that anybody may read and write, until the block ends; yields the server's address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, names), daemon=True)
    process.start()
    try:
        assert ours.poll(20), "the trickle server did not start"
        yield ours.recv()
    finally:
        process.kill()
        process.join()
