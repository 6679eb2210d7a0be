"""What a stream and a session may become. Pure: values in, values out, time passed in."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NewType

from services.common.errors import ConflictError, InvalidError
from services.common.param_schema import with_defaults
from services.session_manager.revisions import Before, Scheduled, merged, taken_out

SessionId = NewType("SessionId", str)
StreamId = NewType("StreamId", str)
MAX_SCHEDULED: Final = 100
MAX_HISTORY: Final = 32  # revisions that can be taken back; a runner refuses what it was just told
HISTORY_BYTES: Final = 256 * 1024  # and a record has its limit
MAX_MOVES: Final = 8  # of a session, that its record tells of
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
    Phase.STARTING: frozenset({Phase.LIVE, Phase.PAUSED, Phase.MIGRATING, Phase.ENDED}),
    Phase.LIVE: frozenset({Phase.DEGRADED, Phase.PAUSED, Phase.MIGRATING, Phase.ENDED}),
    Phase.DEGRADED: frozenset({Phase.LIVE, Phase.PAUSED, Phase.MIGRATING, Phase.ENDED}),
    Phase.PAUSED: frozenset({Phase.LIVE, Phase.MIGRATING, Phase.ENDED}),
    # Back to STARTING: it never showed a picture, and stays where it is after all.
    Phase.MIGRATING: frozenset({Phase.STARTING, Phase.LIVE, Phase.DEGRADED, Phase.PAUSED, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


class Delivery(enum.Enum):
    """Whether the newest frame wins or every frame comes back; the values are the wire's."""

    LIVE = 1
    COMPLETE = 2


