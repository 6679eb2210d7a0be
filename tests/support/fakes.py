"""The neighbours of a service under test: real gRPC servers in this process, with what they know in the open.

Each answers as the real one does, refusals included, and can be told to misbehave: `fail` raises a number of
times, `hang` keeps callers waiting, `before` runs on the way in, and `die` cuts every connection.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from protos.billing.v1 import billing_pb2, billing_pb2_grpc
from protos.events.v1 import events_pb2
from protos.inference.v1 import runner_pb2, runner_pb2_grpc
from protos.ingest.v1 import bridge_pb2, bridge_pb2_grpc
from protos.router.v1 import router_pb2, router_pb2_grpc
from services.common.errors import (
    ConflictError,
    ExhaustedError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnauthenticatedError,
)
from services.common.grpc_server import serve_grpc
from services.common.latest import Latest

Hook = Callable[[], Awaitable[object]]
M = TypeVar("M", bound=Message)


class Fake:
    """What all of them share. `calls` has every call as (method, request), in order of arrival."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.address = ""
        self._faults: defaultdict[str, deque[SluiceError]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._hooks: dict[str, Hook] = {}
        self._server: grpc.aio.Server | None = None

    def fail(self, method: str, error: SluiceError, times: int = 1) -> None:
        self._faults[method].extend([error] * times)

    def hang(self, method: str) -> None:
        """Calls of `method` wait for `release`; what they do is done by then."""
        self._gates[method] = asyncio.Event()

    def release(self, method: str) -> None:
        self._gates.pop(method).set()

    def before(self, method: str, hook: Hook) -> None:
        """Await `hook` in the next call of `method`."""
        self._hooks[method] = hook

    async def die(self) -> None:
        assert self._server is not None
        await self._server.stop(None)

    def requests(self, method: str, of: type[M]) -> list[M]:
        found = [request for name, request in self.calls if name == method]
        assert all(isinstance(request, of) for request in found)
        return found

    async def _enter(self, method: str, request: Message) -> None:
        self.calls.append((method, request))
        if method in self._hooks:
            await self._hooks.pop(method)()
        if self._faults[method]:
            raise self._faults[method].popleft()

    async def _leave(self, method: str) -> None:
        if method in self._gates:
            await self._gates[method].wait()


@asynccontextmanager
async def serving(
    fake: Fake, add: Callable[[grpc.aio.Server], None], listen: str = "127.0.0.1:0"
) -> AsyncIterator[None]:
    def register(server: grpc.aio.Server) -> None:
        fake._server = server
        add(server)

    async with serve_grpc(register, listen, 0) as port:
        fake.address = f"127.0.0.1:{port}"
        yield


class FakeRouter(Fake, router_pb2_grpc.RouterServicer):
    """Grants the slots of `runners`, in their order; who finds none waits as long as it says."""

    def __init__(self, offers: list[router_pb2.PipelineCapacity]) -> None:
        super().__init__()
        self.offers = offers
        self.runners: dict[str, str] = {}  # name to address, one slot each
        self.held: dict[str, str] = {}  # runner to session
        self.epochs: defaultdict[str, int] = defaultdict(int)
        self.cold: set[str] = set()  # runners that have not loaded the pipeline
        self.frame_us: dict[str, int] = {}  # by runner, where it is measured
        self.waiting: list[str] = []  # sessions

    async def Grant(self, request: router_pb2.GrantRequest, context: Any) -> router_pb2.GrantResponse:
        await self._enter("Grant", request)
        name = await self._wait(request)
        if self.held.get(name) != request.session:
            self.held[name] = request.session
            self.epochs[name] += 1
        await self._leave("Grant")
        grant = router_pb2.Grant(
            runner=name, slot=0, slot_epoch=self.epochs[name], address=self.runners[name], boot_id="boot"
        )
        return router_pb2.GrantResponse(grant=grant)

    async def _wait(self, request: router_pb2.GrantRequest) -> str:
        now = asyncio.get_running_loop().time
        until_s = now() + request.wait_ms / 1000
        self.waiting.append(request.session)
        try:
            while True:
                fitting = self._fitting(request)
                if fitting:
                    return fitting[0]
                if now() >= until_s:
                    raise ExhaustedError("no slot is free", reason="NO_CAPACITY", retry_after_s=5, position=1)
                await asyncio.sleep(0.01)
        finally:
            self.waiting.remove(request.session)

    def _fitting(self, request: router_pb2.GrantRequest) -> list[str]:
        mine = [name for name, session in self.held.items() if session == request.session]
        free = [name for name in self.runners if name not in self.held]
        needs = request.requirements
        cold = self.cold if needs.warm else set()
        slow = {name for name in free if 0 < needs.max_frame_us < self.frame_us.get(name, 33_333)}
        return [name for name in (*mine, *free) if name not in {*request.exclude, *cold, *slow}]

    async def Release(self, request: router_pb2.ReleaseRequest, context: Any) -> router_pb2.ReleaseResponse:
        await self._enter("Release", request)
        mine = [
            name
            for name, session in self.held.items()
            if session == request.session and request.runner in {"", name}
        ]
        for name in mine:
            del self.held[name]
        return router_pb2.ReleaseResponse(released=len(mine))

    async def Capacity(self, request: Any, context: Any) -> router_pb2.CapacityResponse:
        await self._enter("Capacity", request)
        return router_pb2.CapacityResponse(pipelines=self.offers)

    async def Runners(self, request: Any, context: Any) -> router_pb2.RunnersResponse:
        await self._enter("Runners", request)
        adverts = [
            events_pb2.RunnerAdvert(runner=name, address=address) for name, address in self.runners.items()
        ]
        return router_pb2.RunnersResponse(
            runners=[router_pb2.RunnerView(advert=advert) for advert in adverts]
        )


class FakeBilling(Fake, billing_pb2_grpc.BillingServicer):
    """Every session can be paid for up to `credit_ms`."""

    def __init__(self) -> None:
        super().__init__()
        self.credit_ms = 3_600_000
        self.reserved: dict[str, int] = {}
        self.settled: set[str] = set()
        self.keys: dict[str, billing_pb2.AuthenticateResponse] = {}

    @property
    def holding(self) -> set[str]:
        """Sessions whose credit is not settled."""
        return set(self.reserved) - self.settled

    async def ReserveSlice(
        self, request: billing_pb2.ReserveSliceRequest, context: Any
    ) -> billing_pb2.ReserveSliceResponse:
        await self._enter("ReserveSlice", request)
        if request.session in self.settled:
            raise ConflictError("the session is settled", reason="SESSION_SETTLED")
        held_ms = self.reserved.get(request.session, 0)
        covered_ms = max(held_ms, min(request.until_ms, self.credit_ms))
        if covered_ms == held_ms and request.until_ms > held_ms:
            raise PaymentRequiredError("the credit does not cover it", reason="INSUFFICIENT_CREDIT")
        self.reserved[request.session] = covered_ms
        await self._leave("ReserveSlice")
        return billing_pb2.ReserveSliceResponse(paid_until_ms=covered_ms, micro_per_second=1000)

    async def Settle(self, request: billing_pb2.SettleRequest, context: Any) -> billing_pb2.SettleResponse:
        await self._enter("Settle", request)
        if request.session not in self.reserved:
            raise NotFoundError("no such session", reason="SESSION_NOT_FOUND")
        self.settled.add(request.session)
        return billing_pb2.SettleResponse()

    async def Authenticate(
        self, request: billing_pb2.AuthenticateRequest, context: Any
    ) -> billing_pb2.AuthenticateResponse:
        await self._enter("Authenticate", request)
        await self._leave("Authenticate")
        if request.key not in self.keys:
            raise UnauthenticatedError("the API key is not valid", reason="KEY_INVALID")
        return self.keys[request.key]


@dataclass
class OpenSession:
    """One session at the fake bridge."""

    opened: list[bridge_pb2.OpenRequest] = field(default_factory=list)
    epoch: int = 0  # that viewers get
    candidate: int = 0
    over: set[int] = field(default_factory=set)  # epochs that are closed
    closed: bridge_pb2.CloseRequest | None = None
    report: Latest[bridge_pb2.BridgeReport] = field(
        default_factory=lambda: Latest(
            bridge_pb2.BridgeReport(publisher=bridge_pb2.PUBLISHER_SENDING, output_age_ms=-1, input_age_ms=-1)
        )
    )

    def open(self, request: bridge_pb2.OpenRequest) -> None:
        highest = max([self.epoch, self.candidate, *self.over])
        if request.epoch in self.over or (
            request.epoch < highest and request.epoch not in {self.epoch, self.candidate}
        ):
            raise ConflictError("a newer epoch was open", reason="STALE_EPOCH", highest=highest)
        self.opened.append(request)
        if not self.epoch:
            self.epoch = request.epoch
        elif request.epoch != self.epoch:
            self.candidate = request.epoch
        self.see(epoch=self.epoch, candidate=self.candidate)

    def hand_over(self, **facts: Any) -> None:
        """Viewers get the candidate's output from here on."""
        self.over.add(self.epoch)
        self.epoch, self.candidate = self.candidate, 0
        self.see(
            epoch=self.epoch,
            candidate=0,
            stalled_ms=0,
            output_broken=False,
            output_age_ms=0,
            handover=bridge_pb2.Handover(**{"epoch": self.epoch, "freeze_ms": 40, **facts}),
        )

    def close_epoch(self, epoch: int) -> None:
        if epoch == self.epoch:
            raise ConflictError("viewers get it", reason="EPOCH_IS_CURRENT")
        self.over.add(epoch)
        if epoch == self.candidate:
            self.candidate = 0
            self.see(candidate=0)

    def see(self, **facts: Any) -> None:
        """Report `facts` from now on, and what was reported before."""
        seen = bridge_pb2.BridgeReport()
        seen.CopyFrom(self.report.value)
        for name, value in facts.items():
            seen.ClearField(name)  # type: ignore[arg-type]
            seen.MergeFrom(bridge_pb2.BridgeReport(**{name: value}))
        self.report.set(seen)


class FakeBridge(Fake, bridge_pb2_grpc.BridgeServicer):
    """Knows a session from `expect`, as if a publisher had come, until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: dict[str, OpenSession] = {}
        self.gone: dict[str, OpenSession] = {}
        self.latency = bridge_pb2.Latency()  # of every session, as it is closed
        self.shows = True  # what is promoted, at once

    def expect(self, session: str) -> OpenSession:
        self.sessions[session] = OpenSession()
        return self.sessions[session]

    def forget(self, session: str) -> None:
        """As a restarted ingest process does."""
        one = self.gone[session] = self.sessions.pop(session)
        one.report.set(one.report.value)

    def _session(self, session: str) -> OpenSession:
        if session not in self.sessions:
            raise NotFoundError(f"no session {session} at this bridge", reason="SESSION_NOT_HERE")
        return self.sessions[session]

    async def Open(self, request: bridge_pb2.OpenRequest, context: Any) -> bridge_pb2.OpenResponse:
        await self._enter("Open", request)
        self._session(request.session).open(request)
        await self._leave("Open")
        url = f"http://bridge.test/{request.session}"
        return bridge_pb2.OpenResponse(
            channels=bridge_pb2.Channels(
                **{"in": f"{url}/in"},
                out=f"{url}/out-{request.epoch}",
                control=f"{url}/control",
                events=f"{url}/events",
            )
        )

    async def Promote(self, request: bridge_pb2.PromoteRequest, context: Any) -> bridge_pb2.PromoteResponse:
        await self._enter("Promote", request)
        one = self._session(request.session)
        if request.epoch not in {one.epoch, one.candidate}:
            raise ConflictError("there is no such candidate", reason="NO_CANDIDATE")
        if self.shows and request.epoch == one.candidate:
            one.hand_over()
        await self._leave("Promote")
        return bridge_pb2.PromoteResponse()

    async def Close(self, request: bridge_pb2.CloseRequest, context: Any) -> bridge_pb2.CloseResponse:
        await self._enter("Close", request)
        one = self.sessions.get(request.session)
        if one is None:
            return bridge_pb2.CloseResponse()
        if request.epoch:
            one.close_epoch(request.epoch)
            return bridge_pb2.CloseResponse()
        one.closed = request
        self.forget(request.session)
        return bridge_pb2.CloseResponse(latency=self.latency, position=one.report.value.position)

    async def Report(
        self, request: bridge_pb2.ReportRequest, context: Any
    ) -> AsyncIterator[bridge_pb2.BridgeReport]:
        await self._enter("Report", request)
        one = self._session(request.session)
        while self.sessions.get(request.session) is one:
            await self._leave("Report")
            version = one.report.version
            yield one.report.value
            try:
                async with asyncio.timeout(0.2):  # the real one repeats itself every second
                    await one.report.newer_than(version)
            except TimeoutError:
                continue


class FakeRunner(Fake, runner_pb2_grpc.RunnerServicer):
    """A runner with one slot."""

    TERMINAL = (
        runner_pb2.SlotReport.STATE_FINISHED,
        runner_pb2.SlotReport.STATE_FAILED,
        runner_pb2.SlotReport.STATE_DETACHED,
    )

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.attached: runner_pb2.AttachRequest | None = None
        self.patches: list[runner_pb2.Patch] = []
        self.report = Latest(runner_pb2.SlotReport(state=runner_pb2.SlotReport.STATE_RUNNING))
        self.applies = "live"
        self.rebound: list[runner_pb2.RebindRequest] = []
        self.draining = False
        self.overlaps = 0  # attaches that found another session in the slot

    @property
    def session(self) -> str:
        """Whose session is in the slot; empty when it is free."""
        busy = self.attached is not None and self.report.value.state not in self.TERMINAL
        return self.attached.session if busy and self.attached else ""

    def say(self, state: runner_pb2.SlotReport.State.ValueType, reason: str = "", message: str = "") -> None:
        self.report.set(runner_pb2.SlotReport(state=state, reason=reason, message=message))

    def restart(self) -> None:
        """Know nothing, as a new process."""
        self.attached = None
        self.report.set(self.report.value)

    async def die(self) -> None:
        await super().die()
        self.attached = None

    async def Attach(self, request: runner_pb2.AttachRequest, context: Any) -> runner_pb2.AttachResponse:
        await self._enter("Attach", request)
        if self.session and self.attached is not None:
            mine = (self.attached.session, self.attached.session_epoch)
            if mine == (request.session, request.session_epoch):
                return runner_pb2.AttachResponse()
            self.overlaps += 1
            raise ConflictError("the slot is taken", reason="SLOT_OCCUPIED")
        self.attached = request
        self.patches = []
        self.say(runner_pb2.SlotReport.STATE_RUNNING)
        await self._leave("Attach")
        return runner_pb2.AttachResponse()

    async def Update(self, request: runner_pb2.UpdateRequest, context: Any) -> runner_pb2.UpdateResponse:
        await self._enter("Update", request)
        self._find(request.session)
        self.patches.append(request.patch)
        await self._leave("Update")
        return runner_pb2.UpdateResponse(applies=self.applies)

    async def Rebind(self, request: runner_pb2.RebindRequest, context: Any) -> runner_pb2.RebindResponse:
        await self._enter("Rebind", request)
        self._find(request.session)
        self.rebound.append(request)
        return runner_pb2.RebindResponse(in_pts=9000, out_pts=8000)

    async def Drain(self, request: runner_pb2.DrainRequest, context: Any) -> runner_pb2.DrainResponse:
        await self._enter("Drain", request)
        self.draining = not request.cancel
        return runner_pb2.DrainResponse()

    async def Detach(self, request: runner_pb2.DetachRequest, context: Any) -> runner_pb2.DetachResponse:
        await self._enter("Detach", request)
        if self.session == request.session:
            self.say(runner_pb2.SlotReport.STATE_DETACHED, request.reason)
        await self._leave("Detach")
        return runner_pb2.DetachResponse()

    async def Watch(
        self, request: runner_pb2.WatchRequest, context: Any
    ) -> AsyncIterator[runner_pb2.SlotReport]:
        await self._enter("Watch", request)
        while True:
            await self._leave("Watch")
            self._find(request.session)
            version = self.report.version
            yield self.report.value
            if self.report.value.state in self.TERMINAL and version == self.report.version:
                return
            try:
                async with asyncio.timeout(0.2):  # the real one repeats itself every second
                    await self.report.newer_than(version)
            except TimeoutError:
                continue

    def _find(self, session: str) -> None:
        if self.attached is None or self.attached.session != session:
            raise NotFoundError("the session is not on this runner", reason="UNKNOWN_SESSION")
