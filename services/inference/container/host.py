"""A container as the host of sessions: looked at all the time, ready while it is idle.

The rule it keeps: nothing is offered that the container did not say it can do now, and a container that is
busy with somebody else's stream is not ready.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Gauge

from services.common.errors import ConflictError, InvalidError, SluiceError
from services.common.latest import Latest
from services.common.lifecycle import background
from services.common.settings import host_port
from services.common.trickle.connection import trickle_session
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference.assignment import Assignment
from services.inference.container.channels import ContainerChannels
from services.inference.container.client import GONE, ContainerClient, Status
from services.inference.container.registration import Capability, registration_app
from services.inference.container.session import Container, ContainerSession
from services.inference.hosting import Offer
from services.inference.serving import serve_aiohttp
from services.inference.settings import InferenceSettings

log = structlog.get_logger()

READY: Final = Gauge("sluice_container_ready", "Whether the container can be given a session, or has ours.")
LOOK_S: Final = 0.5
LOOPBACK: Final = "127.0.0.1:0"


class ContainerHost:
    """See `hosting.Host`. `watch` is its loop."""

    def __init__(
        self, settings: InferenceSettings, http: ClientSession, registry: Registry, base_url: str
    ) -> None:
        self.offers: Latest[tuple[Offer, ...]] = Latest(())
        self._settings = settings
        self._http = http
        self._registry = registry
        self._base_url = base_url
        self._status = Latest(Status.GONE)
        self._looked_at: Latest[None] = Latest(None)
        self._session: ContainerSession | None = None  # the newest
        self._silent_since_s: float | None = None
        self._now_s = asyncio.get_running_loop().time
        self.capability: Latest[Capability | None] = Latest(None)
        if settings.container_url:
            self.capability.set(
                Capability(
                    settings.container_capability, settings.container_url, settings.container_description
                )
            )

    @property
    def ready(self) -> bool:
        return bool(self.offers.value) and (self._status.value is Status.IDLE or self._serving)

    @property
    def _serving(self) -> bool:
        return self._session is not None and not self._session.report.value.state.terminal

    def session(self, of: Assignment) -> ContainerSession:
        """Raises InvalidError for complete delivery: a container drops what it has no time for."""
        if not of.live:
            raise InvalidError(
                "a container cannot promise that no picture is lost: delivery is live", field="delivery"
            )
        capability = self.capability.value
        assert capability is not None, "nothing is offered before"
        settings = self._settings
        client = ContainerClient(self._http, capability.url, settings.container_token.get_secret_value())
        container = Container(client, self._status, self._looked_at, settings.container_params_schema)
        channels = ContainerChannels.open(self._registry, of.session, self._base_url)
        self._session = ContainerSession(of, container, channels, settings)
        return self._session

    def register(self, capability: Capability) -> None:
        """Take a container in that says itself what it is; the same one again changes nothing.

        Raises ConflictError while another one has a stream, if the settings name another one, and for another
        name than the first: a runner is known by what it offers.
        """
        there = self.capability.value
        if there == capability:
            return
        if there is not None and (
            self._serving or self._settings.container_url or there.name != capability.name
        ):
            raise ConflictError("there is another container already", reason="CONTAINER_THERE")
        self.capability.set(capability)

    async def watch(self) -> None:
        """Look at the container for ever: a loop for `background`."""
        while True:
            capability = self.capability.value
            if capability is None:
                await self.capability.newer_than(self.capability.version)
                continue
            token = self._settings.container_token.get_secret_value()
            self._see(await self._look(ContainerClient(self._http, capability.url, token)), capability)
            await asyncio.sleep(LOOK_S)

    async def _look(self, client: ContainerClient) -> Status:
        """What it says; one that is silent for a while is still what it was."""
        try:
            status = await client.health()
        except SluiceError as error:
            now_s = self._now_s()
            self._silent_since_s = now_s if self._silent_since_s is None else self._silent_since_s
            silent_s = now_s - self._silent_since_s
            lost = error.reason == GONE or silent_s >= self._settings.container_lost_after_s
            return Status.GONE if lost else self._status.value
        self._silent_since_s = None
        return status

    def _see(self, status: Status, capability: Capability) -> None:
        if status is not self._status.value:
            log.info("the container", status=status.value, url=capability.url)
            self._status.set(status)
        self._looked_at.set(None)
        able = status in {Status.IDLE, Status.OK}
        if able != bool(self.offers.value) or (able and self.offers.value[0].name != capability.name):
            self.offers.set((self._offer(capability),) if able else ())
        READY.set(self.ready)

    def _offer(self, capability: Capability) -> Offer:
        settings = self._settings
        return Offer(
            name=capability.name,
            version="container",
            description=capability.description,
            params_schema=settings.container_params_schema,
            processes_audio=settings.container_processes_audio,
            slots_per_engine=1,
        )


@asynccontextmanager
async def container_host(settings: InferenceSettings) -> AsyncIterator[ContainerHost]:
    """A container, with the channels that it is given, until the block ends."""
    registry = Registry()
    app = trickle_app(registry)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(trickle_session())
        listen = settings.container_channels_listen or LOOPBACK
        port = await stack.enter_async_context(serve_trickle(app, listen, settings.shutdown_grace_s))
        base_url = settings.container_channels_url or f"http://{host_port(listen)[0]}:{port}"
        host = ContainerHost(settings, http, registry, base_url)
        await stack.enter_async_context(background(container=host.watch(), channels=registry.sweep()))
        if settings.container_register_listen:
            secret = settings.container_register_secret.get_secret_value()
            await stack.enter_async_context(
                serve_aiohttp(
                    registration_app(host.register, secret),
                    settings.container_register_listen,
                    settings.shutdown_grace_s,
                )
            )
        yield host
