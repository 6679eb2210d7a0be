"""One session on somebody else's container: started, steered, watched and stopped over its HTTP API.

The rule it keeps: the container reads the bridge's `in` and writes its `out` without us; all else goes
through here, and whatever the container does, or does not, the session ends with a reason and within a bound.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from aiohttp import ClientSession, ClientTimeout
from prometheus_client import Counter

from services.common.errors import ConflictError, ExhaustedError, InvalidError, SluiceError
from services.common.latest import Latest
from services.common.lifecycle import background
from services.common.trickle.connection import TRANSPORT_ERRORS
from services.inference.address import Address
from services.inference.announcer import Announcer
from services.inference.assignment import Assignment, Channels, State
from services.inference.container import dialect
from services.inference.container.channels import ContainerChannels
from services.inference.container.client import ContainerClient, Status
from services.inference.container.steering import Steering
from services.inference.container.watching import InputClock, OutputWatch
from services.inference.inlet import ended_in_order
from services.inference.line import CRASHED, SessionFailedError
from services.inference.outlet import BRIDGE_LOST
from services.inference.params import Fold, Patch
from services.inference.remarks import RemarkWriter
from services.inference.reporting import ReportedSession
from services.inference.settings import InferenceSettings

log = structlog.get_logger()

UNREAD: Final = Counter(
    "sluice_container_unread_total", "Events of a container that we have no word for: its heartbeats, too."
)
FAILED: Final = "pipeline_failed"
KEEP_ALIVE_S: Final = 2.0
START_AGAIN_S: Final = 0.5
WIND_DOWN_S: Final = 8.0  # from the end of the input; PyTrickle gives itself 7 s to flush
ENDS_WITH_INPUT_S: Final = 1.0  # it may have seen the end of the input before we did
POKE_S: Final = 0.2  # it may notice its end only when something comes on `control`
DELETE_WITHIN_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Container:
    """What a session needs of the container that it runs on; `status` is the newest that was seen."""

    client: ContainerClient
    status: Latest[Status]
    looked_at: Latest[None]  # moves with each look
    schema: dict[str, Any]


class ContainerSession(ReportedSession):
    """One that the container was asked to take."""

    def __init__(
        self,
        assignment: Assignment,
        container: Container,
        channels: ContainerChannels,
        settings: InferenceSettings,
    ) -> None:
        at = assignment.channels
        super().__init__(assignment, Announcer(Address(at.events)), RemarkWriter(Address(at.data)))
        self._container = container
        self._channels = channels
        self._settings = settings
        self._clock = InputClock(at.in_, at.start, settings.bridge_lost_after_s)
        self._output = OutputWatch(
            at.out,
            self._clock,
            hang_after_s=settings.hang_after_s,
            lost_after_s=settings.bridge_lost_after_s,
        )
        self._steering = Steering(assignment.fold, container.schema, self._clock, self._events)
        self._begun = False  # the container took the stream

    @property
    def fold(self) -> Fold:
        return self._steering.fold

    @fold.setter
    def fold(self, fold: Fold) -> None:
        self._steering.fold = fold

    def _failing(self, reason: str) -> None:
        self._events.tell(type="health", state="error", cause=reason)

    def _over(self) -> None:
        self._channels.close()

    async def update(self, patch: Patch, fold: Fold) -> None:
        """Take a revision in; `fold` is the session's with it. It is sent when it is due."""
        self._steering.take(fold)

    def rebind(self, channels: Channels, session_epoch: int) -> None:
        """Raises ConflictError: a container is told its URLs once, when it starts."""
        raise ConflictError("a container has no other bridge", reason="REBIND_UNSUPPORTED")

    async def _stream(self, http: ClientSession) -> None:
        """Raises SessionFailedError, in a group."""
        self._events.tell(type="loading", why="start", stage="container", percent=0)
        await self._start()
        self._events.tell(type="loading", why="start", stage="container", percent=100)
        async with background(
            begun=self._tell_first_output(),
            output=self._output.run(http),
            health=self._watch_health(http),
            parameters=self._steering.run(self._container.client, self._channels),
            keep_alive=self._keep_alive(),
            events=self._hear_events(),
            data=self._hear_data(),
        ):
            await self._clock.run(http)
            if not await ended_in_order(http, self.assignment.channels.control):
                raise SessionFailedError(BRIDGE_LOST, "the bridge has closed the session")
        await self._wind_down()
        await self._close_output(http)

    async def _start(self) -> None:
        of = self.assignment
        body = {
            "gateway_request_id": of.session,
            "stream_id": of.session,
            "subscribe_url": of.channels.in_,
            "publish_url": of.channels.out,
            **self._channels.urls,
            "params": dict(self._steering.first()),
        }
        busy = ""
        try:
            async with asyncio.timeout(self._settings.container_start_timeout_s):
                while not self._begun:
                    try:
                        await self._container.client.start(body)
                        self._begun = True
                    except ExhaustedError as error:  # it loads, or ends the stream before ours
                        busy = error.message
                        await asyncio.sleep(START_AGAIN_S)
        except TimeoutError:
            raise SessionFailedError(FAILED, f"the container did not take the stream: {busy}") from None
        except InvalidError as error:
            raise SessionFailedError(FAILED, f"the container refused the stream: {error.message}") from error
        except SluiceError as error:
            self._begun = True  # perhaps: it is told to stop
            raise SessionFailedError(CRASHED, f"the stream did not start: {error.message}") from error

    async def _tell_first_output(self) -> None:
        await self._output.begun.wait()
        self.report.set(replace(self.report.value, state=State.RUNNING))
        self._events.tell(type="health", state="online", cause="pictures come out of the container")
        for revision in self._steering.at_start:
            pts = self._clock.first_pts
            self._events.tell(type="applied", revision=revision, pts=pts, applies="live")
        await asyncio.Event().wait()

    async def _watch_health(self, http: ClientSession) -> None:
        """Raises SessionFailedError when the container ended the stream, or ended itself."""
        status = self._container.status
        await self._looked()
        while True:
            match status.value:
                case Status.ERROR:
                    raise SessionFailedError(FAILED, "the container says that it is in error")
                case Status.GONE:
                    raise SessionFailedError(CRASHED, "the container is gone")
                case Status.LOADING:
                    raise SessionFailedError(CRASHED, "the container started anew")
                case Status.IDLE:
                    await asyncio.sleep(ENDS_WITH_INPUT_S)
                    await self._output.reach(http)
                    raise SessionFailedError(FAILED, "the container ended the stream by itself")
            await status.newer_than(status.version)

    async def _looked(self) -> None:
        """Wait for two looks at the container, of which the second began after now."""
        looks = self._container.looked_at
        await looks.newer_than(looks.version + 1)

    async def _keep_alive(self) -> None:
        while True:
            self._channels.say()
            await asyncio.sleep(KEEP_ALIVE_S)

    async def _hear_events(self) -> None:
        async for text in self._channels.heard("events"):
            event = dialect.event(text)
            if event is None:
                UNREAD.inc()
            elif not self._events.full:
                self._events.tell(**event)
        await asyncio.Event().wait()

    async def _hear_data(self) -> None:
        async for text in self._channels.heard("data"):
            for remark in dialect.remarks(text):
                self._remarks.put(self._clock.newest.value or 0, remark)
        await asyncio.Event().wait()

    async def _wind_down(self) -> None:
        """The input has ended: the container flushes, and is idle in the end."""
        status = self._container.status
        try:
            async with asyncio.timeout(WIND_DOWN_S):
                await self._looked()
                while status.value is Status.OK:
                    self._channels.say()
                    await asyncio.sleep(POKE_S)
        except TimeoutError:
            log.warning("the container does not end the stream by itself")
        else:
            self._begun = False

    async def _close_output(self, http: ClientSession) -> None:
        """Say at the bridge that nothing more comes: containers do not."""
        try:
            timeout = ClientTimeout(total=DELETE_WITHIN_S)
            async with http.delete(self.assignment.channels.out, timeout=timeout):
                pass
        except TRANSPORT_ERRORS as error:
            log.warning("the output stays open", error=repr(error))

    async def _let_go(self) -> None:
        """Stop what the container may still do for us, within the bound that a detach has."""
        if not self._begun:
            return
        self._begun = False
        try:
            await self._container.client.stop(self._settings.detach_timeout_s)
        except SluiceError as error:
            log.warning("the container was not stopped", error=error.message)
