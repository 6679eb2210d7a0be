"""A router as its callers see it: a real server in this process, and calls that raise our own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from protos.router.v1 import router_pb2 as router
from protos.router.v1.router_pb2_grpc import RouterStub
from services.common.bus import Bus, connect
from services.common.grpc_client import call, channel
from services.router.__main__ import serve
from services.router.settings import RouterSettings

if TYPE_CHECKING:
    from protos.router.v1.router_pb2_grpc import RouterAsyncStub


class RouterClient:
    """Calls of one router."""

    def __init__(self, stub: RouterAsyncStub, bus: Bus) -> None:
        self.stub = stub
        self.bus = bus  # the router's own connection

    async def grant(
        self,
        session: str,
        pipeline: str = "passthrough",
        *,
        wait_ms: int = 0,
        exclude: Sequence[str] = (),
        region: str = "",
        gpu_class: str = "",
        labels: Mapping[str, str] | None = None,
        max_micro_per_second: int = 0,
        policy: router.Policy.ValueType = router.POLICY_UNSPECIFIED,
        warm: bool = False,
        max_frame_us: int = 0,
        priority: int = 0,
    ) -> router.Grant:
        request = router.GrantRequest(
            session=session,
            requirements=router.Requirements(
                pipeline=pipeline,
                region=region,
                gpu_class=gpu_class,
                labels=labels,
                max_micro_per_second=max_micro_per_second,
                policy=policy,
                warm=warm,
                max_frame_us=max_frame_us,
            ),
            wait_ms=wait_ms,
            exclude=exclude,
            priority=priority,
        )
        timeout_s = wait_ms / 1000 + 10
        return (await call(self.stub.Grant, request, router.GrantResponse, timeout_s=timeout_s)).grant

    async def release(self, session: str, runner: str = "") -> int:
        request = router.ReleaseRequest(session=session, runner=runner)
        return (await call(self.stub.Release, request, router.ReleaseResponse, timeout_s=10)).released

    async def queue(self, pipeline: str = "", session: str = "") -> list[router.QueuePlace]:
        """Who waits, the next one first."""
        request = router.QueueRequest(pipeline=pipeline, session=session)
        return list((await call(self.stub.Queue, request, router.QueueResponse, timeout_s=10)).places)

    async def capacity(self) -> dict[str, router.PipelineCapacity]:
        """By pipeline, as soon as the router knows the fleet."""
        request = router.CapacityRequest()
        answer = await call(self.stub.Capacity, request, router.CapacityResponse, timeout_s=10)
        return {line.pipeline: line for line in answer.pipelines}

    async def runners(self) -> dict[str, router.RunnerView]:
        """The fleet by name, as soon as the router knows it."""
        answer = await call(self.stub.Runners, router.RunnersRequest(), router.RunnersResponse, timeout_s=10)
        return {view.advert.runner: view for view in answer.runners}

    async def states(self) -> dict[str, str]:
        """The state of each slot, by `<runner>.<n>`."""
        return {
            f"{name}.{slot.slot}": router.SlotState.Name(slot.state).removeprefix("SLOT_STATE_")
            for name, view in (await self.runners()).items()
            for slot in view.slots
        }


@asynccontextmanager
async def router_client(
    nats_url: str, settings: RouterSettings | None = None, random: Random | None = None
) -> AsyncIterator[RouterClient]:
    """A router on a connection and a port of its own."""
    settings = settings or RouterSettings(listen="127.0.0.1:0", shutdown_grace_s=0.5)
    async with (
        connect(nats_url, "router") as bus,
        serve(bus, settings, random or Random()) as port,
        channel(f"127.0.0.1:{port}") as open_channel,
    ):
        yield RouterClient(RouterStub(open_channel), bus)
