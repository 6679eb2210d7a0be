"""Where records, slots and runners say different things of a session. Pure: facts in, differences out.

The rules it keeps: what is younger than a call's time-out is no difference, for somebody is at it; a session
that starts or moves is its owner's business; whoever is not heard says nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from services.common.topology import slot_key
from services.session_manager.machine import ID, Phase, Place, Session, Stream

# A session in one of these phases has arrived at its place; in the others it is on its way.
SETTLED_IN: Final = frozenset({Phase.STARTING, Phase.LIVE, Phase.DEGRADED, Phase.PAUSED})


class Kind(enum.StrEnum):
    """What is wrong; the values are a metric's labels."""

    SLOT_OF_NOBODY = "slot_of_nobody"  # held for a session that has ended, or never was: freed
    SLOT_BESIDE = "slot_beside"  # held for a session that is elsewhere: freed
    SLOT_MISSING = "slot_missing"  # free, and its runner works for the session: held again
    SLOT_LOST = "slot_lost"  # another session's meanwhile: the session moves
    CLAIM_OF_NOBODY = "claim_of_nobody"  # a runner works for a session that has ended: detached
    CLAIM_BESIDE = "claim_beside"  # a runner works for a session that is elsewhere: detached
    RUNNER_FORGOT = "runner_forgot"  # the session is where nobody works for it: it moves
    STREAM_OF_NOBODY = "stream_of_nobody"  # it names a session that has ended, or never was: idle again


# The session moves away, for where it is it cannot stay.
MOVES: Final = frozenset({Kind.SLOT_LOST, Kind.RUNNER_FORGOT})
# The slot's key is written.
SLOTS: Final = frozenset({Kind.SLOT_OF_NOBODY, Kind.SLOT_BESIDE, Kind.SLOT_MISSING})
CLAIMS: Final = frozenset({Kind.CLAIM_OF_NOBODY, Kind.CLAIM_BESIDE})


