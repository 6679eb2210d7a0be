"""What a stream and a session may become. Pure: values in, values out, time passed in."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NewType

from services.common.errors import ConflictError, InvalidError
from services.common.json_objects import merge_patch
from services.common.param_schema import with_defaults

SessionId = NewType("SessionId", str)
StreamId = NewType("StreamId", str)
MAX_SCHEDULED: Final = 100
MAX_HISTORY: Final = 32  # revisions that can be taken back; a runner refuses what it was just told
HISTORY_BYTES: Final = 256 * 1024  # and a record has its limit
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
        return replace(self, phase=phase, degraded_by="", revision=self.revision + 1)

    def seen_in(self, phase: Phase, *, degraded_by: str) -> Session:
        """Return the session as it was seen; one that has ended stays so, whatever was seen before."""
        if self.phase is Phase.ENDED:
            return self
        if self.phase is not phase:
            return replace(self.to(phase), degraded_by=degraded_by)
        return self if self.degraded_by == degraded_by else self.with_(degraded_by=degraded_by)

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


@dataclass(frozen=True, slots=True)
class Before:
    """What a revision replaced: the values that there were, and the names that had none."""

    revision: int
    values: Mapping[str, object]
    added: tuple[str, ...] = ()

    @classmethod
    def of(cls, item: Scheduled, was: Mapping[str, object]) -> Before:
        """What there was of all that a patch names, also where it changes nothing."""
        values = {name: was[name] for name in item.patch if name in was}
        return cls(item.revision, values, tuple(name for name in item.patch if name not in was))

    @property
    def names(self) -> frozenset[str]:
        return frozenset((*self.values, *self.added))

    def put_back(self, names: frozenset[str], params: Mapping[str, object]) -> Mapping[str, object]:
        """Return `params` with those of `names` as they were."""
        kept = {name: value for name, value in params.items() if name not in names}
        return {**kept, **{name: value for name, value in self.values.items() if name in names}}

    def instead(self, names: frozenset[str], earlier: Before) -> Before:
        """Return it as if `earlier`, the revision before it that changed these `names`, had not been."""
        added = [name for name in self.added if name not in names]
        added += [name for name in earlier.added if name in names]
        return Before(self.revision, earlier.put_back(names, self.values), tuple(added))


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
    history: tuple[Before, ...] = field(default=())

    def patched(self, patch: Mapping[str, object], apply_at_pts: int) -> Stream:
        """Return the stream with `patch` as its next revision: at once, or scheduled."""
        revision = self.revision + 1
        if not apply_at_pts:
            return replace(self.after(Scheduled(revision, patch, 0)), revision=revision)
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
        stream = replace(self, scheduled=tuple(i for i in self.scheduled if i not in due))
        for item in due:
            stream = stream.after(item)
        return stream

    def after(self, item: Scheduled) -> Stream:
        """Return the stream with a patch that takes effect, and with what it replaces."""
        # null removes in a merge patch, also where null is the default; clients want every parameter there is
        params = with_defaults(merged(self.params, item.patch), self.params_schema)
        if not self.session:
            return replace(self, params=params)  # there is no runner that could refuse it
        history = (*self.history, Before.of(item, self.params))[-MAX_HISTORY:]
        sizes = [len(json.dumps(one.values)) for one in history]
        while history and sum(sizes) > HISTORY_BYTES:
            history, sizes = history[1:], sizes[1:]
        return replace(self, params=params, history=history)

    def without(self, refused: Collection[int]) -> Stream:
        """Return the stream as if the `refused` revisions had not been: a revision of its own.

        What later ones made of the same parameters stays.
        """
        params, history = self.params, self.history
        for revision in [one.revision for one in history if one.revision in refused]:
            params, history = taken_out(revision, params, history)
        waiting = tuple(item for item in self.scheduled if item.revision not in refused)
        kept = replace(self, scheduled=waiting, history=history)
        if params == self.params:
            return kept
        return replace(kept, params=params, revision=self.revision + 1)

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
        if self.session != session:
            return self
        return replace(self, session="", scheduled=(), history=())


def merged(params: Mapping[str, object], patch: Mapping[str, object]) -> Mapping[str, object]:
    result = merge_patch(params, patch)
    assert isinstance(result, dict)
    return result


def taken_out(
    revision: int, params: Mapping[str, object], history: tuple[Before, ...]
) -> tuple[Mapping[str, object], tuple[Before, ...]]:
    """Return parameters and history without one revision of the history."""
    place = next(place for place, one in enumerate(history) if one.revision == revision)
    gone, names, later = history[place], history[place].names, []
    for one in history[place + 1 :]:
        later.append(one.instead(names & one.names, gone))
        names -= one.names
    return gone.put_back(names, params), (*history[:place], *later)


def whole(patch: Mapping[str, object], params: Mapping[str, object]) -> dict[str, object]:
    """Return the merge patch that puts each value of `patch` in the place of all of what `params` have there.

    A merge patch alone would leave what an object had before: nobody could take a LoRA out of a list of them.
    """
    return {name: _whole(value, params.get(name)) for name, value in patch.items()}


def _whole(value: object, old: object) -> object:
    if not isinstance(value, Mapping) or not isinstance(old, Mapping):
        return value
    return {**dict.fromkeys(old), **whole(value, old)}


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
