"""What a stream and a session may become. Pure: values in, values out, time passed in."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NewType

from services.common.errors import ConflictError, InvalidError
from services.common.json_objects import merge_patch

SessionId = NewType("SessionId", str)
StreamId = NewType("StreamId", str)
MAX_SCHEDULED: Final = 100
ID: Final = re.compile(r"^[a-z]{3}_[0-9A-Za-z]{8,40}$")  # of streams, str_..., and sessions, ses_...


class Phase(enum.Enum):
    """Where a session is; the values are the wire's."""

    ALLOCATING = 1
    STARTING = 2
    LIVE = 3
    DEGRADED = 4
    PAUSED = 5
    MIGRATING = 6
    ENDED = 7


NEXT: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.ALLOCATING: frozenset({Phase.STARTING, Phase.ENDED}),
    Phase.STARTING: frozenset({Phase.LIVE, Phase.PAUSED, Phase.ENDED}),
    Phase.LIVE: frozenset({Phase.DEGRADED, Phase.PAUSED, Phase.MIGRATING, Phase.ENDED}),
    Phase.DEGRADED: frozenset({Phase.LIVE, Phase.PAUSED, Phase.MIGRATING, Phase.ENDED}),
    Phase.PAUSED: frozenset({Phase.LIVE, Phase.MIGRATING, Phase.ENDED}),
    Phase.MIGRATING: frozenset({Phase.LIVE, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class Delivery(enum.Enum):
    """Whether the newest frame wins or every frame comes back; the values are the wire's."""

    LIVE = 1
    COMPLETE = 2


class Reason(enum.StrEnum):
    """Why a session ended: each end has one, kept with the record."""

    STOPPED = "stopped"
    STREAM_DELETED = "stream_deleted"
    INPUT_ENDED = "input_ended"
    PUBLISHER_GONE = "publisher_gone"
    MAX_DURATION = "max_duration"
    CREDIT_EXHAUSTED = "credit_exhausted"
    INPUT_UNUSABLE = "input_unusable"
    NO_CAPACITY = "no_capacity"
    START_FAILED = "start_failed"
    START_INTERRUPTED = "start_interrupted"
    NO_OUTPUT = "no_output"
    RUNNER_LOST = "runner_lost"
    BRIDGE_LOST = "bridge_lost"
    STREAM_BUSY = "stream_busy"
    INTERNAL_ERROR = "internal_error"


@dataclass(frozen=True, slots=True)
class StageLatency:
    """What one stage of the media path took, in microseconds."""

    stage: str
    p50_us: int
    p95_us: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Where the time of a session's last pictures went, as its bridge had it at the end."""

    pictures: int = 0
    stages: tuple[StageLatency, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of a stream. `revision` counts changes of this record, for the logs."""

    id: SessionId
    stream: StreamId
    tenant: str
    pipeline: str
    owner: str
    bridge: str
    created_unix_ms: int
    phase: Phase = Phase.ALLOCATING
    end_reason: str = ""
    end_message: str = ""
    epoch: int = 1
    runner: str = ""
    runner_address: str = ""
    slot: int = 0
    slot_epoch: int = 0
    paid_until_ms: int = 0
    micro_per_second: int = 0
    ended_unix_ms: int = 0
    settled: bool = False
    revision: int = 0
    degraded_by: str = ""
    traceparent: str = ""
    delivery: Delivery = Delivery.LIVE
    max_duration_ms: int = 0
    latency: Latency = Latency()
    signalling: str = ""

    def to(self, phase: Phase) -> Session:
        """Return the session moved to `phase`, or raise `ConflictError`."""
        if phase not in NEXT[self.phase]:
            raise ConflictError("illegal transition", session=self.id, was=self.phase.name, asked=phase.name)
        return replace(self, phase=phase, revision=self.revision + 1)

    def with_(self, **changes: object) -> Session:
        """Return the session with other facts; phases change by `to` and `end` only."""
        assert "phase" not in changes
        return replace(self, revision=self.revision + 1, **changes)  # type: ignore[arg-type]

    def end(self, reason: str, message: str, now_unix_ms: int) -> Session:
        """Return the session ended; of several ends the first one holds."""
        if self.phase is Phase.ENDED:
            return self
        return replace(
            self.to(Phase.ENDED), end_reason=reason, end_message=message, ended_unix_ms=now_unix_ms
        )


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A patch that was accepted and takes effect at a picture of the session's timeline."""

    revision: int
    patch: Mapping[str, object]
    apply_at_pts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A durable stream: what a client created, with its complete parameters."""

    id: StreamId
    tenant: str
    name: str
    pipeline: str
    params: Mapping[str, object]
    params_schema: Mapping[str, object]
    created_unix_ms: int
    revision: int = 1
    delivery: Delivery = Delivery.LIVE
    session: str = ""
    last_session: str = ""
    output_rtmp_url: str = ""
    processes_audio: bool = False
    author: str = ""
    deleted: bool = False
    scheduled: tuple[Scheduled, ...] = field(default=())

    def patched(self, patch: Mapping[str, object], apply_at_pts: int) -> Stream:
        """Return the stream with `patch` as its next revision: at once, or scheduled."""
        revision = self.revision + 1
        if not apply_at_pts:
            return replace(self, params=merged(self.params, patch), revision=revision)
        if len(self.scheduled) >= MAX_SCHEDULED:
            raise InvalidError(
                f"at most {MAX_SCHEDULED} changes can be scheduled at a time", field="apply_at_pts"
            )
        waiting = (*self.scheduled, Scheduled(revision, patch, apply_at_pts))
        return replace(self, revision=revision, scheduled=waiting)

    def past(self, pts: int) -> Stream:
        """Return the stream with the scheduled patches that took effect up to `pts` folded in."""
        due = sorted(
            (item for item in self.scheduled if item.apply_at_pts <= pts),
            key=lambda item: (item.apply_at_pts, item.revision),
        )
        if not due:
            return self
        params = self.params
        for item in due:
            params = merged(params, item.patch)
        return replace(self, params=params, scheduled=tuple(i for i in self.scheduled if i not in due))

    def claimed_by(self, session: SessionId) -> Stream:
        """Return the stream with `session` as its live one. Raises ConflictError if it has another."""
        if self.session and self.session != session:
            raise ConflictError(
                "the stream has a publisher already",
                reason="STREAM_BUSY",
                stream=self.id,
                session=self.session,
            )
        return replace(self, session=session, last_session=session)

    def released_by(self, session: SessionId) -> Stream:
        """Return the stream idle again if `session` was its live one; what was scheduled goes with it."""
        return replace(self, session="", scheduled=()) if self.session == session else self


def merged(params: Mapping[str, object], patch: Mapping[str, object]) -> Mapping[str, object]:
    result = merge_patch(params, patch)
    assert isinstance(result, dict)
    return result


def difference(was: Mapping[str, object], now: Mapping[str, object]) -> dict[str, object]:
    """Return the merge patch that makes `now` of `was`."""
    patch: dict[str, object] = {name: None for name in was if name not in now}
    for name, value in now.items():
        old = was.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if old != value:
                patch[name] = difference(old, value)
        elif name not in was or old != value:
            patch[name] = value
    return patch