@dataclass(frozen=True, slots=True)
class HeldSlot:
    """What the bucket says of a slot, and the revision in which it says so."""

    session: str
    epoch: int
    granted_unix_ms: int
    revision: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What a runner says of one of its slots."""

    slot: int
    session: str
    slot_epoch: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A runner's newest heartbeat, if it is fresh."""

    runner: str
    address: str
    boot_id: str
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known at one moment, by the session's, stream's and runner's names, and by slots' keys."""

    sessions: Mapping[str, Session]
    streams: Mapping[str, Stream]
    slots: Mapping[str, HeldSlot]
    runners: Mapping[str, Heard]

    def of(self, drift: Drift, *, session: Session | None, slot: HeldSlot | None) -> Facts:
        """Return what bears on `drift` alone, with the session's record and the slot as they are now."""
        key = slot_key(drift.place.runner, drift.place.slot)
        runner = self.runners.get(drift.place.runner)
        stream = self.streams.get(drift.stream)
        return Facts(
            sessions={session.id: session} if session else {},
            streams={stream.id: stream} if stream else {},
            slots={key: slot} if slot else {},
            runners={runner.runner: runner} if runner else {},
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """One difference. Equal ones are the same one, seen again."""

    kind: Kind
    session: str
    place: Place = Place()  # noqa: RUF009 - frozen
    stream: str = ""
    revision: int = 0  # of the slot's key
    recorded: bool = True  # False: there is no record, which a fresh one may only lack for us


def drifts(facts: Facts, *, now_unix_ms: int, settle_ms: int) -> list[Drift]:
    """Return every difference, claims before the slots that they hold."""
    before_ms = now_unix_ms - settle_ms
    return [
        *_claims(facts, before_ms),
        *_slots(facts, before_ms),
        *_sessions(facts, before_ms),
        *_streams(facts, before_ms),
    ]


def _over(session: Session | None, before_ms: int) -> bool:
    """Whether nobody is at it any more."""
    return session is None or (session.phase is Phase.ENDED and session.ended_unix_ms < before_ms)


def _claims(facts: Facts, before_ms: int) -> Iterator[Drift]:
    for runner in facts.runners.values():
        for claim in runner.claims:
            session = facts.sessions.get(claim.session)
            if session is not None and _has(session, runner.runner, claim.slot, claim.slot_epoch):
                continue
            if not ID.match(claim.session):
                continue  # of another gateway, which has its own records
            place = Place(runner.runner, runner.address, claim.slot, claim.slot_epoch)
            if _over(session, before_ms):
                yield Drift(Kind.CLAIM_OF_NOBODY, claim.session, place, recorded=session is not None)
            elif session is not None and session.phase in SETTLED_IN:
                yield Drift(Kind.CLAIM_BESIDE, claim.session, place)


def _slots(facts: Facts, before_ms: int) -> Iterator[Drift]:
    for key, held in facts.slots.items():
        if not held.session or held.granted_unix_ms >= before_ms:
            continue
        session = facts.sessions.get(held.session)
        runner, _, number = key.rpartition(".")
        if session is not None and _has(session, runner, int(number)):
            continue
        if not ID.match(held.session):
            continue
        place = Place(runner=runner, slot=int(number), slot_epoch=held.epoch)
        if _over(session, before_ms):
            recorded = session is not None
            yield Drift(Kind.SLOT_OF_NOBODY, held.session, place, revision=held.revision, recorded=recorded)
        elif session is not None and session.phase in SETTLED_IN:
            yield Drift(Kind.SLOT_BESIDE, held.session, place, revision=held.revision)


def _has(session: Session, runner: str, slot: int, slot_epoch: int | None = None) -> bool:
    """Whether the session, which has not ended, is or is about to be there: by that grant, or by any."""
    if session.phase is Phase.ENDED:
        return False
    return any(
        place.runner == runner and place.slot == slot and slot_epoch in {None, place.slot_epoch}
        for place in (session, session.next)
        if place is not None
    )


def _sessions(facts: Facts, before_ms: int) -> Iterator[Drift]:
    for session in facts.sessions.values():
        if (
            session.phase not in SETTLED_IN
            or session.move_wanted
            or session.next is not None
            or session.created_unix_ms >= before_ms
        ):
            continue
        held = facts.slots.get(slot_key(session.runner, session.slot))
        runner = facts.runners.get(session.runner)
        works = runner is not None and any(
            claim.session == session.id
            and claim.slot == session.slot
            and claim.slot_epoch == session.slot_epoch
            for claim in runner.claims
        )
        if held and held.session == session.id:
            if not works and runner is not None and runner.boot_id == session.boot_id:
                yield Drift(Kind.RUNNER_FORGOT, session.id, _place(session))
        elif held and (held.session or held.epoch > session.slot_epoch):
            yield Drift(Kind.SLOT_LOST, session.id, _place(session))
        elif works:
            revision = held.revision if held else 0
            yield Drift(Kind.SLOT_MISSING, session.id, _place(session), revision=revision)


def _place(session: Session) -> Place:
    """Where it is, without what changes while it stays there."""
    return replace(session.place, epoch=0)


def _streams(facts: Facts, before_ms: int) -> Iterator[Drift]:
    for stream in facts.streams.values():
        session = facts.sessions.get(stream.session)
        if stream.session and not stream.deleted and _over(session, before_ms):
            yield Drift(Kind.STREAM_OF_NOBODY, stream.session, stream=stream.id, recorded=session is not None)


class Sightings:
    """What was seen before, and since when: a difference counts when it is seen again after its patience."""

    def __init__(self, *, patience_s: float, unrecorded_patience_s: float) -> None:
        self._patience_s = patience_s
        self._unrecorded_patience_s = unrecorded_patience_s
        self._since_s: dict[Drift, float] = {}

    def lasting(self, seen: Sequence[Drift], now_s: float) -> list[Drift]:
        """Return those of `seen` that were there long enough; what is not seen now is forgotten."""
        self._since_s = {drift: self._since_s.get(drift, now_s) for drift in seen}
        return [drift for drift in seen if now_s - self._since_s[drift] >= self._patience(drift)]

    def forget(self) -> None:
        """Begin anew: what was seen was seen through a link that broke."""
        self._since_s.clear()

    def repaired(self, drift: Drift) -> None:
        self._since_s.pop(drift, None)

    def _patience(self, drift: Drift) -> float:
        return self._patience_s if drift.recorded else self._unrecorded_patience_s


def by_name(heard: Iterable[Heard]) -> dict[str, Heard]:
    return {runner.runner: runner for runner in heard}
