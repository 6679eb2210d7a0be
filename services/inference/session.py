"""One attached session at the runner: from the bridge to the engine, and from the engine back to the bridge.

The rule it keeps: media waits for nothing but media, and every end of a session has a reason.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Counter, Histogram

from services.common.errors import NotFoundError, SluiceError, UnavailableError
from services.common.latest import Latest
from services.common.lifecycle import background
from services.common.media.mpegts import Codec, Demuxer, unwrap
from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import NEXT, RANDOM_ACCESS, ChannelClosedError
from services.common.trickle.publisher import Publisher
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from services.inference.intake import Intake
from services.inference.outlet import Outlet
from services.inference.packets import Media, Message, Packet
from services.inference.params import Fold, Patch
from services.inference.supervisor import Line, SessionFailedError, Supervisor

log = structlog.get_logger()

FRAMES: Final = Counter("sluice_frames_total", "Pictures that left a stage.", ["stage"])
DROPPED: Final = Counter("sluice_frames_dropped_total", "Pictures that were dropped, by where.", ["stage"])
INFER_SECONDS: Final = Histogram(
    "sluice_infer_seconds",
    "A picture through a pipeline, with the conversion to RGB.",
    ["pipeline"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.033, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
CONTROL_IGNORED: Final = Counter("sluice_control_ignored_total", "Control messages that mean nothing here.")

BRIDGE_LOST: Final = "bridge_lost"
GARBAGE_AFTER_S: Final = 5.0  # bytes without a single access unit in them
EVENTS_WAITING: Final = 1000  # a bridge that takes none of so many is not there
EVENTS_WITHIN_S: Final = 1.0  # after the end, for the last words
RETRY_S: Final = 0.5
CONTROL_BYTES: Final = 64 * 1024


class State(enum.Enum):
    """Where a session at this runner is; the values are the wire's."""

    STARTING = 1
    RUNNING = 2
    FINISHED = 3
    FAILED = 4
    DETACHED = 5

    @property
    def terminal(self) -> bool:
        return self not in {State.STARTING, State.RUNNING}


@dataclass(frozen=True, slots=True)
class Report:
    """What the runner knows of a session."""

    state: State = State.STARTING
    reason: str = ""
    message: str = ""
    decoded: int = 0
    inferred: int = 0
    encoded: int = 0
    dropped: int = 0
    infer_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Channels:
    """URLs at the bridge: `in_` and `control` are read, the others written."""

    in_: str
    out: str
    control: str
    events: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What an attach says."""

    session: str
    session_epoch: int
    slot: int
    slot_epoch: int
    channels: Channels
    pipeline: str
    fold: Fold
    live: bool
    headers: Mapping[str, str]  # of the trace that it belongs to


class Session:
    """`report` ends in a terminal state, set when the engine has let go of the session."""

    def __init__(self, assignment: Assignment, supervisor: Supervisor, bridge_lost_after_s: float) -> None:
        self.assignment = assignment
        self.report = Latest(Report())
        self.fold = assignment.fold
        self.stopped = (State.FAILED, "runner_stopped")  # what a cancellation means
        self._supervisor = supervisor
        self._bridge_lost_after_s = bridge_lost_after_s
        self._line: Line | None = None
        self._input = Intake()
        self._output = Intake()
        self._events = _Events()
        self._failed: asyncio.Future[SessionFailedError] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Live until the input has ended, something failed, or the task is cancelled."""
        state, reason, message = State.FAILED, "internal_error", ""
        try:
            state, reason, message = await self._live()
        except asyncio.CancelledError:
            state, reason = self.stopped
            raise
        finally:
            if self._line is not None:
                await self._supervisor.close(self._line)
            self.report.set(replace(self.report.value, state=state, reason=reason, message=message))
            log.info("session ended", state=state.name, reason=reason, message=message)

    async def update(self, patch: Patch, fold: Fold) -> None:
        """Take a revision in; `fold` is the session's with it. Raises NotFoundError when the session just ended."""
        self.fold = fold
        if self._line is None:
            return  # it will be part of the opening
        try:
            await self._line.say(
                "update", revision=patch.revision, patch=patch.patch, apply_at_pts=patch.apply_at_pts
            )
        except SessionFailedError as failure:
            raise NotFoundError(failure.message, reason="SESSION_ENDED") from failure

    async def _live(self) -> tuple[State, str, str]:
        end = (State.FINISHED, "", "")
        async with trickle_session() as http:
            http.headers.update(self.assignment.headers)
            async with background(events=self._publish_events(http)):
                try:
                    await self._stream(http)
                except* SessionFailedError as failures:
                    first = _first(failures)
                    end = (State.FAILED, first.reason, first.message)
                if end[0] is State.FINISHED:
                    self._events.tell(type="finished")
                else:
                    self._events.tell(type="error", reason=end[1], message=end[2])
                await self._events.delivered(EVENTS_WITHIN_S)
        return end

    async def _stream(self, http: ClientSession) -> None:
        """Raises SessionFailedError, in a group."""
        line = self._supervisor.line(self.assignment.slot, self._received)
        self._line = line
        await self._open(line)
        async with (
            background(engine=_raises(line.failure), pipeline=_raises(self._failed), control=self._obey(http, line)),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._read(http))
            group.create_task(self._feed(line))
            group.create_task(self._write(http, line))

    async def _open(self, line: Line) -> None:
        of = self.assignment
        scheduled = [
            {"revision": one.revision, "patch": one.patch, "apply_at_pts": one.apply_at_pts}
            for one in self.fold.patches
        ]
        await line.say(
            "open",
            pipeline=of.pipeline,
            revision=self.fold.revision,
            params=self.fold.params,
            scheduled=scheduled,
            live=of.live,
        )
