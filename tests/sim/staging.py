"""The played world put under the production code, where that meets the outside and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING
from unittest.mock import patch

import nats

from services.billing import __main__ as billing
from services.common import lifecycle
from services.inference import __main__ as inference
from services.inference import leaving
from services.router import __main__ as router
from services.session_manager import __main__ as session_manager
from tests.sim import runners
from tests.sim.nats_client import connector
from tests.sim.net import Net

if TYPE_CHECKING:
    from tests.sim.world import World


class Health:
    """In the place of a process's health."""

    def ready(self, *_: object, **__: object) -> None:
        """Nobody asks."""


@asynccontextmanager
async def _telemetry(*_: object, **__: object) -> AsyncIterator[Health]:
    yield Health()


class _Channels:
    """In the place of `grpc_client.Channels`."""

    def __init__(self, net: Net) -> None:
        self.to = net.to

    async def __aenter__(self) -> _Channels:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """There is nothing to close."""


@asynccontextmanager
async def _no_gateways(*_: object) -> AsyncIterator[None]:
    yield


def staged(world: World, stack: AsyncExitStack) -> None:
    """Put the played world under the production code, as long as the stack is open."""

    @asynccontextmanager
    async def channel(address: str) -> AsyncIterator[object]:
        yield world.net.to(address)

    played: dict[str, object] = {
        "telemetry": _telemetry,
        "serve_grpc": world.net.serve,
        "until_terminated": world.until_terminated,
        "Channels": lambda: _Channels(world.net),
        "channel": channel,
        "_host": lambda settings: runners.played_host(world, settings),
        "_gateways": _no_gateways,
        "_labels": lambda _: {},
    }
    stack.enter_context(patch.object(nats, "connect", connector(world.broker)))
    modules: list[ModuleType] = [
        billing,
        router,
        session_manager,
        inference,
        leaving,
        lifecycle,
    ]
    for module in modules:
        for name, value in played.items():
            if hasattr(module, name):
                stack.enter_context(patch.object(module, name, value))