class Policy(enum.Enum):
    """By what runners that fit are compared; the values are the wire's."""

    UNSPECIFIED = 0
    BALANCED = 1
    CHEAPEST = 2
    FASTEST = 3


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
    BRIDGE_LOST = "bridge_lost"
    STREAM_BUSY = "stream_busy"
    BREAKS_RUNNERS = "breaks_runners"
    PRICE_ABOVE_CAP = "price_above_cap"
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


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a stream asks of where it runs."""

    region: str = ""
    gpu_class: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    max_micro_per_second: int = 0
    policy: Policy = Policy.UNSPECIFIED
    priority: int = 0
    max_wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A slot that a session has or is about to have, and its epoch there."""

    runner: str = ""
    address: str = ""
    slot: int = 0
    slot_epoch: int = 0
    epoch: int = 0
    boot_id: str = ""
    why: str = ""

    def same_slot(self, other: Place) -> bool:
        """Whether it is the very slot of `other`: a runner that restarted may be given its session again."""
        mine = (self.runner, self.slot, self.slot_epoch)
        return mine == (other.runner, other.slot, other.slot_epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a session's media is: where another bridge goes on."""

    in_pts: int = 0
    out_pts: int = 0
    session_ms: int = 0
    delivered_ms: int = 0
    paused_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """That viewers got the output of another runner, and what it cost them."""

    unix_ms: int
    left: str
    to: str
    why: str
    epoch: int
    freeze_ms: int = 0
    lost: int = 0
    repeated: int = 0


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
    wishes: Wishes = field(default_factory=Wishes)
    next: Place | None = None
    move_wanted: str = ""
    moves: tuple[Move, ...] = ()
    failures: int = 0
    bridge_lost_unix_ms: int = 0
    boot_id: str = ""

    @property
    def place(self) -> Place:
        """Where it is now."""
        return Place(self.runner, self.runner_address, self.slot, self.slot_epoch, self.epoch, self.boot_id)

    @property
    def newest_epoch(self) -> int:
        """The highest that its record knows of."""
        return max(self.epoch, self.next.epoch if self.next else 0)

    def at(self, place: Place) -> Session:
        """Return the session where `place` is, in that epoch, and nowhere else."""
        return self.with_(
            runner=place.runner,
            runner_address=place.address,
            slot=place.slot,
            slot_epoch=place.slot_epoch,
            epoch=place.epoch,
            boot_id=place.boot_id,
            next=None,
        )

    def moved(self, move: Move, *, failures: int = 0) -> Session:
        """Return the session live at its next place, with `failures` more to its record.

        Raises ConflictError when it is not on its way there.
        """
        if self.next is None or self.next.epoch != move.epoch:
            raise ConflictError("the session does not move there", session=self.id, epoch=move.epoch)
        arrived = self.to(Phase.LIVE) if self.phase is Phase.MIGRATING else self
        moves = (*self.moves, move)[-MAX_MOVES:]
        return replace(arrived.at(self.next), move_wanted="", moves=moves, failures=self.failures + failures)

    def wished_elsewhere(self, why: str) -> Session:
        """Return the session wished to another runner. Raises ConflictError unless it is live, and stays."""
        if self.next is not None or self.move_wanted or self.phase is Phase.MIGRATING:
            raise ConflictError("the session moves already", reason="MOVES_ALREADY", session=self.id)
        if self.phase not in {Phase.LIVE, Phase.DEGRADED, Phase.PAUSED} or self.bridge_lost_unix_ms:
            raise ConflictError(
                "the session is not live", reason="NOT_LIVE", session=self.id, phase=self.phase.name.lower()
            )
        return self.with_(move_wanted=why)

    def heading(self, place: Place, *, above: int = 0) -> Session:
        """Return the session on its way to `place`, in an epoch of its own `above` all others.

        Raises ConflictError when it has ended, or has no bridge to take its media from.
        """
        if self.bridge_lost_unix_ms:
            raise ConflictError("the session has no bridge", reason="BRIDGE_LOST", session=self.id)
        epoch = max(self.newest_epoch, above) + 1
        return self.leaving().with_(next=replace(place, epoch=epoch))

    def leaving(self) -> Session:
        """Return the session looking for another runner. Raises ConflictError when it has ended."""
        return self if self.phase is Phase.MIGRATING else self.to(Phase.MIGRATING)

    def staying(self, phase: Phase, *, failures: int = 0) -> Session:
        """Return the session where it is, and on its way to nowhere, with `failures` more to its record."""
        going = self.to(phase) if self.phase is Phase.MIGRATING else self
        return going.with_(next=None, failures=self.failures + failures)

    def without_bridge(self, bridge: str, *, now_unix_ms: int) -> Session:
        """Return the session waiting for its publisher, for its ingest process `bridge` is not there."""
        if self.phase is Phase.ENDED or self.bridge != bridge or self.bridge_lost_unix_ms:
            return self
        paused = self if self.phase is Phase.PAUSED else self.to(Phase.PAUSED)
        return paused.with_(bridge_lost_unix_ms=now_unix_ms)

    def with_bridge(self) -> Session:
        """Return the session with an ingest process that answers."""
        if self.phase is Phase.ENDED or not self.bridge_lost_unix_ms:
            return self
        return self.with_(bridge_lost_unix_ms=0)

    def proven(self, epoch: int) -> Session:
        """Return the session with a runner that it does not break."""
        if self.phase is Phase.ENDED or self.epoch != epoch or not self.failures:
            return self
        return self.with_(failures=0)

    def rejoined(self, *, bridge: str, signalling: str) -> Session:
        """Return the session with its media at another bridge, in an epoch of its own; a move is called off.

        Raises ConflictError when it has ended.
        """
        if self.phase is Phase.ENDED:
            raise ConflictError("the session has ended", reason="SESSION_ENDED", session=self.id)
        stayed = self.to(Phase.PAUSED) if self.phase is Phase.MIGRATING else self
        return stayed.with_(
            bridge=bridge,
            signalling=signalling,
            epoch=self.newest_epoch + 1,
            next=None,
            bridge_lost_unix_ms=0,
        )

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
    wishes: Wishes = field(default_factory=Wishes)

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
